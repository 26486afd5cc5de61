r"""Advantages of finished trajectories, from their rewards alone.

A baseline may depend on the prompt, never on the sampled sequence. Trajectories of one prompt form a *group*,
and no baseline mixes groups; without groups the batch is one. A group of one has no baseline: it is refused, since
its advantage of 0 would look like a verdict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, InvalidShapeError


def _group_membership(reward: Tensor, group: Tensor | None) -> Tensor:
    """Whether two trajectories share a prompt, ``(B, B)`` in the rewards' dtype; sums over it mix nothing."""
    if reward.ndim != 1:
        raise InvalidShapeError("reward", reward.shape, "(B,), one number a trajectory")
    if group is None:
        group = torch.zeros_like(reward, dtype=torch.int64)
    if group.shape != reward.shape:
        raise InvalidShapeError("group", group.shape, f"{tuple(reward.shape)}, as reward")
    same = (group[:, None] == group[None, :]).to(reward.dtype)
    if bool((same.sum(dim=-1) < 2).any()):
        raise InvalidArgumentError(
            "a baseline needs at least 2 trajectories a prompt, but a group has one; draw more trajectories of each "
            "prompt (group_size), or leave out those that are alone."
        )
    return same


def batch_mean_advantage(reward: Tensor, group: Tensor | None = None) -> Tensor:
    r"""Reward minus its group's mean, :math:`A_b = R_b - \bar R` (Dr.GRPO, arXiv 2503.20783).

    The mean contains the sample itself, which shrinks the expected gradient by the factor :math:`(G - 1)/G`.

    Args:
        reward: ``(B,)``.
        group: prompt ids, int64 ``(B,)``; None puts all trajectories in one group.

    Returns:
        ``(B,)``.

    Raises:
        InvalidArgumentError: a group of one.

    >>> batch_mean_advantage(torch.tensor([1.0, 3.0, 10.0, 20.0]), torch.tensor([0, 0, 7, 7]))
    tensor([-1.,  1., -5.,  5.])
    """
    same = _group_membership(reward, group)
    return reward - same @ reward / same.sum(dim=-1)


def group_normalised_advantage(reward: Tensor, group: Tensor | None = None, *, epsilon: float = 1e-6) -> Tensor:
    r"""Reward standardised within its group (GRPO, arXiv 2402.03300).

    :math:`A_b = (R_b - \bar R) / (\mathrm{std} + \epsilon)`.
    The standard deviation is the population's (divided by G). A group of equal rewards gets zeros.

    Args:
        reward: ``(B,)``.
        group: prompt ids, int64 ``(B,)``; None puts all trajectories in one group.
        epsilon: keeps groups of equal rewards from dividing by 0; in units of the reward.

    Returns:
        ``(B,)``.

    Raises:
        InvalidArgumentError: a group of one.

    >>> group_normalised_advantage(torch.tensor([1.0, 3.0]))
    tensor([-1.0000,  1.0000])
    """
    centred = batch_mean_advantage(reward, group)
    same = _group_membership(reward, group)
    variance = same @ centred.square() / same.sum(dim=-1)
    return centred / (variance.sqrt() + epsilon)


def leave_one_out_advantage(reward: Tensor, group: Tensor | None = None) -> Tensor:
    r"""Reward minus the mean of the *other* samples of its group (RLOO, arXiv 2402.14740).

    :math:`A_b = R_b - \frac{1}{G - 1} \sum_{c \ne b} R_c`; the baseline is independent of the sample, so the
    gradient stays exactly unbiased.

    Args:
        reward: ``(B,)``.
        group: prompt ids, int64 ``(B,)``; None puts all trajectories in one group.

    Returns:
        ``(B,)``.

    Raises:
        InvalidArgumentError: a group of one.

    >>> leave_one_out_advantage(torch.tensor([1.0, 3.0, 5.0]))
    tensor([-3.,  0.,  3.])
    """
    same = _group_membership(reward, group)
    size = same.sum(dim=-1)
    return batch_mean_advantage(reward, group) * size / (size - 1)


ADVANTAGES: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {
    "group": group_normalised_advantage,
    "leave-one-out": leave_one_out_advantage,
    "batch-mean": batch_mean_advantage,
}
