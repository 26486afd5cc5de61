r"""Weights that turn samples of one law into samples of the tilted one, :math:`\pi^* \propto \pi_0 e^{R/\alpha}`."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, InvalidShapeError


def tilted_log_weights(
    reward: Tensor, temperature: float, log_ratio: Tensor | None = None, group: Tensor | None = None
) -> Tensor:
    r"""Self-normalised log-weights :math:`\log \bar w_n`, :math:`w_n = e^{R_n / \alpha}\, P_0(x_n) / P(x_n)`.

    Args:
        reward: of samples of P, ``(N,)``.
        temperature: :math:`\alpha > 0`, in units of the reward.
        log_ratio: :math:`\log P_0 - \log P` of the samples, ``(N,)``; None: they are samples of :math:`P_0`.
        group: prompt ids, int64 ``(N,)``: weights sum to 1 within each; None: one group.

    Returns:
        ``(N,)``, float64.

    Raises:
        InvalidArgumentError: a temperature that is not positive.
        InvalidShapeError: shapes that differ.

    >>> tilted_log_weights(torch.tensor([0.0, 1.0]), 1.0).exp()
    tensor([0.2689, 0.7311], dtype=torch.float64)
    """
    if not temperature > 0:
        raise InvalidArgumentError(f"the temperature is {temperature}, but must be positive, in units of the reward.")
    log_weights = reward.double() / temperature
    if log_ratio is not None:
        if log_ratio.shape != reward.shape:
            raise InvalidShapeError("log_ratio", log_ratio.shape, f"{tuple(reward.shape)}, as reward")
        log_weights = log_weights + log_ratio.double()
    if group is None:
        return log_weights - log_weights.logsumexp(dim=0)
    same = group[:, None] == group[None, :]
    return log_weights - log_weights[None, :].masked_fill(~same, -torch.inf).logsumexp(dim=1)


def systematic_resample(log_weights: Tensor, uniform: Tensor) -> Tensor:
    r"""Choose n ancestors with expected counts :math:`n \bar w_i`, by one uniform number (systematic resampling).

    Args:
        log_weights: need not be normalised, ``(..., n)``.
        uniform: in (0, 1), ``(...)``.

    Returns:
        Increasing indices int64 ``(..., n)``; each i stands there :math:`\lfloor n \bar w_i \rfloor` or one time more.

    >>> systematic_resample(torch.tensor([0.5, 0.25, 0.25, 0.0]).log(), torch.tensor(0.5, dtype=torch.float64))
    tensor([0, 0, 1, 2])
    """
    number = log_weights.shape[-1]
    probs = log_weights.double().softmax(dim=-1)
    cumulative = probs.cumsum(dim=-1)
    cumulative = cumulative / cumulative[..., -1:]
    steps = torch.arange(number, dtype=torch.float64, device=probs.device)
    points = (steps + uniform[..., None].double()) / number
    chosen = torch.searchsorted(cumulative, points, right=True)
    last = (probs > 0).long().cumsum(-1).argmax(-1, keepdim=True)  # rounding never chooses what has no weight
    return torch.minimum(chosen, last)
