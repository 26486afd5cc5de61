"""The reverse step: every identity of the kernels, on both graphs, by brute force or by another route."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo_env.diffusion import Absorbing, DiffusionProcess, Geometric, LogLinear, StepLaw, Uniform
from sepo_env.diffusion import kernel as kernels
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, UnknownNameError
from tests.comparisons import assert_same

GRAPHS = [Absorbing(3), Uniform(3)]
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def random_step(graph, length=4, seed=0, num_steps=5, k=2):
    generator = torch.Generator().manual_seed(seed)
    process = DiffusionProcess(graph, LogLinear())
    tokens = torch.randint(0, graph.vocab_size, (3, length), generator=generator)
    tokens[:, 0] = graph.vocab_size - 1
    log_posterior = torch.randn(3, length, graph.num_tokens, generator=generator, dtype=torch.float64).log_softmax(-1)
    grid = process.time_grid(num_steps)
    return process, tokens, log_posterior, grid[k].repeat(3), grid[k + 1].repeat(3)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([Absorbing, Uniform]),
    st.integers(2, 5),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from(["ancestral", "tau-leaping", "analytic"]),
    st.integers(0, 1000),
)
def test_laws_are_normalised_and_never_touch_frozen_positions(family, num_tokens, length, num_steps, kernel, seed):
    graph = family(num_tokens)
    k = seed % num_steps
    process, tokens, log_posterior, t, s = random_step(graph, length, seed, num_steps, k)
    law = process.step_law(log_posterior, tokens, t, s, "posterior", kernel)
    torch.testing.assert_close(law.log_probs.exp().sum(-1), torch.ones(3, length, dtype=torch.float64), **TOLERANCE)
    frozen = ~graph.can_jump(tokens)
    assert (law.log_prob(tokens)[frozen] == 0).all()
    if graph.mask_token is not None and k == num_steps - 1:
        assert (law.log_probs[..., graph.mask_token] == -torch.inf).all()
    moved = law.sample(torch.rand(3, length, dtype=torch.float64))
    assert torch.isfinite(law.log_prob(moved)).all()
    assert torch.equal(moved[frozen], tokens[frozen])


def test_ancestral_absorbing_by_hand():
    process, tokens, log_posterior, t, s = random_step(Absorbing(3))
    law = process.step_law(log_posterior, tokens, t, s, "posterior")
    alpha_t, alpha_s = process.alpha(t)[0], process.alpha(s)[0]
    move = (alpha_s - alpha_t) / (1 - alpha_t)
    torch.testing.assert_close(law.log_probs[0, 0, :3].exp(), log_posterior[0, 0].exp() * move, **TOLERANCE)
    assert law.log_probs[0, 0, 3].exp() == pytest.approx(float((1 - alpha_s) / (1 - alpha_t)))


def test_ancestral_uniform_against_bayes_over_x0():
    """q(x_s | x_t) = sum_{x_0} p(x_0 | x_t) q(x_s | x_0) q(x_t | x_s) / q(x_t | x_0), written out."""
    graph = Uniform(3)
    process, tokens, log_posterior, t, s = random_step(graph)
    alpha_t, alpha_s = float(process.alpha(t)[0]), float(process.alpha(s)[0])

    def q(alpha, a, b):
        return alpha * (a == b) + (1 - alpha) / 3

    law = process.step_law(log_posterior, tokens, t, s, "posterior").log_probs.exp()
    for b in range(3):
        for i in range(4):
            x_t = int(tokens[b, i])
            for x_s in range(3):
                expected = sum(
                    float(log_posterior[b, i, x_0].exp())
                    * q(alpha_s, x_0, x_s)
                    * q(alpha_t / alpha_s, x_s, x_t)
                    / q(alpha_t, x_0, x_t)
                    for x_0 in range(3)
                )
                assert float(law[b, i, x_s]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("k", [0, 2, 4])
def test_analytic_equals_ancestral(graph, k):
    process, tokens, log_posterior, t, s = random_step(graph, k=k)
    ancestral = process.step_law(log_posterior, tokens, t, s, "posterior", "ancestral")
    analytic = process.step_law(log_posterior, tokens, t, s, "posterior", "analytic")
    torch.testing.assert_close(analytic.log_probs.exp(), ancestral.log_probs.exp(), **TOLERANCE)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_score_and_posterior_networks_give_the_same_step(graph):
    process, tokens, log_posterior, t, s = random_step(graph)
    log_score = process.log_score(log_posterior, tokens, t, "posterior")
    for kernel in ("ancestral", "tau-leaping", "analytic"):
        one = process.step_law(log_posterior, tokens, t, s, "posterior", kernel)
        two = process.step_law(log_score, tokens, t, s, "score", kernel)
        torch.testing.assert_close(one.log_probs.exp(), two.log_probs.exp(), rtol=1e-9, atol=1e-9)


def test_posterior_as_held_rates_is_the_ancestral_kernel():
    graph = Absorbing(3)
    for k in range(5):
        process, tokens, log_posterior, t, s = random_step(graph, k=k)
        held = kernels.held_rates(graph, tokens, log_posterior.exp(), process.clock_step(t, s))
        ancestral = process.step_law(log_posterior, tokens, t, s, "posterior")
        torch.testing.assert_close(held.log_probs.exp(), ancestral.log_probs.exp(), **TOLERANCE)


def test_held_rates_against_the_matrix_exponential():
    """A position that leaves its state never moves on within the step: its targets absorb."""
    rates = torch.tensor([[[0.7, 0.0, 1.3]]], dtype=torch.float64)
    step = torch.tensor([0.9], dtype=torch.float64)
    law = kernels.held_rates(Absorbing(3), torch.tensor([[3]]), rates, step).log_probs[0, 0].exp()
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[3, :3] = rates[0, 0]
    generator[3, 3] = -rates.sum()
    torch.testing.assert_close(law, torch.linalg.matrix_exp(step * generator)[3], **TOLERANCE)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("kernel", ["ancestral", "tau-leaping", "analytic"])
@pytest.mark.parametrize("k", [0, 2, 4])
def test_every_kernel_is_an_action(graph, kernel, k):
    process, tokens, log_posterior, t, s = random_step(graph, k=k)
    law = process.step_law(log_posterior, tokens, t, s, "posterior", kernel)
    rates = kernels.equivalent_rates(graph, tokens, law, process.clock_step(t, s))
    again = kernels.held_rates(graph, tokens, rates, process.clock_step(t, s))
    torch.testing.assert_close(again.log_probs.exp(), law.log_probs.exp(), **TOLERANCE)


def test_remasking_and_correctors_are_actions_too():
    graph = Absorbing(3)
    process, tokens, log_posterior, t, s = random_step(graph)
    prob = torch.full((3,), 0.2, dtype=torch.float64)
    laws = [
        kernels.remasking(graph, tokens, log_posterior, process.alpha(t), process.alpha(s), prob),
        kernels.corrector(graph, tokens, process.log_score(log_posterior, tokens, t, "posterior"), prob),
    ]
    for law in laws:
        rates = kernels.equivalent_rates(graph, tokens, law, process.clock_step(t, s))
        assert rates.shape[-1] == 4
        again = kernels.held_rates(graph, tokens, rates, process.clock_step(t, s))
        torch.testing.assert_close(again.log_probs.exp(), law.log_probs.exp(), **TOLERANCE)


@pytest.mark.parametrize("requested", [0.0, 0.1, 1.0])
def test_remasking_keeps_the_marginals(requested):
    """One position with a perfect posterior: P(x_s = v) must be alpha_s p_v whatever the re-masking probability."""
    graph, process = Absorbing(3), DiffusionProcess(Absorbing(3), LogLinear())
    t, s = torch.tensor([0.8], dtype=torch.float64), torch.tensor([0.6], dtype=torch.float64)
    data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    tokens = torch.arange(4)[:, None]
    law = kernels.remasking(
        graph,
        tokens,
        data.log().expand(4, 1, 3),
        process.alpha(t).expand(4),
        process.alpha(s).expand(4),
        torch.full((4,), requested, dtype=torch.float64),
    ).log_probs.exp()[:, 0]
    before = torch.cat([process.alpha(t) * data, 1 - process.alpha(t)])
    after = torch.cat([process.alpha(s) * data, 1 - process.alpha(s)])
    torch.testing.assert_close(before @ law, after, **TOLERANCE)


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_the_corrector_generator_leaves_the_marginal_stationary_with_detailed_balance(graph):
    """One position, exact score: p_t(a) Qc(a, b) = p_t(b) Qc(b, a), and the leap's bias vanishes as O(h^2)."""
    data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    alpha = torch.tensor([0.4], dtype=torch.float64)
    marginal = data @ graph.log_forward(torch.arange(3)[:, None], alpha.expand(3))[:, 0].exp()
    tokens = torch.arange(graph.vocab_size)[:, None]
    log_score = (marginal[:3] / marginal[:, None]).log()[:, None]

    def leap(size):
        sizes = torch.full((graph.vocab_size,), size, dtype=torch.float64)
        return kernels.corrector(graph, tokens, log_score, sizes).log_probs.exp()[:, 0]

    flow = marginal[:, None] * (leap(1e-7) - torch.eye(graph.vocab_size)) / 1e-7
    torch.testing.assert_close(flow, flow.T, rtol=1e-5, atol=1e-6)
    bias = [float((marginal @ leap(h) - marginal).abs().sum()) for h in (0.02, 0.01)]
    assert bias[1] < bias[0] / 3.5 or bias[0] < 1e-12


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_correcting_contracts_towards_the_marginal(graph):
    data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    alpha = torch.tensor([0.4], dtype=torch.float64)
    marginal = data @ graph.log_forward(torch.arange(3)[:, None], alpha.expand(3))[:, 0].exp()
    log_score = (marginal[:3] / marginal[:, None]).log()[:, None]
    tokens = torch.arange(graph.vocab_size)[:, None]
    sizes = torch.full((graph.vocab_size,), 0.05, dtype=torch.float64)
    step = kernels.corrector(graph, tokens, log_score, sizes).log_probs.exp()[:, 0]
    law = torch.ones(graph.vocab_size, dtype=torch.float64) / graph.vocab_size
    divergences = []
    for _ in range(30):
        divergences.append(float((law * (law / marginal).log()).sum()))
        law = law @ step
    assert all(b < a for a, b in pairwise(divergences[:16]))
    assert divergences[-1] < 0.05 * divergences[0]


def test_entropy_and_kl_by_hand_with_impossible_entries():
    p = StepLaw(torch.tensor([[[0.5, 0.5, 0.0]]], dtype=torch.float64).log())
    q = StepLaw(torch.tensor([[[0.25, 0.5, 0.25]]], dtype=torch.float64).log())
    assert float(p.entropy()) == pytest.approx(0.6931471805599453)
    assert float(p.kl(q)) == pytest.approx(0.5 * 0.6931471805599453)
    assert float(q.kl(p)) == torch.inf
    assert float(p.kl(p)) == 0.0


def test_gradients_stay_finite_where_rates_vanish():
    rates = torch.tensor([[[0.5, 0.0, 0.2], [0.0, 0.0, 0.0]]], requires_grad=True)
    law = kernels.held_rates(Absorbing(3), torch.tensor([[3, 1]]), rates, torch.tensor([0.5]))
    (law.log_prob(torch.tensor([[0, 1]])).sum() + law.entropy().sum() + law.kl(law).sum()).backward()
    assert torch.isfinite(rates.grad).all()


def test_an_infinite_clock_step_makes_every_mask_with_a_rate_jump():
    rates = torch.tensor([[[0.2, 0.0, 0.6]]], dtype=torch.float64)
    law = kernels.held_rates(Absorbing(3), torch.tensor([[3]]), rates, torch.tensor([torch.inf], dtype=torch.float64))
    torch.testing.assert_close(law.log_probs.exp()[0, 0], torch.tensor([0.25, 0, 0.75, 0], dtype=torch.float64))


def test_rates_at_forbidden_places_are_ignored():
    graph = Absorbing(3)
    tokens, step = torch.tensor([[3, 1]]), torch.tensor([0.7], dtype=torch.float64)
    rates = torch.rand(1, 2, 3, dtype=torch.float64)
    changed = rates.clone()
    changed[0, 1] = 99.0
    same = kernels.held_rates(graph, tokens, rates, step).log_probs
    assert_same(kernels.held_rates(graph, tokens, changed, step).log_probs, same)


def test_bad_requests_are_named():
    graph = Absorbing(3)
    process, tokens, log_posterior, t, s = random_step(graph)
    with pytest.raises(InvalidShapeError, match="rates has shape"):
        kernels.held_rates(graph, tokens, log_posterior[..., :2], t)
    with pytest.raises(UnknownNameError, match="tau-leaping"):
        process.step_law(log_posterior, tokens, t, s, "posterior", "tau_leaping")
    with pytest.raises(InvalidArgumentError, match="absorbing"):
        kernels.remasking(Uniform(3), tokens.clamp(max=2), log_posterior, t, s, t)
    with pytest.raises(InvalidArgumentError, match="num_steps"):
        process.time_grid(0)


def test_data_end_is_free_of_noise_for_every_schedule():
    process = DiffusionProcess(Uniform(3), Geometric())
    zero = torch.zeros(1, dtype=torch.float64)
    assert process.alpha(zero) == 1.0
    assert process.sigma(zero) == 0.0


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("kernel", ["ancestral", "tau-leaping", "analytic"])
def test_gradients_of_a_uniform_law_are_right_where_scores_rule_a_token_out(kernel, last):
    """Scores of a network belong to no law: a token's share can come out below 0 and is cut to 0, its log to -inf."""
    process = DiffusionProcess(Uniform(4), LogLinear())
    tokens = torch.tensor([[0, 1, 2]])
    scores = torch.tensor([[[0.0, -9, 1, 2], [3, 0, -7, 0.5], [-0.1, 0.1, 0, 0.2]]], dtype=torch.float64)
    t, s = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.0 if last else 0.25], dtype=torch.float64)
    posterior = process.log_posterior(scores, tokens, t, "score")
    assert (posterior == -torch.inf).any(), "the case is not the one meant"
    drawn = torch.tensor([[3, 0, 2]])

    def log_prob(scores):
        return process.step_law(scores, tokens, t, s, "score", kernel).log_prob(drawn)

    assert torch.isfinite(log_prob(scores)).all()
    assert torch.autograd.gradcheck(log_prob, scores.requires_grad_())
