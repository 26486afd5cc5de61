"""Checkpoints of torch whose pickles are written by hand, opcode by opcode."""

import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

START = b"\x80\x02"


def text(value: str) -> bytes:
    content = value.encode()
    return b"X" + struct.pack("<I", len(content)) + content


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def tuple_of(*entries: bytes) -> bytes:
    return b"(" + b"".join(entries) + b"t"


def dictionary(*entries: bytes) -> bytes:
    """Keys and values by turns."""
    return b"}(" + b"".join(entries) + b"u"


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + b"R"


def built(target: bytes, state: bytes) -> bytes:
    return target + state + b"b"


def storage(key: str, length: int, kind: str = "FloatStorage") -> bytes:
    return tuple_of(text("storage"), named("torch", kind), text(key), text("cpu"), number(length)) + b"Q"


REBUILD = named("torch._utils", "_rebuild_tensor_v2")


def tensor(content: bytes, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, offset: int = 0) -> bytes:
    """A tensor of a storage; None: its entries stand in a row."""
    if strides is None:
        strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
    sizes, steps = tuple_of(*map(number, shape)), tuple_of(*map(number, strides))
    return called(REBUILD, content, number(offset), sizes, steps, b"\x89", named("collections", "OrderedDict") + b")R")


def program(value: bytes) -> bytes:
    return START + value + b"."


def archive(path: Path, pickle: bytes, records: Mapping[str, bytes] | None = None) -> Path:
    """A checkpoint of this pickle, with these storages."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", pickle)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
        for name, content in (records or {}).items():
            file.writestr(f"archive/data/{name}", content)
    return path
