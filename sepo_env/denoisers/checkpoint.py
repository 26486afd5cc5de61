"""Denoisers to and from safetensors files that say what they hold."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sepo_env.denoisers.base import Denoiser, as_denoiser
from sepo_env.denoisers.cnn import ConvDenoiser, ConvDenoiserConfig
from sepo_env.denoisers.dna_cnn import ClassDNAConvConfig, ClassDNAConvDenoiser, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.guidance import ClassifierFreeGuidance
from sepo_env.denoisers.layouts import BUILD_ERRORS
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.published import Weights, check_weights, load_drakes, load_folder
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.tabular import TabularDenoiser
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig
from sepo_env.diffusion.schedule import SCHEDULES
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.hub import local_path, lone_file
from sepo_env.paths import check_file, is_folder
from sepo_env.tensorfile import check_finite, check_tensors, read_tensors

FORMAT = "sepo_env.denoiser/1"
_TORCH = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"
"""How a checkpoint of torch begins: an archive, and before torch 1.6 a magic number, which is refused with a cure."""
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
    denoiser = as_denoiser(denoiser)
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


def load_denoiser(
    path: str | os.PathLike[str], *, weights: Weights = "raw", trust_remote_code: bool = False
) -> Denoiser:
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
    check_weights(weights)
    path = lone_file(local_path(path, programs=trust_remote_code))
    start = b"" if is_folder(path) else _start_of(check_file(path))
    if start.startswith(_TORCH):
        return load_drakes(path, weights=weights)
    if weights != "raw":
        raise InvalidArgumentError(f"{path} is no checkpoint of the DRAKES DNA model and has no averages; give 'raw'.")
    if is_folder(path):
        return load_folder(path, trust_remote_code=trust_remote_code)
    if not start.endswith(_SAFETENSORS):
        found = f"a file that begins with {start!r}" if start else "an empty file"
        raise CheckpointError(
            path, f"expected safetensors or a checkpoint of torch, found {found}", "give a file of one of these kinds"
        )
    return _load_saved(path)


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read ({error})", "check its permissions") from error


def _load_saved(path: Path) -> Denoiser:
    tensors, metadata = read_tensors(path)
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
    try:
        config = json.loads(metadata["config"])
        with torch.device("meta"):  # sizes are compared before they take memory
            expected = architecture.build(config).state_dict()
        check_tensors(path, expected, tensors)
        denoiser = architecture.build(config)
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(
            path, f"its configuration does not build ({error})", "use the version that wrote the file"
        ) from error
    denoiser.load_state_dict(tensors)
    check_finite(path, denoiser.state_dict())
    return denoiser.eval()
