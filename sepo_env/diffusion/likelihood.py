r"""Likelihoods: training losses, bounds on the log-likelihood, and log-probability and divergence of reverse paths.

All values are in nats a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sepo_env.arguments import Count, Seed, Size, checked
from sepo_env.diffusion import kernel as kernels
from sepo_env.diffusion.graph import Absorbing, per_position
from sepo_env.diffusion.process import DenoiserLike, DiffusionProcess
from sepo_env.diffusion.random import row_keys, uniforms
from sepo_env.diffusion.sampler import ReverseStep
from sepo_env.errors import InvalidArgumentError


def score_entropy(process: DiffusionProcess, log_score: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor) -> Tensor:
    r"""Denoising score entropy of each position (arXiv 2310.16834), times the noise rate.

    .. math::
        \sigma'(t) \sum_{v \ne x_t^i} Q(v, x_t^i) \left[ s_v - a_v \log s_v + a_v (\log a_v - 1) \right],
        \quad a_v = q_t(v | x_0^i) / q_t(x_t^i | x_0^i).

    Args:
        process: the diffusion process.
        log_score: :math:`\log s_{i,v}` of the network, ``(B, L, V)``.
        x_t: noisy tokens, int64 ``(B, L)``.
        x_0: clean tokens, int64 ``(B, L)``.
        t: time, ``(B,)``.

    Returns:
        ``(B, L)``, non-negative; its mean over t ~ U(0, 1) and x_t is the negative evidence bound (less the prior
        term). Leave given positions out of a sum: they are not noised, and their score means nothing.
    """
    graph = process.graph
    log_forward = graph.log_forward(x_0, process.alpha(t)).to(log_score.dtype)
    log_ratio = log_forward - log_forward.gather(-1, x_t[..., None])
    log_ratio = log_ratio[..., : graph.num_tokens]
    ratio = log_ratio.exp()
    weight = graph.reverse_rates(torch.zeros_like(log_score), x_t)
    # a log a -> 0 as a -> 0
    constant = torch.where(ratio > 0, ratio * (log_ratio.masked_fill(ratio <= 0, 0.0) - 1.0), 0.0)
    allowed = weight > 0
    # Likewise a log s where both are 0: what a model rules out is no loss where it cannot have been.
    weighed = torch.where(allowed & (ratio > 0), ratio * log_score.masked_fill(ratio <= 0, 0.0), 0.0)
    terms = log_score.masked_fill(~allowed, 0.0).exp() - weighed + torch.where(allowed, constant, 0.0)
    return per_position(process.schedule.sigma_prime(t), x_t[..., None].double())[..., 0].to(log_score.dtype) * (
        weight * terms
    ).sum(-1)


def masked_cross_entropy(
    process: DiffusionProcess, log_posterior: Tensor, x_t: Tensor, x_0: Tensor, t: Tensor
) -> Tensor:
    r"""Weighted masked cross-entropy :math:`\frac{-\alpha'_t}{1 - \alpha_t} \cdot -\log p_\theta(x_0^i | x_t)`.

    What score entropy becomes for an absorbing graph with an x0-posterior (arXiv 2406.07524).

    Args:
        process: an absorbing process.
        log_posterior: ``(B, L, V)``.
        x_t: noisy tokens, int64 ``(B, L)``.
        x_0: clean tokens, int64 ``(B, L)``.
        t: time, ``(B,)``.

    Returns:
        ``(B, L)``; 0 at visible positions.
    """
    if not isinstance(process.graph, Absorbing):
        raise InvalidArgumentError("masked cross-entropy needs an absorbing graph; use score_entropy.")
    alpha = process.schedule.alpha(t)
    weight = per_position(process.schedule.sigma_prime(t) * alpha / (1.0 - alpha), log_posterior)[..., 0]
    log_prob = log_posterior.gather(-1, x_0[..., None])[..., 0]
    return torch.where(x_t == process.graph.mask_token, -weight * log_prob, torch.zeros_like(log_prob))


def marginal_alpha(process: DiffusionProcess, t: Tensor) -> Tensor:
    r"""Signal at time t of a path that starts from the sampler's own prior.

    A sampler of an absorbing chain starts from MASK everywhere although the schedule leaves :math:`\alpha(1) > 0`;
    given that start, a position is still masked at t with probability :math:`(1 - \alpha_t)/(1 - \alpha_1)`.
    """
    alpha = process.alpha(t)
    if isinstance(process.graph, Absorbing):
        return 1.0 - (1.0 - alpha) / (1.0 - process.alpha(torch.ones_like(t)))
    return alpha


@checked
@torch.no_grad()
def elbo(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    x_0: Tensor,
    *,
    num_steps: Size = 128,
    seed: Seed = 0,
    num_draws: Count = 1,
    prompt_mask: Tensor | None = None,
) -> Tensor:
    r"""Evidence lower bound on the log-likelihood of the K-step ancestral sampler.

    .. math::
        \log \pi_K(x_0) \ge -\mathrm{KL}(q(x_1 | x_0) \| p(x_1)) -
        \sum_k E_{q(x_t | x_0)} \mathrm{KL}\left( q(x_s | x_t, x_0) \,\|\, p_\theta(x_s | x_t) \right)

    with one noisy draw for each step and each of ``num_draws`` repetitions. For an absorbing chain a step's
    divergence is :math:`\frac{\alpha_s - \alpha_t}{1 - \alpha_t} \sum_{i\ masked} -\log p_\theta(x_0^i | x_t)`. The
    median over samples at 128 steps is the "approximate log-likelihood" of the enhancer protocol (arXiv 2410.13643).
    Given positions are never noised: the bound is then that on :math:`\log \pi_K(x_0 | prompt)`.

    Args:
        process: the diffusion process.
        denoiser: the network; evaluated ``num_steps * num_draws`` times on the whole batch.
        x_0: clean tokens, int64 ``(B, L)``.
        num_steps: K.
        seed: seed of the noise; sequence i uses ``seed + i``.
        num_draws: repetitions to average.
        prompt_mask: positions of ``x_0`` that were given, bool ``(B, L)``; None: none.

    Returns:
        float64 ``(B,)``, nats a sequence.

    Raises:
        InvalidShapeError: tokens or mask of another shape.
        InvalidTokensError: tokens of another dtype or vocabulary.
    """
    process.graph.check_tokens(x_0, "x_0")
    process.graph.check_mask(prompt_mask, x_0)
    free = torch.ones_like(x_0, dtype=torch.bool) if prompt_mask is None else ~prompt_mask
    keys = row_keys(seed, len(x_0), x_0.device)
    grid = process.time_grid(num_steps, x_0.device)
    ones = torch.ones(len(x_0), dtype=torch.float64, device=x_0.device)
    truth = torch.nn.functional.one_hot(x_0, process.graph.vocab_size)[..., : process.graph.num_tokens].double().log()
    bound = torch.zeros_like(ones)
    for draw in range(num_draws):
        for k in range(num_steps):
            t, s = grid[k] * ones, grid[k + 1] * ones
            noise = uniforms(keys, draw * num_steps + k, x_0.shape[1])
            x_t = torch.where(free, process.graph.noise(x_0, marginal_alpha(process, t), noise), x_0)
            output = process.evaluate(denoiser, x_t, t, prompt_mask).double()
            law = process.step_law(output, x_t, t, s, denoiser.parameterisation)
            target = kernels.ancestral(process.graph, x_t, truth, process.alpha(t), process.alpha(s))
            bound -= _sum_where(target.kl(law), free) / num_draws
    start = kernels.StepLaw(process.graph.log_forward(x_0, marginal_alpha(process, ones)))
    states = torch.arange(process.graph.vocab_size, device=x_0.device)
    log_prior = process.graph.log_prior(states[:, None])[:, 0]
    return bound - _sum_where(start.kl(kernels.StepLaw(log_prior.expand_as(start.log_probs))), free)


def _sum_where(values: Tensor, free: Tensor) -> Tensor:
    """Sum over the free positions, ``(B, L)`` -> ``(B,)``; what stands elsewhere, even an infinity, is not read."""
    return torch.where(free, values, torch.zeros_like(values)).sum(-1)


def path_log_prob(steps: Iterable[ReverseStep]) -> Tensor:
    r"""Log-probability of reverse paths given their start, :math:`\sum_k \log p_\theta(x_{k+1} | x_k)`.

    Positions of a prompt stay for certain and add nothing.

    Args:
        steps: the steps of :func:`~sepo_env.diffusion.sampler.reverse_steps`, drawn without correctors.

    Returns:
        ``(B,)``.
    """
    return torch.stack([step.law.log_prob(step.next_tokens).sum(-1) for step in steps]).sum(0)


def path_kl(process: DiffusionProcess, reference: DenoiserLike, steps: Iterable[ReverseStep]) -> Tensor:
    r"""Divergence of the sampled process from a reference one, estimated on reverse paths of the former.

    :math:`\sum_k \sum_i \mathrm{KL}(p_\theta(\cdot | x_k)_i \| p_{ref}(\cdot | x_k)_i)` of the step laws; its
    expectation over paths is the exact path divergence and bounds :math:`\mathrm{KL}(\pi_\theta \| \pi_{ref})`. With a
    prompt the sum runs over the free positions, and the two are the processes that the prompt conditions.

    Args:
        process: the diffusion process.
        reference: the fixed reference network.
        steps: ancestral steps of the network whose paths they are.

    Returns:
        ``(B,)``, nats.
    """
    total = []
    for step in steps:
        output = process.evaluate(reference, step.tokens, step.t, step.prompt_mask).to(step.law.log_probs.dtype)
        law = process.step_law(
            output, step.tokens, step.t, step.s, reference.parameterisation, prompt_mask=step.prompt_mask
        )
        total.append(step.law.kl(law).sum(-1))
    return torch.stack(total).sum(0)
