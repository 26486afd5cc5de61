"""The TorchRL spec of an action: one bound for all rates, stored once."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torchrl.data import Bounded
from torchrl.data.tensor_specs import Box, TensorSpec

LARGEST_RATE = float(torch.finfo(torch.float32).max)


class RateBox(Box):
    """From 0 to the largest float32; ``low`` and ``high`` are views of one number each.

    Attributes:
        shape: of an action.
        device: where the bounds are made.
    """

    def __init__(self, shape: torch.Size, device: torch.device) -> None:
        self.shape = shape
        self.device = device

    def _filled(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device).expand(self.shape)

    @property
    def low(self) -> Tensor:
        """0 everywhere."""
        return self._filled(0.0)

    @property
    def high(self) -> Tensor:
        """The largest float32 everywhere."""
        return self._filled(LARGEST_RATE)

    def __iter__(self) -> Iterator[Tensor]:
        yield self.low
        yield self.high

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RateBox) and self.shape == other.shape

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"RateBox({tuple(self.shape)})"


class _KeepsItsClass(type(Bounded)):  # type: ignore[misc]
    """Bounded turns its instances into one of two classes of its own."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        return abc.ABCMeta.__call__(cls, *args, **kwargs)


class RateSpec(Bounded, metaclass=_KeepsItsClass):
    """Rates from 0 to the largest float32, ``(..., L, A)``.

    `torchrl.data.Bounded` stores its bounds for each entry, twice, and copies them with every copy of itself; at a
    vocabulary of 50,000 tokens and a length of 1,024 that is 400 MB an environment and a copy.

    Args:
        shape: of an action.
        device: of an action.
    """

    def __init__(self, shape: Any, device: torch.device | str = "cpu") -> None:
        shape, device = torch.Size(shape), torch.device(device)
        TensorSpec.__init__(
            self,
            shape=shape,
            space=RateBox(shape, device),
            device=device,
            dtype=torch.float32,
            domain="continuous",
        )
        self.encode = self._encode_eager

    def _register_batch_size(self, batch_size: Any) -> None:
        """Nothing to save: the bounds do not grow with a batch."""

    def _transformed(self, method: str, *args: Any) -> RateSpec:
        # What a tensor's own method would make of the shape, without a tensor's memory.
        return RateSpec(getattr(torch.empty(self.shape, device="meta"), method)(*args).shape, self.device)

    def expand(self, *shape: Any) -> RateSpec:
        """The spec of a larger batch."""
        return self._transformed("expand", *shape)

    def _reshape(self, shape: Any) -> RateSpec:
        return self._transformed("reshape", shape)

    def _unflatten(self, dim: int, sizes: Any) -> RateSpec:
        return self._transformed("unflatten", dim, sizes)

    def squeeze(self, dim: int | None = None) -> RateSpec:
        """The spec without axes of length 1."""
        return self._transformed("squeeze", *([] if dim is None else [dim]))

    def unsqueeze(self, dim: int) -> RateSpec:
        """The spec with one more axis of length 1."""
        return self._transformed("unsqueeze", dim)

    def unbind(self, dim: int = 0) -> tuple[RateSpec, ...]:
        """The specs along an axis."""
        return (self._transformed("select", dim, 0),) * self.shape[dim]

    def __getitem__(self, idx: Any) -> RateSpec:
        return self._transformed("__getitem__", idx)

    def clone(self) -> RateSpec:
        """A copy."""
        return RateSpec(self.shape, self.device)

    def to(self, dest: Any) -> TensorSpec:
        """The spec on another device; as another dtype it is an ordinary `Bounded`."""
        if dest is None:
            return self
        if isinstance(dest, torch.dtype) and dest != self.dtype:
            return Bounded(0.0, LARGEST_RATE, self.shape, self.device, dest)
        return self if isinstance(dest, torch.dtype) else RateSpec(self.shape, dest)
