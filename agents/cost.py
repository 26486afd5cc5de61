"""What a run has spent: network evaluations and reward calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn

from sepo_env.denoisers import Denoiser
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.metering import evaluated, is_marked, is_running, observe
from sepo_env.rewards import Reward

_FORWARD_AND_BACKWARD = 3
"""What an evaluation costs that a gradient can flow back through: a backward pass is about two forward ones."""


@dataclass(frozen=True)
class Cost:
    """What something costs: network evaluations and reward calls, in all or of each sequence.

    Attributes:
        nfe: sequences evaluated by the denoiser.
        reward_calls: sequences scored.
    """

    nfe: float
    reward_calls: float

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.nfe + other.nfe, self.reward_calls + other.reward_calls)

    def __truediv__(self, number: int) -> Cost:
        return Cost(self.nfe / number, self.reward_calls / number)


class CountsCalls(Protocol):
    """What the meter needs of a reward."""

    @property
    def calls(self) -> int:
        """Sequences scored so far."""
        ...


class _Tally:
    """The count of one kind, told by whatever observes an object; it travels along where a hooked network is copied."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, rows: int, differentiable: bool) -> None:
        self.count += rows * (_FORWARD_AND_BACKWARD if differentiable else 1)

    def add_call(
        self,
        owners: tuple[int, ...],
        compiled: bool,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """A forward hook: count a call, unless one of the owners (ids) makes it, who is observed itself."""
        if torch.compiler.is_compiling() is not compiled or (not compiled and any(map(is_running, owners))):
            return
        found = evaluated((args, kwargs), output)
        if found is not None:
            self.add(*found)


class CostMeter:
    """Counts NFE (sequences evaluated by denoisers) and reward calls.

    An evaluation of B sequences costs B. One that a gradient can flow back through costs 3 B: a backward pass
    is about two forward ones. Whether it can is read from the output, so it makes no difference whether the
    network holds its own parameters or is called with functional ones. Guidance is no network: what counts is how
    often it evaluates the one that it guides, twice a sequence.

    It makes no difference either how a network is called: as a module, by ``forward`` or another public method, or
    compiled. A call of one of its parts from outside is one evaluation as well. The networks of a reward count as it
    does where they are called past it, so that a gradient through a reward costs three calls a sequence.

    Args:
        denoisers: the networks whose evaluations count; each is observed once.
        reward: its calls from now on count.

    Example:
        >>> import torch
        >>> from sepo_env.denoisers import TabularDenoiser
        >>> denoiser = TabularDenoiser(2, 3, vocab_size=3)
        >>> meter = CostMeter(denoiser)
        >>> _ = denoiser(torch.full((5, 3), 2), torch.ones(5))
        >>> with torch.no_grad():
        ...     _ = denoiser.forward(torch.full((5, 3), 2), torch.ones(5))
        >>> meter.nfe
        20
    """

    def __init__(self, *denoisers: nn.Module, reward: CountsCalls | None = None) -> None:
        self._networks, self._past_reward = _Tally(), _Tally()
        self._nfe_offset = 0
        self._reward = reward
        self._reward_offset = 0 if reward is None else -reward.calls
        self._stops: list[Callable[[], None]] = []
        for network in dict.fromkeys(map(_network, denoisers)):
            self._stops += _attach(network, self._networks)
        if isinstance(reward, Reward):
            for owner, network in reward.networks():
                self._stops += _attach(network, self._past_reward, owner)

    @property
    def nfe(self) -> int:
        """Sequences that the denoisers have evaluated; a backward pass counts two more."""
        return self._nfe_offset + self._networks.count

    @property
    def reward_calls(self) -> int:
        """Sequences that the reward has scored; a gradient through it counts two more."""
        return self._reward_offset + self._past_reward.count + (0 if self._reward is None else self._reward.calls)

    def state_dict(self) -> dict[str, int]:
        """The counts, for a checkpoint."""
        return {"nfe": self.nfe, "reward_calls": self.reward_calls}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from the counts of a checkpoint."""
        self._nfe_offset += state["nfe"] - self.nfe
        self._reward_offset += state["reward_calls"] - self.reward_calls

    def close(self) -> None:
        """Stop counting: look at the networks no more."""
        for stop in self._stops:
            stop()
        self._stops.clear()


def _network(denoiser: nn.Module) -> nn.Module:
    """What a denoiser evaluates: itself, or the network within torch's wrappers and within its guidance."""
    network: nn.Module = unwrapped(denoiser)
    return network.core if isinstance(network, Denoiser) else network


def _attach(network: nn.Module, tally: _Tally, owner: object | None = None) -> Iterator[Callable[[], None]]:
    """Let a tally know of all evaluations of a network, but for those that its owner makes and counts."""
    owners = (id(network), *([] if owner is None else [id(owner)]))

    def hook(module: nn.Module, compiled: bool) -> Callable[[], None]:
        count = functools.partial(tally.add_call, owners, compiled)
        return module.register_forward_hook(count, with_kwargs=True).remove

    yield hook(network, True)
    if not is_marked(type(network)):  # a module of somebody else's, of which nothing is known but that it is called
        yield hook(network, False)
        return

    def add(rows: int, differentiable: bool) -> None:
        if owner is None or not is_running(id(owner)):
            tally.add(rows, differentiable)

    yield observe(network, add)
    for part in _parts(network):
        yield hook(part, False)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a network is made of, seen through lists of such."""
    for child in dict.fromkeys(module.children()):
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            yield from _parts(child)
        else:
            yield child
