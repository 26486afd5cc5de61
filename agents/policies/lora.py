r"""Low-rank adapters (LoRA, arXiv 2106.09685) on a denoiser: :math:`W x` becomes :math:`W x + \frac{a}{r} B A x`.

Only A and B, of rank r, are trained. B starts at 0, so the policy starts as the pretrained denoiser exactly.
"""

from __future__ import annotations

import importlib
import re
from types import ModuleType

import torch
from torch import nn

from sepo_env.denoisers import Denoiser
from sepo_env.errors import InvalidArgumentError, MissingExtraError
from sepo_env.precision import float32_default

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d)


@float32_default()
def add_lora(denoiser: Denoiser, rank: int, alpha: float | None = None, seed: int = 0) -> Denoiser:
    """Freeze a denoiser and give its linear and convolutional layers adapters, in place.

    Layers that share their weights with another module, such as an output layer tied to the embedding, get none, nor do
    dilated and grouped convolutions.

    Args:
        denoiser: the pretrained network.
        rank: r, at least 1.
        alpha: a; None is 2 r.
        seed: of A.

    Returns:
        The denoiser.

    Raises:
        MissingExtraError: peft is not installed.
        InvalidArgumentError: a rank below 1, or no layer to adapt.

    Example:
        >>> from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig
        >>> model = add_lora(ConvDenoiser(ConvDenoiserConfig(channels=8, dilations=(1,))), rank=2)
        >>> sorted({name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad})
        ['blocks', 'head', 'stem']
    """
    peft = import_peft()
    if rank < 1:
        raise InvalidArgumentError(f"rank is {rank}, but an adapter has a rank of at least 1.")
    targets = adaptable_layers(denoiser)
    if not targets:
        raise InvalidArgumentError(
            f"{type(denoiser).__name__} has no linear or convolutional layer to adapt; take lora_rank=0."
        )
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank if alpha is None else alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules="|".join(re.escape(name) for name in targets),  # whole names; a list is matched by their ends
    )
    denoiser.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        peft.inject_adapter_in_model(config, denoiser)
    return denoiser.eval()


def merge_lora(denoiser: Denoiser) -> Denoiser:
    """Fold the adapters into the weights, in place: an ordinary denoiser that computes the same.

    Args:
        denoiser: what `add_lora` returned, trained or not.
    """
    layer_type = importlib.import_module("peft.tuners.tuners_utils").BaseTunerLayer
    adapted = {name: module for name, module in denoiser.named_modules() if isinstance(module, layer_type)}
    for name, module in adapted.items():
        module.merge()
        parent, _, attribute = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), attribute, module.get_base_layer())
    return denoiser.requires_grad_(True)


def adaptable_layers(denoiser: nn.Module) -> list[str]:
    """The names of the layers that `add_lora` adapts."""
    owners: dict[int, int] = {}
    for _, module in denoiser.named_modules(remove_duplicate=False):  # one that is used in two places, twice
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, module in denoiser.named_modules()
        # Exact types: a subclass may be one whose parent reads the weights past it, as that of an attention's output.
        if type(module) in _KINDS and owners[id(module.weight)] == 1 and _is_plain(module)
    ]


def _is_plain(module: nn.Module) -> bool:
    """Whether an adapter of peft fits: those of convolutions know neither dilation nor groups."""
    return not isinstance(module, nn.Conv1d | nn.Conv2d) or (module.groups == 1 and set(module.dilation) == {1})


def import_peft() -> ModuleType:
    """The package peft, imported when it is first needed.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("peft")
    except ModuleNotFoundError as error:
        raise MissingExtraError("peft", "lora") from error
