"""What a reward returned, read strictly: one finite real number for each sequence, or a named error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.masked import MaskedTensor

from sepo_env.arguments import shown
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
    """Read the ``count`` values that the reward ``name`` returned, into a tensor of their own.

    Lists, arrays and tensors of whatever real numbers are read. A value that is no finite number, such as one that a
    masked array hides, is a failure of its sequence; another length or dtype is a fault of the whole reward.

    Raises:
        RewardError: another shape than ``(count,)``, or values that are not real numbers.

    >>> read_values([1, 2.5], 2, "score", "sequence {}".format).values
    tensor([1.0000, 2.5000])
    >>> [failure.cause for failure in read_values([None, float("inf")], 2, "score", str).failures]
    ['returned None', 'returned inf']
    >>> [failure.cause for failure in read_values(np.ma.masked_less([3.0, -9.0], 0.0), 2, "score", str).failures]
    ['returned a masked value']
    """
    try:
        array, hidden = _as_tensor(raw) if isinstance(raw, Tensor) else _as_array(raw)
    except Exception as error:  # somebody else's object
        raise RewardError(
            f"the reward {name!r} returned a {type(raw).__name__} that is not a list of numbers ({say(error)}); "
            f"return one number for each of the {count} sequences."
        ) from error
    if array.ndim == 0:
        raise RewardError(
            f"the reward {name!r} returned {shown(raw, _SHOWN)}, a {type(raw).__name__}; return a list, an array or a "
            f"tensor with one number for each of the {count} sequences."
        )
    _check_shape(tuple(array.shape), count, name, show)
    real = not (array.is_complex() or array.dtype == torch.bool) if isinstance(array, Tensor) else _is_real(array)
    if not real:
        raise RewardError(
            f"the reward {name!r} returned values of dtype {array.dtype}, from {show(0)} on; "
            "return real numbers (float or int)."
        )
    values = _as_float32(array)
    if hidden is not None:
        values[hidden] = math.nan
    failures = []
    if not bool(values.isfinite().all()):
        for row in (~values.isfinite()).nonzero().flatten().tolist():
            value = array[row].item() if isinstance(array, Tensor) else array[row]
            masked = hidden is not None and bool(hidden[row])
            failures.append(Failure(row, "returned a masked value" if masked else _describe(value)))
    return Outcome(values, tuple(failures))


def _as_tensor(raw: Tensor) -> tuple[Tensor, Tensor | None]:
    """The values, laid out plainly, and which of them are masked, if any."""
    hidden = None
    if isinstance(raw, MaskedTensor):
        masked: Any = raw
        raw, hidden = masked.get_data(), ~masked.get_mask()
    array = raw.detach()
    if array.is_nested:
        raise TypeError("a nested tensor")
    if array.is_meta:
        raise TypeError("a tensor on the device 'meta' has no values")
    if array.is_quantized:
        array = array.dequantize()
    return (array if array.layout == torch.strided else array.to_dense()), hidden


def _as_array(raw: object) -> tuple[np.ndarray[Any, Any], Tensor | None]:
    """The values as NumPy reads them, or each by itself where it would bend them, and which are masked, if any."""
    if isinstance(raw, Sequence) and not isinstance(raw, str | bytes) and _is_mixed(raw):
        array = np.empty(len(raw), dtype=object)
        for row, value in enumerate(raw):
            array[row] = value.item() if isinstance(value, Tensor | np.ndarray) and value.ndim == 0 else value
        return array, torch.tensor([np.ma.is_masked(value) for value in raw])
    array = np.asanyarray(raw)
    hidden = torch.from_numpy(np.ma.getmaskarray(array)) if isinstance(array, np.ma.MaskedArray) else None
    return np.asarray(array), hidden


def _is_mixed(values: Sequence[Any]) -> bool:
    """Whether NumPy would make one kind of several: True is no 1.0, and what an element masks is no value."""
    kinds = set(map(type, values))
    if any(issubclass(kind, Tensor | np.ndarray) for kind in kinds):
        return any(getattr(value, "ndim", 0) == 0 for value in values)
    return len(kinds) > 1 and not kinds <= {int, float}


def _is_real(array: np.ndarray[Any, Any]) -> bool:
    return array.dtype.kind in "fiuO"


def _as_float32(array: Tensor | np.ndarray[Any, Any]) -> Tensor:
    """A copy, because the reward may go on using its own; NaN where an object is no number."""
    if isinstance(array, Tensor):
        return array.to(torch.float32, copy=True).as_subclass(Tensor)
    if array.dtype.kind == "O":
        return torch.tensor([_as_float(value) for value in array], dtype=torch.float64).to(torch.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is reported by its sequence
        return torch.from_numpy(array.astype(np.float32))


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


def _as_float(value: Any) -> float:
    """The value, NaN where it is no number, infinite where no float can hold it."""
    if not isinstance(value, Real | Decimal) or isinstance(value, bool):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf  # type: ignore[operator]  # every real number compares
    except Exception:  # a signalling NaN, or a number of somebody else's
        return math.nan


def _describe(value: object) -> str:
    number = _as_float(value)
    if math.isnan(number) and not isinstance(value, float | np.floating):
        return f"returned {shown(value, _SHOWN)}"
    return f"returned {number}" + (", which float32 cannot hold" if math.isfinite(number) else "")


def say(error: BaseException) -> str:
    """An exception in one line, even one that cannot say what it is.

    >>> say(ValueError("two\\nlines")), say(KeyError())
    ('ValueError: two lines', 'KeyError')
    """
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def shorten(text: str) -> str:
    """Return ``text``, its middle left out where it is long.

    >>> shorten("ACGT" * 50)
    'ACGTACGTACGTACGTACGTACGT...ACGTACGTACGTACGTACGTACGT'
    """
    return text if len(text) <= _SHOWN + 3 else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"
