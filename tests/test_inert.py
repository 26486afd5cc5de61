"""Pickles are looked through before they run, and what was found is told in a few words."""

import pickle
import struct
import zipfile

import pytest
import torch

from sepo_env.errors import CheckpointError
from sepo_env.foreign import read_foreign
from sepo_env.inert import Inert, check_program, outline, shown

LEVELS = 1_000


def nested(levels: int) -> bytes:
    """A dictionary whose key is a tuple in a tuple in a tuple."""
    return b"\x80\x02})" + b"\x85" * levels + b"Ns."


def shared(levels: int) -> bytes:
    """A dictionary whose key is a pair of one and the same pair, and so on: hashing it takes 2 ** levels steps."""
    return b"\x80\x02})" + b"2\x86" * levels + b"Ns."


@pytest.mark.parametrize("protocol", range(6))
def test_what_pickle_writes_passes(protocol):
    value = {"a": [1, 2.5, None, (3, (4, "x")), {5}, frozenset({6}), b"7", bytearray(b"8"), 1 << 100], "b": 1j}
    value["again"] = [value["a"], value, LookupError("x"), torch.float32, range(3)]
    check_program(pickle.dumps(value, protocol))


def test_long_containers_pass():
    check_program(pickle.dumps([list(range(300_000)), tuple(range(300_000)), dict.fromkeys(range(100_000))], 2))


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"\x80\x02}r" + struct.pack("<I", 1 << 20) + b".", "the memo index 1048576 after 2 opcodes"),
        (b"\x80\x02}p1048576\n.", "the memo index 1048576 after 2 opcodes"),
        (nested(LEVELS), "nested deeper than 1000"),
        (b"\x80\x02" + b"]" * 1100 + b"a" * 1099 + b".", "nested deeper than 1000"),
        (shared(40), "sharing their entries endlessly"),
        (b"\x80\x02\x82\x01.", "the opcode EXT1"),
        (b"\x80\x02a.", "finds too little on the stack"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "expected 1099511627775 bytes"),
    ],
)
def test_programs_that_would_crash_or_fill_the_memory_are_refused(tmp_path, program, message):
    with pytest.raises(ValueError, match=message):
        check_program(program)
    path = tmp_path / "a.ckpt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", program)
    with pytest.raises(CheckpointError, match=message):
        read_foreign(path)


def test_the_limits_leave_room():
    check_program(nested(LEVELS - 10))
    check_program(shared(15))


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
