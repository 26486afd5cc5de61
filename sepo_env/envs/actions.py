"""Actions as callers give them: arrays whose shape and dtype are compared, and never changed to fit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sepo_env.arguments import shown
from sepo_env.errors import InvalidActionError

Rates = npt.NDArray[np.float32]


def as_array(action: Any, shape: tuple[int, ...], what: str, kinds: str, wanted: str) -> npt.NDArray[Any]:
    """An action as an array of exactly this shape.

    Args:
        action: what the caller gave: an array, a tensor on the CPU, nested lists.
        shape: the shape of the action space.
        what: the action's name in messages, in the plural.
        kinds: NumPy's letters of the dtypes that are taken: ``"f"`` floats, ``"iu"`` integers.
        wanted: these dtypes in words.

    Raises:
        InvalidActionError: no array of numbers, one with hidden entries, another shape, or another dtype.
    """
    if isinstance(action, np.ma.MaskedArray):
        raise InvalidActionError(f"the {what} are a masked array, which hides entries; give an ordinary array.")
    try:
        array = np.asarray(action)
    except Exception as error:  # ragged lists, tensors of a graph or of another device, somebody else's objects
        reason = " ".join(str(error).split())
        raise InvalidActionError(
            f"the {what} are no array: {shown(action)} ({reason}); give an array of shape {shape}."
        ) from error
    if array.shape != shape:
        raise InvalidActionError(f"the {what} have shape {array.shape}, expected {shape}; nothing is reshaped to fit.")
    if array.dtype.kind not in kinds:
        raise InvalidActionError(f"the {what} have dtype {array.dtype}, expected {wanted}; cast them.")
    return array


def as_rates(rates: Any, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Rates of numpy as a tensor on the device of the episodes.

    Raises:
        InvalidActionError: another shape than that of the action space, or another dtype than float32.
    """
    array = as_array(rates, shape, "rates", "f", "float32")
    if array.dtype != np.float32:
        raise InvalidActionError(f"the rates have dtype {array.dtype}, expected float32; use .astype(np.float32).")
    # A tensor shares the array's memory, and torch warns of what is read-only, as JAX's arrays are.
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(device)
