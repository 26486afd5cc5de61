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
from sepo_env.denoisers.dna_cnn import DILATIONS, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.layouts import (
    CONFIG_FILE,
    OTHER_FILE,
    blank_model,
    build_config,
    config_choice,
    config_entry,
    fill_model,
    noise_schedule,
    plain,
    read_config,
)
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.weight_files import named_tensors, read_weights
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.foreign import read_foreign
from sepo_env.hub import local_path, lone_file
from sepo_env.inert import outline, shown
from sepo_env.tensorfile import check_tensors, is_weight

Weights = Literal["raw", "ema"]

_BACKBONE = "backbone."
_ROTARY = "backbone.rotary_emb.inv_freq"


def load_drakes(path: str | os.PathLike[str], *, weights: Weights = "raw") -> DNAConvDenoiser:
    """Read the published DNA model (arXiv:2410.13643, arXiv:2502.01384), on the CPU and in evaluation mode.

    Args:
        path: a Lightning checkpoint (``pretrained.ckpt``), or the fine-tuned tensors alone (``finetuned*.ckpt``); or a
            folder or hub id ``"hub:owner/name"`` that holds one of them alone.
        weights: ``"raw"``, from which the published fine-tuning starts, or ``"ema"``, their running average, which
            only a Lightning checkpoint holds.

    Raises:
        CheckpointError: not such a file, another architecture, missing or extra tensors; the message says what was
            expected and what was found.
        UnknownNameError: no weights of that name.
    """
    check_weights(weights)
    path = lone_file(local_path(path))
    checkpoint = read_foreign(path)
    lightning = "state_dict" in checkpoint
    found = checkpoint["state_dict"] if lightning else checkpoint
    settings = _drakes_settings(path, checkpoint) if lightning else {}
    tensors = _without_prefix(path, found)
    stem, head = tensors.get("linear.weight"), tensors.get("final_conv.2.weight")
    num_convs = sum(name.startswith("convs.") and name.endswith(".weight") for name in tensors)
    if stem is None or head is None or stem.ndim != 3 or num_convs == 0 or num_convs % len(DILATIONS):
        raise CheckpointError(
            path,
            f"expected the dilated CNN of DRAKES (backbone.linear.weight of three axes, a multiple of {len(DILATIONS)} "
            f"layers backbone.convs.*, backbone.final_conv.2.weight), found {outline(found)}",
            OTHER_FILE,
        )
    config = build_config(
        path,
        DNAConvConfig,
        num_tokens=stem.shape[1] - 1,
        channels=stem.shape[0],
        num_stacks=num_convs // len(DILATIONS),
        **settings,
    )
    if weights == "ema":
        blank = blank_model(path, DNAConvDenoiser, config)
        check_tensors(path, blank.state_dict(), tensors, OTHER_FILE)
        tensors |= _averages(path, checkpoint, blank)
    return fill_model(path, DNAConvDenoiser, config, tensors)


def check_weights(weights: str) -> None:
    """Refuse weights of another name.

    Raises:
        UnknownNameError: no weights of that name.
    """
    if weights not in get_args(Weights):
        raise UnknownNameError("weights", weights, get_args(Weights))


def load_mdlm(path: str | os.PathLike[str]) -> MDLMDenoiser:
    """Read an MDLM language model (arXiv:2406.07524) in the layout of ``kuleshov-group/mdlm-owt``.

    MASK is the last of its ids, which the published model appends to those of the GPT-2 tokenizer.

    Args:
        path: a folder with config.json and weights (`read_weights`), or a hub id ``"hub:owner/name"``.

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
    file, tensors = _read_dit(folder, built.backbone.head_width)
    return fill_model(file, MDLMDenoiser, built, tensors)


def load_sedd(path: str | os.PathLike[str]) -> SEDDDenoiser:
    """Read a SEDD language model (arXiv:2310.16834) in the layout of ``louaaron/sedd-small`` and ``-medium``.

    Args:
        path: a folder with config.json and weights (`read_weights`), or a hub id ``"hub:owner/name"``.

    Raises:
        CheckpointError: not such a folder, another architecture, missing or extra tensors; also one whose scores of
            the uniform graph are scaled by the noise, which the published network refuses to be, too.
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
    config_choice(source, {"model": {"type": "ddit", **config["model"]}}, "model.type", {"ddit": SEDDDenoiser})
    scaled = config_entry(source, config, "model.scale_by_sigma", bool)
    if scaled and graph == "uniform":
        raise CheckpointError(
            source, "expected scale_by_sigma with graph.type 'absorb' only, found 'uniform'", OTHER_FILE
        )
    built = build_config(
        source,
        SEDDConfig,
        num_tokens=config_entry(source, config, "tokens", int),
        graph=graph,
        width=config_entry(source, config, "model.hidden_size", int),
        depth=config_entry(source, config, "model.n_blocks", int),
        heads=config_entry(source, config, "model.n_heads", int),
        cond_width=config_entry(source, config, "model.cond_dim", int),
        scale_by_sigma=scaled,
        schedule=noise_schedule(source, config),
    )
    file, tensors = _read_dit(folder, built.backbone.head_width, _BACKBONE)
    return fill_model(file, SEDDDenoiser, built, tensors)


def load_folder(folder: Path, *, trust_remote_code: bool = False) -> Denoiser:
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
        return load_masked_lm(folder, trust_remote_code=trust_remote_code)
    raise CheckpointError(
        folder,
        f"expected an MDLM, a SEDD or a masked language model of Transformers, found {_kind(config)}",
        "give the folder of such a model, call load_masked_lm for a masked language model that does not say so, or "
        "build the denoiser and give the object",
    )


def _is_mdlm(config: Mapping[str, Any]) -> bool:
    return config.get("model_type") == "mdlm"


def _is_sedd(config: Mapping[str, Any]) -> bool:
    sections = all(isinstance(config.get(name), dict) for name in ("graph", "noise", "model"))
    return sections and "tokens" in config


def _kind(config: Mapping[str, Any]) -> str:
    kind = config.get("model_type") or config.get("architectures")
    return shown(kind) if kind else f"a config.json with the entries {sorted(config)[:8]}"


def _drakes_settings(path: str | os.PathLike[str], checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What the configuration of a Lightning checkpoint says about the network; without one, the published settings."""
    parameters = checkpoint.get("hyper_parameters")
    config = plain(parameters.get("config")) if isinstance(parameters, Mapping) else None
    if not isinstance(config, dict):
        return {}
    for name, wanted in (("diffusion", "absorbing_state"), ("parameterization", "subs"), ("backbone", "cnn")):
        if not (isinstance(found := config.get(name, wanted), str) and found == wanted):
            raise CheckpointError(path, f"expected {name} {wanted!r}, found {shown(found)}", OTHER_FILE)
    if not config_entry(path, {"time_conditioning": False, **config}, "time_conditioning", bool):
        return {}
    return {"time_conditioned": True, "schedule": noise_schedule(path, config)}


def _without_prefix(path: str | os.PathLike[str], found: Any) -> dict[str, Tensor]:
    """The tensors of a state dict by their names within the backbone."""
    tensors = named_tensors(Path(path), found)
    names = {key: key.removeprefix(_BACKBONE) for key in tensors}
    both = [key for key in tensors if key.startswith(_BACKBONE) and names[key] in tensors]
    if both:
        raise CheckpointError(
            path, f"two tensors for one place: {shown(both[0])} and {shown(names[both[0]])}", OTHER_FILE
        )
    return {names[key]: value for key, value in tensors.items()}


def _averages(path: str | os.PathLike[str], checkpoint: Mapping[str, Any], model: DNAConvDenoiser) -> dict[str, Tensor]:
    """The running averages by name; the file has a list without names, in the order of the network's parameters."""
    ema = checkpoint.get("ema")
    averages = ema.get("shadow_params") if isinstance(ema, Mapping) else None
    if not isinstance(averages, list):
        raise CheckpointError(path, f"expected averages (ema), found {outline(checkpoint)}", "give weights='raw'")
    # The random frequencies of the time embedding are never trained, and a buffer of ours.
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if len(averages) != len(trained) or not all(isinstance(average, Tensor) for average in averages):
        raise CheckpointError(
            path, f"expected {len(trained)} averages, one a trained tensor, found {len(averages)}", "give weights='raw'"
        )
    named: dict[str, Tensor] = dict(zip(trained, averages, strict=True))
    check_tensors(path, trained, named, "give weights='raw'")
    return named


def _read_dit(folder: Path, channels: int, prefix: str = "") -> tuple[Path, dict[str, Tensor]]:
    """The tensors of a DiT under a prefix and their file, less the table of rotary frequencies: ours are computed."""
    path, found = read_weights(folder)
    tensors = {prefix + key: value for key, value in found.items()}
    table, expected = tensors.pop(_ROTARY, None), rotary_frequencies(channels)
    # A model that was cast as a whole has a rounded table; it is computed in float32 all the same.
    if table is not None and not (
        table.shape == expected.shape
        and is_weight(table.dtype)
        and torch.allclose(table.float(), expected.to(table.dtype).float())
    ):
        raise CheckpointError(
            path, f"expected rotary frequencies to the base 10,000 for {channels} channels, found {table}", OTHER_FILE
        )
    return path, tensors
