"""DDPO: policy gradient on the denoising MDP."""

from __future__ import annotations

from typing import Literal

from agents.objectives.forms import PathForm
from agents.objectives.policy_gradient import PolicyGradientLoss
from agents.objectives.surrogates import ClipLevel, ClippedSurrogate, ScoreFunctionSurrogate, Surrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import UnknownNameError

DDPOForm = Literal["is", "sf"]


class DDPOLoss(PolicyGradientLoss):
    r"""Denoising diffusion policy optimisation (arXiv 2305.13301): importance sampling or score function.

    With :math:`l_k` the log-probability of the tokens resampled at step k, summed over positions, and
    :math:`\rho_k = e^{l_k - l_k^{old}}`: ``is`` minimises
    :math:`-\sum_k \min(\rho_k A, \mathrm{clip}(\rho_k) A)`, ``sf`` :math:`-A \sum_k l_k`. The second has no
    ratio: take one optimiser step a batch.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        form: ``is`` or ``sf``.
        clip_epsilon: clip range of the ratios, in (0, 1); read by ``is``.
        clip_level: whether a token or a step has a ratio; read by ``is``.
        reference: the pretrained denoiser, frozen.
        kl_coeff: weight of the path KL to it.
        entropy_coeff: weight of the entropy bonus.

    Keys and outputs: see :class:`~agents.objectives.policy_gradient.PolicyGradientLoss`.

    Raises:
        UnknownNameError: no form, or no clip level, has that name.
        InvalidArgumentError: a number out of range.
    """

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        *,
        form: DDPOForm = "is",
        clip_epsilon: float = 0.2,
        clip_level: ClipLevel = "step",
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        surrogates: dict[str, Surrogate] = {
            "is": ClippedSurrogate(clip_epsilon, clip_level),
            "sf": ScoreFunctionSurrogate(),
        }
        if form not in surrogates:
            raise UnknownNameError("form", form, surrogates)
        super().__init__(
            policy_network,
            process,
            form=PathForm(),
            surrogate=surrogates[form],
            reference=reference,
            kl_coeff=kl_coeff,
            entropy_coeff=entropy_coeff,
        )
