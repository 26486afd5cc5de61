r"""Noise drawn for a denoising objective: which times, which masks, and how sharply draws of one sequence differ.

A bound on the log-likelihood is an expectation over times and noise. Its variance is what most surrogates of a
sequence's log-probability suffer from, so the draws can be made to cover the times evenly (*stratified*) and to come in
pairs of complementary masks (*coupled*, arXiv 2506.20639). All draws are a function of keys: the policy that sampled
and the one that is trained see the same noise, without which no ratio of theirs means anything.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sepo_env.diffusion import Absorbing, DiffusionProcess, Parameterisation
from sepo_env.diffusion.guided import Output
from sepo_env.diffusion.likelihood import masked_cross_entropy, score_entropy
from sepo_env.diffusion.random import uniforms
from sepo_env.errors import InvalidArgumentError

_LEAST_TIME = 1e-3
"""Times are drawn from (least, 1): the weight of the loss grows without bound towards 0."""


@dataclass(frozen=True)
class NoisyStates:
    """N sequences at M noise levels each, row n M + m the m-th of sequence n.

    Attributes:
        tokens: noisy, int64 ``(N M, L)``.
        final_tokens: clean, int64 ``(N M, L)``.
        t: time, float64 ``(N M,)``.
        free: positions that the noise could reach, bool ``(N M, L)``.
        num_draws: M.
    """

    tokens: Tensor
    final_tokens: Tensor
    t: Tensor
    free: Tensor
    num_draws: int


def draw_noise(
    process: DiffusionProcess,
    final_tokens: Tensor,
    keys: Tensor,
    num_draws: int,
    *,
    prompt_mask: Tensor | None = None,
    stratified: bool = True,
    coupled: bool = False,
) -> NoisyStates:
    r"""Noise each sequence M times, :math:`x_t \sim q_t(\cdot | x_0)` at times :math:`t \sim U(0, 1)`.

    Stratified: the m-th time is drawn from the m-th of M equal parts. Coupled: draws come in pairs; the second of a
    pair noises with the complementary uniform numbers at the complementary time 1 - t, so that on an absorbing graph
    with :math:`\alpha = 1 - t` each position is masked in exactly one of the two. Each draw alone has the law that it
    has without.

    Args:
        process: the diffusion process.
        final_tokens: clean sequences, int64 ``(N, L)``.
        keys: of the noise, int64 ``(N,)``.
        num_draws: M.
        prompt_mask: positions that are never noised, bool ``(N, L)``; None: none.
        stratified: spread the times.
        coupled: draw in pairs; M is then even.

    Raises:
        InvalidArgumentError: an odd number of coupled draws.
    """
    if coupled and num_draws % 2:
        raise InvalidArgumentError(f"coupled draws come in pairs, so their number must be even, got {num_draws}.")
    length = final_tokens.shape[1]
    own = num_draws // 2 if coupled else num_draws
    offset = uniforms(keys, 0, own)
    share = (torch.arange(own, dtype=torch.float64, device=keys.device) + offset) / own if stratified else offset
    noise = torch.stack([uniforms(keys, 1 + draw, length) for draw in range(own)], dim=1)  # (N, own, L)
    if coupled:
        share, noise = torch.cat([share, 1.0 - share], dim=1), torch.cat([noise, 1.0 - noise], dim=1)
    t = (_LEAST_TIME + (1.0 - _LEAST_TIME) * share).reshape(-1)
    clean = final_tokens.repeat_interleave(num_draws, dim=0)
    free = torch.ones_like(clean, dtype=torch.bool)
    if prompt_mask is not None:
        free = ~prompt_mask.bool().repeat_interleave(num_draws, dim=0)
    noisy = process.graph.noise(clean, process.schedule.alpha(t), noise.reshape(-1, length))
    return NoisyStates(torch.where(free, noisy, clean), clean, t, free, num_draws)


def denoising_loss(
    process: DiffusionProcess, output: Output, states: NoisyStates, parameterisation: Parameterisation
) -> Tensor:
    r"""The negative bound on the log-likelihood, :math:`-\log \pi(x_0) \lesssim`, of each noisy state.

    Absorbing: :math:`\frac{-\alpha'_t}{1 - \alpha_t} \sum_{i\ masked} -\log p_\theta(x_0^i | x_t)` (arXiv 2406.07524).
    Uniform: the score entropy (arXiv 2310.16834). Positions that are given add nothing.

    Args:
        process: the diffusion process.
        output: the network's, ``(N M, L, V)``.
        states: where it was evaluated.
        parameterisation: what the output is, ``"posterior"`` or ``"score"``.

    Returns:
        ``(N M,)``, nats; its mean over the draws of a sequence estimates the bound without bias.
    """
    if isinstance(process.graph, Absorbing):
        log_posterior = process.log_posterior(output, states.tokens, states.t, parameterisation)
        terms = masked_cross_entropy(process, log_posterior, states.tokens, states.final_tokens, states.t)
    else:
        log_score = process.log_score(output, states.tokens, states.t, parameterisation)
        terms = score_entropy(process, log_score, states.tokens, states.final_tokens, states.t)
    return torch.where(states.free, terms, torch.zeros_like(terms)).sum(-1)


def per_sequence(values: Tensor, num_draws: int) -> Tensor:
    """Mean over the draws of each sequence, ``(N M,)`` -> ``(N,)``."""
    return values.reshape(-1, num_draws).mean(dim=1)
