"""SEPO: policy gradient on concrete scores (arXiv 2502.01384)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

from agents.config import GroupAdvantage, OpenShare, PolicyGradientConfig
from agents.learner import Learner
from agents.objectives import ActorCriticLoss, Form, NeighboursForm, PathForm, SEPOLoss, SNISForm
from agents.objectives.sepo import FormName
from agents.objectives.surrogates import ClipLevel, ClippedSurrogate
from agents.policies.rates import Critic
from agents.training.batch import add_critic_advantages, add_group_advantages
from agents.training.method import Method
from agents.training.policy_gradient import policy_gradient_method
from agents.traits import Traits
from sepo_env.arguments import Count, NonNegative, Share
from sepo_env.denoisers import Denoiser


@dataclass(frozen=True)
class SEPOConfig(PolicyGradientConfig):
    """Settings of SEPO, policy gradient on concrete scores (arXiv 2502.01384)."""

    form: FormName = "neighbours"
    """Whose log-probability is raised: path (the jumps that were sampled; unbiased), neighbours (every masked position
    of each visited state) or snis (the published estimate at the end of the chain; for small problems). KL, entropy and
    critic are those of the whole path in each."""
    clip_level: ClipLevel = "token"
    """Whether each token or each step has an importance ratio of its own."""
    clip_epsilon: OpenShare = 0.2
    """Ratios are clipped to 1 - clip_epsilon .. 1 + clip_epsilon."""
    advantage: GroupAdvantage | Literal["critic"] = "group"
    """Advantage of a trajectory among those that share its prompt: group (reward less the mean, by the standard
    deviation), leave-one-out (less the mean of the others), batch-mean (less the mean), or critic (generalised
    advantage estimation with a learnt value)."""
    gae_lambda: Share = 0.95
    """Lambda of the advantage estimate: 0 trusts the critic, 1 the rewards; read with advantage=critic."""
    critic_coeff: NonNegative = 0.5
    """Weight of the critic's squared error; read with advantage=critic."""
    snis_draws: Count = 2
    """Importance draws for each neighbour; read with form=snis."""
    snis_time: OpenShare = 0.01
    """Time at which scores are read, the paper's T - T0; read with form=snis."""

    @property
    def num_samples(self) -> int:
        """Visited states that an update uses, N.

        The form snis has terms at the end of a trajectory only; the KL, the entropy and the critic stand at all steps.
        """
        if self.form != "snis":
            return super().num_samples
        whole_path = self.kl_coeff > 0 or self.entropy_coeff > 0 or self.advantage == "critic"
        return self.batch_size * (min(max(2, self.kept_steps), self.num_steps) if whole_path else 1)

    def make_form(self) -> Form:
        """The form with its settings."""
        forms: dict[FormName, Form] = {
            "path": PathForm(),
            "neighbours": NeighboursForm(),
            "snis": SNISForm(num_draws=self.snis_draws, time=self.snis_time, chunk_size=self.micro_batch_size),
        }
        return forms[self.form]


class SEPO(Learner):
    """Score Entropy Policy Optimization (arXiv 2502.01384); see `agents.learner.Learner`."""

    name: ClassVar[str] = "sepo"
    traits: ClassVar[Traits] = Traits(trains=True, fixed_point="return")
    config_class: ClassVar[type[PolicyGradientConfig]] = SEPOConfig
    config: SEPOConfig

    def make_method(self, reference: Denoiser) -> Method:
        config, process = self.config, self.task.process
        if config.advantage != "critic":
            loss = SEPOLoss(
                self.denoiser,
                process,
                form=config.make_form(),
                clip_epsilon=config.clip_epsilon,
                clip_level=config.clip_level,
                reference=reference if config.kl_coeff > 0 else None,
                kl_coeff=config.kl_coeff,
                entropy_coeff=config.entropy_coeff,
            )
            return policy_gradient_method(loss, config, partial(add_group_advantages, kind=config.advantage))
        critic = Critic.of(process, conditional=self.task.conditional).to(self.device)
        critic_loss = ActorCriticLoss(
            self.denoiser,
            process,
            critic,
            form=config.make_form(),
            surrogate=ClippedSurrogate(config.clip_epsilon, config.clip_level),
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
        return policy_gradient_method(critic_loss, config, advantages, critic)
