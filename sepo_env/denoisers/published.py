"""Published checkpoints as denoisers: the DNA model of DRAKES and SEPO, MDLM and SEDD language models.

The files are foreign: tensors and plain containers are built from them, and no code of theirs runs. What a training
wrapped around a network (``module.``, ``_orig_mod.``, ``model.``, ``backbone.``) is taken off the names of its tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from sepo_env.arguments import PathArgument, checked
from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.config_files import find_config, read_config, read_config_file
from sepo_env.denoisers.diffusion_transformers import (
    EMBEDDING,
    build_mdlm,
    build_mdlm_training,
    build_sedd,
    is_mdlm,
    is_mdlm_training,
    is_sedd,
)
from sepo_env.denoisers.dna_cnn import (
    DILATIONS,
    ClassDNAConvConfig,
    ClassDNAConvDenoiser,
    DNAConvConfig,
    DNAConvDenoiser,
)
from sepo_env.denoisers.layouts import OTHER_FILE, build_config, config_entry, noise_schedule
from sepo_env.denoisers.mdlm import MDLMDenoiser
from sepo_env.denoisers.sedd import SEDDDenoiser
from sepo_env.denoisers.weight_files import StoredWeights, Weights, fill_stored, read_file, read_weights
from sepo_env.errors import CheckpointError
from sepo_env.loading.hub import local_path, lone_file
from sepo_env.loading.inert import outline, shown
from sepo_env.loading.paths import is_folder
from sepo_env.loading.tensorfile import bare_name, find_prefixes

_STEM, _HEAD = "linear.weight", "final_conv.2.weight"
_DNA_NAMES = frozenset({_STEM, "linear.bias", "time_embedder.0.W", "time_embedder.1.weight", _HEAD})


@checked
def load_drakes(path: PathArgument, *, weights: Weights = "raw") -> DNAConvDenoiser:
    """Read the published DNA model (arXiv:2410.13643, arXiv:2502.01384), on the CPU and in evaluation mode.

    One that embeds classes becomes a `ClassDNAConvDenoiser`; no released file of that kind was at hand to compare with.

    Args:
        path: a Lightning checkpoint (``pretrained.ckpt``), or the fine-tuned tensors alone (``finetuned*.ckpt``); or a
            folder or hub id ``"hub:owner/name"`` that holds one of them alone.
        weights: ``"raw"``, from which the published fine-tuning starts, or ``"ema"``, their running average, which
            only a Lightning checkpoint holds.

    Raises:
        CheckpointError: not such a file, another architecture, missing or extra tensors; the message says what was
            expected and what was found.
        InvalidArgumentError: something else than a path.
        UnknownNameError: no weights of that name.
    """
    return _build_drakes(read_file(lone_file(local_path(path))), weights)


@checked
def load_mdlm(path: PathArgument, *, weights: Weights = "raw") -> MDLMDenoiser:
    """Read an MDLM language model (arXiv:2406.07524), on the CPU and in evaluation mode.

    MASK is the last of its ids, which the published model appends to those of the GPT-2 tokenizer.

    Args:
        path: a folder with config.json and weights (`read_weights`) in the layout of ``kuleshov-group/mdlm-owt``, or a
            hub id ``"hub:owner/name"``; or a Lightning checkpoint of its training.
        weights: ``"raw"``, or ``"ema"``, the running average that a checkpoint of its training holds.

    Raises:
        CheckpointError: not such a folder or file, another architecture, missing or extra tensors.
        InvalidArgumentError: something else than a path.
        UnknownNameError: no weights of that name.
    """
    source, config, read = _open(lone_file(local_path(path)))
    if is_mdlm(config) or is_mdlm_training(config):
        return (build_mdlm if is_mdlm(config) else build_mdlm_training)(source, config, read(), weights)
    raise CheckpointError(source, f"expected an MDLM ('model_type': 'mdlm'), found {_kind(config)}", OTHER_FILE)


@checked
def load_sedd(path: PathArgument, *, weights: Weights = "raw") -> SEDDDenoiser:
    """Read a SEDD language model (arXiv:2310.16834), on the CPU and in evaluation mode.

    Args:
        path: a folder with config.json and weights (`read_weights`) in the layout of ``louaaron/sedd-small`` and
            ``-medium``, or a hub id ``"hub:owner/name"``; or the folder of its training, or a checkpoint in it, whose
            configuration is ``.hydra/config.yaml``.
        weights: ``"raw"``, or ``"ema"``, the running average that a checkpoint of its training holds.

    Raises:
        CheckpointError: not such a folder, another architecture, missing or extra tensors; also one whose scores of
            the uniform graph are scaled by the noise, which the published network refuses to be, too.
        InvalidArgumentError: something else than a path.
        UnknownNameError: no weights of that name.
        MissingExtraError: a configuration in YAML, without PyYAML.
    """
    source, config, read = _open(lone_file(local_path(path)))
    if is_sedd(config):
        return build_sedd(source, config, read(), weights)
    raise CheckpointError(
        source,
        f"expected a SEDD (sections graph, noise, model and the number of tokens), found {_kind(config)}",
        OTHER_FILE,
    )


def load_folder(folder: Path, *, weights: Weights = "raw", trust_remote_code: bool = False) -> Denoiser:
    """Read a denoiser from a folder that says in its configuration what it is: MDLM, SEDD or a masked language model.

    Raises:
        CheckpointError: a folder that says nothing, or something else.
    """
    source, config = read_config(folder)
    if _is_transformer(config):
        return _build_transformer(source, config, read_weights(folder), weights)
    from sepo_env.denoisers.masked_lm import is_masked_lm_folder, load_masked_lm

    if is_masked_lm_folder(folder):
        if weights != "raw":
            raise CheckpointError(folder, "expected averages (ema), found none", "give weights='raw'")
        return load_masked_lm(folder, trust_remote_code=trust_remote_code)
    raise CheckpointError(
        folder,
        f"expected an MDLM, a SEDD or a masked language model of Transformers, found {_kind(config)}",
        "give the folder of such a model, call load_masked_lm for a masked language model that does not say so, or "
        "build the denoiser and give the object",
    )


def is_published(stored: StoredWeights) -> bool:
    """Whether the names of tensors are those of a published network."""
    return _is_diffusion_transformer(stored) or len(_dna_prefixes(stored)) > 0


def build_stored(stored: StoredWeights, weights: Weights) -> Denoiser:
    """The denoiser of a file that says by the names of its tensors what it is.

    Raises:
        CheckpointError: it is none of the published ones, or its configuration cannot be found.
    """
    if not _is_diffusion_transformer(stored):
        return _build_drakes(stored, weights)
    source, config = _configuration(stored)
    if not _is_transformer(config):
        raise CheckpointError(source, f"expected an MDLM or a SEDD, found {_kind(config)}", OTHER_FILE)
    return _build_transformer(source, config, stored, weights)


def _is_diffusion_transformer(stored: StoredWeights) -> bool:
    return bool(find_prefixes(map(bare_name, stored.tensors), {EMBEDDING}))


def _dna_prefixes(stored: StoredWeights) -> list[str]:
    return find_prefixes(map(bare_name, stored.tensors), {_HEAD})


def _is_transformer(config: Mapping[str, Any]) -> bool:
    return is_mdlm(config) or is_sedd(config) or is_mdlm_training(config)


def _build_transformer(
    source: Path, config: Mapping[str, Any], stored: StoredWeights, weights: Weights
) -> MDLMDenoiser | SEDDDenoiser:
    if is_mdlm(config):
        return build_mdlm(source, config, stored, weights)
    if is_sedd(config):
        return build_sedd(source, config, stored, weights)
    return build_mdlm_training(source, config, stored, weights)


def _configuration(stored: StoredWeights) -> tuple[Path, dict[str, Any]]:
    """The configuration of a diffusion transformer, which its tensors alone do not tell, and its file."""
    if stored.settings is not None:
        return stored.path, stored.settings
    source = find_config(stored.path)
    if source is None:
        raise CheckpointError(
            stored.path,
            "its tensors are those of an MDLM or a SEDD, and do not say which, nor its graph, noise and heads",
            "put the config.json of the model beside it, or give the file in the folder of its training (.hydra)",
        )
    return source, read_config_file(source)


def _open(place: Path) -> tuple[Path, dict[str, Any], Callable[[], StoredWeights]]:
    """The configuration of a folder or a file, what it stands in, and what reads the tensors."""
    if is_folder(place):
        return *read_config(place), partial(read_weights, place)
    stored = read_file(place)
    return *_configuration(stored), lambda: stored


def _build_drakes(stored: StoredWeights, weights: Weights) -> DNAConvDenoiser:
    tensors = stored.named_as(_DNA_NAMES)
    stem, head = tensors.get(_STEM), tensors.get(_HEAD)
    num_convs = sum(name.startswith("convs.") and name.endswith(".weight") for name in tensors)
    if stem is None or head is None or stem.ndim != 3 or num_convs == 0 or num_convs % len(DILATIONS):
        raise CheckpointError(
            stored.path,
            f"expected the dilated CNN of DRAKES (backbone.linear.weight of three axes, a multiple of {len(DILATIONS)} "
            f"layers backbone.convs.*, backbone.final_conv.2.weight), found {outline(stored.tensors)}",
            OTHER_FILE,
        )
    settings = _drakes_settings(stored) | {
        "num_tokens": stem.shape[1] - 1,
        "channels": stem.shape[0],
        "num_stacks": num_convs // len(DILATIONS),
    }
    kind: type[DNAConvDenoiser] = DNAConvDenoiser
    config_kind: type[DNAConvConfig] = DNAConvConfig
    classes = tensors.get("cls_embedder.weight")
    if classes is not None:
        kind, config_kind = ClassDNAConvDenoiser, ClassDNAConvConfig
        settings["num_classes"] = (len(classes) if classes.ndim else 0) - 1
    return fill_stored(stored, kind, build_config(stored.path, config_kind, **settings), tensors, weights)


def _drakes_settings(stored: StoredWeights) -> dict[str, Any]:
    """What the configuration of a Lightning checkpoint says about the network; without one, the published settings."""
    path, config = stored.path, stored.settings
    if config is None:
        return {}
    for name, wanted in (("diffusion", "absorbing_state"), ("parameterization", "subs"), ("backbone", "cnn")):
        if not (isinstance(found := config.get(name, wanted), str) and found == wanted):
            raise CheckpointError(path, f"expected {name} {wanted!r}, found {shown(found)}", OTHER_FILE)
    if not config_entry(path, {"time_conditioning": False, **config}, "time_conditioning", bool):
        return {}
    return {"time_conditioned": True, "schedule": noise_schedule(path, config)}


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type") or config.get("architectures")
    return shown(kind) if kind else f"a configuration with the entries {shown(sorted(map(str, config))[:8])}"
