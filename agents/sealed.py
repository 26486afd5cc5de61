"""JSON files that say whether they are as they were written: objects with a hash of the file in their last entry."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from sepo_env.errors import CheckpointError
from sepo_env.paths import check_file

MOST_BYTES = 1 << 24
"""A description is a few kilobytes; what is larger than this is none."""

_SEAL = "sha256"
_SEALED = re.compile(rb'"sha256": "([0-9a-f]{64})"\n}$')


def seal(description: Mapping[str, Any]) -> bytes:
    """The content of a sealed file.

    >>> seal({"a": 1})[:10]
    b'{\\n  "a": 1'
    """
    text = json.dumps({**description, _SEAL: "0" * 64}, indent=2, allow_nan=False).encode()
    return _with_seal(text, hashlib.sha256(text).hexdigest().encode())


def read_object(path: Path, cure: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        cure: what the reader may do about a file that is none.

    Raises:
        CheckpointError: no such file, no file, or no JSON object of finite numbers in UTF-8.
    """
    return _parse(path, _read(path, cure), cure)


def read_sealed(path: Path, cure: str, unsealed: str | None = None) -> dict[str, Any]:
    """Read what `seal` wrote.

    Args:
        path: the file.
        cure: what the reader may do about a file that is none.
        unsealed: the ``format`` of files that have no seal, from before there was one.

    Raises:
        CheckpointError: as `read_object`, or a file that has changed since it was written.
    """
    content = _read(path, cure)
    found = _parse(path, content, cure)
    if unsealed is not None and found.get("format") == unsealed:
        return found
    sealed = _SEALED.search(content)
    if sealed is None or hashlib.sha256(_with_seal(content, b"0" * 64)).hexdigest().encode() != sealed[1]:
        raise CheckpointError(path, "its content has changed since it was written", cure)
    return {name: value for name, value in found.items() if name != _SEAL}


def _with_seal(text: bytes, seal: bytes) -> bytes:
    return _SEALED.sub(b'"sha256": "' + seal + b'"\n}', text)


def _read(path: Path, cure: str) -> bytes:
    file = check_file(path)
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read ({error})", "check its permissions") from error
    if len(content) > MOST_BYTES:
        raise CheckpointError(path, f"it has more than {MOST_BYTES >> 20} MiB, a description has less", cure)
    return content


def _parse(path: Path, content: bytes, cure: str) -> dict[str, Any]:
    try:
        found = json.loads(content.decode("utf-8-sig"), parse_constant=_refuse)
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"it is no text in UTF-8 ({error})", cure) from error
    except RecursionError as error:
        raise CheckpointError(path, "its JSON is nested too deep", cure) from error
    except ValueError as error:
        raise CheckpointError(path, f"it is no JSON ({error})", cure) from error
    if not isinstance(found, dict):
        raise CheckpointError(path, f"it holds a {type(found).__name__}, not a JSON object", cure)
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")
