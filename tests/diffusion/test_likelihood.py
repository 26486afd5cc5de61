"""Bounds, path quantities and training losses against exact sums on enumerable spaces."""

import pytest
import torch

from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.enumeration import all_states, ancestral_law, state_laws
from sepo_env.diffusion.likelihood import (
    elbo,
    marginal_alpha,
    masked_cross_entropy,
    path_kl,
    path_log_prob,
    score_entropy,
)
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import initial_tokens, reverse_steps
from sepo_env.errors import InvalidArgumentError

PROCESSES = [DiffusionProcess(Absorbing(2), LogLinear()), DiffusionProcess(Uniform(2), LogLinear())]


def table(process, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TabularDenoiser(2, 3, process.graph.vocab_size, generator=generator).double().requires_grad_(False)


def exact_elbo(process, denoiser, x_0, num_steps):
    """The bound of one sequence with the expectation over x_t summed over all states."""
    grid, graph = process.time_grid(num_steps), process.graph
    states = all_states(graph.vocab_size, 3)
    total = 0.0
    for k in range(num_steps):
        t, s = grid[k].expand(len(states)), grid[k + 1].expand(len(states))
        forward = graph.log_forward(x_0.expand_as(states), marginal_alpha(process, t))
        weight = forward.gather(-1, states[..., None])[..., 0].sum(-1).exp()
        truth = torch.nn.functional.one_hot(x_0.expand_as(states), 2).double().log()
        target = process.step_law(truth, states, t, s, "posterior")
        law = process.step_law(denoiser(states, t), states, t, s, "posterior")
        divergence = target.kl(law).sum(-1)
        total -= float((weight * divergence)[weight > 0].sum())
    return total


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
def test_elbo_estimates_its_exact_value_and_bounds_the_likelihood(process):
    denoiser = table(process)
    law = ancestral_law(process, denoiser, 3, 4).detach()
    clean = all_states(2, 3)
    estimate = elbo(process, denoiser, clean.repeat(1000, 1), num_steps=4, num_draws=2).reshape(1000, 8).mean(0)
    exact = torch.tensor([exact_elbo(process, denoiser, x, 4) for x in clean], dtype=torch.float64)
    ones = torch.ones(1, dtype=torch.float64)
    prior_kl = 0.0
    if process.graph.mask_token is None:
        alpha = float(process.alpha(ones))
        q = torch.tensor([alpha + (1 - alpha) / 2, (1 - alpha) / 2], dtype=torch.float64)
        prior_kl = 3 * float((q * (q * 2).log()).sum())
    torch.testing.assert_close(estimate, exact - prior_kl, rtol=0.03, atol=0.03)
    assert (exact - prior_kl <= law.log() + 1e-12).all()


def test_masked_cross_entropy_is_the_score_entropy_of_a_posterior():
    process = PROCESSES[0]
    generator = torch.Generator().manual_seed(0)
    log_posterior = torch.randn(5, 3, 2, generator=generator, dtype=torch.float64).log_softmax(-1)
    x_0 = torch.randint(0, 2, (5, 3), generator=generator)
    x_t = torch.where(torch.rand(5, 3, generator=generator) < 0.6, 2, x_0)
    t = torch.rand(5, generator=generator, dtype=torch.float64) * 0.9 + 0.05
    log_score = process.log_score(log_posterior, x_t, t, "posterior")
    entropy = score_entropy(process, log_score, x_t, x_0, t)
    cross = masked_cross_entropy(process, log_posterior, x_t, x_0, t)
    torch.testing.assert_close(entropy, cross, rtol=1e-10, atol=1e-10)
    assert (cross[x_t != 2] == 0).all()


def test_a_token_that_the_model_rules_out_is_as_good_as_no_token():
    process, three = PROCESSES[0], DiffusionProcess(Absorbing(3), PROCESSES[0].schedule)
    log_posterior = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]], dtype=torch.float64).log()
    wider = torch.cat([log_posterior, torch.full((1, 2, 1), -torch.inf, dtype=torch.float64)], dim=-1).requires_grad_()
    x_0, t = torch.tensor([[0, 1]]), torch.tensor([0.4], dtype=torch.float64)
    two = score_entropy(process, process.log_score(log_posterior, x_0, t, "posterior"), torch.full((1, 2), 2), x_0, t)
    masks = torch.full((1, 2), 3)
    entropy = score_entropy(three, three.log_score(wider, masks, t, "posterior"), masks, x_0, t)
    torch.testing.assert_close(entropy, two, rtol=1e-12, atol=0)
    entropy.sum().backward()
    assert torch.isfinite(wider.grad).all()


def test_score_entropy_of_uniform_noise_is_zero_at_the_true_ratio_and_positive_elsewhere():
    process = PROCESSES[1]
    x_0, x_t = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 1, 0]])
    t = torch.tensor([0.6], dtype=torch.float64)
    log_forward = process.graph.log_forward(x_0, process.alpha(t))
    log_ratio = log_forward - log_forward.gather(-1, x_t[..., None])
    torch.testing.assert_close(
        score_entropy(process, log_ratio, x_t, x_0, t),
        torch.zeros(1, 3, dtype=torch.float64),
        rtol=0,
        atol=1e-12,
    )
    assert (score_entropy(process, log_ratio + 0.3, x_t, x_0, t) > 1e-3).all()


def test_continuous_bound_is_the_limit_of_the_discrete_one():
    process, denoiser = PROCESSES[0], table(PROCESSES[0])
    x_0 = torch.tensor([[0, 1, 1]])
    fine = exact_elbo(process, denoiser, x_0[0], 400)
    grid = (torch.arange(500, dtype=torch.float64) + 0.5) / 500
    states = all_states(3, 3)
    total = 0.0
    for t in grid:
        times = t.expand(len(states))
        weight = process.graph.log_forward(x_0.expand_as(states), process.alpha(times))
        weight = weight.gather(-1, states[..., None])[..., 0].sum(-1).exp()
        cross = masked_cross_entropy(process, denoiser(states, times), states, x_0.expand_as(states), times).sum(-1)
        total += float((weight * cross).sum()) / len(grid)
    assert -total == pytest.approx(fine, rel=0.01)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
def test_path_kl_is_exact_in_expectation_and_bounds_the_divergence_of_the_ends(process):
    denoiser, reference = table(process, 0), table(process, 1)
    exact = 0.0
    for probs, t, s, law in list(state_laws(process, denoiser, 3, 4))[:-1]:
        states = all_states(process.graph.vocab_size, 3)
        times = t.expand(len(states)), s.expand(len(states))
        other = process.step_law(reference(states, times[0]), states, *times, "posterior")
        exact += float((probs * law.kl(other).sum(-1)).sum())
    keys = keys_from_seed(torch.arange(8000))
    tokens, _ = initial_tokens(process, keys, 3)
    steps = list(reverse_steps(process, denoiser, tokens, num_steps=4, keys=keys))
    estimate = path_kl(process, reference, steps)
    error = float(estimate.std()) / len(estimate) ** 0.5
    assert float(estimate.mean()) == pytest.approx(exact, abs=4 * error)
    p, q = (ancestral_law(process, d, 3, 4).detach() for d in (denoiser, reference))
    assert float((p * (p / q).log()).sum()) < exact


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
def test_path_probabilities_sum_to_the_exact_law(process):
    """Summing path probabilities over all paths of 2 steps gives pi_2."""
    denoiser = table(process)
    graph, grid = process.graph, process.time_grid(2)
    states, clean = all_states(graph.vocab_size, 3), all_states(2, 3)
    law = torch.zeros(8, dtype=torch.float64)
    starts = states[graph.log_prior(states).sum(-1).exp() > 0]
    for start in starts:
        p_start = graph.log_prior(start[None]).sum().exp()
        for middle in states:
            first = process.step_law(denoiser(start[None], grid[:1]), start[None], grid[:1], grid[1:2], "posterior")
            p_first = first.log_prob(middle[None]).sum().exp()
            second = process.step_law(denoiser(middle[None], grid[1:2]), middle[None], grid[1:2], grid[2:], "posterior")
            ends = second.log_probs[0].gather(-1, clean.T).sum(0).exp()
            law += p_start * p_first * ends
    torch.testing.assert_close(law, ancestral_law(process, denoiser, 3, 2), rtol=1e-10, atol=1e-10)
    keys = keys_from_seed(torch.arange(3))
    tokens, _ = initial_tokens(process, keys, 3)
    steps = list(reverse_steps(process, denoiser, tokens, num_steps=2, keys=keys))
    by_hand = sum(step.law.log_prob(step.next_tokens).sum(-1) for step in steps)
    torch.testing.assert_close(path_log_prob(steps), by_hand)


def test_girsanov_for_masks_the_compensator_vanishes():
    """The log-ratio of two paths is a sum over jumps of log posteriors: exit rates do not depend on the network."""
    process = PROCESSES[0]
    one, two = table(process, 0), table(process, 1)
    keys = keys_from_seed(torch.arange(20))
    tokens, _ = initial_tokens(process, keys, 3)
    steps = list(reverse_steps(process, one, tokens, num_steps=4, keys=keys))
    ratio = torch.zeros(20, dtype=torch.float64)
    jumps = torch.zeros(20, dtype=torch.float64)
    for step in steps:
        other = process.step_law(two(step.tokens, step.t), step.tokens, step.t, step.s, "posterior")
        ratio += (step.law.log_prob(step.next_tokens) - other.log_prob(step.next_tokens)).sum(-1)
        jumped = step.tokens != step.next_tokens
        gain = one(step.tokens, step.t) - two(step.tokens, step.t)
        index = step.next_tokens.clamp(max=1)[..., None]
        jumps += torch.where(jumped, gain.gather(-1, index)[..., 0], 0.0).sum(-1)
    torch.testing.assert_close(ratio, jumps, rtol=1e-10, atol=1e-10)


def test_masked_cross_entropy_refuses_uniform_noise():
    process = PROCESSES[1]
    with pytest.raises(InvalidArgumentError, match="score_entropy"):
        masked_cross_entropy(
            process, torch.zeros(1, 3, 2), torch.zeros(1, 3).long(), torch.zeros(1, 3).long(), torch.ones(1)
        )
