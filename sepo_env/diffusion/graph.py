r"""Token graphs: which jumps the forward noise makes, and so which jumps a reverse step may make.

A forward generator acts on every position alone, :math:`Q(a, b)` being the rate of a -> b. The concrete score is
:math:`s(x, t)_{i,v} = p_t(x^{i \to v}) / p_t(x)`, where :math:`x^{i \to v}` is x with position i set to v, and the
reverse rates are :math:`\bar Q = \sigma'(t)\, Q(v, x_i)\, s(x, t)_{i,v}` (arXiv 2310.16834).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from sepo_env.arguments import MOST, Count, check_fields, checked
from sepo_env.diffusion.numerics import safe_log, safe_logaddexp
from sepo_env.diffusion.random import sample_categorical
from sepo_env.diffusion.schedule import Schedule, shown_settings
from sepo_env.errors import (
    InvalidArgumentError,
    InvalidPromptError,
    InvalidShapeError,
    InvalidTokensError,
    UnknownNameError,
)

FREE = -1
"""Stands for a free position of a prompt on any graph, as the id V does."""


def per_position(values: Tensor, like: Tensor) -> Tensor:
    """View one number a sequence, ``(B,)``, as ``(B, 1, ...)`` with the number of axes and the dtype of ``like``."""
    return values.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True)
class Graph(ABC):
    """The token graph of a CTMC over ``num_tokens`` visible tokens, V.

    Visible tokens are 0 .. V-1. ``vocab_size``, W, counts the states of one position: V + 1 with a mask, else V.
    """

    num_tokens: Annotated[int, Ge(2), Le(MOST)]

    def __repr__(self) -> str:
        """The class and its settings, for one that is no dataclass: nothing of where it lies in memory."""
        return shown_settings(self)

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """States of one position, W."""

    @property
    @abstractmethod
    def mask_token(self) -> int | None:
        """The id of MASK, or None where the graph has none."""

    @abstractmethod
    def prior(self, uniforms: Tensor) -> Tensor:
        """Draw from the law at t = 1: uniforms ``(B, L)`` -> tokens int64 ``(B, L)``."""

    @abstractmethod
    def log_prior(self, tokens: Tensor) -> Tensor:
        """Log-probability of each position at t = 1: ``(B, L)`` -> float64 ``(B, L)``."""

    @abstractmethod
    def log_forward(self, x_0: Tensor, alpha: Tensor) -> Tensor:
        r"""Forward law :math:`\log q_t(x_t | x_0)`: tokens ``(B, L)``, alpha ``(B,)`` -> float64 ``(B, L, W)``."""

    @abstractmethod
    def clock(self, schedule: Schedule, t: Tensor) -> Tensor:
        r"""The action clock :math:`\Lambda(t)`, in units of which an environment's rates are given."""

    @abstractmethod
    def can_jump(self, tokens: Tensor) -> Tensor:
        """Positions that the reverse process may change: ``(B, L)`` -> bool ``(B, L)``."""

    @abstractmethod
    def log_score_from_posterior(self, log_posterior: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        r"""Log concrete scores :math:`\log s_{i,v}` of an x0-posterior, ``(B, L, V)`` -> ``(B, L, V)``."""

    @abstractmethod
    def log_posterior_from_score(self, log_score: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        r"""The x0-posterior :math:`\log p(x_0^i = v | x_t)` of log concrete scores, ``(B, L, V)`` -> ``(B, L, V)``."""

    @abstractmethod
    def reverse_rates(self, log_score: Tensor, tokens: Tensor) -> Tensor:
        r"""Reverse rates per unit of sigma, :math:`Q(v, x_i)\, s_{i,v}`; 0 where no jump is allowed. ``(B, L, V)``."""

    @abstractmethod
    def forward_rates(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        """Forward rates per unit of sigma, ``(B, L, W)``, 0 on the diagonal."""

    def noise(self, x_0: Tensor, alpha: Tensor, uniforms: Tensor) -> Tensor:
        r"""Draw :math:`x_t \sim q_t(\cdot | x_0)`: tokens and uniforms ``(B, L)``, alpha ``(B,)`` -> ``(B, L)``."""
        return sample_categorical(self.log_forward(x_0, alpha), uniforms)

    def given(self, prompt: Tensor) -> Tensor:
        """Where a prompt gives a token, bool of its shape: ids 0 .. V-1 are given, V and -1 are free.

        Raises:
            InvalidPromptError: another dtype than int64, or another id, as those of another vocabulary have.
        """
        if prompt.dtype != torch.int64:
            raise InvalidPromptError(f"the prompt has dtype {prompt.dtype}, expected torch.int64; cast with .long().")
        low, high = (int(prompt.min()), int(prompt.max())) if prompt.numel() else (0, 0)
        if low < FREE or high > self.num_tokens:
            raise InvalidPromptError(
                f"the prompt holds the id {low if low < FREE else high}, but tokens are 0 to {self.num_tokens - 1} and "
                f"{self.num_tokens} or {FREE} is a free position; encode it with the alphabet of this graph."
            )
        return (prompt >= 0) & (prompt < self.num_tokens)

    def check_tokens(self, tokens: Tensor, name: str = "tokens") -> None:
        """Refuse anything but int64 ``(B, L)`` in range.

        Raises:
            InvalidShapeError: not two axes.
            InvalidTokensError: another dtype, or an id outside of 0 .. W-1.
        """
        if tokens.ndim != 2:
            raise InvalidShapeError(name, tokens.shape, "(B, L)")
        if tokens.dtype != torch.int64:
            raise InvalidTokensError(f"{name} has dtype {tokens.dtype}, expected torch.int64; cast with .long().")
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.vocab_size):
            raise InvalidTokensError(
                f"{name} holds ids from {int(tokens.min())} to {int(tokens.max())}, but {self} has ids 0 to "
                f"{self.vocab_size - 1}; encode sequences with the alphabet of this graph."
            )

    def check_mask(self, mask: Tensor | None, tokens: Tensor, name: str = "prompt_mask") -> None:
        """Refuse anything but None, or bool of the shape of the tokens ``(B, L)``.

        Raises:
            InvalidShapeError: another shape.
            InvalidArgumentError: another dtype.
        """
        if mask is None:
            return
        if mask.shape != tokens.shape:
            raise InvalidShapeError(name, mask.shape, f"that of the tokens, {tuple(tokens.shape)}")
        if mask.dtype != torch.bool:
            raise InvalidArgumentError(f"{name} has dtype {mask.dtype}, expected torch.bool; cast with .bool().")


@dataclass(frozen=True)
class Absorbing(Graph):
    r"""Masking noise: :math:`Q(v, MASK) = 1`; MASK has the id V.

    >>> graph = Absorbing(4)
    >>> graph.mask_token, graph.vocab_size
    (4, 5)
    """

    @property
    def vocab_size(self) -> int:
        return self.num_tokens + 1

    @property
    def mask_token(self) -> int:
        return self.num_tokens

    def prior(self, uniforms: Tensor) -> Tensor:
        return torch.full_like(uniforms, self.mask_token, dtype=torch.int64)

    def log_prior(self, tokens: Tensor) -> Tensor:
        return torch.zeros(tokens.shape, dtype=torch.float64, device=tokens.device).masked_fill(
            tokens != self.mask_token, -torch.inf
        )

    def log_forward(self, x_0: Tensor, alpha: Tensor) -> Tensor:
        probs = torch.nn.functional.one_hot(x_0, self.vocab_size).double() * per_position(
            alpha.double(), x_0[..., None].double()
        )
        probs[..., self.mask_token] = 1.0 - probs.sum(-1)
        return probs.log()

    def clock(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.log_one_minus_alpha(t)

    def can_jump(self, tokens: Tensor) -> Tensor:
        return tokens == self.mask_token

    def log_score_from_posterior(self, log_posterior: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        return log_posterior + per_position(torch.logit(alpha), log_posterior)

    def log_posterior_from_score(self, log_score: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        # Normalising, rather than subtracting logit(alpha), also serves a score network that is not yet consistent.
        return torch.log_softmax(log_score, dim=-1)

    def reverse_rates(self, log_score: Tensor, tokens: Tensor) -> Tensor:
        return log_score.exp().masked_fill(~self.can_jump(tokens)[..., None], 0.0)

    def forward_rates(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        rates = torch.zeros(*tokens.shape, self.vocab_size, dtype=dtype, device=tokens.device)
        rates[..., self.mask_token] = (tokens != self.mask_token).to(dtype)
        return rates


@dataclass(frozen=True)
class Uniform(Graph):
    r"""Uniform noise: :math:`Q(a, b) = 1/V` for a != b; every position may jump to every token at every time."""

    @property
    def vocab_size(self) -> int:
        return self.num_tokens

    @property
    def mask_token(self) -> None:
        return None

    def prior(self, uniforms: Tensor) -> Tensor:
        return (uniforms * self.num_tokens).long().clamp(max=self.num_tokens - 1)

    def log_prior(self, tokens: Tensor) -> Tensor:
        return torch.full(tokens.shape, 1.0 / self.num_tokens, dtype=torch.float64, device=tokens.device).log()

    def log_forward(self, x_0: Tensor, alpha: Tensor) -> Tensor:
        keep = torch.nn.functional.one_hot(x_0, self.num_tokens).double()
        share = per_position(alpha.double(), keep)
        return (share * keep + (1.0 - share) / self.num_tokens).log()

    def clock(self, schedule: Schedule, t: Tensor) -> Tensor:
        return schedule.sigma(t)

    def can_jump(self, tokens: Tensor) -> Tensor:
        return torch.ones_like(tokens, dtype=torch.bool)

    def log_score_from_posterior(self, log_posterior: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        # s_v = sum_u w_u q(v | u) with w_u = p(u | x_t) / q(x_t | u); q is symmetric in its two tokens.
        log_weights = log_posterior - self.log_forward(tokens, alpha).to(log_posterior.dtype)
        log_alpha, log_rest = (
            per_position(alpha.log(), log_posterior),
            per_position((-alpha).log1p(), log_posterior),
        )
        log_mean = torch.logsumexp(log_weights, -1, keepdim=True) - math.log(self.num_tokens)
        return safe_logaddexp(log_alpha + log_weights, (log_rest + log_mean).expand_as(log_weights))

    def log_posterior_from_score(self, log_score: Tensor, tokens: Tensor, alpha: Tensor) -> Tensor:
        # Inverts the line above: summing s_v over v gives sum_u w_u.
        score = log_score.exp().scatter(-1, tokens[..., None], 1.0)
        share = per_position(alpha, score)
        weights = (score - (1.0 - share) / self.num_tokens * score.sum(-1, keepdim=True)) / share
        posterior = weights.clamp(min=0.0) * self.log_forward(tokens, alpha).exp().to(score.dtype)
        return safe_log(posterior / posterior.sum(-1, keepdim=True))

    def reverse_rates(self, log_score: Tensor, tokens: Tensor) -> Tensor:
        return (log_score.exp() / self.num_tokens).scatter(-1, tokens[..., None], 0.0)

    def forward_rates(self, tokens: Tensor, dtype: torch.dtype) -> Tensor:
        shape = (*tokens.shape, self.num_tokens)
        rates = torch.full(shape, 1.0 / self.num_tokens, dtype=dtype, device=tokens.device)
        return rates.scatter(-1, tokens[..., None], 0.0)


GRAPHS: dict[str, type[Graph]] = {"absorbing": Absorbing, "uniform": Uniform}


@checked
def make_graph(name: str, num_tokens: Count) -> Graph:
    """The graph of that name over ``num_tokens`` visible tokens.

    Raises:
        UnknownNameError: no graph has that name.
    """
    if name not in GRAPHS:
        raise UnknownNameError("graph", name, GRAPHS)
    return GRAPHS[name](num_tokens)
