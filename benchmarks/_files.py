"""Files of results, sealed with a digest and read back: whatever became of them, the error names file and cure."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from sepo_env.errors import CheckpointError


def read_bytes(path: Path, cure: str) -> bytes:
    """The contents of a file.

    Args:
        path: the file.
        cure: what to do where it cannot be read.

    Raises:
        CheckpointError: there is no such file, it is something else, or it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise CheckpointError(path, "expected a file, found a folder or a device", cure)
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read ({error.strerror})", cure) from error


def read_json(path: Path, cure: str) -> dict[str, Any]:
    """The object that a JSON file holds.

    Args:
        path: the file.
        cure: what to do where it is damaged.

    Raises:
        CheckpointError: it cannot be read, is empty, is no JSON, or holds something else than an object.
    """
    content = read_bytes(path, cure)
    if not content.strip():
        raise CheckpointError(path, "it is empty", cure)
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"it is damaged, and no JSON ({error})", cure) from error
    if not isinstance(found, dict):
        raise CheckpointError(path, f"expected an object, found a {type(found).__name__}", cure)
    return found


def digest(content: bytes) -> str:
    """The SHA-256 of a file's contents."""
    return hashlib.sha256(content).hexdigest()


def sealed(record: Mapping[str, Any]) -> bytes:
    """A record as JSON with a digest of its own, by which `read_sealed` knows that no bit has changed."""
    return json.dumps({**record, "digest": _seal(record)}, indent=1).encode()


def read_sealed(path: Path, cure: str) -> dict[str, Any]:
    """The record that `sealed` wrote, or one from before there were digests.

    Raises:
        CheckpointError: it cannot be read, or is not as it was written.
    """
    record = read_json(path, cure)
    if "digest" in record and record.pop("digest") != _seal(record):
        raise CheckpointError(path, "it is damaged, and not as it was written", cure)
    return record


def _seal(record: Mapping[str, Any]) -> str:
    return digest(json.dumps(record, sort_keys=True).encode())


def read_table(path: Path, cure: str, *, numbers: Sequence[str] = (), texts: Sequence[str] = ()) -> pd.DataFrame:
    """The table that a CSV file holds.

    Args:
        path: the file.
        cure: what to do where it is damaged.
        numbers: columns that must be there, of numbers.
        texts: columns that must be there, of text: "NA" and "" are texts like any other.

    Raises:
        CheckpointError: it cannot be read, is empty, is no such table, or lacks a column.
    """
    content = read_bytes(path, cure)
    if not content.strip():
        raise CheckpointError(path, "it is empty", cure)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # pandas only warns of rows that are longer than the header
            table = pd.read_csv(io.BytesIO(content), index_col=False, low_memory=False)
            verbatim = pd.read_csv(io.BytesIO(content), dtype=str, keep_default_na=False, index_col=False)
    except (ValueError, OverflowError, Warning) as error:  # pandas' own are ValueErrors
        raise CheckpointError(path, f"it is damaged, and no table ({' '.join(str(error).split())})", cure) from error
    missing = [name for name in (*numbers, *texts) if name not in table]
    if missing:
        raise CheckpointError(path, f"it lacks the column {missing[0]!r}", cure)
    table[list(texts)] = verbatim[list(texts)]
    for name in numbers:
        if len(table) and not pd.api.types.is_numeric_dtype(table[name]):
            raise CheckpointError(path, f"its column {name!r} holds something else than numbers", cure)
    return table
