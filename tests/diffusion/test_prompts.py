"""Given positions never move, and add nothing to any log-probability, entropy, divergence or bound."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, Linear, LogLinear, Uniform, make_graph, make_schedule
from sepo_env.diffusion.enumeration import all_states, ancestral_law, first_hitting_law, state_index, state_laws
from sepo_env.diffusion.likelihood import elbo, marginal_alpha, path_kl, path_log_prob
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import ReverseStep, first_hitting, initial_tokens, reverse_steps, sample
from tests.comparisons import assert_same

PROCESSES = [DiffusionProcess(Absorbing(2), LogLinear()), DiffusionProcess(Uniform(2), LogLinear())]
PROMPT = torch.tensor([1, -1, -1])
by_graph = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))


def table(process, seed=0, length=3, parameterisation="posterior"):
    generator = torch.Generator().manual_seed(seed)
    graph = process.graph
    denoiser = TabularDenoiser(graph.num_tokens, length, graph.vocab_size, parameterisation, generator)
    return denoiser.double().requires_grad_(False)


@st.composite
def chains(draw):
    """A process, a denoiser, per-sequence prompts that leave something free, and settings of the sampler."""
    graph = draw(st.sampled_from(["absorbing", "uniform"]))
    num_tokens, length = draw(st.integers(2, 3)), draw(st.integers(2, 4))
    process = DiffusionProcess(
        make_graph(graph, num_tokens), make_schedule(draw(st.sampled_from(["log-linear", "cosine"])))
    )
    parameterisation = draw(st.sampled_from(["posterior", "score"]))
    rows = draw(st.integers(1, 4))
    prompt = torch.tensor(
        draw(
            st.lists(
                st.lists(st.integers(-1, num_tokens - 1), min_size=length, max_size=length),
                min_size=rows,
                max_size=rows,
            )
        )
    )
    free = torch.tensor(draw(st.lists(st.integers(0, length - 1), min_size=rows, max_size=rows)))
    prompt[torch.arange(rows), free] = -1
    options = {
        "num_steps": draw(st.integers(1, 4)),
        "kernel": draw(st.sampled_from(["ancestral", "tau-leaping", "analytic"])),
        "corrector_steps": draw(st.integers(0, 2)),
        "corrector_size": draw(st.sampled_from([0.1, 2.0])),
    }
    if graph == "absorbing" and options["kernel"] == "ancestral":
        options["remask_prob"] = draw(st.sampled_from([0.0, 0.5, 1.0]))
    seed = draw(st.integers(0, 1000))
    return process, table(process, seed, length, parameterisation), prompt, options, seed


@given(chains())
def test_given_positions_never_move_and_never_count(chain):
    process, denoiser, prompt, options, seed = chain
    keys = keys_from_seed(torch.arange(seed, seed + len(prompt)))
    tokens, clamped = initial_tokens(process, keys, prompt.shape[1], prompt)
    assert torch.equal(clamped, prompt >= 0)
    steps = list(reverse_steps(process, denoiser, tokens, keys=keys, prompt_mask=clamped, **options))
    reference = table(process, seed + 1, prompt.shape[1])
    for step in steps:
        for state in (step.tokens, step.next_tokens):
            assert torch.equal(state[clamped], prompt[clamped])
        other = process.step_law(
            reference(step.tokens, step.t), step.tokens, step.t, step.s, "posterior", prompt_mask=clamped
        )
        for values in (step.law.log_prob(step.next_tokens), step.law.entropy(), step.law.kl(other)):
            assert not values[clamped].any()
        torch.testing.assert_close(step.law.log_probs.exp().sum(-1), torch.ones_like(clamped, dtype=torch.float64))
    assert torch.equal(
        sample(process, denoiser, len(prompt), prompt.shape[1], seed=seed, prompt=prompt, **options),
        steps[-1].next_tokens,
    )
    # A sequence depends on its own key and prompt, not on the batch.
    alone = sample(process, denoiser, 1, prompt.shape[1], seed=seed + len(prompt) - 1, prompt=prompt[-1], **options)
    assert torch.equal(alone[0], steps[-1].next_tokens[-1])


@given(chains())
def test_first_hitting_keeps_the_prompt(chain):
    process, denoiser, prompt, _, seed = chain
    if process.graph.mask_token is None:
        return
    tokens = first_hitting(process, denoiser, len(prompt), prompt.shape[1], seed=seed, prompt=prompt)
    assert torch.equal(tokens[prompt >= 0], prompt[prompt >= 0])
    assert bool((tokens < process.graph.num_tokens).all())


def conditional_paths(process, denoisers, num_steps):
    """Every path of the chain that PROMPT conditions, with its log-probability under each denoiser.

    Built from the step laws of free positions alone; what a law says at a given position is not looked at.
    """
    graph, grid = process.graph, process.time_grid(num_steps)
    free = PROMPT < 0
    states = all_states(graph.vocab_size, 3)
    states = states[(states[:, ~free] == PROMPT[~free]).all(-1)]
    laws = [
        [
            process.step_law(denoiser(states, t), states, t, s, "posterior").log_probs
            for t, s in zip(
                grid[:-1, None].expand(-1, len(states)), grid[1:, None].expand(-1, len(states)), strict=True
            )
        ]
        for denoiser in denoisers
    ]
    for path in itertools.product(range(len(states)), repeat=num_steps + 1):
        start = graph.log_prior(states[path[0]][None])[0][free].sum()
        log_probs = []
        for law in laws:
            total = start
            for k in range(num_steps):
                moves = law[k][path[k]].gather(-1, states[path[k + 1]][:, None])[:, 0]
                total = total + moves[free].sum()
            log_probs.append(float(total))
        if log_probs[0] > -torch.inf:
            yield states[list(path)], log_probs


@by_graph
def test_path_kl_is_that_of_the_chain_that_the_prompt_conditions(process):
    denoiser, reference = table(process, 0), table(process, 1)
    mask = (PROMPT >= 0)[None]
    grid = process.time_grid(2)
    exact, estimated, total = 0.0, 0.0, 0.0
    law = torch.zeros(8, dtype=torch.float64)
    for path, (log_p, log_q) in conditional_paths(process, (denoiser, reference), 2):
        steps = []
        for k in range(2):
            tokens, t, s = path[k : k + 1], grid[k : k + 1], grid[k + 1 : k + 2]
            step_law = process.step_law(denoiser(tokens, t), tokens, t, s, "posterior", prompt_mask=mask)
            steps.append(ReverseStep(k, t, s, tokens, step_law, path[k + 1 : k + 2], mask))
        start = process.graph.log_prior(path[:1])[0][PROMPT < 0].sum()
        assert float(path_log_prob(steps) + start) == pytest.approx(log_p, abs=1e-10)
        p = math.exp(log_p)
        total += p
        exact += p * (log_p - log_q)
        estimated += p * float(path_kl(process, reference, steps))
        law[state_index(path[-1], 2)] += p
    assert total == pytest.approx(1.0, abs=1e-10)
    assert estimated == pytest.approx(exact, abs=1e-10)
    torch.testing.assert_close(law, ancestral_law(process, denoiser, 3, 2, prompt=PROMPT), rtol=0, atol=1e-10)


@by_graph
def test_the_enumerated_laws_divergence_counts_free_positions_alone(process):
    """Sum over time of the expected KL of step laws: the same number from `state_laws` as from paths drawn."""
    denoiser, reference = table(process, 0), table(process, 1)
    exact = 0.0
    states = all_states(process.graph.vocab_size, 3)
    fixed = (PROMPT >= 0).expand_as(states)
    for probs, t, s, law in list(state_laws(process, denoiser, 3, 3, prompt=PROMPT))[:-1]:
        times = t.expand(len(states)), s.expand(len(states))
        other = process.step_law(reference(states, times[0]), states, *times, "posterior", prompt_mask=fixed)
        assert not law.entropy()[fixed & (probs > 0)[:, None]].any()
        exact += float(torch.where(probs > 0, probs * law.kl(other).sum(-1), 0.0).sum())
    keys = keys_from_seed(torch.arange(4000))
    tokens, clamped = initial_tokens(process, keys, 3, PROMPT)
    steps = list(reverse_steps(process, denoiser, tokens, num_steps=3, keys=keys, prompt_mask=clamped))
    estimate = path_kl(process, reference, steps)
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * float(estimate.std()) / len(estimate) ** 0.5)
    p, q = (ancestral_law(process, d, 3, 3, prompt=PROMPT) for d in (denoiser, reference))
    possible = p > 0
    assert float((p[possible] * (p[possible] / q[possible]).log()).sum()) < exact


def exact_conditional_elbo(process, denoiser, x_0, num_steps):
    """The bound of one sequence, its first position given: the expectation over x_t is a sum over all states."""
    grid, graph = process.time_grid(num_steps), process.graph
    states = all_states(graph.vocab_size, 3)
    states = states[states[:, 0] == x_0[0]]
    rows = x_0.expand_as(states)
    bound = 0.0
    for k in range(num_steps):
        t, s = grid[k].expand(len(states)), grid[k + 1].expand(len(states))
        forward = graph.log_forward(rows, marginal_alpha(process, t)).gather(-1, states[..., None])[..., 0]
        weight = forward[:, 1:].sum(-1).exp()
        truth = torch.nn.functional.one_hot(rows, 2).double().log()
        target = process.step_law(truth, states, t, s, "posterior")
        divergence = target.kl(process.step_law(denoiser(states, t), states, t, s, "posterior"))[:, 1:].sum(-1)
        bound -= float((weight * divergence)[weight > 0].sum())
    if graph.mask_token is None:
        alpha = float(process.alpha(torch.ones(1, dtype=torch.float64)))
        q = torch.tensor([alpha + (1 - alpha) / 2, (1 - alpha) / 2], dtype=torch.float64)
        bound -= 2 * float((q * (q * 2).log()).sum())
    return bound


@by_graph
def test_elbo_with_a_prompt_bounds_the_conditional_likelihood(process):
    denoiser = table(process)
    clean = all_states(2, 3)
    mask = torch.tensor([True, False, False]).expand_as(clean)
    exact = torch.tensor([exact_conditional_elbo(process, denoiser, x, 4) for x in clean], dtype=torch.float64)
    law = sum(ancestral_law(process, denoiser, 3, 4, prompt=torch.tensor([v, -1, -1])) for v in range(2))
    assert bool((exact <= law.log() + 1e-12).all())
    draws = clean.repeat(800, 1)
    estimate = elbo(process, denoiser, draws, num_steps=4, num_draws=2, prompt_mask=mask.repeat(800, 1))
    torch.testing.assert_close(estimate.reshape(800, 8).mean(0), exact, rtol=0.03, atol=0.03)
    free = elbo(process, denoiser, clean, num_steps=4)
    assert_same(elbo(process, denoiser, clean, num_steps=4, prompt_mask=torch.zeros_like(mask)), free)


@given(st.integers(0, 5), st.sampled_from([0, 1]), st.lists(st.integers(-1, 1), min_size=3, max_size=3))
@settings(max_examples=20)
def test_laws_of_prompted_chains_are_laws_on_what_the_prompt_allows(seed, which, prompt):
    process, prompt = PROCESSES[which], torch.tensor([*prompt[:2], -1])
    denoiser = table(process, seed)
    clean = all_states(2, 3)
    allowed = ((clean == prompt) | (prompt < 0)).all(-1)
    laws = [ancestral_law(process, denoiser, 3, 2, prompt=prompt)]
    if process.graph.mask_token is not None:
        laws.append(first_hitting_law(process, denoiser, 3, prompt))
    for law in laws:
        assert float(law.sum()) == pytest.approx(1.0, abs=1e-10)
        assert not law[~allowed].any()


@by_graph
def test_where_all_is_given_the_bound_is_0(process):
    """Also on a schedule that leaves signal at t = 1, where a free position pays for starting from the prior."""
    leaky = DiffusionProcess(process.graph, Linear(sigma_max=1.0))
    x_0 = torch.tensor([[1, 0, 1]])
    given_ = torch.ones_like(x_0, dtype=torch.bool)
    assert float(elbo(leaky, table(process), x_0, num_steps=4, prompt_mask=given_)) == 0.0
    # And what is given pays nothing: with a network that reads one position at a time the free ones add up.
    apart = table(process)
    apart.logits.copy_(apart.logits.mean(dim=0, keepdim=True).expand_as(apart.logits))
    whole = elbo(leaky, apart, x_0, num_steps=4)
    parts = [elbo(leaky, apart, x_0, num_steps=4, prompt_mask=torch.arange(3)[None] != site) for site in range(3)]
    torch.testing.assert_close(sum(parts), whole)
