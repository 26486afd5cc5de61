"""The words of descriptions: names, hashes, plain data, and the entry for what cannot be told."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sepo_env.identity import code

CANNOT_BE_TOLD = "cannot be told"
"""Key of an entry for what has no identity to compare: why, and what was seen of it."""
UNLESS_SEEN = "unless seen"
"""Key of such an entry where equal values are enough."""

LONGEST = 120


def cannot_be_told(why: str, seen: Any = None, *, unless_seen: bool = False) -> dict[str, Any]:
    """The entry for something that has no identity.

    Args:
        why: what it is.
        seen: its present value, as far as there is one.
        unless_seen: whether equal values are enough to take it for the same.
    """
    return {CANNOT_BE_TOLD: why, "seen": seen, **({UNLESS_SEEN: True} if unless_seen else {})}


def tensors_digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of named tensors, in the order of their names: 16 letters.

    >>> tensors_digest([("a", torch.zeros(2)), ("b", torch.ones(1))]) == tensors_digest(
    ...     {"b": torch.ones(1), "a": torch.zeros(2)}.items()
    ... )
    True
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        content = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        digest.update(content.view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def text_digest(text: str) -> str:
    """A hash of a text: 16 letters."""
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def class_name(cls: type) -> str:
    """The name of a class, with its module where that is installed; ours may move within the package."""
    if code.is_ours(cls):
        return f"{cls.__module__.partition('.')[0]}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}" if code.is_library(cls.__module__) else cls.__name__


def plain(value: Any) -> Any:
    """A number, a text or None as JSON has it."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return short(value) if isinstance(value, str) else value


def short(text: str) -> str:
    """A text, or the beginning and a hash of a long one."""
    return text if len(text) <= LONGEST else f"{text[:20]}... of {len(text)} letters {text_digest(text)}"
