"""SEPO: policy gradient on concrete scores."""

from __future__ import annotations

from typing import Literal

from agents.objectives.forms import Form, NeighboursForm, PathForm
from agents.objectives.policy_gradient import PolicyGradientLoss
from agents.objectives.snis import SNISForm
from agents.objectives.surrogates import ClipLevel, ClippedSurrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import UnknownNameError

FormName = Literal["path", "neighbours", "snis"]
FORMS: dict[str, type[Form]] = {form.name: form for form in (PathForm, NeighboursForm, SNISForm)}


class SEPOLoss(PolicyGradientLoss):
    r"""Score Entropy Policy Optimization (arXiv 2502.01384), in three forms.

    The policy gradient of a diffusion model is :math:`-E_x A(x) \sum_y \pi(y) \nabla \log s_\theta(x)_y`, but
    only Hamming-1 neighbours y have a score. ``path`` follows the transitions that were sampled (unbiased),
    ``neighbours`` scores the whole neighbourhood of each visited state in one pass, and ``snis`` is the
    published estimate at the end of the chain.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        form: a name, or a form with settings of its own such as ``SNISForm(num_draws=8)``.
        clip_epsilon: clip range of the ratios, in (0, 1).
        clip_level: whether a token or a step has a ratio.
        reference: the pretrained denoiser, frozen.
        kl_coeff: weight of the path KL to it.
        entropy_coeff: weight of the entropy bonus.

    Keys and outputs: see :class:`~agents.objectives.policy_gradient.PolicyGradientLoss`.

    Raises:
        UnknownNameError: no form, or no clip level, has that name.
        InvalidArgumentError: a number out of range, or a form that the process does not have.

    Example:
        >>> import torch
        >>> from tensordict import TensorDict
        >>> from sepo_env.denoisers import TabularDenoiser
        >>> from sepo_env.diffusion import Absorbing, LogLinear
        >>> process = DiffusionProcess(Absorbing(2), LogLinear())
        >>> loss = SEPOLoss(TabularDenoiser(2, 3, vocab_size=3), process, form="neighbours")
        >>> states = TensorDict(
        ...     {
        ...         "tokens": torch.tensor([[2, 2, 0]]),
        ...         "time": torch.tensor([[0.5]]),
        ...         "next": {"tokens": torch.tensor([[1, 2, 0]]), "time": torch.tensor([[0.0]])},
        ...         "final_tokens": torch.tensor([[1, 1, 0]]),
        ...         "advantage": torch.tensor([[3.0]]),
        ...         "trajectory": torch.tensor([0]),
        ...     },
        ...     batch_size=[1],
        ... )
        >>> loss(states)["loss_objective"]  # two masked positions, ratio 1, advantage 3
        tensor(-6., grad_fn=<NegBackward0>)
    """

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        *,
        form: FormName | Form = "neighbours",
        clip_epsilon: float = 0.2,
        clip_level: ClipLevel = "token",
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        super().__init__(
            policy_network,
            process,
            form=form if isinstance(form, Form) else _make_form(form),
            surrogate=ClippedSurrogate(clip_epsilon, clip_level),
            reference=reference,
            kl_coeff=kl_coeff,
            entropy_coeff=entropy_coeff,
        )


def _make_form(name: str) -> Form:
    if name not in FORMS:
        raise UnknownNameError("form", name, FORMS)
    return FORMS[name]()
