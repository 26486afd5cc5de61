r"""Exact enumeration on tiny spaces: the law that a sampler really has, differentiable in the network's parameters.

The oracle of the tests and of teaching: with V = 2 .. 4 and L = 2 .. 6 the law :math:`\pi_K` of the K-step sampler,
:math:`J = E_{x \sim \pi_K} R(x)` and its gradient are sums, not estimates.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sepo_env.arguments import Count, Size, checked
from sepo_env.diffusion.graph import Absorbing, Graph
from sepo_env.diffusion.kernel import StepLaw
from sepo_env.diffusion.process import DenoiserLike, DiffusionProcess, Kernel
from sepo_env.errors import InvalidArgumentError, InvalidShapeError

_MAX_TRANSITIONS = 2_000_000


@checked
def all_states(num_values: Count, length: Size, device: torch.device | str | None = None) -> Tensor:
    """Every sequence over 0 .. n-1 in lexicographic order, int64 ``(n ** L, L)``.

    Raises:
        InvalidArgumentError: there are too many to list.

    >>> all_states(2, 2).tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    if length * math.log(num_values) > math.log(_MAX_TRANSITIONS):
        raise InvalidArgumentError(
            f"{num_values} ** {length} sequences are too many to list (at most {_MAX_TRANSITIONS:,}); shorten them."
        )
    return torch.tensor(list(itertools.product(range(num_values), repeat=length)), device=device).reshape(-1, length)


def state_index(tokens: Tensor, num_values: int) -> Tensor:
    """Row of each sequence in :func:`all_states`: ``(..., L)`` -> int64 ``(...)``.

    >>> state_index(torch.tensor([[0, 1], [1, 1]]), 2)
    tensor([1, 3])
    """
    length = tokens.shape[-1]
    powers = num_values ** torch.arange(length - 1, -1, -1, device=tokens.device)
    return (tokens * powers).sum(-1)


def _transitions(process: DiffusionProcess, length: int) -> tuple[Tensor, Tensor]:
    """All pairs (state, next state) that a reverse step allows, each int64 ``(P, L)``."""
    graph = process.graph
    values = range(graph.vocab_size)
    if isinstance(graph, Absorbing):
        pairs = [(a, b) for a in values for b in values if a in (b, graph.mask_token)]
    else:
        pairs = list(itertools.product(values, values))
    if len(pairs) ** length > _MAX_TRANSITIONS:
        raise InvalidArgumentError(
            f"{len(pairs) ** length:,} transitions are too many to enumerate (at most {_MAX_TRANSITIONS:,}); "
            "enumerate a shorter sequence or a smaller alphabet."
        )
    table = torch.tensor(pairs)[all_states(len(pairs), length)]
    return table[..., 0], table[..., 1]


@checked
def state_laws(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    length: Size,
    num_steps: Size,
    kernel: Kernel = "ancestral",
    prompt: Tensor | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor, StepLaw]]:
    """Walk the exact law of the K-step sampler through time.

    Args:
        process: the diffusion process.
        denoiser: the network, evaluated on all ``W ** L`` states at every step.
        length: L.
        num_steps: K.
        kernel: how a step is discretised.
        prompt: int64 ``(L,)``; visible tokens are clamped, V and -1 are free.

    Yields:
        For k = 0 .. K-1: probabilities of all states before the step, float64 ``(W ** L,)``; t and s, float64 ``(1,)``;
        the law of the step from each state. Then one last item with the probabilities at t = 0 and a law that stays.

    Raises:
        InvalidArgumentError: the space is too large.
    """
    graph = process.graph
    before, after = _transitions(process, length)
    clamped = torch.zeros(length, dtype=torch.bool)
    if prompt is not None:
        clamped = _given(graph, prompt, length)
        unchanged = ((before == after) | ~clamped).all(-1)
        before, after = before[unchanged], after[unchanged]
    source, target = state_index(before, graph.vocab_size), state_index(after, graph.vocab_size)
    states = all_states(graph.vocab_size, length)
    log_start = graph.log_prior(states)
    fixed = None if prompt is None else clamped.expand_as(states)
    if prompt is not None:
        certain = torch.zeros_like(log_start).masked_fill(states != prompt, -torch.inf)
        log_start = torch.where(clamped, certain, log_start)
    probs = log_start.sum(-1).exp()
    grid = process.time_grid(num_steps)
    for k in range(num_steps):
        t, s = grid[k].expand(len(states)), grid[k + 1].expand(len(states))
        output = process.evaluate(denoiser, states, t, fixed).double()
        law = process.step_law(output, states, t, s, denoiser.parameterisation, kernel, fixed)
        yield probs, grid[k : k + 1], grid[k + 1 : k + 2], law
        moves = law.log_probs[source].gather(-1, after[..., None])[..., 0].sum(-1).exp()
        probs = torch.zeros_like(probs).index_add(0, target, probs[source] * moves)
    stay = torch.full((len(states), length, graph.vocab_size), -torch.inf, dtype=torch.float64)
    yield probs, grid[-1:], grid[-1:], StepLaw(stay.scatter(-1, states[..., None], 0.0))


def ancestral_law(
    process: DiffusionProcess,
    denoiser: DenoiserLike,
    length: int,
    num_steps: int,
    kernel: Kernel = "ancestral",
    prompt: Tensor | None = None,
) -> Tensor:
    r"""The exact law :math:`\pi_K(x_0)` of the K-step sampler.

    Returns:
        Probabilities of all clean sequences in the order of ``all_states(V, L)``, float64 ``(V ** L,)``, summing to 1
        and differentiable in the network's parameters.
    """
    *_, (probs, _, _, _) = state_laws(process, denoiser, length, num_steps, kernel, prompt)
    clean = all_states(process.graph.num_tokens, length)
    return probs[state_index(clean, process.graph.vocab_size)]


@checked
def first_hitting_law(
    process: DiffusionProcess, denoiser: DenoiserLike, length: Size, prompt: Tensor | None = None
) -> Tensor:
    """The exact law of the first-hitting sampler: masks are filled one at a time in uniformly random order.

    It is the limit of :func:`ancestral_law` for K to infinity when the network ignores time.

    Returns:
        float64 ``(V ** L,)``, order of ``all_states(V, L)``.
    """
    graph = process.graph
    if not isinstance(graph, Absorbing):
        raise InvalidArgumentError("first-hitting sampling needs an absorbing graph.")
    states = all_states(graph.vocab_size, length)
    clamped = torch.zeros(length, dtype=torch.bool)
    if prompt is not None:
        clamped = _given(graph, prompt, length)
    ones = torch.ones(len(states), dtype=torch.float64)
    output = process.evaluate(denoiser, states, ones, clamped.expand_as(states)).double()
    posterior = process.log_posterior(
        output, states, torch.full((len(states),), 0.5, dtype=torch.float64), denoiser.parameterisation
    ).exp()
    start = torch.full((length,), graph.mask_token)
    if prompt is not None:
        start = torch.where(clamped, prompt, start)
    probs = torch.nn.functional.one_hot(state_index(start, graph.vocab_size), len(states)).double()
    masks = (states == graph.mask_token).sum(-1)
    for n in range(int((start == graph.mask_token).sum()), 0, -1):
        source, position = torch.nonzero((states == graph.mask_token) & (masks == n)[:, None], as_tuple=True)
        filled = states[source][:, None].repeat(1, graph.num_tokens, 1)
        rows = torch.arange(len(source))[:, None]
        filled[rows, torch.arange(graph.num_tokens), position[:, None]] = torch.arange(graph.num_tokens)
        flow = probs[source, None] / n * posterior[source, position]
        target = state_index(filled, graph.vocab_size)
        probs = torch.zeros_like(probs).index_add(0, target.flatten(), flow.flatten())
    clean = all_states(graph.num_tokens, length)
    return probs[state_index(clean, graph.vocab_size)]


def _given(graph: Graph, prompt: Tensor, length: int) -> Tensor:
    if prompt.shape != (length,):
        raise InvalidShapeError("prompt", prompt.shape, f"{(length,)}")
    return graph.given(prompt)


def expected_reward(law: Tensor, rewards: Tensor) -> Tensor:
    r"""The objective :math:`J = \sum_x \pi(x) R(x)`: laws and rewards of all clean sequences, both ``(V ** L,)``."""
    return (law * rewards.to(law.dtype)).sum()
