r"""Samplers: loops of the reverse-step kernel from noise to data.

``reverse_steps`` walks the time grid and yields every step, for whoever needs the path; ``sample`` keeps only its
end. Prompted positions are clamped. All randomness comes from per-sequence keys (:mod:`sepo_env.diffusion.random`),
so a sequence does not depend on the batch that it was drawn in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sepo_env.arguments import Positive, Seed, Share, Size, WholeNumber, checked
from sepo_env.device import find_device
from sepo_env.diffusion import kernel as kernels
from sepo_env.diffusion.graph import Absorbing
from sepo_env.diffusion.kernel import StepLaw
from sepo_env.diffusion.process import DenoiserLike, DiffusionProcess, Kernel
from sepo_env.diffusion.random import row_keys, sample_categorical, uniforms
from sepo_env.errors import InvalidArgumentError, InvalidPromptError, InvalidShapeError


@dataclass(frozen=True)
class ReverseStep:
    """One step of a batch of reverse paths.

    Attributes:
        step: index k, 0 for the step that leaves pure noise.
        t: time before the step, float64 ``(B,)``.
        s: time after it, float64 ``(B,)``.
        tokens: state before the step, int64 ``(B, L)``.
        law: the law that the predictor drew from.
        next_tokens: state after the step and its correctors, int64 ``(B, L)``.
        prompt_mask: positions that never change, bool ``(B, L)``, which the law keeps for certain; None: none.
    """

    step: int
    t: Tensor
    s: Tensor
    tokens: Tensor
    law: StepLaw
    next_tokens: Tensor
    prompt_mask: Tensor | None = None


@checked
def initial_tokens(
    process: DiffusionProcess, keys: Tensor, length: Size, prompt: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw the state at t = 1 and clamp the prompted positions.

    Args:
        process: the diffusion process.
        keys: int64 ``(B,)``; the prior uses counter 0 of each key.
        length: L.
        prompt: int64 ``(L,)`` or ``(B, L)``; visible tokens are given, V (MASK) and -1 are free.

    Returns:
        Tokens int64 ``(B, L)`` and the clamped positions, bool ``(B, L)``.

    Raises:
        InvalidShapeError: a prompt of another shape.
        InvalidPromptError: a prompt with other ids, or one that leaves nothing to generate.
    """
    tokens = process.graph.prior(uniforms(keys, 0, length))
    if prompt is None:
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)
    if prompt.shape not in (tokens.shape, tokens.shape[1:]):
        raise InvalidShapeError("prompt", prompt.shape, f"{(length,)} or {tuple(tokens.shape)}")
    prompt = prompt.to(tokens.device).expand_as(tokens)
    clamped = process.graph.given(prompt)
    if bool(clamped.all(-1).any()):
        raise InvalidPromptError(
            "the prompt gives every position, so that nothing is left to generate; free some with MASK (or -1)."
        )
    return torch.where(clamped, prompt, tokens), clamped


@checked
def reverse_steps(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    tokens: Tensor,
    *,
    num_steps: Size,
    keys: Tensor,
    prompt_mask: Tensor | None = None,
    kernel: Kernel = "ancestral",
    corrector_steps: WholeNumber = 0,
    corrector_size: Positive = 0.1,
    remask_prob: Share = 0.0,
) -> Iterator[ReverseStep]:
    r"""Walk the K-step grid from t = 1 to t = 0, yielding each step.

    Args:
        process: the diffusion process.
        denoiser: the network; evaluated once a step, and once more for each corrector step.
        tokens: state at t = 1, int64 ``(B, L)`` (:func:`initial_tokens`).
        num_steps: K.
        keys: int64 ``(B,)``.
        prompt_mask: positions that never change, bool ``(B, L)``.
        kernel: how a predictor step is discretised.
        corrector_steps: gradient-flow corrector leaps after each predictor step but the last (arXiv 2502.01384).
        corrector_size: length of a corrector leap in units of sigma.
        remask_prob: probability that a visible token is masked again in a step (arXiv 2503.00307); the largest that
            keeps the marginals is used where this one is larger.

    Raises:
        InvalidArgumentError: settings out of range, or that exclude each other.
    """
    if remask_prob > 0 and kernel != "ancestral":
        raise InvalidArgumentError(
            f"re-masking has a kernel of its own; use it with kernel='ancestral', not {kernel!r}."
        )
    grid = process.time_grid(num_steps, tokens.device)
    ones = torch.ones(len(tokens), dtype=torch.float64, device=tokens.device)
    clamped = torch.zeros_like(tokens, dtype=torch.bool) if prompt_mask is None else prompt_mask
    for k in range(num_steps):
        t, s = grid[k] * ones, grid[k + 1] * ones
        output = process.evaluate(denoiser, tokens, t, prompt_mask)
        if remask_prob > 0:
            log_posterior = process.log_posterior(output, tokens, t, denoiser.parameterisation)
            law = kernels.remasking(
                process.graph, tokens, log_posterior, process.alpha(t), process.alpha(s), remask_prob * ones
            ).clamped(tokens, clamped)
        else:
            law = process.step_law(output, tokens, t, s, denoiser.parameterisation, kernel, prompt_mask)
        next_tokens = torch.where(clamped, tokens, law.sample(uniforms(keys, k + 1, tokens.shape[1])))
        if k + 1 < num_steps:
            next_tokens = correct(
                process,
                denoiser,
                next_tokens,
                s,
                keys=keys,
                # Counters beyond K belong to the correctors, so that turning them on leaves the predictor's draws.
                counters=[num_steps * (j + 1) + k + 1 for j in range(corrector_steps)],
                prompt_mask=clamped,
                corrector_size=corrector_size,
            )
        yield ReverseStep(k, t, s, tokens, law, next_tokens, prompt_mask)
        tokens = next_tokens


def correct(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    tokens: Tensor,
    t: Tensor,
    *,
    keys: Tensor,
    counters: Iterable[int],
    prompt_mask: Tensor,
    corrector_size: float = 0.1,
) -> Tensor:
    r"""Gradient-flow corrector leaps at a fixed time (:func:`~sepo_env.diffusion.kernel.corrector`), one a counter.

    Args:
        process: the diffusion process.
        denoiser: the network; evaluated once a leap.
        tokens: int64 ``(B, L)``.
        t: present time, float64 ``(B,)``, > 0.
        keys: int64 ``(B,)``.
        counters: which uniforms of the keys each leap uses.
        prompt_mask: positions that never change, bool ``(B, L)``.
        corrector_size: length of a leap in units of sigma.

    Returns:
        Corrected tokens, int64 ``(B, L)``.
    """
    size = torch.full_like(t, corrector_size)
    for counter in counters:
        output = process.evaluate(denoiser, tokens, t, prompt_mask)
        log_score = process.log_score(output, tokens, t, denoiser.parameterisation)
        law = kernels.corrector(process.graph, tokens, log_score, size)
        tokens = torch.where(prompt_mask, tokens, law.sample(uniforms(keys, counter, tokens.shape[1])))
    return tokens


@checked
@torch.no_grad()
def sample(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    num_samples: Size,
    length: Size,
    *,
    num_steps: Size,
    seed: Seed = 0,
    prompt: Tensor | None = None,
    kernel: Kernel = "ancestral",
    corrector_steps: WholeNumber = 0,
    corrector_size: Positive = 0.1,
    remask_prob: Share = 0.0,
    device: torch.device | str | None = None,
) -> Tensor:
    r"""Draw sequences with the K-step sampler; see :func:`reverse_steps` for the settings.

    Returns:
        Clean tokens, int64 ``(num_samples, L)``. Sequence i depends on ``seed + i`` alone.

    >>> from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
    >>> class Always2(torch.nn.Module):
    ...     parameterisation = "posterior"
    ...
    ...     def forward(self, tokens, time):
    ...         return torch.log(torch.eye(4)[2]).expand(*tokens.shape, 4)
    >>> sample(DiffusionProcess(Absorbing(4), LogLinear()), Always2(), 2, 3, num_steps=4)
    tensor([[2, 2, 2],
            [2, 2, 2]])
    """
    keys = row_keys(seed, num_samples, None if device is None else find_device(device))
    tokens, clamped = initial_tokens(process, keys, length, prompt)
    for step in reverse_steps(
        process,
        denoiser,
        tokens,
        num_steps=num_steps,
        keys=keys,
        prompt_mask=None if prompt is None else clamped,
        kernel=kernel,
        corrector_steps=corrector_steps,
        corrector_size=corrector_size,
        remask_prob=remask_prob,
    ):
        tokens = step.next_tokens
    return tokens


def first_jump(
    process: DiffusionProcess, tokens: Tensor, rates: Tensor, t: Tensor, uniforms: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""The first jump of an absorbing chain under held rates (Gillespie).

    With :math:`R_i = \sum_v r_{i,v}`: the clock advances by :math:`\Delta\Lambda \sim \mathrm{Exp}(\sum_i R_i)`,
    position i jumps with probability :math:`R_i / \sum_j R_j` and goes to v with :math:`r_{i,v} / R_i`. With the
    x0-posterior as rates and n masks left, :math:`1 - \alpha_{next} = (1 - \alpha_{now})\, U^{1/n}`, exact for
    continuous time (arXiv 2409.02908).

    Args:
        process: an absorbing process.
        tokens: int64 ``(B, L)``.
        rates: ``(B, L, V)``.
        t: present time, float64 ``(B,)``.
        uniforms: float64 ``(B, 3)``: waiting time, position, token.

    Returns:
        Next tokens ``(B, L)``; next time ``(B,)``, 0 once no mask is left; log-probability of which position jumped
        and where to, at that position, 0 elsewhere, float64 ``(B, L)``. A row without masks stays as it is.

    Raises:
        InvalidArgumentError: the graph is not absorbing.
    """
    if not isinstance(process.graph, Absorbing):
        raise InvalidArgumentError("first-hitting sampling needs an absorbing graph; use the K-step sampler.")
    rates = kernels.full_rates(process.graph, tokens, rates).double()[..., : process.graph.num_tokens]
    row_rates = rates.sum(-1)
    total = row_rates.sum(-1)
    alive = total > 0
    flat = rates.flatten(1)
    # One inversion over (position, token) pairs would do; two keep the position's law visible.
    safe_rows = torch.where(alive[:, None], row_rates, torch.ones_like(row_rates))
    position = sample_categorical(safe_rows.log(), uniforms[:, 1])
    row = rates[torch.arange(len(tokens), device=tokens.device), position]
    token = sample_categorical(torch.where(alive[:, None], row, torch.ones_like(row)).log(), uniforms[:, 2])
    jumped = torch.nn.functional.one_hot(position, tokens.shape[1]).bool() & alive[:, None]
    next_tokens = torch.where(jumped, token[:, None], tokens)
    chosen = flat.gather(1, (position * process.graph.num_tokens + token)[:, None])
    log_prob = torch.where(jumped, (chosen / total[:, None]).log(), torch.zeros_like(row_rates))
    clock = process.graph.clock(process.schedule, t) + uniforms[:, 0].log() / total.masked_fill(~alive, 1.0)
    done = ~process.graph.can_jump(next_tokens).any(-1)
    s = torch.where(done, torch.zeros_like(t), process.schedule.inverse_log_one_minus_alpha(clock))
    return next_tokens, torch.where(alive, s, t), log_prob


@checked
@torch.no_grad()
def first_hitting(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    num_samples: Size,
    length: Size,
    *,
    seed: Seed = 0,
    prompt: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw sequences with the first-hitting sampler: one token a step, exact for continuous time.

    Returns:
        Clean tokens, int64 ``(num_samples, L)``; the network is evaluated once for each position to fill.
    """
    keys = row_keys(seed, num_samples, None if device is None else find_device(device))
    tokens, clamped = initial_tokens(process, keys, length, prompt)
    t = torch.ones(num_samples, dtype=torch.float64, device=tokens.device)
    for k in range(int(process.graph.can_jump(tokens).sum(-1).max())):
        rates = process.rates(denoiser, tokens, t, prompt_mask=None if prompt is None else clamped)
        tokens, t, _ = first_jump(process, tokens, rates, t, uniforms(keys, k + 1, 3))
    return tokens
