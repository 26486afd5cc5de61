r"""Divergences and entropies along a path, summed over the positions of each visited state.

For an absorbing graph the law of a step differs between two policies only in what a mask becomes, so the path
KL is

.. math::
    E \sum_k \sum_{i\ masked} \frac{\alpha_s - \alpha_t}{1 - \alpha_t}\,
    KL(p_\theta(\cdot|x_k)_i \,\|\, p_{ref}(\cdot|x_k)_i) ,

the weight times :meth:`StepLaw.kl <sepo_env.diffusion.kernel.StepLaw.kl>` of the two posteriors; on other graphs it is
that of the steps' laws. It equals the KL between the two path measures, and bounds that between the laws of the
sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.diffusion import StepLaw


def k3_kl(log_ratio: Tensor) -> Tensor:
    r"""The k3 estimate of :math:`KL(q \| p)` from samples of q: :math:`r - 1 - \log r`, :math:`r = p/q`.

    Unbiased and never negative, sample by sample (J. Schulman, "Approximating KL divergence", 2020; used in
    arXiv 2402.03300).

    Args:
        log_ratio: :math:`\log p(x) - \log q(x)` at samples x of q, any shape.

    Returns:
        Same shape, nats.

    >>> k3_kl(torch.tensor([0.0, 1.0]))
    tensor([0.0000, 0.7183])
    """
    return torch.expm1(log_ratio) - log_ratio


def path_kl(law: StepLaw, reference: StepLaw, free: Tensor) -> Tensor:
    r"""What one visited state adds to the path KL, :math:`\sum_{i\ free} KL(q_i \| q^{ref}_i)`.

    Args:
        law: the policy's step, ``(N, L, W)``.
        reference: the step of the fixed reference at the same states.
        free: bool ``(N, L)``, positions that the step may change.

    Returns:
        ``(N,)``, nats.
    """
    return sum_where(law.kl(reference), free)


def path_entropy(law: StepLaw, free: Tensor) -> Tensor:
    r"""Entropy of one step, :math:`-\sum_{i\ free} \sum_v q_{i,v} \log q_{i,v}`.

    Args:
        law: ``(N, L, W)``.
        free: bool ``(N, L)``, positions that the step may change.

    Returns:
        ``(N,)``, nats.
    """
    return sum_where(law.entropy(), free)


def sum_where(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over the positions of ``mask``, ``(N, L)`` -> ``(N,)``; what stands elsewhere, even NaN, is not read."""
    return torch.where(mask, values, torch.zeros_like(values)).sum(dim=-1)


def mean_where(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over all entries of ``mask``, a scalar; 0, not NaN, where there is none.

    >>> mean_where(torch.tensor([1.0, 3.0, torch.nan]), torch.tensor([True, True, False]))
    tensor(2.)
    >>> mean_where(torch.tensor([torch.nan]), torch.tensor([False]))
    tensor(0.)
    """
    return torch.where(mask, values, torch.zeros_like(values)).sum() / mask.sum().clamp(min=1)
