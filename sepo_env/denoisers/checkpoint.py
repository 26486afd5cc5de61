"""Denoisers to and from safetensors files that say what they hold."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.tabular import TabularDenoiser
from sepo_env.errors import CheckpointError, UnknownNameError

FORMAT = "sepo_env.denoiser/1"


@dataclass(frozen=True)
class _Architecture:
    """How a class of denoisers is written down and built again."""

    kind: type[Denoiser]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any]], Denoiser]


def _describe_tabular(denoiser: TabularDenoiser) -> dict[str, Any]:
    names = ("num_tokens", "length", "vocab_size", "parameterisation")
    return {name: getattr(denoiser, name) for name in names}


ARCHITECTURES: dict[str, _Architecture] = {
    "conv": _Architecture(
        kind=ConvDenoiser,
        describe=lambda denoiser: asdict(denoiser.config),
        build=lambda config: ConvDenoiser(ConvDenoiserConfig(**config)),
    ),
    "tabular": _Architecture(
        kind=TabularDenoiser, describe=_describe_tabular, build=lambda config: TabularDenoiser(**config)
    ),
}


def save_denoiser(
    denoiser: Denoiser, path: str | os.PathLike[str], provenance: Mapping[str, str] | None = None
) -> None:
    """Write a denoiser to a safetensors file, whole or not at all.

    The architecture's name, its configuration (JSON) and ``provenance`` stand in the file's metadata.

    Raises:
        UnknownNameError: the denoiser's class is not in `ARCHITECTURES`.
    """
    names = [name for name, architecture in ARCHITECTURES.items() if type(denoiser) is architecture.kind]
    if not names:
        raise UnknownNameError(
            "denoiser class", type(denoiser).__name__, [a.kind.__name__ for a in ARCHITECTURES.values()]
        )
    metadata = {
        **(provenance or {}),
        "format": FORMAT,
        "architecture": names[0],
        "config": json.dumps(ARCHITECTURES[names[0]].describe(denoiser)),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in denoiser.state_dict().items()}
    target = Path(path)
    # A file in the same folder, so that the final rename cannot cross a file system and is atomic.
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)  # a temporary file starts readable for its owner only
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def load_denoiser(path: str | os.PathLike[str]) -> Denoiser:
    """Read a denoiser that `save_denoiser` wrote, on the CPU, in float32 and in evaluation mode.

    Raises:
        CheckpointError: no such file, not a denoiser, an unknown architecture, or keys and shapes that differ from
            what the architecture expects; the message names both.
    """
    if not Path(path).is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except SafetensorError as error:
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "copy or download it again") from error
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            path,
            f"expected the format {FORMAT!r}, found {metadata.get('format')!r}",
            "give a file written by save_denoiser",
        )
    architecture = ARCHITECTURES.get(metadata["architecture"])
    if architecture is None:
        raise CheckpointError(
            path,
            f"expected an architecture among {sorted(ARCHITECTURES)}, found {metadata['architecture']!r}",
            "register the architecture in sepo_env.denoisers.checkpoint.ARCHITECTURES",
        )
    try:
        denoiser = architecture.build(json.loads(metadata["config"]))
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            path, f"its configuration does not build ({error})", "use the version that wrote the file"
        ) from error
    _check_tensors(path, denoiser.state_dict(), tensors)
    denoiser.load_state_dict(tensors)
    return denoiser.eval()


def _check_tensors(
    path: str | os.PathLike[str], expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]
) -> None:
    """Raise unless both hold the same names with the same shapes."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(
            path, f"tensors missing: {missing}, not expected: {extra}", "use the version that wrote the file"
        )
    for key, value in expected.items():
        if value.shape != found[key].shape:
            raise CheckpointError(
                path,
                f"{key} expected {tuple(value.shape)}, found {tuple(found[key].shape)}",
                "use the version that wrote the file",
            )
