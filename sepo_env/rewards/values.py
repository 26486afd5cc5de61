"""What a reward returned, read strictly: one finite real number for each sequence, or a named error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepo_env.errors import RewardError

Show = Callable[[int], str]
"""From a row of the batch to the words that point at it: its index and its sequence."""

_SHOWN = 48
"""Letters of a sequence that an error message quotes; longer ones lose their middle."""


@dataclass(frozen=True)
class Failure:
    """One sequence without a usable value.

    Attributes:
        row: its row in the batch.
        cause: what happened, in words that follow the reward's name: "returned nan".
        error: the exception behind it, if there is one.
        timed_out: whether it did not answer within the time limit.
    """

    row: int
    cause: str
    error: BaseException | None = None
    timed_out: bool = False


@dataclass(frozen=True)
class Outcome:
    """The values ``(B,)`` float32 of a batch, NaN at the failures."""

    values: Tensor
    failures: tuple[Failure, ...]


def read_values(raw: object, count: int, name: str, show: Show) -> Outcome:
    """Read the ``count`` values that the reward ``name`` returned: a list, an array or a tensor.

    A value that is no finite number is a failure of its sequence; another length or dtype is a fault of the
    whole reward.

    Raises:
        RewardError: another shape than ``(count,)``, or values that are not real numbers.

    >>> read_values([1, 2.5], 2, "score", "sequence {}".format).values
    tensor([1.0000, 2.5000])
    >>> [failure.cause for failure in read_values([None, float("inf")], 2, "score", str).failures]
    ['returned None', 'returned inf']
    """
    array: Tensor | np.ndarray[Any, Any]
    if isinstance(raw, Tensor):
        array = raw.detach()
        real = not (raw.dtype.is_complex or raw.dtype == torch.bool)
    else:
        array = _as_array(raw, count, name)
        real = array.dtype.kind in "fiuO"
    _check_shape(tuple(array.shape), count, name, show)
    if not real:
        raise RewardError(
            f"the reward {name!r} returned values of dtype {array.dtype}, from {show(0)} on; "
            "return real numbers (float or int)."
        )
    if isinstance(array, Tensor):
        values = array.to(torch.float32)
    elif array.dtype.kind == "O":
        values = torch.tensor([_as_float(v) for v in array], dtype=torch.float64).to(torch.float32)
    else:
        with np.errstate(over="ignore"):  # what float32 cannot hold is reported below, by its sequence
            values = torch.from_numpy(array.astype(np.float32))
    failures = []
    if not bool(values.isfinite().all()):
        for row in (~values.isfinite()).nonzero().flatten().tolist():
            value = array[row].item() if isinstance(array, Tensor) else array[row]
            failures.append(Failure(row, _describe(value)))
    return Outcome(values, tuple(failures))


def _as_array(raw: object, count: int, name: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(raw)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RewardError(
            f"the reward {name!r} returned a {type(raw).__name__} that is not a list of numbers ({error}); "
            f"return one number for each of the {count} sequences."
        ) from error
    if array.ndim == 0:
        raise RewardError(
            f"the reward {name!r} returned {_quote(raw)}, a {type(raw).__name__}; return a list, an array or a "
            f"tensor with one number for each of the {count} sequences."
        )
    return array


def _check_shape(shape: tuple[int, ...], count: int, name: str, show: Show) -> None:
    if shape == (count,):
        return
    if len(shape) != 1:
        raise RewardError(
            f"the reward {name!r} returned values of shape {shape} for {count} sequences, expected "
            f"({count},); return one number for each sequence, flat."
        )
    missing = f", none for {show(shape[0])}" if shape[0] < count else ""
    raise RewardError(
        f"the reward {name!r} returned {shape[0]} values for {count} sequences{missing}; "
        "return one number for each sequence, in their order."
    )


def _as_float(value: object) -> float:
    """The value, NaN where it is no number, infinite where no float can hold it."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # every real number compares


def _describe(value: object) -> str:
    number = _as_float(value)
    if math.isnan(number) and not isinstance(value, float | np.floating):
        return f"returned {_quote(value)}"
    return f"returned {number}" + (", which float32 cannot hold" if math.isfinite(number) else "")


def _quote(value: object) -> str:
    return shorten(repr(value))


def shorten(text: str) -> str:
    """Return ``text``, its middle left out where it is long.

    >>> shorten("ACGT" * 50)
    'ACGTACGTACGTACGTACGTACGT...ACGTACGTACGTACGTACGTACGT'
    """
    return text if len(text) <= _SHOWN + 3 else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"
