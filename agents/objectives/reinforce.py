"""REINFORCE on the denoising chain."""

from __future__ import annotations

from agents.objectives.forms import PathForm
from agents.objectives.policy_gradient import PolicyGradientLoss
from agents.objectives.surrogates import ScoreFunctionSurrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess


class ReinforceLoss(PolicyGradientLoss):
    r"""REINFORCE: :math:`-A \sum_k l_k`.

    :math:`l_k` is the log-probability of the tokens resampled at step k, summed over positions.
    With leave-one-out advantages it is RLOO (arXiv 2402.14740), exactly unbiased. There is no ratio: take one
    optimiser step a batch.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        reference: the pretrained denoiser, frozen.
        kl_coeff: weight of the path KL to it.
        entropy_coeff: weight of the entropy bonus.

    Keys and outputs: see :class:`~agents.objectives.policy_gradient.PolicyGradientLoss`.

    Raises:
        InvalidArgumentError: a coefficient out of range.
    """

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        *,
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        super().__init__(
            policy_network,
            process,
            form=PathForm(),
            surrogate=ScoreFunctionSurrogate(),
            reference=reference,
            kl_coeff=kl_coeff,
            entropy_coeff=entropy_coeff,
        )
