"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.agent import Agent
from agents.config import AgentConfig, GroupAdvantage
from agents.objectives import ReinforceLoss
from agents.training.batch import add_group_advantages
from agents.training.trainer import Objective
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class REINFORCEConfig(AgentConfig):
    """Settings of REINFORCE with a leave-one-out baseline (arXiv 2402.14740); one optimiser step per batch."""

    advantage: GroupAdvantage = "leave-one-out"
    """Advantage of a trajectory among those that share its prompt: leave-one-out (reward less the mean of the others;
    unbiased), batch-mean (less the mean) or group (less the mean, by the standard deviation)."""

    def __post_init__(self) -> None:
        """Check the fields, and that there is one step."""
        super().__post_init__()
        self._require_one_step()


class REINFORCE(Agent):
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740); see `agents.agent.Agent`."""

    name: ClassVar[str] = "reinforce"
    config_class: ClassVar[type[AgentConfig]] = REINFORCEConfig
    config: REINFORCEConfig

    def make_objective(self, reference: Denoiser | None) -> Objective:
        config = self.config
        loss = ReinforceLoss(
            self.denoiser,
            self.task.process,
            reference=reference,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        return Objective(loss, partial(add_group_advantages, kind=config.advantage))
