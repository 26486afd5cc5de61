r"""Importance ratios and PPO's clipping, in log space and element by element.

A ratio is :math:`r = p_\theta / p_{old}`. It multiplies over positions, so log-ratios are *summed* over the
positions of a step, never averaged: an average is not the ratio of any two laws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, InvalidShapeError


def log_importance_ratio(log_prob: Tensor, old_log_prob: Tensor, weight: Tensor) -> Tensor:
    r"""Log importance ratio of every term, :math:`\log p_\theta - \log p_{old}`, and 0 where the weight is 0.

    Args:
        log_prob: under the policy being trained, ``(N, ...)``.
        old_log_prob: under the policy that sampled, same shape; no gradient flows into it.
        weight: non-negative, same shape. Terms of weight 0 are not part of the objective and may hold anything.

    Returns:
        Same shape.

    Raises:
        InvalidShapeError: the shapes differ.
    """
    if not log_prob.shape == old_log_prob.shape == weight.shape:
        raise InvalidShapeError("old_log_prob", old_log_prob.shape, f"{tuple(log_prob.shape)}, as log_prob")
    counts = weight > 0
    # Selected before the subtraction: inf - inf at a term that does not count would poison the gradient.
    zero = torch.zeros_like(log_prob)
    return torch.where(counts, log_prob, zero) - torch.where(counts, old_log_prob.detach(), zero)


def step_log_ratio(log_ratio: Tensor, weight: Tensor) -> Tensor:
    r"""Log-ratio of a whole step, :math:`\log \rho = \sum_i w_i \log r_i`.

    With weights 0 and 1 this is the likelihood ratio of the step. With the weight of a position the probability
    that it jumps, it is the ratio's expected logarithm.

    Args:
        log_ratio: per term, ``(N, ...)``.
        weight: per term, same shape.

    Returns:
        ``(N,)``.

    >>> step_log_ratio(torch.tensor([[0.1, 0.2, 5.0]]), torch.tensor([[1.0, 1.0, 0.0]]))
    tensor([0.3000])
    """
    return (weight * log_ratio).flatten(start_dim=1).sum(dim=-1)


def clip_log_ratio(log_ratio: Tensor, clip_epsilon: float) -> Tensor:
    r"""Clip a ratio to :math:`[1 - \epsilon, 1 + \epsilon]`, given and returned as a logarithm.

    Raises:
        InvalidArgumentError: ``clip_epsilon`` is not in (0, 1).
    """
    if not 0.0 < clip_epsilon < 1.0:
        raise InvalidArgumentError(f"clip_epsilon must lie in (0, 1), got {clip_epsilon}; 0.2 is usual.")
    return log_ratio.clamp(math.log1p(-clip_epsilon), math.log1p(clip_epsilon))


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    r"""PPO's surrogate :math:`\min(r A, \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon) A)`, to be maximised.

    The minimum is taken element by element (arXiv 1707.06347); of two batch means it would clip nothing.

    Args:
        log_ratio: ``(N, ...)``.
        advantage: broadcastable to it.
        clip_epsilon: :math:`\epsilon` in (0, 1).

    Returns:
        Shape of ``log_ratio``.

    >>> clipped_surrogate(torch.tensor([1.5, 0.5]).log(), torch.tensor([1.0, -1.0]), 0.2)
    tensor([ 1.2000, -0.8000])
    """
    clipped = clip_log_ratio(log_ratio, clip_epsilon)
    return torch.minimum(log_ratio.exp() * advantage, clipped.exp() * advantage)


def clip_gate(log_ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    r"""Where PPO's surrogate still has a gradient.

    =========  ===========  =======================  ===========
    advantage  r < 1 - eps  1 - eps <= r <= 1 + eps  r > 1 + eps
    =========  ===========  =======================  ===========
    A > 0      True         True                     False
    A < 0      False        True                     True
    =========  ===========  =======================  ===========

    Args:
        log_ratio: ``(N, ...)``.
        advantage: broadcastable to it.
        clip_epsilon: :math:`\epsilon` in (0, 1).

    Returns:
        bool, shape of ``log_ratio``.
    """
    clipped = clip_log_ratio(log_ratio, clip_epsilon)
    too_high = (log_ratio > clipped) & (advantage > 0)
    too_low = (log_ratio < clipped) & (advantage < 0)
    return ~(too_high | too_low)


def gated_surrogate(log_prob: Tensor, log_ratio: Tensor, advantage: Tensor, clip_epsilon: float) -> Tensor:
    r"""SEPO's detached-weight form of the clipped surrogate, to be maximised (arXiv 2502.01384).

    :math:`[\,r A\,]_{detached} \cdot 1[\text{gate open}] \cdot \log p_\theta`. Its gradient is that of
    :func:`clipped_surrogate`. Detaching :math:`\min(r A, \mathrm{clip}(r) A)` instead is another algorithm: it
    keeps pushing samples that PPO has let go of.

    Args:
        log_prob: differentiable, ``(N, ...)``; in SEPO :math:`-\log s_\theta(x)_y`.
        log_ratio: same shape, read without gradient.
        advantage: broadcastable to it.
        clip_epsilon: :math:`\epsilon` in (0, 1).

    Returns:
        Shape of ``log_prob``.
    """
    gate = clip_gate(log_ratio, advantage, clip_epsilon)
    weight = torch.where(gate, log_ratio.exp() * advantage, torch.zeros_like(log_ratio))
    return weight.detach() * log_prob
