"""What an algorithm adds to the common training loop: what it eats, what it keeps, and the loss in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from tensordict import TensorDict
from torchrl.objectives import LossModule

Source = Literal["trajectories", "starts"]
Reduction = Literal["sum", "mean", "max"]
MakeSamples = Callable[[TensorDict, int, torch.Generator], TensorDict]


class HasState(Protocol):
    """Something with a state that a checkpoint keeps: a module, a TorchRL buffer, a multiplier."""

    def state_dict(self) -> Mapping[str, Any]:
        """Everything that the rest of the run depends on."""
        ...

    def load_state_dict(self, state: Any) -> Any:
        """Continue from what `state_dict` gave."""
        ...


@dataclass(frozen=True)
class Method:
    """An algorithm, as the training loop sees it.

    Attributes:
        loss: its parameters are trained; the sum of its ``loss_*`` is minimised, what else it returns is logged.
        samples: makes the flat batch ``[N]`` that the loss reads of what was collected, ``(B, K)`` or ``(B, 1)``; the
            number of the iteration (from 0) and a generator on the CPU are given, too. An entry ``num_trajectories``
            ``(N, 1)`` says by what sums over the batch are divided. An empty batch is passed over.
        source: what is collected first: ``"trajectories"`` of the policy in the environment, with rewards; or the
            ``"starts"`` of episodes alone, where the algorithm walks itself.
        parts: what must survive an interruption besides the policy, by name: critic, buffer, log Z, target network.
        compares: whether trajectories are compared with others of the same prompt, and learn nothing without such.
        after_step: called after each optimiser step, such as to move a target network.
        reductions: how a figure of several micro-batches becomes one; what is not named is summed where its name begins
            with ``loss_``, and averaged otherwise.
        limits: figures that stop a run which exceeds them; of each the setting that says so, and its value.
    """

    loss: LossModule
    samples: MakeSamples
    source: Source = "trajectories"
    parts: Mapping[str, HasState] = field(default_factory=dict)
    compares: bool = False
    after_step: Callable[[], None] | None = None
    reductions: Mapping[str, Reduction] = field(default_factory=dict)
    limits: Mapping[str, tuple[str, float]] = field(default_factory=dict)
