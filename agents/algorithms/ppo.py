"""PPO with a critic (arXiv 1707.06347)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from agents.agent import Agent
from agents.config import AgentConfig, OpenShare
from agents.objectives import PPOLoss
from agents.objectives.surrogates import ClipLevel
from agents.policies.rates import Critic
from agents.training.batch import add_critic_advantages
from agents.training.trainer import Objective
from sepo_env.arguments import Count, NonNegative, Share
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class PPOConfig(AgentConfig):
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


class PPO(Agent):
    """Proximal policy optimisation with a critic (arXiv 1707.06347); see `agents.agent.Agent`."""

    name: ClassVar[str] = "ppo"
    config_class: ClassVar[type[AgentConfig]] = PPOConfig
    config: PPOConfig

    def make_objective(self, reference: Denoiser | None) -> Objective:
        config = self.config
        critic = Critic.of(self.task.process, conditional=self.task.conditional).to(self.device)
        loss = PPOLoss(
            self.denoiser,
            self.task.process,
            critic,
            clip_epsilon=config.clip_epsilon,
            clip_level=config.clip_level,
            critic_coeff=config.critic_coeff,
            reference=reference,
            kl_coeff=config.kl_coeff,
            entropy_coeff=config.entropy_coeff,
        )
        advantages = partial(
            add_critic_advantages,
            critic=critic,
            gae_lambda=config.gae_lambda,
            micro_batch_size=config.micro_batch_size,
        )
        return Objective(loss, advantages, critic)
