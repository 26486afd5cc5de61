r"""Surrogates: what a loss makes of log-probabilities and advantages, :math:`\sum w\, f(r)\, A`, maximised."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from agents.functional import clip_gate, clip_log_ratio, clipped_surrogate, step_log_ratio
from agents.objectives.forms import Terms
from sepo_env.errors import UnknownNameError

ClipLevel = Literal["token", "step"]
CLIP_LEVELS: tuple[ClipLevel, ...] = get_args(ClipLevel)


@dataclass(frozen=True)
class SurrogateValue:
    """A surrogate at N states.

    Attributes:
        value: to be maximised, ``(N,)``.
        clipped: terms or steps that the surrogate has let go of, bool.
        counted: terms or steps that there are, bool, shape of ``clipped``.
    """

    value: Tensor
    clipped: Tensor
    counted: Tensor


class Surrogate(ABC):
    """A function of the terms of a state, their log-ratios and its advantage."""

    @abstractmethod
    def __call__(self, terms: Terms, log_ratio: Tensor, advantage: Tensor) -> SurrogateValue:
        """Terms and log-ratios ``(N, ...)``, advantage ``(N,)``."""


@dataclass(frozen=True)
class ClippedSurrogate(Surrogate):
    r"""PPO's clipping, per token or per step (arXiv 1707.06347).

    Token: :math:`\sum_i w_i \min(r_i A, \mathrm{clip}(r_i) A)`. Step:
    :math:`\min(\rho A, \mathrm{clip}(\rho) A)` with :math:`\log \rho = \sum_i w_i \log r_i`. Both have the same
    gradient where the policy is the one that sampled.

    Attributes:
        clip_epsilon: :math:`\epsilon` in (0, 1).
        clip_level: what a ratio belongs to.
    """

    clip_epsilon: float
    clip_level: ClipLevel

    def __post_init__(self) -> None:
        if self.clip_level not in CLIP_LEVELS:
            raise UnknownNameError("clip_level", self.clip_level, CLIP_LEVELS)
        clip_log_ratio(torch.zeros(()), self.clip_epsilon)

    def __call__(self, terms: Terms, log_ratio: Tensor, advantage: Tensor) -> SurrogateValue:
        counted = terms.weight > 0
        if self.clip_level == "step":
            log_ratio = step_log_ratio(log_ratio, terms.weight)
            counted = counted.flatten(start_dim=1).any(dim=-1)
            value = counted * clipped_surrogate(log_ratio, advantage, self.clip_epsilon)
        else:
            advantage = advantage.reshape(-1, *[1] * (log_ratio.ndim - 1))
            per_term = terms.weight * clipped_surrogate(log_ratio, advantage, self.clip_epsilon)
            value = per_term.flatten(start_dim=1).sum(dim=-1)
        return SurrogateValue(value, ~clip_gate(log_ratio, advantage, self.clip_epsilon) & counted, counted)


@dataclass(frozen=True)
class ScoreFunctionSurrogate(Surrogate):
    r"""REINFORCE: :math:`A \sum_i w_i \log p_i`, without a ratio; for the policy that sampled, and no other."""

    def __call__(self, terms: Terms, log_ratio: Tensor, advantage: Tensor) -> SurrogateValue:
        counted = terms.weight > 0
        log_prob = (terms.weight * terms.log_prob).flatten(start_dim=1).sum(dim=-1)
        return SurrogateValue(advantage * log_prob, torch.zeros_like(counted), counted)
