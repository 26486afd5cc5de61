"""What of a policy is its own: all weights, or what is trained where the rest is frozen as it was pretrained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from sepo_env.denoisers import Denoiser
from sepo_env.identity import tensors_digest


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
    return tensors_digest(frozen)


@torch.no_grad()
def unsound_tensors(denoiser: nn.Module) -> list[str]:
    """The names of parameters with NaN or infinity, and of buffers with NaN (a mask may hold infinity).

    One reduction a tensor, and one look at the outcome.
    """
    checks: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]]
    checks = [(name, value, torch.isfinite) for name, value in denoiser.named_parameters()]
    checks += [(name, value, _is_number) for name, value in denoiser.named_buffers()]
    checks = [check for check in checks if check[1].is_floating_point() and check[1].numel()]
    if not checks:
        return []
    # The ends are NaN where any number is.
    device = checks[0][1].device
    sound = torch.stack([check(torch.stack(value.aminmax())).all().to(device) for _, value, check in checks])
    return [name for (name, *_), whole in zip(checks, sound.tolist(), strict=True) if not whole]


def _is_number(values: Tensor) -> Tensor:
    return ~values.isnan()


def _core(denoiser: nn.Module) -> nn.Module:
    """The network itself: guidance has no weights, and may come and go."""
    return denoiser.core if isinstance(denoiser, Denoiser) else denoiser


def _aliases(denoiser: nn.Module) -> set[str]:
    """Further names of tied parameters."""
    return {name for name, _ in denoiser.named_parameters(remove_duplicate=False)} - {
        name for name, _ in denoiser.named_parameters()
    }
