"""Published checkpoints as denoisers: the DNA model of DRAKES and SEPO, MDLM and SEDD language models.

The files are foreign: tensors and plain containers are built from them, and no code of theirs runs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.dit import rotary_frequencies
from sepo_env.denoisers.dna_cnn import (
    DILATIONS,
    ClassDNAConvConfig,
    ClassDNAConvDenoiser,
    DNAConvConfig,
    DNAConvDenoiser,
)
from sepo_env.denoisers.layouts import (
    CONFIG_FILE,
    OTHER_FILE,
    build_config,
    config_choice,
    config_entry,
    fill_model,
    noise_schedule,
    outline,
    read_config,
)
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.foreign import Inert, read_foreign
from sepo_env.hub import local_path
from sepo_env.tensorfile import check_tensors, read_tensors

Weights = Literal["raw", "ema"]

WEIGHTS_FILE = "model.safetensors"
_BACKBONE = "backbone."
_ROTARY = "backbone.rotary_emb.inv_freq"
_NEVER_TRAINED = "time_embedder.0.W"


def load_drakes(path: str | os.PathLike[str], *, weights: Weights = "raw") -> DNAConvDenoiser:
    """Read the published DNA model (arXiv:2410.13643, arXiv:2502.01384), on the CPU and in evaluation mode.

    One that embeds classes becomes a `ClassDNAConvDenoiser`; no released file of that kind was at hand to compare with.

    Args:
        path: a Lightning checkpoint (``pretrained.ckpt``), or the fine-tuned tensors alone (``finetuned*.ckpt``).
        weights: ``"raw"``, from which the published fine-tuning starts, or ``"ema"``, their running average, which
            only a Lightning checkpoint holds.

    Raises:
        CheckpointError: not such a file, another architecture, missing or extra tensors; the message says what was
            expected and what was found.
        UnknownNameError: no weights of that name.
    """
    if weights not in get_args(Weights):
        raise UnknownNameError("weights", weights, get_args(Weights))
    checkpoint = read_foreign(path)
    lightning = "state_dict" in checkpoint
    found = checkpoint["state_dict"] if lightning else checkpoint
    settings = _drakes_settings(path, checkpoint) if lightning else {}
    tensors = _named_tensors(path, found)
    stem, head = tensors.get("linear.weight"), tensors.get("final_conv.2.weight")
    num_convs = sum(name.startswith("convs.") and name.endswith(".weight") for name in tensors)
    if stem is None or head is None or stem.ndim != 3 or num_convs == 0 or num_convs % len(DILATIONS):
        raise CheckpointError(
            path,
            f"expected the dilated CNN of DRAKES (backbone.linear.weight of three axes, a multiple of {len(DILATIONS)} "
            f"layers backbone.convs.*, backbone.final_conv.2.weight), found {outline(found)}",
            OTHER_FILE,
        )
    if weights == "ema":
        tensors = _averaged(path, checkpoint, tensors)
    settings |= {
        "num_tokens": stem.shape[1] - 1,
        "channels": stem.shape[0],
        "num_stacks": num_convs // len(DILATIONS),
    }
    classes = tensors.get("cls_embedder.weight")
    if classes is not None:
        class_config = build_config(path, ClassDNAConvConfig, num_classes=len(classes) - 1, **settings)
        return fill_model(path, ClassDNAConvDenoiser, class_config, tensors)
    return fill_model(path, DNAConvDenoiser, build_config(path, DNAConvConfig, **settings), tensors)


def load_mdlm(path: str | os.PathLike[str]) -> MDLMDenoiser:
    """Read an MDLM language model (arXiv:2406.07524) in the layout of ``kuleshov-group/mdlm-owt``.

    MASK is the last of its ids, which the published model appends to those of the GPT-2 tokenizer.

    Args:
        path: a folder with config.json and model.safetensors, or a hub id ``"hub:owner/name"``.

    Raises:
        CheckpointError: not such a folder, another architecture, missing or extra tensors.
    """
    folder = local_path(path)
    config = read_config(folder)
    if not _is_mdlm(config):
        raise CheckpointError(folder, f"expected an MDLM ('model_type': 'mdlm'), found {_kind(config)}", OTHER_FILE)
    source = folder / CONFIG_FILE
    built = build_config(
        source,
        MDLMConfig,
        num_tokens=config_entry(source, config, "vocab_size", int) - 1,
        width=config_entry(source, config, "hidden_dim", int),
        depth=config_entry(source, config, "n_blocks", int),
        heads=config_entry(source, config, "n_heads", int),
        cond_width=config_entry(source, config, "cond_dim", int),
        time_conditioned=config_entry(source, config, "time_conditioning", bool),
    )
    weights = folder / WEIGHTS_FILE
    return fill_model(weights, MDLMDenoiser, built, _read_dit(weights, built.backbone.head_width))


def load_sedd(path: str | os.PathLike[str]) -> SEDDDenoiser:
    """Read a SEDD language model (arXiv:2310.16834) in the layout of ``louaaron/sedd-small`` and ``-medium``.

    Args:
        path: a folder with config.json and model.safetensors, or a hub id ``"hub:owner/name"``.

    Raises:
        CheckpointError: not such a folder, another architecture, missing or extra tensors.
    """
    folder = local_path(path)
    config = read_config(folder)
    if not _is_sedd(config):
        raise CheckpointError(
            folder,
            f"expected a SEDD (sections graph, noise, model and the number of tokens), found {_kind(config)}",
            OTHER_FILE,
        )
    source = folder / CONFIG_FILE
    graph = config_choice(source, config, "graph.type", {"absorb": "absorbing", "uniform": "uniform"})
    built = build_config(
        source,
        SEDDConfig,
        num_tokens=config_entry(source, config, "tokens", int),
        graph=graph,
        width=config_entry(source, config, "model.hidden_size", int),
        depth=config_entry(source, config, "model.n_blocks", int),
        heads=config_entry(source, config, "model.n_heads", int),
        cond_width=config_entry(source, config, "model.cond_dim", int),
        scale_by_sigma=config_entry(source, config, "model.scale_by_sigma", bool),
        schedule=noise_schedule(source, config),
    )
    weights = folder / WEIGHTS_FILE
    return fill_model(weights, SEDDDenoiser, built, _read_dit(weights, built.backbone.head_width, _BACKBONE))


def load_folder(folder: Path) -> Denoiser:
    """Read a denoiser from a folder that says in its config.json what it is: MDLM, SEDD or a masked language model.

    Raises:
        CheckpointError: a folder that says nothing, or something else.
    """
    config = read_config(folder)
    if _is_mdlm(config):
        return load_mdlm(folder)
    if _is_sedd(config):
        return load_sedd(folder)
    from sepo_env.denoisers.masked_lm import is_masked_lm_folder, load_masked_lm

    if is_masked_lm_folder(folder):
        return load_masked_lm(folder)
    raise CheckpointError(
        folder,
        f"expected an MDLM, a SEDD or a masked language model of Transformers, found {_kind(config)}",
        "give the folder of such a model, or build the denoiser and give the object",
    )


def _is_mdlm(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mdlm"


def _is_sedd(config: Mapping[str, Any]) -> bool:
    sections = all(isinstance(config.get(name), dict) for name in ("graph", "noise", "model"))
    return sections and "tokens" in config


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type") or config.get("architectures")
    return repr(kind) if kind else f"a config.json with the entries {sorted(config)[:8]}"


def _drakes_settings(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a Lightning checkpoint says about the network; without one, the published settings."""
    parameters = checkpoint.get("hyper_parameters")
    config = _plain(parameters.get("config")) if isinstance(parameters, Mapping) else None
    if not isinstance(config, dict):
        return {}
    for name, wanted in (("diffusion", "absorbing_state"), ("parameterization", "subs"), ("backbone", "cnn")):
        if config.get(name, wanted) != wanted:
            raise CheckpointError(path, f"expected {name} {wanted!r}, found {config[name]!r}", OTHER_FILE)
    if not config_entry(path, {"time_conditioning": False, **config}, "time_conditioning", bool):
        return {}
    return {"time_conditioned": True, "schedule": noise_schedule(path, config)}


def _plain(value: Any, depth: int = 0) -> Any:
    """Containers and values of an omegaconf object; interpolations stay the text that they are, never resolved."""
    if depth > 32:
        return None
    if isinstance(value, Inert):
        state = value.state if isinstance(value.state, Mapping) else {}
        return _plain(state.get("_content", state.get("_val")), depth + 1)
    if isinstance(value, Mapping):
        return {key: _plain(entry, depth + 1) for key, entry in value.items()}
    return [_plain(entry, depth + 1) for entry in value] if isinstance(value, list) else value


def _named_tensors(path: str | os.PathLike[str], found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict by their names within the backbone."""
    if not isinstance(found, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise CheckpointError(path, f"expected tensors by name, found {outline(found)}", OTHER_FILE)
    return {key.removeprefix(_BACKBONE): value.float() for key, value in found.items()}


def _averaged(
    path: str | os.PathLike[str], checkpoint: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors with their running averages, a list without names in the order of the trained parameters."""
    ema = checkpoint.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(averages, list):
        raise CheckpointError(path, f"expected averages (ema), found {outline(checkpoint)}", "give weights='raw'")
    names = [name for name in tensors if name != _NEVER_TRAINED]
    if len(averages) != len(names) or not all(isinstance(average, Tensor) for average in averages):
        raise CheckpointError(
            path, f"expected {len(names)} averages, one a trained tensor, found {len(averages)}", "give weights='raw'"
        )
    named = dict(zip(names, averages, strict=True))
    check_tensors(path, {name: tensors[name] for name in names}, named, "give weights='raw'")
    return {**tensors, **{name: average.float() for name, average in named.items()}}


def _read_dit(path: Path, channels: int, prefix: str = "") -> dict[str, Tensor]:
    """The tensors of a DiT under a prefix, less its table of rotary frequencies, which ours are computed from."""
    tensors = {prefix + key: value for key, value in read_tensors(path)[0].items()}
    table, expected = tensors.pop(_ROTARY, None), rotary_frequencies(channels)
    if table is not None and not (table.shape == expected.shape and torch.allclose(table.float(), expected)):
        raise CheckpointError(
            path, f"expected rotary frequencies to the base 10,000 for {channels} channels, found {table}", OTHER_FILE
        )
    return tensors
