"""The precision of networks and tables: float32, whatever torch's default dtype is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

_AUTOCAST = ("cpu", "cuda", "mps", "xpu")
"""Kinds of devices that autocast knows."""


@contextmanager
def float32_default() -> Iterator[None]:
    """Make float32 what it is if nobody says otherwise, within a ``with`` statement or a decorated constructor.

    ``torch.set_default_dtype`` is a caller's business (libraries of Gaussian processes ask for float64), and must make
    no other world: weights that a file holds in float32 are read into float32, and random ones are drawn in it. The
    default is one for all threads of a process, as torch has it.

    >>> torch.set_default_dtype(torch.float64)
    >>> with float32_default():
    ...     torch.zeros(1).dtype
    torch.float32
    >>> torch.get_default_dtype()
    torch.float64
    >>> torch.set_default_dtype(torch.float32)
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def without_autocast() -> Iterator[None]:
    """Compute in the precision of the numbers within, though a caller's ``torch.autocast`` asks for another one.

    That is for networks that are trained and sampled from; rewards, advantages and counts must not change with it.
    """
    with ExitStack() as regions:
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                regions.enter_context(torch.autocast(kind, enabled=False))
        yield


def is_half(dtype: torch.dtype) -> bool:
    """Whether numbers have 16 bits or fewer, too few to add logarithms of probabilities.

    >>> is_half(torch.bfloat16), is_half(torch.float32)
    (True, False)
    """
    return dtype.is_floating_point and dtype.itemsize < 4


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32 where they are in half precision, and as they are elsewhere."""
    return values.float() if is_half(values.dtype) else values
