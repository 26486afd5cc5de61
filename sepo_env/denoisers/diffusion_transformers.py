"""MDLM and SEDD of the configurations and the tensors that their authors published, or that their trainings left."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sepo_env.denoisers.dit import rotary_frequencies
from sepo_env.denoisers.layouts import OTHER_FILE, build_config, config_choice, config_entry, noise_schedule
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.weight_files import StoredWeights, Weights, fill_stored
from sepo_env.errors import CheckpointError
from sepo_env.loading.inert import shown
from sepo_env.loading.tensorfile import is_weight

EMBEDDING = "vocab_embed.embedding"
_NAMES = frozenset(
    {EMBEDDING, "sigma_map.mlp.0.weight", "output_layer.norm_final.weight", "output_layer.linear.weight"}
)
_BACKBONE = "backbone."
_ROTARY = f"{_BACKBONE}rotary_emb.inv_freq"
_NO_MASK = "gpt2"
"""Tokenizers of this name have no mask of their own, so that a network's MASK is the last of its ids."""


def is_mdlm(config: Mapping[str, Any]) -> bool:
    """Whether it is the config.json of an MDLM."""
    return config.get("model_type") == "mdlm"


def is_mdlm_training(config: Mapping[str, Any]) -> bool:
    """Whether it is the configuration of a training of MDLM's program."""
    return isinstance(config.get("model"), dict) and "parameterization" in config and "backbone" in config


def is_sedd(config: Mapping[str, Any]) -> bool:
    """Whether it is the configuration of a SEDD."""
    sections = all(isinstance(config.get(name), dict) for name in ("graph", "noise", "model"))
    return sections and "tokens" in config


def build_mdlm(source: Path, config: Mapping[str, Any], stored: StoredWeights, weights: Weights) -> MDLMDenoiser:
    """The MDLM of a config.json.

    Raises:
        CheckpointError: settings or tensors that do not fit.
    """
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
    return fill_stored(stored, MDLMDenoiser, built, _tensors(stored, built.backbone.head_width), weights)


def build_mdlm_training(
    source: Path, config: Mapping[str, Any], stored: StoredWeights, weights: Weights
) -> MDLMDenoiser:
    """The MDLM of the configuration of its training, which Lightning keeps in each checkpoint.

    Raises:
        CheckpointError: another kind of network, or settings or tensors that do not fit.
    """
    config_choice(source, {"diffusion": "absorbing_state", **config}, "diffusion", {"absorbing_state": None})
    config_choice(source, config, "parameterization", {"subs": None})
    config_choice(source, config, "backbone", {"dit": None, "hf_dit": None})
    data = config.get("data")
    tokenizer = data.get("tokenizer_name_or_path", _NO_MASK) if isinstance(data, dict) else _NO_MASK
    if not isinstance(tokenizer, str) or _NO_MASK not in tokenizer:
        raise CheckpointError(
            source,
            f"expected a tokenizer without a mask ({_NO_MASK}), as MASK is to be the last id, found {shown(tokenizer)}",
            "if that one has no mask, save the network with save_denoiser; else put the rows of its mask last before",
        )
    conditioned = config_entry(source, {"time_conditioning": False, **config}, "time_conditioning", bool)
    embedding = stored.named_as(_NAMES).get(EMBEDDING)
    built = build_config(
        source,
        MDLMConfig,
        num_tokens=0 if embedding is None or embedding.ndim == 0 else len(embedding) - 1,
        width=config_entry(source, config, "model.hidden_size", int),
        depth=config_entry(source, config, "model.n_blocks", int),
        heads=config_entry(source, config, "model.n_heads", int),
        cond_width=config_entry(source, config, "model.cond_dim", int),
        time_conditioned=conditioned,
        **({"schedule": noise_schedule(source, config)} if conditioned else {}),
    )
    return fill_stored(stored, MDLMDenoiser, built, _tensors(stored, built.backbone.head_width), weights)


def build_sedd(source: Path, config: Mapping[str, Any], stored: StoredWeights, weights: Weights) -> SEDDDenoiser:
    """The SEDD of a configuration, which is that of its training.

    Raises:
        CheckpointError: settings or tensors that do not fit.
    """
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
    return fill_stored(stored, SEDDDenoiser, built, _tensors(stored, built.backbone.head_width), weights)


def _tensors(stored: StoredWeights, channels: int) -> dict[str, Tensor]:
    """The tensors by our names, less the table of rotary frequencies: ours are computed."""
    tensors = stored.named_as(_NAMES, _BACKBONE)
    table, expected = tensors.pop(_ROTARY, None), rotary_frequencies(channels)
    # A model that was cast as a whole has a rounded table; it is computed in float32 all the same.
    if table is not None and not (
        table.shape == expected.shape
        and is_weight(table.dtype)
        and torch.allclose(table.float(), expected.to(table.dtype).float())
    ):
        raise CheckpointError(
            stored.path,
            f"expected rotary frequencies to the base 10,000 for {channels} channels, found {shown(table.tolist())}",
            OTHER_FILE,
        )
    return tensors
