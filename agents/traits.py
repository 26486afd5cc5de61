"""What an agent can do, said once: tests, suites and messages read it, and keep no list of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FixedPoint = Literal["return", "tilted"]


@dataclass(frozen=True)
class Traits:
    r"""Where an agent is at home.

    Attributes:
        trains: whether it has a policy of its own that is trained; else all its work is done while it samples.
        needs_mask: whether it exists on graphs with a mask only.
        needs_reward_gradient: whether the reward must be differentiable in soft tokens (`Reward.soft`).
        conditional: whether it can start from prompts.
        fixed_point: where it goes with all the time in the world: ``"return"``, the largest expected reward (less a
            path KL where one is asked for); ``"tilted"``, the law :math:`\pi_0 e^{R/\alpha} / Z`; None: neither, such
            as best of n.
    """

    trains: bool
    needs_mask: bool = False
    needs_reward_gradient: bool = False
    conditional: bool = True
    fixed_point: FixedPoint | None = None
