"""What a run has spent: network evaluations and reward calls."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sepo_env.denoisers import Denoiser


class CountsCalls(Protocol):
    """What the meter needs of a reward."""

    @property
    def calls(self) -> int:
        """Sequences scored so far."""
        ...


class CostMeter:
    """Counts NFE (sequences evaluated by denoisers) and reward calls.

    A forward pass of B sequences costs B. One that a gradient can flow back through costs 3 B: a backward pass
    is about two forward ones. Whether it can is read from the output, so it makes no difference whether the
    network holds its own parameters or is called with functional ones. Guidance is no network: what counts is how
    often it evaluates the one that it guides, twice a sequence.

    Args:
        denoisers: the networks whose evaluations count; each is hooked once.
        reward: its calls from now on count.

    Example:
        >>> import torch
        >>> from sepo_env.denoisers import TabularDenoiser
        >>> denoiser = TabularDenoiser(2, 3, vocab_size=3)
        >>> meter = CostMeter(denoiser)
        >>> _ = denoiser(torch.full((5, 3), 2), torch.ones(5))
        >>> with torch.no_grad():
        ...     _ = denoiser(torch.full((5, 3), 2), torch.ones(5))
        >>> meter.nfe
        20
    """

    def __init__(self, *denoisers: nn.Module, reward: CountsCalls | None = None) -> None:
        self.nfe = 0
        self._reward = reward
        self._reward_offset = 0 if reward is None else -reward.calls
        self._handles: list[RemovableHandle] = [
            network.register_forward_hook(self._count) for network in dict.fromkeys(map(_network, denoisers))
        ]

    def _count(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self.nfe += output.shape[0] * (3 if output.requires_grad else 1)

    @property
    def reward_calls(self) -> int:
        """Sequences that the reward has scored."""
        return self._reward_offset + (0 if self._reward is None else self._reward.calls)

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"nfe": self.nfe, "reward_calls": self.reward_calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the counts of a checkpoint."""
        self.nfe = state["nfe"]
        self._reward_offset += state["reward_calls"] - self.reward_calls

    def close(self) -> None:
        """Stop counting: take the hooks off the networks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


def _network(denoiser: nn.Module) -> nn.Module:
    """What a denoiser evaluates: itself, or the network within its guidance."""
    return denoiser.core if isinstance(denoiser, Denoiser) else denoiser
