r"""Training on some of the visited states, without bias."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError


def subsample_steps(uniforms: Tensor, num_steps: int, num_kept: int) -> tuple[Tensor, float]:
    r"""Choose ``num_kept`` of the K steps of each trajectory, spread over time (systematic sampling).

    Step :math:`\lfloor (u + j) K / n \rfloor` for j = 0 .. n-1. Every step is kept with probability
    :math:`n/K`, so a sum over the kept steps, each multiplied by the inclusion weight :math:`K/n`, is an
    unbiased estimate of the sum over all.

    Args:
        uniforms: one number in (0, 1) a trajectory, ``(B,)``.
        num_steps: K.
        num_kept: n, from 1 to K.

    Returns:
        Increasing step indices int64 ``(B, n)``, and the inclusion weight.

    Raises:
        InvalidArgumentError: ``num_kept`` is not in 1 .. K.

    >>> subsample_steps(torch.tensor([0.1, 0.9]), num_steps=8, num_kept=2)
    (tensor([[0, 4],
            [3, 7]]), 4.0)
    """
    _check(num_steps, num_kept)
    offsets = torch.arange(num_kept, dtype=torch.float64, device=uniforms.device)
    steps = (uniforms.double()[:, None] + offsets) * (num_steps / num_kept)
    return steps.long().clamp(max=num_steps - 1), num_steps / num_kept


def subsample_steps_with_last(uniforms: Tensor, num_steps: int, num_kept: int) -> tuple[Tensor, Tensor]:
    r"""Choose the last step of each trajectory for certain, and ``num_kept`` - 1 of the others by `subsample_steps`.

    What stands at the last step alone is then never left to chance, and a sum over the kept steps, each multiplied by
    its inclusion weight, is an unbiased estimate of the sum over all nevertheless.

    Args:
        uniforms: one number in (0, 1) a trajectory, ``(B,)``.
        num_steps: K.
        num_kept: n, from 1 to K; 1 leaves out all that stands elsewhere.

    Returns:
        Increasing step indices int64 ``(B, n)``, and their inclusion weights float64 ``(B, n)``: 1 for the last one,
        :math:`(K - 1)/(n - 1)` for the others.

    Raises:
        InvalidArgumentError: ``num_kept`` is not in 1 .. K.

    >>> subsample_steps_with_last(torch.tensor([0.1, 0.9]), num_steps=9, num_kept=3)[0]
    tensor([[0, 4, 8],
            [3, 7, 8]])
    """
    _check(num_steps, num_kept)
    last = torch.full((len(uniforms), 1), num_steps - 1, device=uniforms.device)
    weights = torch.ones(len(uniforms), num_kept, dtype=torch.float64, device=uniforms.device)
    if num_kept == 1:
        return last, weights
    others, weights[:, :-1] = subsample_steps(uniforms, num_steps - 1, num_kept - 1)
    return torch.cat([others, last], dim=1), weights


def _check(num_steps: int, num_kept: int) -> None:
    if not 1 <= num_kept <= num_steps:
        raise InvalidArgumentError(f"cannot keep {num_kept} of {num_steps} steps; keep from 1 to {num_steps}.")
