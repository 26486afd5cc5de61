"""Pickles are followed step by step: plain values come back, all else stays inert, and nothing outside is reached."""

import collections
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.inert import Inert
from sepo_env.pickles import PickleReader
from tests import crafted
from tests.crafted import START, built, called, dictionary, named, number, program, text, tuple_of


def follow(content: bytes) -> Any:
    return PickleReader(
        content, functions={}, values={"torch.float32": torch.float32}, persistent=lambda pid: pid
    ).load()


# Plain values

PLAIN = {
    "a": [1, -2, 2.5, None, True, False, (3, (4, "x", 5, 6)), {5}, 1 << 100, -(1 << 40), 70_000, ""],
    "long": list(range(3000)),
    (1, "b"): {2: [], 3.5: ()},
    None: {True: "ä\ud800"},
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_come_back(protocol: int) -> None:
    assert follow(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_bytes_come_back_where_the_protocol_has_them() -> None:
    value = [b"7", b"8" * 300, frozenset({6, "a"})]
    for protocol in (4, 5):
        assert follow(pickle.dumps(value, protocol)) == value
    assert follow(pickle.dumps(bytearray(b"9"), 5)) == bytearray(b"9")


@pytest.mark.parametrize("protocol", range(6))
def test_what_is_shared_stays_shared(protocol: int) -> None:
    value: dict[str, Any] = {"a": [1]}
    value |= {"again": value["a"], "self": value}
    found = follow(pickle.dumps(value, protocol))
    assert found["again"] is found["a"]
    assert found["self"] is found


@pytest.mark.parametrize("protocol", range(6))
def test_dictionaries_of_other_kinds_are_dictionaries(protocol: int) -> None:
    ordered = collections.OrderedDict(b=1, a=2)
    ordered.versions = {"": 1}  # type: ignore[attr-defined] # as state_dict has
    value = [ordered, collections.defaultdict(list, c=[3])]
    assert follow(pickle.dumps(value, protocol)) == [{"b": 1, "a": 2}, {"c": [3]}]


def test_long_containers_pass() -> None:
    value = [list(range(300_000)), tuple(range(300_000)), dict.fromkeys(range(50_000))]
    assert follow(pickle.dumps(value, 2)) == value


class Configuration:
    """An object with a state."""

    def __init__(self) -> None:
        self.sizes = [1, 2]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_objects_are_inert_and_keep_their_state(protocol: int) -> None:
    found = follow(pickle.dumps({"a": Configuration(), "b": Configuration, "c": LookupError("x")}, protocol))
    assert all(type(entry) is Inert for entry in found.values())
    assert found["a"].described.endswith("test_machine.Configuration")
    assert found["a"].state == {"sizes": [1, 2]}
    assert found["b"].state is None


# What is reached


def test_nothing_is_named_but_by_name() -> None:
    for module, name in [
        ("os", "system"),
        ("torch", "nn"),
        ("torch", "_inductor"),
        ("torch", "float64"),
        ("x" * 99, "y"),
    ]:
        found = follow(program(named(module, name)))
        assert (type(found), found.described) == (Inert, f"{module}.{name}")
    assert follow(program(named("torch", "float32"))) is torch.float32


@pytest.mark.parametrize(
    "content",
    [
        called(named("os", "getcwd")),
        b"(" + named("os", "getcwd") + b"o",
        b"(ios\ngetcwd\n",
        named("os", "getcwd") + b")\x81",
        named("os", "getcwd") + b")}\x92",
        text("os") + text("getcwd") + b"\x93)R",
        called(named("builtins", "getattr"), named("os", "path"), text("sep")),
    ],
)
def test_nothing_is_called(content: bytes) -> None:
    assert type(follow(program(content))) is Inert


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        (b"]", "'list'"),
        (b")", "'tuple'"),
        (b"\x8f", "'set'"),
        (text("a"), "'str'"),
        (named("torch", "float32"), "'dtype'"),
        (b"N", "'NoneType'"),
    ],
)
@pytest.mark.parametrize("state", [dictionary(text("a"), number(1)), b"N" + dictionary(text("a"), number(1)) + b"\x86"])
def test_states_are_of_inert_objects_only(target: bytes, kind: str, state: bytes) -> None:
    with pytest.raises(ValueError, match=f"restores the state of {kind}"):
        follow(program(built(target, state)))


def test_a_state_is_kept_and_not_read() -> None:
    state = b"N" + dictionary(text("described"), text("other"), text("__class__"), named("a", "b")) + b"\x86"
    found = follow(program(built(named("x", "y"), state)))
    assert found.described == "x.y"
    assert found.state[1]["described"] == "other"
    assert type(found) is Inert
    ordered = named("collections", "OrderedDict") + b")R"
    found = follow(program(built(ordered, dictionary(text("items"), number(1)))))
    assert (type(found), found) == (dict, {})
    assert callable(found.items)


def test_inert_objects_let_go_what_they_are_given() -> None:
    other = named("x", "y")
    for entries in (b"(NNu", b"Na", b"(NNe", b"(NN\x90", b"NNs"):
        assert type(follow(program(other + entries))) is Inert


# Damage


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "ends too early"),
        (b"}", "ends too early"),
        (b"\xff.", "an opcode that there is not"),
        (b".", "too little on the stack"),
        (START + b"a.", "too little on the stack"),
        (START + b"\x85.", "too little on the stack"),
        (START + b"q\x00.", "too little on the stack"),
        (START + b"t.", "no mark on the stack"),
        (START + b"0.", "no mark on the stack"),
        (START + b"h\x00.", "the memo has nothing at 0"),
        (START + b"}r" + struct.pack("<I", 1 << 20) + b".", "the memo index 1048576 after 2 opcodes"),
        (START + b"}p1048576\n.", "the memo index 1048576 after 2 opcodes"),
        (START + b"}p-1\n.", "the memo index -1 after 2 opcodes"),
        (START + b"\x82\x01.", "the opcode EXT1"),
        (START + b"\x97.", "the opcode NEXT_BUFFER"),
        (START + b"Pname\n.", "the opcode PERSID"),
        (START + b"X\x05\x00\x00\x00abc.", "expected 5 bytes"),
        (START + b"}(Nu.", "zip|shorter"),
        (START + b"NN\x93.", "by something else than text"),
        (START + b"])R.", r"calls \[\] with \(\)"),
        (START + named("a", "b") + b"]R.", "calls <a.b, not loaded> with"),
        (START + b"(o.", "calls None with"),
        (START + b"N(NNe.", "appends to 'NoneType'"),
        (START + b"](NNu.", "sets an entry of 'list'"),
        (START + b"}]Ns.", "a key with a part of the type 'list'"),
        (START + b"}]\x85Ns.", "a key with a part of the type 'list'"),
        (START + b"\x8f(}\x90.", "a key with a part of the type 'dict'"),
        (START + called(named("builtins", "set"), number(5)) + b".", "makes a container of 'int'"),
        (START + called(named("builtins", "set"), *[b"N"] * 17) + b".", "with 17 arguments"),
    ],
)
def test_what_no_pickler_writes_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        follow(content)
    with pytest.raises(CheckpointError, match=f"not a whole checkpoint of torch .*{message}"):
        read_foreign(crafted.archive(tmp_path / "a.ckpt", content))


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_cut_off_is_never_read(protocol: int) -> None:
    whole = pickle.dumps({"a": [1, (2, "b")], "c": Configuration}, protocol)
    for length in range(len(whole)):
        with pytest.raises((ValueError, IndexError)):
            follow(whole[:length])


def test_random_programs_end_in_a_value_or_a_named_error(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base = pickle.dumps({"a": [1, (2, "b"), {3: 4}], "c": Configuration(), "d": 1 << 70}, 2)
    for _ in range(300):
        content = bytearray(base)
        for place in torch.randint(len(base), (3,), generator=generator).tolist():
            content[place] = int(torch.randint(256, (1,), generator=generator))
        try:
            read_foreign(crafted.archive(tmp_path / "a.ckpt", bytes(content)))
        except CheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017 - whether it is raised depends on the program


def test_letters_that_a_terminal_obeys_are_spelled_out(tmp_path: Path) -> None:
    kind = named("x\x1b[31m", "\x1b]0;title\x07Y")
    content = tuple_of(text("storage"), kind, text("0"), text("cpu"), number(1)) + b"Q"
    with pytest.raises(
        CheckpointError, match=r"of the kind x\\x1b\[31m.\\x1b\]0;title\\x07Y cannot be read"
    ) as refused:
        read_foreign(crafted.archive(tmp_path / "a.ckpt", program(dictionary(text("w"), content))))
    assert str(refused.value).isprintable()
