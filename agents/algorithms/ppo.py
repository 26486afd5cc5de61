"""PPO with a critic (arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.config import OpenShare, PolicyGradientConfig
from agents.learner import Learner
from agents.objectives import PPOLoss
from agents.objectives.surrogates import ClipLevel
from agents.policies.rates import Critic
from agents.training.batch import add_critic_advantages
from agents.training.method import Method
from agents.training.policy_gradient import policy_gradient_method
from agents.traits import Traits
from sepo_env.arguments import Count, NonNegative, Share
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class PPOConfig(PolicyGradientConfig):
    """Settings of PPO with a critic (arXiv 1707.06347)."""

    inner_epochs: Count = 2
    """Passes over each batch of states."""
    entropy_coeff: NonNegative = 1e-4
    """Weight of the entropy bonus."""
    clip_level: ClipLevel = "step"
    """Whether each token or each step has an importance ratio of its own."""
    clip_epsilon: OpenShare = 0.2
    """Ratios are clipped to 1 - clip_epsilon .. 1 + clip_epsilon."""
    gae_lambda: Share = 0.95
    """Lambda of the advantage estimate: 0 trusts the critic, 1 the rewards."""
    critic_coeff: NonNegative = 0.5
    """Weight of the critic's squared error."""


class PPO(Learner):
    """Proximal policy optimisation with a critic (arXiv 1707.06347); see `agents.learner.Learner`."""

    name: ClassVar[str] = "ppo"
    traits: ClassVar[Traits] = Traits(trains=True, fixed_point="return")
    config_class: ClassVar[type[PolicyGradientConfig]] = PPOConfig
    config: PPOConfig

    def make_method(self, reference: Denoiser) -> Method:
        config = self.config
        critic = Critic.of(self.task.process, conditional=self.task.conditional).to(self.device)
        loss = PPOLoss(
            self.denoiser,
            self.task.process,
            critic,
            clip_epsilon=config.clip_epsilon,
            clip_level=config.clip_level,
            critic_coeff=config.critic_coeff,
            reference=reference if config.kl_coeff > 0 else None,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        advantages = partial(
            add_critic_advantages,
            critic=critic,
            gae_lambda=config.gae_lambda,
            micro_batch_size=config.micro_batch_size,
        )
        return policy_gradient_method(loss, config, advantages, critic)
