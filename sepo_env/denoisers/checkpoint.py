"""Denoisers to and from safetensors files that say what they hold."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.dna_cnn import ClassDNAConvConfig, ClassDNAConvDenoiser, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.guidance import ClassifierFreeGuidance
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.published import load_drakes, load_folder
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.tabular import TabularDenoiser
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig
from sepo_env.diffusion.schedule import SCHEDULES
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.hub import local_path
from sepo_env.tensorfile import check_tensors, read_tensors

FORMAT = "sepo_env.denoiser/1"
_ZIP = b"PK\x03\x04"
"""How a checkpoint of torch begins."""
_SAFETENSORS = b"{"
"""What stands in safetensors behind the eight bytes of the header's size."""


@dataclass(frozen=True)
class _Architecture:
    """How a class of denoisers is written down and built again."""

    kind: type[Denoiser]
    describe: Callable[[Any], dict[str, Any]]
    build: Callable[[dict[str, Any]], Denoiser]


def _describe_tabular(denoiser: TabularDenoiser) -> dict[str, Any]:
    names = ("num_tokens", "length", "vocab_size", "parameterisation")
    return {name: getattr(denoiser, name) for name in names}


def _describe_scheduled(denoiser: Any) -> dict[str, Any]:
    """A configuration that holds a schedule, which needs its name besides its settings."""
    schedule = denoiser.config.schedule
    names = [name for name, kind in SCHEDULES.items() if type(schedule) is kind]
    if not names:
        raise UnknownNameError("schedule", type(schedule).__name__, [kind.__name__ for kind in SCHEDULES.values()])
    return {**asdict(denoiser.config), "schedule": {"name": names[0], **asdict(schedule)}}


def _scheduled(config: dict[str, Any]) -> dict[str, Any]:
    settings = dict(config["schedule"])
    return {**config, "schedule": SCHEDULES[settings.pop("name")](**settings)}


def _describe_guided(denoiser: ClassifierFreeGuidance) -> dict[str, Any]:
    return {"scale": denoiser.scale, "label": denoiser.label, "denoiser": _describe(denoiser.core)}


def _build_guided(config: dict[str, Any]) -> Denoiser:
    inner = config["denoiser"]
    core = ARCHITECTURES[inner["architecture"]].build(inner["config"])
    return ClassifierFreeGuidance(core, config["scale"], config["label"])


def _describe(denoiser: Denoiser) -> dict[str, Any]:
    """A denoiser's architecture and configuration.

    Raises:
        UnknownNameError: its class is not in `ARCHITECTURES`.
    """
    for name, architecture in ARCHITECTURES.items():
        if type(denoiser) is architecture.kind:
            return {"architecture": name, "config": architecture.describe(denoiser)}
    raise UnknownNameError("denoiser class", type(denoiser).__name__, [a.kind.__name__ for a in ARCHITECTURES.values()])


ARCHITECTURES: dict[str, _Architecture] = {
    "class-dna-conv": _Architecture(
        kind=ClassDNAConvDenoiser,
        describe=_describe_scheduled,
        build=lambda config: ClassDNAConvDenoiser(ClassDNAConvConfig(**_scheduled(config))),
    ),
    "conv": _Architecture(
        kind=ConvDenoiser,
        describe=lambda denoiser: asdict(denoiser.config),
        build=lambda config: ConvDenoiser(ConvDenoiserConfig(**config)),
    ),
    "dna-conv": _Architecture(
        kind=DNAConvDenoiser,
        describe=_describe_scheduled,
        build=lambda config: DNAConvDenoiser(DNAConvConfig(**_scheduled(config))),
    ),
    "guided": _Architecture(kind=ClassifierFreeGuidance, describe=_describe_guided, build=_build_guided),
    "mdlm": _Architecture(
        kind=MDLMDenoiser,
        describe=_describe_scheduled,
        build=lambda config: MDLMDenoiser(MDLMConfig(**_scheduled(config))),
    ),
    "sedd": _Architecture(
        kind=SEDDDenoiser,
        describe=_describe_scheduled,
        build=lambda config: SEDDDenoiser(SEDDConfig(**_scheduled(config))),
    ),
    "tabular": _Architecture(
        kind=TabularDenoiser, describe=_describe_tabular, build=lambda config: TabularDenoiser(**config)
    ),
    "transformer": _Architecture(
        kind=TransformerDenoiser,
        describe=lambda denoiser: asdict(denoiser.config),
        build=lambda config: TransformerDenoiser(TransformerDenoiserConfig(**config)),
    ),
}


def save_denoiser(
    denoiser: Denoiser, path: str | os.PathLike[str], provenance: Mapping[str, str] | None = None
) -> None:
    """Write a denoiser to a safetensors file, whole or not at all.

    The architecture's name, its configuration (JSON) and ``provenance`` stand in the file's metadata.

    Raises:
        UnknownNameError: the denoiser's class, or that of the one within its guidance, is not in `ARCHITECTURES`.
    """
    described = _describe(denoiser)
    metadata = {
        **(provenance or {}),
        "format": FORMAT,
        "architecture": described["architecture"],
        "config": json.dumps(described["config"]),
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
    """Read a denoiser of any known format, on the CPU, in float32 and in evaluation mode.

    What it is, the file or folder says itself: a file of `save_denoiser`; a checkpoint of the DRAKES DNA model, its
    raw weights (`load_drakes`); a folder with an MDLM, a SEDD (`load_mdlm`, `load_sedd`) or a masked language model of
    Transformers (`load_masked_lm`). No code in it runs.

    Args:
        path: a file, a folder, or the id of a folder on the Hugging Face hub, ``"hub:owner/name"``.

    Raises:
        CheckpointError: no such file, not a denoiser, an unknown architecture, or keys and shapes that differ from
            what the architecture expects; the message names both.
        MissingExtraError: a hub id without ``huggingface_hub``, or a masked language model without ``transformers``.
    """
    path = local_path(path)
    if path.is_dir():
        return load_folder(path)
    if not path.is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(_ZIP):
        return load_drakes(path)
    if not start.endswith(_SAFETENSORS):
        found = f"a file that begins with {start!r}" if start else "an empty file"
        raise CheckpointError(
            path, f"expected safetensors or a checkpoint of torch, found {found}", "give a file of one of these kinds"
        )
    return _load_saved(path)


def _load_saved(path: Path) -> Denoiser:
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            path,
            f"expected the format {FORMAT!r}, found {metadata.get('format')!r}",
            "give a file written by save_denoiser, or the folder that also holds the model's config.json",
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
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            path, f"its configuration does not build ({error})", "use the version that wrote the file"
        ) from error
    check_tensors(path, denoiser.state_dict(), tensors)
    denoiser.load_state_dict(tensors)
    return denoiser.eval()
