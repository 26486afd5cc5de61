r"""Self-normalised importance sampling (SNIS) and effective sample size, in log space.

SEPO weighs a neighbour y by :math:`\pi(y)`, which a denoiser does not give. With draws
:math:`z_m \sim q(\cdot | y)`, weights
:math:`w_m = 1 / (s(z_m)_y\, q(z_m | y)) = \pi(z_m) / (\pi(y)\, q(z_m | y))` and a kernel P that leaves
:math:`\pi` unchanged,

.. math:: \hat\pi(y) = \sum_m w_m P(z_m, y) \Big/ \sum_m w_m .

It is consistent only where q covers the whole space. With q on the ball of Hamming radius 1 around y it tends
to :math:`\pi(y) / \pi(\mathrm{ball}(y))`.
"""

from __future__ import annotations

import torch
from torch import Tensor


def snis_log_weights(log_score: Tensor, log_proposal: Tensor) -> Tensor:
    r"""Self-normalised log-weights :math:`\log \bar w_m`.

    :math:`w_m = 1 / (s(z_m)_y\, q(z_m | y))`, scaled to :math:`\sum_m \bar w_m = 1`.

    Args:
        log_score: :math:`\log s(z_m)_y`, ``(..., M)``.
        log_proposal: :math:`\log q(z_m | y)`, ``(..., M)``.

    Returns:
        ``(..., M)``.
    """
    return torch.log_softmax(-log_score - log_proposal, dim=-1)


def snis_log_estimate(log_weights: Tensor, log_values: Tensor) -> Tensor:
    r"""Logarithm of the weighted mean :math:`\sum_m \bar w_m f_m`.

    Args:
        log_weights: self-normalised, ``(..., M)``.
        log_values: :math:`\log f_m`, here :math:`\log P(z_m, y)`, ``(..., M)``.

    Returns:
        ``(...)``.
    """
    return torch.logsumexp(log_weights + log_values, dim=-1)


def log_effective_sample_size(log_weights: Tensor) -> Tensor:
    r"""Kish's effective sample size :math:`(\sum_m w_m)^2 / \sum_m w_m^2`, as a logarithm between 0 and log M.

    Args:
        log_weights: need not be normalised, ``(..., M)``.

    Returns:
        ``(...)``.

    >>> log_effective_sample_size(torch.tensor([1.0, 1.0, 0.0]).log()).exp()
    tensor(2.)
    """
    return 2 * torch.logsumexp(log_weights, dim=-1) - torch.logsumexp(2 * log_weights, dim=-1)


def effective_sample_share(log_weights: Tensor, counted: Tensor) -> Tensor:
    """Effective sample size over the number of samples, in (0, 1]; 1 if all weights are equal or there is none.

    Args:
        log_weights: need not be normalised, ``(M,)``.
        counted: which of them are samples, bool ``(M,)``.

    Returns:
        A scalar.

    >>> effective_sample_share(torch.tensor([0.3, 0.3, 9.0]), torch.tensor([True, True, False]))
    tensor(1.)
    """
    counted = counted | ~counted.any()
    return log_effective_sample_size(log_weights.masked_fill(~counted, -torch.inf)).exp() / counted.sum()
