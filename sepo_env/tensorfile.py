"""Files of named tensors: safetensors read whole, and tensors compared with what an architecture expects."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sepo_env.errors import CheckpointError

_SHOWN = 8


def read_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file on the CPU.

    Returns:
        The tensors by name, in the dtype of the file, and the file's metadata.

    Raises:
        CheckpointError: no such file, or not a whole safetensors file.
    """
    if not Path(path).is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "copy or download it again") from error


def check_tensors(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    cure: str = "use the version that wrote the file",
) -> None:
    """Refuse tensors whose names or shapes are not the expected ones.

    Args:
        path: the file, for the message.
        expected: what the architecture holds (``state_dict``).
        found: what the file holds.
        cure: what the reader may do about it.

    Raises:
        CheckpointError: names the tensors that are missing, not expected, or of another shape.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(path, f"tensors missing: {_listed(missing)}, not expected: {_listed(extra)}", cure)
    shapes = {key: (tuple(value.shape), tuple(found[key].shape)) for key, value in expected.items()}
    differing = [f"{key} expected {one}, found {other}" for key, (one, other) in shapes.items() if one != other]
    if differing:
        raise CheckpointError(path, "; ".join(differing[:_SHOWN]), cure)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{more}"
