"""What differs for certain, and what nobody can tell."""

from sepo_env.identity import cannot_be_told, differences


def shown(old: object, new: object) -> list[str]:
    return [str(entry) for entry in differences("reward", old, new)]


def certain(old: object, new: object) -> list[bool]:
    return [entry.doubt is None for entry in differences("reward", old, new)]


def test_every_entry_that_differs_is_named_with_both_values() -> None:
    old = {"a": {"b": 1, "c": [1, 2]}, "d": "x"}
    new = {"a": {"b": 2, "c": [1, 3]}, "e": "x"}
    assert shown(old, new) == [
        "reward.a.b was 1, is 2",
        "reward.a.c[1] was 2, is 3",
        "reward.e was None, is 'x'",
        "reward.d was 'x', is None",
    ]
    assert shown(old, old) == []


def test_doubts_are_no_differences() -> None:
    one, other = cannot_be_told("a list", [1]), cannot_be_told("a list", [2])
    assert shown({"f": one}, {"f": one}) == ["reward.f (a list)"]
    assert shown({"f": one}, {"f": other}) == ["reward.f (a list; was [1], is [2])"]
    assert certain({"f": one}, {"f": other}) == [False]
    assert certain({"f": one}, {"f": [1]}) == [True]


def test_equal_values_may_be_enough() -> None:
    one, other = (cannot_be_told("a dict", value, unless_seen=True) for value in (1, 2))
    assert shown(one, one) == []
    assert certain(one, other) == [False]


def test_code_of_another_python_cannot_be_compared() -> None:
    old, new = {"code": "cpython-311 aa", "defaults": [1]}, {"code": "cpython-312 bb", "defaults": [1]}
    assert shown(old, new) == [
        "reward.code (compiled by cpython-311, and here by cpython-312; was 'cpython-311 aa', is 'cpython-312 bb')"
    ]
    assert certain(old, new) == [False]
    assert certain(old, {**new, "defaults": [2]}) == [False, True]
    assert certain(old, {**old, "code": "cpython-311 bb"}) == [True]
