"""Values of sequences seen before."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

from torch import Tensor

from sepo_env.arguments import Count, checked

DEFAULT_ENTRIES = 100_000


class ValueCache:
    """The values of the ``max_entries`` sequences used last; the one not used for longest goes first.

    A sequence is known by a 128-bit digest, so that an entry takes about as much memory whatever its length.

    Raises:
        InvalidArgumentError: ``max_entries`` is not positive.

    >>> import torch
    >>> cache = ValueCache(max_entries=2)
    >>> one, two, three = cache.keys(torch.tensor([[1], [2], [3]]))
    >>> cache.put(one, 0.1), cache.put(two, 0.2), cache.get(one), cache.put(three, 0.3)
    (None, None, 0.1, None)
    >>> cache.get(one), cache.get(two), cache.get(three)
    (0.1, None, 0.3)
    """

    @checked
    def __init__(self, max_entries: Count = DEFAULT_ENTRIES) -> None:
        self.max_entries = max_entries
        self._values: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __getstate__(self) -> dict[str, Any]:
        # A copy in another process starts empty: what it would carry along is cheaper to find again.
        return {"max_entries": self.max_entries, "_values": OrderedDict()}

    @staticmethod
    def keys(tokens: Tensor) -> list[bytes]:
        """Return one key for each row of ``tokens`` ``(B, L)``; equal rows have equal keys."""
        rows = tokens.cpu().numpy()
        return [hashlib.blake2b(row.tobytes(), digest_size=16).digest() for row in rows]

    def get(self, key: bytes) -> float | None:
        """Return the value kept for the key, or None."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: float) -> None:
        """Keep a value, at the cost of the one not used for longest."""
        self._values[key] = value
        self._values.move_to_end(key)
        if len(self._values) > self.max_entries:
            self._values.popitem(last=False)
