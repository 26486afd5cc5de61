"""JSON files that say whether they are as they were written: objects with a hash of the file in their last entry."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepo_env.errors import CheckpointError
from sepo_env.textfile import parse_json, read_text

MOST_BYTES = 1 << 24
"""A description is a few kilobytes; what is larger than this is none."""

_SEAL = "sha256"
_SEALED = re.compile(r'"sha256": "([0-9a-f]{64})"\n}\Z')


def seal(description: Mapping[str, Any]) -> bytes:
    """The content of a sealed file.

    >>> seal({"a": 1})[:10]
    b'{\\n  "a": 1'
    """
    text = json.dumps({**description, _SEAL: "0" * 64}, indent=2, allow_nan=False)
    return _with_seal(text, _hash(text)).encode()


def read_sealed(path: Path, cure: str, unsealed: str) -> dict[str, Any]:
    """Read what `seal` wrote.

    Args:
        path: the file.
        cure: what the reader may do about a file that is none.
        unsealed: the ``format`` of files that have no seal, from before there was one.

    Raises:
        CheckpointError: no such file, no JSON object, or a file that has changed since it was written.
    """
    text = read_text(path, MOST_BYTES)
    try:
        found = parse_json(text)
    except ValueError as error:
        raise CheckpointError(path, f"it is no JSON ({error})", cure) from error
    if not isinstance(found, dict):
        raise CheckpointError(path, f"it holds a {type(found).__name__}, not a JSON object", cure)
    if found.get("format") == unsealed:
        return found
    sealed = _SEALED.search(text)
    if sealed is None or _hash(_with_seal(text, "0" * 64)) != sealed[1]:
        raise CheckpointError(path, "its content has changed since it was written", cure)
    return {name: value for name, value in found.items() if name != _SEAL}


def _with_seal(text: str, seal: str) -> str:
    return _SEALED.sub(f'"{_SEAL}": "{seal}"\n}}', text)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
