"""Containers of a pickle: how deep they are, what their keys are, and how often their entries are copied."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sepo_env.loading.inert import Inert, shown
from sepo_env.pickles.limits import (
    DEEPEST,
    LARGEST_KEY,
    MOST_CONTAINERS,
    MOST_COPIED,
    MOST_INTEGER_KEYS,
    MOST_ODD_KEYS,
    LimitError,
)

_KINDS: tuple[type, ...] = (tuple, list, dict, set, frozenset, Inert)
_PLAIN_KEYS: tuple[type, ...] = (str, bytes, bool, type(None), Inert)


class Containers:
    """The containers of one reading.

    Args:
        key_types: further types that a key, or a part of one, may have.
    """

    def __init__(self, *key_types: type) -> None:
        self._key_parts: tuple[type, ...] = (*_PLAIN_KEYS, int, float, tuple, frozenset, *key_types)
        # By identity. Each container is entered when it is made, so that none has the depth of one that is gone.
        self._depths: dict[int, int] = {}
        self._made = self._copied = self._integer_keys = self._odd_keys = 0

    def enter(self, made: Any, entries: Collection[Any] = ()) -> Any:
        """Return something new, after a note of how deep it is, if it is a container."""
        if isinstance(made, _KINDS):
            self._made += 1
            if self._made > MOST_CONTAINERS:
                raise LimitError(f"the pickle has more than {MOST_CONTAINERS:,} containers and objects")
            self._depths[id(made)] = 0
            self._deepen(made, entries)
        return made

    def _deepen(self, container: Any, entries: Collection[Any]) -> None:
        depth = self._depths[id(container)]
        for entry in entries:
            if isinstance(entry, _KINDS):
                depth = max(depth, 1 + self._depths.get(id(entry), 0))
        if depth >= DEEPEST:
            raise LimitError(f"the pickle has containers nested deeper than {DEEPEST:,}")
        self._depths[id(container)] = depth

    def extend(self, target: Any, entries: list[Any]) -> None:
        """Append to a list, or add to a set; an inert object lets go what it is given."""
        if isinstance(target, list):
            target.extend(entries)
        elif isinstance(target, set):
            target.update(self.key(entry) for entry in entries)
        elif not isinstance(target, Inert):
            raise ValueError(f"the pickle appends to {shown(type(target).__name__)}")
        self._deepen(target, entries)

    def set_items(self, target: Any, entries: list[Any]) -> None:
        """Set entries of a dictionary, keys and values by turns; an inert object lets them go."""
        if isinstance(target, dict):
            for key, value in zip(entries[::2], entries[1::2], strict=True):
                target[self.key(key)] = value
        elif not isinstance(target, Inert):
            raise ValueError(f"the pickle sets an entry of {shown(type(target).__name__)}")
        self._deepen(target, entries)

    def set_state(self, target: Any, state: Any) -> None:
        """Give an inert object its state, unread; what stands beside the entries of a dictionary is let go."""
        if isinstance(target, Inert):
            target.state = state
            self._deepen(target, (state,))
        elif not isinstance(target, dict):
            raise ValueError(f"the pickle restores the state of {shown(type(target).__name__)}")

    def key(self, key: Any) -> Any:
        """Return a key.

        Raises:
            LimitError: hashing it, or comparing it with others, could take longer than reading it did.
            ValueError: it has a part that is no key.
        """
        if isinstance(key, _PLAIN_KEYS):
            return key
        if type(key) is int and key.bit_length() <= 64:
            self._integer_keys += 1
            if self._integer_keys > MOST_INTEGER_KEYS:
                raise LimitError(f"the pickle has more than {MOST_INTEGER_KEYS:,} integers as keys")
            return key
        parts: list[Any] = [key]
        for part in parts:  # which grow meanwhile
            if not isinstance(part, self._key_parts):
                raise ValueError(f"the pickle has a key with a part of the type {shown(type(part).__name__)}")
            if isinstance(part, (tuple, frozenset)):
                if len(parts) + len(part) > LARGEST_KEY:
                    raise LimitError(f"the pickle has a key of more than {LARGEST_KEY} parts")
                parts.extend(part)
        # The hashes of texts differ between processes, so that nobody can know which of them will collide.
        if not all(isinstance(part, (str, bytes, tuple)) for part in parts):
            self._odd_keys += 1
            if self._odd_keys > MOST_ODD_KEYS:
                raise LimitError(f"the pickle has more than {MOST_ODD_KEYS:,} keys that are neither text nor integers")
        return key

    def dict_of(self, *arguments: Any) -> dict[Any, Any]:
        """A dictionary of the pairs, or of the other dictionary, that stand last."""
        last = arguments[-1] if arguments else ()
        pairs = () if last is None or isinstance(last, Inert) else self.copied(last)
        return {self.key(key): value for key, value in pairs}

    def set_of(self, entries: Any = ()) -> set[Any]:
        """A set of the entries of another container."""
        return {self.key(entry) for entry in self.copied(entries)}

    def copied(self, container: Any) -> Collection[Any]:
        """The entries of a container, which may be copied once more wherever it stands in the pickle.

        Raises:
            LimitError: so many have been copied that it is no checkpoint.
            ValueError: no container.
        """
        if not isinstance(container, (list, tuple, dict, set, frozenset)):
            raise ValueError(f"the pickle makes a container of {shown(type(container).__name__)}")
        self._copied += len(container)
        if self._copied > MOST_COPIED:
            raise LimitError(f"the pickle copies more than {MOST_COPIED:,} entries of containers")
        return container.items() if isinstance(container, dict) else container
