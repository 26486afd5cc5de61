"""Two descriptions compared: what differs for certain, and what cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sepo_env.arguments import shown
from sepo_env.identity.values import CANNOT_BE_TOLD, UNLESS_SEEN

_CODE = "code"
_LONGEST = 200


@dataclass(frozen=True)
class Difference:
    """An entry that differs, or of which nobody can tell.

    Attributes:
        name: where it stands, ``task.denoiser.weights``.
        old: what it was.
        new: what it is.
        doubt: why it cannot be told; None where it differs for certain.
    """

    name: str
    old: Any
    new: Any
    doubt: str | None = None

    def __str__(self) -> str:
        """The difference in words, with both values."""
        both = "" if self.old == self.new else f"was {shown(self.old, _LONGEST)}, is {shown(self.new, _LONGEST)}"
        if self.doubt is None:
            return f"{self.name} {both}"
        return f"{self.name} ({self.doubt}{'; ' if both else ''}{both})"


def differences(name: str, old: Any, new: Any) -> Iterator[Difference]:
    """The entries in which two descriptions differ, or in which they say that they cannot tell.

    >>> [str(d) for d in differences("task", {"length": 3, "seed": 0}, {"length": 4, "seed": 0})]
    ['task.length was 3, is 4']
    >>> [str(d) for d in differences("f", {"x": {"cannot be told": "a list", "seen": 1}}, {"x": 2})]
    ["f.x was {'cannot be told': 'a list', 'seen': 1}, is 2"]
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        doubts = [entry[CANNOT_BE_TOLD] for entry in (old, new) if CANNOT_BE_TOLD in entry]
        if len(doubts) == 2 and new.get(UNLESS_SEEN) and old.get("seen") == new.get("seen"):
            return
        if len(doubts) == 2:
            yield Difference(name, old.get("seen"), new.get("seen"), doubts[1])
        elif doubts:
            yield Difference(name, old, new)
        else:
            for key in {**new, **old}:  # a file may have sorted its own
                yield from differences(f"{name}.{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from differences(f"{name}[{index}]", one, other)
    elif old != new:
        yield Difference(name, old, new, _other_python(name, old, new))


def _other_python(name: str, old: Any, new: Any) -> str | None:
    """Why two digests of code cannot be compared; None where they can."""
    if name.rpartition(".")[2] != _CODE or not isinstance(old, str) or not isinstance(new, str):
        return None
    one, other = (text.partition(" ")[0] for text in (old, new))
    return None if one == other else f"compiled by {one}, and here by {other}"
