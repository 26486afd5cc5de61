"""REINFORCE with a leave-one-out baseline (arXiv 2402.14740)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.config import GroupAdvantage, PolicyGradientConfig
from agents.learner import Learner
from agents.objectives import ReinforceLoss
from agents.training.batch import add_group_advantages
from agents.training.method import Method
from agents.training.policy_gradient import policy_gradient_method
from agents.traits import Traits
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class REINFORCEConfig(PolicyGradientConfig):
    """Settings of REINFORCE with a leave-one-out baseline (arXiv 2402.14740); one optimiser step per batch."""

    advantage: GroupAdvantage = "leave-one-out"
    """Advantage of a trajectory among those that share its prompt: leave-one-out (reward less the mean of the others;
    unbiased), batch-mean (less the mean) or group (less the mean, by the standard deviation)."""

    def __post_init__(self) -> None:
        """Check the fields, and that there is one step."""
        super().__post_init__()
        self._require_one_step()


class REINFORCE(Learner):
    """REINFORCE with a leave-one-out baseline (arXiv 2402.14740); see `agents.learner.Learner`."""

    name: ClassVar[str] = "reinforce"
    traits: ClassVar[Traits] = Traits(trains=True, fixed_point="return")
    config_class: ClassVar[type[PolicyGradientConfig]] = REINFORCEConfig
    config: REINFORCEConfig

    def make_method(self, reference: Denoiser) -> Method:
        config = self.config
        loss = ReinforceLoss(
            self.denoiser,
            self.task.process,
            reference=reference if config.kl_coeff > 0 else None,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        return policy_gradient_method(loss, config, partial(add_group_advantages, kind=config.advantage))
