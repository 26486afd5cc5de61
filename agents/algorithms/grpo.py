"""GRPO and Dr.GRPO on the denoising MDP: clipped ratios of whole steps, and no critic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.config import GroupAdvantage, OpenShare, PolicyGradientConfig
from agents.learner import Learner
from agents.objectives import PathForm, PolicyGradientLoss
from agents.objectives.surrogates import ClipLevel, ClippedSurrogate
from agents.training.batch import add_group_advantages
from agents.training.method import Method
from agents.training.policy_gradient import policy_gradient_method
from agents.traits import Traits
from sepo_env.arguments import Count
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class GRPOConfig(PolicyGradientConfig):
    """Settings of GRPO on the denoising MDP (arXiv 2402.03300)."""

    inner_epochs: Count = 2
    """Passes over each batch of states."""
    clip_level: ClipLevel = "step"
    """Whether each token or each step has an importance ratio of its own."""
    clip_epsilon: OpenShare = 0.2
    """Ratios are clipped to 1 - clip_epsilon .. 1 + clip_epsilon."""
    advantage: GroupAdvantage = "group"
    """Advantage of a trajectory among those that share its prompt: group (reward less the mean, by the standard
    deviation), leave-one-out (less the mean of the others) or batch-mean (less the mean)."""


@dataclass(frozen=True)
class DrGRPOConfig(GRPOConfig):
    """Settings of Dr.GRPO on the denoising MDP (arXiv 2503.20783): GRPO without dividing by the standard deviation."""

    advantage: GroupAdvantage = "batch-mean"
    """Advantage of a trajectory among those that share its prompt: batch-mean (reward less the mean), leave-one-out
    (less the mean of the others) or group (by the standard deviation, which makes it GRPO)."""


class GRPO(Learner):
    r"""Group-relative policy optimisation (arXiv 2402.03300) on the steps of the denoising chain.

    .. math:: \max \sum_k \min(\rho_k A, \mathrm{clip}(\rho_k) A) - \beta\, KL, \qquad
              A = (R - \bar R) / \mathrm{std}(R)

    with :math:`\rho_k` the exact ratio of a step's law. The KL to the pretrained denoiser is the closed form of each
    step's law, where the paper takes the k3 estimate from the sampled token: a step's law is known here.
    """

    name: ClassVar[str] = "grpo"
    traits: ClassVar[Traits] = Traits(trains=True, fixed_point="return")
    config_class: ClassVar[type[PolicyGradientConfig]] = GRPOConfig
    config: GRPOConfig

    def make_method(self, reference: Denoiser) -> Method:
        config = self.config
        loss = PolicyGradientLoss(
            self.denoiser,
            self.task.process,
            form=PathForm(),
            surrogate=ClippedSurrogate(config.clip_epsilon, config.clip_level),
            reference=reference if config.kl_coeff > 0 else None,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        return policy_gradient_method(loss, config, partial(add_group_advantages, kind=config.advantage))


class DrGRPO(GRPO):
    r"""Dr.GRPO (arXiv 2503.20783): the advantage is :math:`R - \bar R`, so that groups of equal rewards weigh nothing.

    Trajectories are not divided by their length either; on the denoising chain they all have the same.
    """

    name: ClassVar[str] = "dr_grpo"
    config_class: ClassVar[type[PolicyGradientConfig]] = DrGRPOConfig
    config: DrGRPOConfig
