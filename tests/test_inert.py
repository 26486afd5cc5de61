"""What was found is told in a few words, whatever it is."""

import torch

from sepo_env.loading.inert import Inert, outline, shown


def test_anything_is_told_in_a_few_words():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 10**6, 10**5000, deep, {"a": deep}, list(range(10**6)), torch.ones(1000), Inert()):
        assert len(shown(value)) <= 300
        assert len(outline({"x" * 10**6: value, 10**5000: value})) < 200
    assert shown("${eval:1}") == "'${eval:1}'"
    assert shown(10**5000) == "one of type int"
    assert outline({"a": 1, 2: "b", "\ud800": None}) == "3 entries (a: int, 2: str, \\ud800: NoneType)"
    assert outline([1]) == "list"
    assert outline(dict.fromkeys("abcdefgh")).endswith("f: NoneType, ...)")


def test_inert_objects_say_what_they_were():
    assert repr(Inert("os.system")) == "<os.system, not loaded>"
    assert repr(Inert("a\x1b[0m.b")) == "<a\\x1b[0m.b, not loaded>"
    assert len(repr(Inert("x" * 10**6))) < 300
    assert Inert("a") != Inert("a")
    assert len({Inert("a"), Inert("a")}) == 2
