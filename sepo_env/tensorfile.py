"""Files of named tensors: safetensors read whole, and tensors compared with what an architecture expects."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch
from safetensors import safe_open
from torch import Tensor

from sepo_env.errors import CheckpointError
from sepo_env.paths import check_file

_SHOWN = 8


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file on the CPU.

    Returns:
        The tensors by name, in the dtype of the file, and the file's metadata.

    Raises:
        CheckpointError: no such file, or not a whole safetensors file.
    """
    path = check_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except Exception as error:  # a damaged header may fail in any way
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "copy or download it again") from error


def check_tensors(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    cure: str = "use the version that wrote the file",
) -> None:
    """Refuse tensors whose names, shapes or kinds of numbers are not the expected ones.

    Weights may have any floating dtype of 16 bits or more.

    Args:
        path: the file, for the message.
        expected: what the architecture holds (``state_dict``).
        found: what the file holds.
        cure: what the reader may do about it.

    Raises:
        CheckpointError: names the tensors that are missing, not expected, or of another shape or dtype.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(path, f"tensors missing: {_listed(missing)}, not expected: {_listed(extra)}", cure)
    shapes = {key: (tuple(value.shape), tuple(found[key].shape)) for key, value in expected.items()}
    differing = [f"{key} expected {one}, found {other}" for key, (one, other) in shapes.items() if one != other]
    if differing:
        raise CheckpointError(path, "; ".join(differing[:_SHOWN]), cure)
    kinds = [
        f"{key} expected floats of 16 bits or more, found {found[key].dtype}"
        for key, value in expected.items()
        if value.is_floating_point() and not is_weight(found[key].dtype)
    ]
    if kinds:
        raise CheckpointError(path, "; ".join(kinds[:_SHOWN]), cure)


def check_finite(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with entries that are not finite: every output that they reach would be NaN.

    Raises:
        CheckpointError: names them.
    """
    broken = sorted(key for key, value in tensors.items() if not bool(value.isfinite().all()))
    if broken:
        raise CheckpointError(path, f"tensors with NaN or infinity: {_listed(broken)}", "give a file of a sound model")


def is_weight(dtype: torch.dtype) -> bool:
    """Whether weights may be of this dtype: floats in which they are a number each, not codes of a quantisation."""
    return dtype.is_floating_point and dtype.itemsize >= 2


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{more}"
