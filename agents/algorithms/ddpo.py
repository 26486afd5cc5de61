"""DDPO: policy gradient on the denoising MDP (arXiv 2305.13301)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.config import GroupAdvantage, OpenShare, PolicyGradientConfig
from agents.learner import Learner
from agents.objectives import DDPOLoss
from agents.objectives.ddpo import DDPOForm
from agents.objectives.surrogates import ClipLevel
from agents.training.batch import add_group_advantages
from agents.training.method import Method
from agents.training.policy_gradient import policy_gradient_method
from agents.traits import Traits
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class DDPOConfig(PolicyGradientConfig):
    """Settings of DDPO, policy gradient on the denoising MDP (arXiv 2305.13301)."""

    form: DDPOForm = "is"
    """is (clipped importance ratios) or sf (the score function; one optimiser step per batch)."""
    clip_level: ClipLevel = "step"
    """Whether each token or each step has an importance ratio of its own; read with form=is."""
    clip_epsilon: OpenShare = 0.2
    """Ratios are clipped to 1 - clip_epsilon .. 1 + clip_epsilon; read with form=is."""
    advantage: GroupAdvantage = "group"
    """Advantage of a trajectory among those that share its prompt: group (reward less the mean, by the standard
    deviation), leave-one-out (less the mean of the others) or batch-mean (less the mean)."""

    def __post_init__(self) -> None:
        """Check the fields, and that the form can do with so many steps."""
        super().__post_init__()
        if self.form == "sf":
            self._require_one_step()


class DDPO(Learner):
    """Denoising diffusion policy optimisation (arXiv 2305.13301); see `agents.learner.Learner`."""

    name: ClassVar[str] = "ddpo"
    traits: ClassVar[Traits] = Traits(trains=True, fixed_point="return")
    config_class: ClassVar[type[PolicyGradientConfig]] = DDPOConfig
    config: DDPOConfig

    def make_method(self, reference: Denoiser) -> Method:
        config = self.config
        loss = DDPOLoss(
            self.denoiser,
            self.task.process,
            form=config.form,
            clip_epsilon=config.clip_epsilon,
            clip_level=config.clip_level,
            reference=reference if config.kl_coeff > 0 else None,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        return policy_gradient_method(loss, config, partial(add_group_advantages, kind=config.advantage))
