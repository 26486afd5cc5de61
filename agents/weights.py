"""What of a policy is its own: all weights, or what is trained where the rest is frozen as it was pretrained."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from sepo_env.denoisers import Denoiser


def policy_state(denoiser: nn.Module) -> dict[str, Tensor]:
    """The tensors that tell a policy from the pretrained denoiser that it began as.

    With frozen parameters (adapters) the trained ones; else all of them and the buffers, each tensor once, since a file
    holds no two names for one tensor (tied embeddings).
    """
    denoiser = _core(denoiser)
    parameters = dict(denoiser.named_parameters())  # names a tied parameter once
    if any(not parameter.requires_grad for parameter in parameters.values()):
        return {name: p.detach() for name, p in parameters.items() if p.requires_grad}
    aliases = _aliases(denoiser)
    return {name: value for name, value in denoiser.state_dict().items() if name not in aliases}


def load_policy_state(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back what `policy_state` gave, into a denoiser made the same way.

    Raises:
        RuntimeError: other names or shapes than this denoiser's own.
    """
    expected = policy_state(denoiser)
    differing = sorted(expected.keys() ^ state.keys())
    differing += [name for name in expected.keys() & state.keys() if expected[name].shape != state[name].shape]
    if differing:
        raise RuntimeError(f"{len(differing)} tensors differ in name or shape, first {differing[0]}")
    with torch.no_grad():
        for name, value in expected.items():
            value.copy_(state[name])


def frozen_fingerprint(denoiser: nn.Module) -> str | None:
    """A digest of the frozen parameters, which `policy_state` leaves out; None where none is frozen."""
    frozen = [(name, p) for name, p in _core(denoiser).named_parameters() if not p.requires_grad]
    if not frozen:
        return None
    digest = hashlib.sha256()
    for name, parameter in sorted(frozen):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _core(denoiser: nn.Module) -> nn.Module:
    """The network itself: guidance has no weights, and may come and go."""
    return denoiser.core if isinstance(denoiser, Denoiser) else denoiser


def _aliases(denoiser: nn.Module) -> set[str]:
    """Further names of tied parameters."""
    return {name for name, _ in denoiser.named_parameters(remove_duplicate=False)} - {
        name for name, _ in denoiser.named_parameters()
    }
