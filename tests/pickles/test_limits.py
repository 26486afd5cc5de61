"""Whatever a pickle takes has a limit: just inside of it a file is read, just outside it is refused by name."""

import struct
import zipfile
from pathlib import Path

import pytest
import torch

from sepo_env.errors import CheckpointError
from sepo_env.loading import foreign
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.tensorfile import MOST_TENSORS
from sepo_env.pickles import limits
from tests import crafted
from tests.crafted import START, dictionary, named, number, program, text


def opcodes(count: int) -> bytes:
    return START * (count - 2) + b"}."


def long_program(size: int) -> bytes:
    """Texts that are thrown away."""
    filler = (b"X" + struct.pack("<I", limits.LONGEST_TEXT - 6) + b"x" * (limits.LONGEST_TEXT - 6) + b"0") * 3
    rest = size - len(filler) - 8
    return filler + b"X" + struct.pack("<I", rest) + b"x" * rest + b"0}."


def long_text(length: int) -> bytes:
    return program(dictionary(text("x" * length), b"N"))


def long_bytes(length: int) -> bytes:
    return program(dictionary(text("a"), b"B" + struct.pack("<I", length) + b"x" * length))


def long_name(length: int) -> bytes:
    return program(dictionary(text("a"), named("x" * length, "y")))


def long_name_from_the_memo(length: int) -> bytes:
    return program(dictionary(text("a"), text("x" * length) + text("y") + b"\x93"))


def long_digits(length: int) -> bytes:
    return program(dictionary(text("a"), b"L" + b"9" * (length - 1) + b"L\n"))


def long_integer(length: int) -> bytes:
    return program(dictionary(text("a"), b"\x8b" + struct.pack("<i", length) + b"\x7f" * length))


def names(count: int) -> bytes:
    return program(named("a", "b") + b"0" + (named("a", "b") + b"0") * (count - 1) + b"}")


def containers(count: int) -> bytes:
    return program(b"]" * (count - 1) + b"}")


def nested(levels: int) -> bytes:
    """Lists in lists, in a dictionary."""
    return program(b"}" + text("a") + b"]" * (levels - 1) + b"a" * (levels - 2) + b"s")


def copied(count: int) -> bytes:
    """Sizes of tensors, made of one and the same list."""
    rows = b"]q\x00(" + b"N" * 256 + b"e0"
    make = named("torch", "Size") + b"h\x00\x85R0"
    rest = named("torch", "Size") + b"](" + b"N" * (count % 256) + b"e\x85R0"
    return program(rows + make * (count // 256) + rest + b"}")


def integer_keys(count: int) -> bytes:
    return program(dictionary(*(number(key) + b"N" for key in range(count))))


def integer_members(count: int) -> bytes:
    return program(dictionary(text("a"), b"\x8f(" + b"".join(map(number, range(count))) + b"\x90"))


def odd_keys(count: int) -> bytes:
    """Integers of more than 64 bits, which all have one hash."""
    return program(dictionary(*(number(key * (2**61 - 1) << 70) + b"N" for key in range(1, count + 1))))


def float_keys(count: int) -> bytes:
    return program(dictionary(*(b"G" + struct.pack(">d", key + 0.5) + b"N" for key in range(count))))


def large_key(parts: int) -> bytes:
    """A tuple, which is a part itself."""
    return program(dictionary(b"(" + b"N" * (parts - 1) + b"t", b"N"))


BORDERS = {
    "opcodes": (opcodes, limits.MOST_OPCODES, "more than 1,048,576 opcodes"),
    "bytes": (long_program, limits.LONGEST_PROGRAM, "more than 67,108,864 bytes"),
    "text": (long_text, limits.LONGEST_TEXT, "a text of more than 16,777,216 bytes"),
    "bytes object": (long_bytes, limits.LONGEST_TEXT, "a text of more than 16,777,216 bytes"),
    "name": (long_name, limits.LONGEST_NAME, "names a class by more than 1,024 letters"),
    "name on the stack": (long_name_from_the_memo, limits.LONGEST_NAME, "names a class by more than 1,024 letters"),
    "digits": (long_digits, limits.LONGEST_NUMBER, "a number of more than 256 bytes"),
    "integer": (long_integer, limits.LONGEST_NUMBER, "a number of more than 256 bytes"),
    "names": (names, limits.MOST_NAMES, "more than 65,536 names"),
    "containers": (containers, limits.MOST_CONTAINERS, "more than 524,288 containers"),
    "nesting": (nested, limits.DEEPEST, "nested deeper than 1,000"),
    "copies": (copied, limits.MOST_COPIED, "copies more than 1,048,576 entries"),
    "integer keys": (integer_keys, limits.MOST_INTEGER_KEYS, "more than 65,536 integers as keys"),
    "integers in a set": (integer_members, limits.MOST_INTEGER_KEYS, "more than 65,536 integers as keys"),
    "colliding keys": (odd_keys, limits.MOST_ODD_KEYS, "more than 1,000 keys that are neither text nor integers"),
    "float keys": (float_keys, limits.MOST_ODD_KEYS, "more than 1,000 keys that are neither text nor integers"),
    "parts of a key": (large_key, limits.LARGEST_KEY, "a key of more than 64 parts"),
}


@pytest.mark.parametrize("what", BORDERS)
def test_each_limit_holds_at_its_border(what: str, tmp_path: Path) -> None:
    write, most, message = BORDERS[what]
    assert isinstance(read_foreign(crafted.archive(tmp_path / "inside.ckpt", write(most))), dict)
    with pytest.raises(CheckpointError, match=rf"outside.ckpt: .*{message}.*torch.save\(model.state_dict"):
        read_foreign(crafted.archive(tmp_path / "outside.ckpt", write(most + 1)))


def shared(levels: int) -> bytes:
    """A key that is a pair of one and the same pair, and so on: hashing it takes 2 ** levels steps."""
    return program(b"})" + b"2\x86" * levels + b"Ns")


def test_shared_parts_of_a_key_count_wherever_they_stand(tmp_path: Path) -> None:
    pair: tuple = ()
    for _ in range(5):
        pair = (pair, pair)
    assert read_foreign(crafted.archive(tmp_path / "a.ckpt", shared(5))) == {pair: None}
    for levels in (6, 40):
        with pytest.raises(CheckpointError, match="a key of more than 64 parts"):
            read_foreign(crafted.archive(tmp_path / "a.ckpt", shared(levels)))


def test_keys_that_are_texts_are_counted_as_opcodes_only(tmp_path: Path) -> None:
    # The slow tokenizers, which Lightning keeps among the arguments, have a pair of texts a merge.
    count = 100_000
    pairs = {(f"a{index}", "b"): index % 7 for index in range(count)}
    torch.save({"merges": pairs, "vocabulary": {f"c{index}": 1 for index in range(count)}}, tmp_path / "a.ckpt")
    assert read_foreign(tmp_path / "a.ckpt")["merges"] == pairs


# Tensors


def repeated(count: int, length: int = 1) -> bytes:
    """So many tensors of one storage, which share what they are made of."""
    arguments = crafted.tensor(crafted.storage("0", length), (length,))[len(crafted.REBUILD) : -1]
    first = crafted.REBUILD + b"q\x00" + arguments + b"q\x01R0"
    return program(first + dictionary(text("a"), b"](" + b"h\x00h\x01R" * (count - 1) + b"e"))


def test_tensors_have_a_limit(tmp_path: Path) -> None:
    most, record = MOST_TENSORS, {"0": bytes(4)}
    found = read_foreign(crafted.archive(tmp_path / "a.ckpt", repeated(most), record))
    assert len(found["a"]) == most - 1
    with pytest.raises(CheckpointError, match="more than 65,536 tensors"):
        read_foreign(crafted.archive(tmp_path / "a.ckpt", repeated(most + 1), record))


def test_bytes_of_tensors_have_a_limit_that_grows_with_the_file(tmp_path: Path) -> None:
    size = 1 << 16
    most = foreign.MOST_USES + foreign.FREE_USES // size
    record = {"0": bytes(size)}
    found = read_foreign(crafted.archive(tmp_path / "a.ckpt", repeated(most, size // 4), record))
    assert len(found["a"]) == most - 1
    with pytest.raises(CheckpointError, match="share their storages too often, 16 times on average"):
        read_foreign(crafted.archive(tmp_path / "a.ckpt", repeated(most + 1, size // 4), record))


def test_axes_of_a_tensor_have_a_limit(tmp_path: Path) -> None:
    def write(axes: int) -> Path:
        content = crafted.tensor(crafted.storage("0", 1), (1,) * axes)
        return crafted.archive(tmp_path / "a.ckpt", program(dictionary(text("a"), content)), {"0": bytes(4)})

    assert read_foreign(write(64))["a"].ndim == 64
    with pytest.raises(CheckpointError, match="a tensor with sizes that no file of weights has"):
        read_foreign(write(65))


def test_the_directory_of_an_archive_has_a_limit(tmp_path: Path) -> None:
    def write(size: int) -> Path:
        path = tmp_path / "a.ckpt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("archive/data.pkl", program(b"}"))
            size -= 46 + len("archive/data.pkl")
            index = 0
            while size:
                length = size if size < 60_000 else 50_000
                file.writestr(f"{index:05d}".ljust(length - 46, "x"), b"")
                size, index = size - length, index + 1
        return path

    assert read_foreign(write(foreign.LARGEST_DIRECTORY)) == {}
    with pytest.raises(CheckpointError, match="a directory of more than 8,388,608 bytes"):
        read_foreign(write(foreign.LARGEST_DIRECTORY + 1))
