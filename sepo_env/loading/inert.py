"""What stands in the place of foreign objects, and what was found, told in a few words."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

_QUOTES = "'\""


class Inert:
    """What stands in the place of something whose class is not known to be harmless: an object, a class, a function.

    Args:
        described: ``module.name`` of that class.

    Attributes:
        described: likewise.
        state: what the object would have been restored from, itself plain or inert; None where there was nothing.
    """

    __slots__ = ("described", "state")

    def __init__(self, described: str = "?") -> None:
        self.described = described
        self.state: Any = None

    def __repr__(self) -> str:
        described = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in self.described[:200])
        return f"<{described}, not loaded>"


class _Short(reprlib.Repr):
    """Cuts long texts and deep containers."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80


def shown(value: Any) -> str:
    """A value in a few words, whatever it is."""
    try:
        return _Short().repr(value)[:300]
    except Exception:  # an integer of too many digits, a container too deep
        return f"one of type {type(value).__name__}"


def outline(found: Any) -> str:
    """Say in a few words what was read."""
    if not isinstance(found, Mapping):
        return type(found).__name__
    some = [(key, value) for key, (key, value) in zip(range(6), found.items(), strict=False)]
    names = [f"{shown(key)[:60].strip(_QUOTES)}: {type(value).__name__}" for key, value in some]
    return f"{len(found)} entries ({', '.join(names)}{', ...' if len(found) > len(names) else ''})"
