r"""One reverse step: its law, and from that single law its samples, log-probabilities, entropies and divergences.

Given :math:`x_t`, positions move independently in every kernel below, so a step's law is a table of
log-probabilities ``(B, L, W)``. Sampling and rescoring read the same table and cannot drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo_env.diffusion.graph import Absorbing, Graph, per_position
from sepo_env.diffusion.numerics import safe_log, safe_logaddexp
from sepo_env.diffusion.random import sample_categorical
from sepo_env.errors import InvalidArgumentError, InvalidShapeError

# exp(-1000) underflows to 0 in float64: rates this large jump for certain.
_CERTAIN_EXPONENT = 1000.0


@dataclass(frozen=True)
class StepLaw:
    r"""The factorised law :math:`q(x_s | x_t) = \prod_i q_i(x_s^i)` of one reverse step.

    Attributes:
        log_probs: ``(B, L, W)``, normalised over the last axis; ``-inf`` marks what cannot happen.
    """

    log_probs: Tensor

    def sample(self, uniforms: Tensor) -> Tensor:
        """Draw the next tokens: uniforms float64 ``(B, L)`` in (0, 1) -> int64 ``(B, L)``."""
        return sample_categorical(self.log_probs, uniforms)

    def log_prob(self, next_tokens: Tensor) -> Tensor:
        """Log-probability of each position's move: ``(B, L)`` -> ``(B, L)``; sum over L for that of the step."""
        return self.log_probs.gather(-1, next_tokens[..., None])[..., 0]

    def entropy(self) -> Tensor:
        r"""Entropy of each position, :math:`-\sum_v q_v \log q_v`, nats, ``(B, L)``."""
        return -_expectation(self.log_probs, self.log_probs)

    def kl(self, other: StepLaw) -> Tensor:
        r"""Divergence of each position, :math:`\mathrm{KL}(q_i \| q'_i)`, nats, ``(B, L)``.

        Infinite where this law can do what the other cannot.
        """
        return _expectation(self.log_probs, self.log_probs - other.log_probs)

    def clamped(self, tokens: Tensor, fixed: Tensor) -> StepLaw:
        """The same law with some positions, bool ``(B, L)``, certain to keep their token of ``tokens`` ``(B, L)``.

        They add nothing to a log-probability, an entropy or a divergence, and no gradient flows through them.
        """
        stay = torch.full_like(self.log_probs, -torch.inf).scatter(-1, tokens[..., None], 0.0)
        return StepLaw(torch.where(fixed[..., None], stay, self.log_probs))


def _expectation(log_probs: Tensor, log_values: Tensor) -> Tensor:
    # 0 * log 0 = 0; the inner fill keeps the gradient of an impossible entry finite.
    impossible = log_probs == -torch.inf
    product = log_probs.masked_fill(impossible, 0.0).exp() * log_values.masked_fill(impossible, 0.0)
    return product.masked_fill(impossible, 0.0).sum(-1)


def _frozen_elsewhere(graph: Graph, tokens: Tensor, log_probs: Tensor) -> Tensor:
    """Replace the rows of positions that cannot jump by the certainty of staying."""
    return StepLaw(log_probs).clamped(tokens, ~graph.can_jump(tokens)).log_probs


def full_rates(graph: Graph, tokens: Tensor, rates: Tensor) -> Tensor:
    """Rates over all W states with every forbidden jump set to 0.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        rates: ``(B, L, V)``, or ``(B, L, V + 1)`` for an absorbing graph that may also re-mask.

    Returns:
        ``(B, L, W)``: 0 on the diagonal; absorbing graphs let masked positions jump to visible tokens, and visible
        ones to MASK only.

    Raises:
        InvalidShapeError: the last axis is neither V nor, on an absorbing graph, V + 1.
    """
    if rates.shape[:-1] != tokens.shape or rates.shape[-1] not in (graph.num_tokens, graph.vocab_size):
        raise InvalidShapeError("rates", rates.shape, f"{(*tokens.shape, graph.num_tokens)}")
    if graph.mask_token is not None:
        if rates.shape[-1] == graph.num_tokens:
            rates = torch.nn.functional.pad(rates, (0, 1))
        masked = (tokens == graph.mask_token)[..., None]
        is_mask_column = torch.arange(graph.vocab_size, device=rates.device) == graph.mask_token
        return rates.masked_fill(masked == is_mask_column, 0.0)
    return rates.scatter(-1, tokens[..., None], 0.0)


def held_rates(graph: Graph, tokens: Tensor, rates: Tensor, clock_step: Tensor) -> StepLaw:
    r"""The exact law of one step over which jump rates are held.

    A position stays with probability :math:`e^{-\Delta\Lambda \sum_v r_v}` and else jumps to v with probability
    proportional to :math:`r_v`. With :math:`r = p_\theta(\cdot | x_t)` at masked positions this is the ancestral
    kernel exactly. An infinite clock step lets every position with a positive row jump.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        rates: non-negative, ``(B, L, V)`` or ``(B, L, V + 1)``; forbidden entries are ignored (:func:`full_rates`).
        clock_step: :math:`\Delta\Lambda = \Lambda(t) - \Lambda(s) \ge 0`, ``(B,)``.
    """
    rates = full_rates(graph, tokens, rates)
    total = rates.sum(-1, keepdim=True)
    moves = total > 0
    safe_total = total.masked_fill(~moves, 1.0)
    exponent = per_position(clock_step, rates) * safe_total
    log_jump = _log_one_minus_exp(exponent) - safe_total.log()
    stays = torch.where(moves, -exponent, torch.zeros_like(exponent))
    # A row without rates is -inf everywhere but at the present token, where its certainty of staying goes.
    return StepLaw((safe_log(rates) + log_jump).scatter(-1, tokens[..., None], stays))


def _log_one_minus_exp(x: Tensor) -> Tensor:
    r""":math:`\log(1 - e^{-x})` for x >= 0 without cancellation; -inf at 0."""
    zero = x <= 0
    x = x.masked_fill(zero, 1.0)
    small = x < math.log(2.0)
    exact = torch.where(
        small,
        torch.log(-torch.expm1(-x.masked_fill(~small, 0.5))),
        torch.log1p(-torch.exp(-x.masked_fill(small, 1.0))),
    )
    return exact.masked_fill(zero, -torch.inf)


def ancestral(graph: Graph, tokens: Tensor, log_posterior: Tensor, alpha_t: Tensor, alpha_s: Tensor) -> StepLaw:
    r"""The ancestral kernel :math:`q(x_s | x_t) = \sum_{x_0} p_\theta(x_0 | x_t)\, q(x_s | x_t, x_0)`.

    Absorbing (arXiv 2406.07524): MASK -> v with probability :math:`p_v (\alpha_s - \alpha_t)/(1 - \alpha_t)`, visible
    tokens are copied. Uniform: :math:`q(v) = q(x_t | v) \sum_u p_u\, q_s(v | u) / q_t(x_t | u)`.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        log_posterior: :math:`\log p_\theta(x_0^i = v | x_t)`, ``(B, L, V)``.
        alpha_t: signal at the present time, ``(B,)``.
        alpha_s: signal at the next, less noisy time, ``(B,)``.
    """
    if isinstance(graph, Absorbing):
        log_move = per_position(((alpha_s - alpha_t) / (1.0 - alpha_t)).log(), log_posterior)
        log_stay = per_position(((1.0 - alpha_s) / (1.0 - alpha_t)).log(), log_posterior)
        log_probs = torch.cat([log_posterior + log_move, log_stay.expand(*tokens.shape, 1)], dim=-1)
        return StepLaw(_frozen_elsewhere(graph, tokens, log_probs))
    log_weights = log_posterior - graph.log_forward(tokens, alpha_t).to(log_posterior.dtype)
    share = per_position(alpha_s, log_weights)
    log_mean = torch.logsumexp(log_weights, -1, keepdim=True) - math.log(graph.num_tokens)
    log_back = safe_logaddexp(share.log() + log_weights, ((1.0 - share).log() + log_mean).expand_as(log_weights))
    log_forth = graph.log_forward(tokens, alpha_t / alpha_s).to(log_posterior.dtype)
    return StepLaw(torch.log_softmax(log_back + log_forth, dim=-1))


def tau_leaping(graph: Graph, tokens: Tensor, log_score: Tensor, sigma_step: Tensor) -> StepLaw:
    r"""Reverse rates :math:`Q(v, x_i)\, s_{i,v}` held over :math:`\Delta\sigma`, in exact exponential form.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        log_score: log concrete scores, ``(B, L, V)``.
        sigma_step: :math:`\sigma(t) - \sigma(s)`, ``(B,)``.
    """
    return held_rates(graph, tokens, graph.reverse_rates(log_score, tokens), sigma_step)


def analytic(graph: Graph, tokens: Tensor, log_score: Tensor, sigma_step: Tensor, denoise: bool = False) -> StepLaw:
    r"""The analytic (Tweedie) kernel of concrete scores (arXiv 2310.16834, theorem 4.2).

    With :math:`d = \Delta\sigma`: :math:`q(v) \propto [e^{-dQ} s]_v\, [e^{dQ}]_{v, x_i}`. Uniform:
    :math:`[e^d s_v - \frac{e^d - 1}{V} \sum_u s_u]\,[e^{-d} 1(v = x_i) + \frac{1 - e^{-d}}{V}]` with
    :math:`s_{x_i} = 1`. Absorbing: :math:`(e^d - 1) s_v` against :math:`1 - (e^d - 1) \sum_u s_u` for staying masked.
    Scores that belong to no law can make a weight negative; it is set to 0, as it would never be drawn.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        log_score: log concrete scores, ``(B, L, V)``.
        sigma_step: :math:`\sigma(t) - \sigma(s)`, ``(B,)``.
        denoise: drop the mask column, as the last step of an absorbing chain does.
    """
    growth = torch.expm1(per_position(sigma_step, log_score))
    if isinstance(graph, Absorbing):
        weights = growth * log_score.exp()
        stay = (1.0 - weights.sum(-1, keepdim=True)).clamp(min=0.0)
        log_probs = safe_log(torch.cat([weights, torch.zeros_like(stay) if denoise else stay], dim=-1))
        return StepLaw(_frozen_elsewhere(graph, tokens, torch.log_softmax(log_probs, dim=-1)))
    score = log_score.exp().scatter(-1, tokens[..., None], 1.0)
    back = (growth + 1.0) * score - growth / graph.num_tokens * score.sum(-1, keepdim=True)
    forth = graph.log_forward(tokens, torch.exp(-sigma_step)).exp().to(score.dtype)
    weights = back.clamp(min=0.0) * forth
    return StepLaw(torch.log_softmax(safe_log(weights), dim=-1))


def remasking(
    graph: Graph, tokens: Tensor, log_posterior: Tensor, alpha_t: Tensor, alpha_s: Tensor, remask_prob: Tensor
) -> StepLaw:
    r"""The re-masking kernel (ReMDM, arXiv 2503.00307): visible tokens may be masked again.

    Visible -> MASK with probability :math:`\varsigma`; MASK -> v with
    :math:`p_v (\alpha_s - (1 - \varsigma)\alpha_t)/(1 - \alpha_t)`; it keeps the marginals for
    :math:`\varsigma \le \min(1, (1 - \alpha_s)/\alpha_t)`, and a larger one is cut to that.

    Args:
        graph: an absorbing graph.
        tokens: int64 ``(B, L)``.
        log_posterior: ``(B, L, V)``.
        alpha_t: ``(B,)``.
        alpha_s: ``(B,)``.
        remask_prob: :math:`\varsigma`, ``(B,)``.
    """
    if not isinstance(graph, Absorbing):
        raise InvalidArgumentError("re-masking needs an absorbing graph; a uniform graph has no MASK.")
    remask = torch.minimum(remask_prob, ((1.0 - alpha_s) / alpha_t).clamp(max=1.0))
    move = ((alpha_s - (1.0 - remask) * alpha_t) / (1.0 - alpha_t)).clamp(0.0, 1.0)
    log_move, log_wait = (per_position(safe_log(x), log_posterior) for x in (move, 1.0 - move))
    masked_row = torch.cat([log_posterior + log_move, log_wait.expand(*tokens.shape, 1)], dim=-1)
    log_remask, log_keep = (per_position(safe_log(x), log_posterior) for x in (remask, 1.0 - remask))
    visible_row = torch.full_like(masked_row, -torch.inf)
    visible_row = visible_row.scatter(-1, tokens[..., None], log_keep.expand(*tokens.shape, 1))
    visible_row[..., graph.mask_token] = log_remask[..., 0]
    return StepLaw(torch.where((tokens == graph.mask_token)[..., None], masked_row, visible_row))


def corrector(graph: Graph, tokens: Tensor, log_score: Tensor, size: Tensor) -> StepLaw:
    r"""A corrector step of the gradient flow: the generator :math:`Q_c = Q + \bar Q` held over ``size``.

    :math:`Q_c` leaves :math:`p_t` stationary with detailed balance, so it pulls a drifted sample back to
    :math:`p_t` without moving in time (arXiv 2502.01384; arXiv 2205.14987). A parallel leap of size h has O(h) bias.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        log_score: log concrete scores at the present time, ``(B, L, V)``.
        size: length of the leap in units of sigma, ``(B,)``.
    """
    backward = full_rates(graph, tokens, graph.reverse_rates(log_score, tokens))
    return held_rates(graph, tokens, backward + graph.forward_rates(tokens, backward.dtype), size)


def equivalent_rates(graph: Graph, tokens: Tensor, law: StepLaw, clock_step: Tensor) -> Tensor:
    r"""Rates that, held over the step, give back a factorised law: the inverse of :func:`held_rates`.

    :math:`r_v = \frac{q_v}{1 - q_{stay}} \cdot \frac{-\log q_{stay}}{\Delta\Lambda}`; over an infinite clock step only
    their proportions matter.

    Args:
        graph: the token graph.
        tokens: int64 ``(B, L)``.
        law: a law that stays with positive probability, or jumps for certain.
        clock_step: ``(B,)``.

    Returns:
        ``(B, L, W)``, 0 on the diagonal.
    """
    log_stay = law.log_prob(tokens)[..., None]
    jump = law.log_probs.exp().scatter(-1, tokens[..., None], 0.0)
    total = jump.sum(-1, keepdim=True)
    step = per_position(clock_step, jump)
    exponent = torch.where(torch.isinf(step), torch.ones_like(total), (-log_stay).clamp(max=_CERTAIN_EXPONENT) / step)
    return torch.where(total > 0, jump / total.masked_fill(total <= 0, 1.0) * exponent, torch.zeros_like(jump))
