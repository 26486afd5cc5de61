"""PPO on the denoising chain, with a critic."""

from __future__ import annotations

from tensordict.nn import TensorDictModule

from agents.objectives.actor_critic import ActorCriticLoss
from agents.objectives.forms import PathForm
from agents.objectives.surrogates import ClipLevel, ClippedSurrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess


class PPOLoss(ActorCriticLoss):
    r"""Proximal policy optimisation (arXiv 1707.06347) with a critic :math:`V(x_t, t)` and an entropy bonus.

    The policy's part is :math:`-\sum_k \min(\rho_k A_k, \mathrm{clip}(\rho_k) A_k)`; for the critic's see
    :class:`~agents.objectives.actor_critic.ActorCriticLoss`. Advantages :math:`A_k` come with the batch, for
    example from TorchRL's ``GAE``.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        critic_network: the critic to be trained, for example :class:`~agents.policies.rates.Critic`; it reads what keys
            it likes.
        clip_epsilon: clip range of the ratios, in (0, 1).
        clip_level: whether a token or a step has a ratio.
        critic_coeff: weight of the critic's error, at least 0.
        reference: the pretrained denoiser, frozen.
        kl_coeff: weight of the path KL to it.
        entropy_coeff: weight of the entropy bonus.

    Keys and outputs: see :class:`~agents.objectives.actor_critic.ActorCriticLoss`.

    Raises:
        UnknownNameError: no clip level has that name.
        InvalidArgumentError: a number out of range.
    """

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        critic_network: TensorDictModule,
        *,
        clip_epsilon: float = 0.2,
        clip_level: ClipLevel = "step",
        critic_coeff: float = 0.5,
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        super().__init__(
            policy_network,
            process,
            critic_network,
            form=PathForm(),
            surrogate=ClippedSurrogate(clip_epsilon, clip_level),
            critic_coeff=critic_coeff,
            reference=reference,
            kl_coeff=kl_coeff,
            entropy_coeff=entropy_coeff,
        )
