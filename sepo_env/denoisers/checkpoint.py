"""Denoisers to and from safetensors files that say what they hold."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sepo_env.arguments import PathArgument, checked
from sepo_env.denoisers.base import Denoiser, as_denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.dna_cnn import ClassDNAConvConfig, ClassDNAConvDenoiser, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.guidance import ClassifierFreeGuidance
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.published import build_stored, is_published, load_folder
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.tabular import TabularDenoiser
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig
from sepo_env.denoisers.weight_files import StoredWeights, Weights, kind_of, read_pickled
from sepo_env.diffusion.schedule import SCHEDULES
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.files import write_atomically
from sepo_env.loading.hub import local_path, lone_file
from sepo_env.loading.paths import as_path, is_folder
from sepo_env.loading.tensorfile import build_from, read_tensors
from sepo_env.textfile import parse_json

FORMAT = "sepo_env.denoiser/1"
_CHECKSUM = "sha256"


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


@checked
def save_denoiser(denoiser: nn.Module, path: PathArgument, provenance: Mapping[str, str] | None = None) -> None:
    """Write a denoiser to a safetensors file, whole or not at all.

    The architecture's name, its configuration (JSON), ``provenance`` and a checksum stand in the file's metadata.

    Raises:
        UnknownNameError: the denoiser's class, or that of the one within its guidance, is not in `ARCHITECTURES`.
        InvalidArgumentError: no denoiser, no path, or something else than text about where it comes from.
        FolderError: it cannot be written.
    """
    network = as_denoiser(denoiser)
    described = _describe(network)
    metadata = {
        **(provenance or {}),
        "format": FORMAT,
        "architecture": described["architecture"],
        "config": json.dumps(described["config"]),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
    metadata[_CHECKSUM] = _checksum(tensors, metadata)

    def write(temporary: Path) -> None:
        save_file(tensors, str(temporary), metadata=metadata)
        temporary.chmod(0o644)  # safetensors writes files that only their owner may read

    write_atomically(as_path(path), write)


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all that decides what a denoiser computes; safetensors themselves do not notice a flipped bit."""
    digest = hashlib.sha256(f"{metadata['architecture']} {metadata['config']}".encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@checked
def load_denoiser(path: PathArgument, *, weights: Weights = "raw", trust_remote_code: bool = False) -> Denoiser:
    """Read a denoiser of any known format, on the CPU, in float32 and in evaluation mode.

    What it is, the file or folder says itself: a file of `save_denoiser`; a checkpoint of the DRAKES DNA model
    (`load_drakes`); a folder with an MDLM, a SEDD (`load_mdlm`, `load_sedd`) or a masked language model of
    Transformers (`load_masked_lm`). No code in it runs unless you say so.

    Args:
        path: a file, a folder, or the id of a folder on the Hugging Face hub, ``"hub:owner/name"``. A folder without a
            config.json stands for the one file of weights in it.
        weights: of a checkpoint of the DRAKES DNA model, ``"raw"`` or their running average ``"ema"``. Where only a
            path can be given (an environment, the command line), save what this returns and give that file.
        trust_remote_code: run Python code that a masked language model brings along; it can do whatever you can.

    Raises:
        CheckpointError: no such file, not a denoiser, an unknown architecture, or keys, shapes and dtypes that differ
            from what the architecture expects (the message names both), or weights that are not finite.
        InvalidArgumentError: something else than a path, or averages of a format that has none.
        UnknownNameError: no weights of that name.
        MissingExtraError: a hub id without ``huggingface_hub``, or a masked language model without ``transformers``.
    """
    place = lone_file(local_path(path, programs=trust_remote_code))
    if is_folder(place):
        return load_folder(place, weights=weights, trust_remote_code=trust_remote_code)
    if kind_of(place) == "torch":
        return build_stored(read_pickled(place), weights)
    tensors, metadata = read_tensors(place)
    stored = StoredWeights(place, tensors)
    if metadata.get("format") != FORMAT and is_published(stored):
        return build_stored(stored, weights)
    if weights != "raw":
        raise CheckpointError(place, "expected averages (ema), found none", "give weights='raw'")
    return _build_saved(place, tensors, metadata)


def _build_saved(path: Path, tensors: dict[str, Tensor], metadata: Mapping[str, str]) -> Denoiser:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            path,
            f"expected the format {FORMAT!r}, found {metadata.get('format')!r}",
            "give a file written by save_denoiser, or the folder that also holds the model's config.json",
        )
    architecture = ARCHITECTURES.get(metadata.get("architecture", ""))
    if architecture is None:
        raise CheckpointError(
            path,
            f"expected an architecture among {sorted(ARCHITECTURES)}, found {metadata.get('architecture')!r}",
            "register the architecture in sepo_env.denoisers.checkpoint.ARCHITECTURES",
        )

    def build() -> Denoiser:
        return architecture.build(parse_json(metadata["config"]))

    denoiser = build_from(path, build, tensors)
    # Files of before there were checksums have none.
    if metadata.get(_CHECKSUM, checksum := _checksum(tensors, metadata)) != checksum:
        raise CheckpointError(path, "its content has changed since it was written (SHA-256)", "copy it again")
    return denoiser.eval()
