"""The theory of policy gradients on concrete scores, on laws that can be written down in full."""

from itertools import product

import pytest
import torch

from agents.functional import snis_log_estimate, snis_log_weights

V, L = 3, 3
SEQUENCES = torch.tensor(list(product(range(V), repeat=L)))
N = len(SEQUENCES)
HAMMING = (SEQUENCES[:, None] != SEQUENCES[None]).sum(-1)


@pytest.fixture
def log_pi() -> torch.Tensor:
    """A law over all sequences; leaf of the graph are its logits."""
    return torch.randn(N, dtype=torch.float64, requires_grad=True)


def normalised(logits: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(0)


def gradient(value: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(value, logits, retain_graph=True)[0]


def log_scores(log_prob: torch.Tensor) -> torch.Tensor:
    """log s(x)_y = log pi(y) - log pi(x), rows x, columns y."""
    return log_prob[None] - log_prob[:, None]


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_policy_gradient_theorem_for_scores(log_pi, baseline):
    reward = torch.randn(N, dtype=torch.float64)
    log_prob = normalised(log_pi)
    pi = log_prob.exp().detach()
    minimised = (pi[:, None] * (reward - baseline)[:, None] * pi[None] * log_scores(log_prob)).sum()
    exact = gradient((log_prob.exp() * reward).sum(), log_pi)
    torch.testing.assert_close(-gradient(minimised, log_pi), exact, atol=1e-10, rtol=0)


def test_every_neighbour_has_the_ratio_of_the_sequence(log_pi):
    new, old = normalised(log_pi), normalised(torch.randn(N, dtype=torch.float64))
    log_ratio = (new - old)[None] + log_scores(old) - log_scores(new)
    torch.testing.assert_close(log_ratio, (new - old)[:, None].expand(N, N), atol=1e-10, rtol=0)


@pytest.mark.parametrize("site", range(L))
@pytest.mark.parametrize("normalise", [False, True])
def test_one_position_gives_the_gradient_of_a_conditional_likelihood(log_pi, site, normalise):
    log_prob = normalised(log_pi)
    x = 11
    line = (SEQUENCES[x] == SEQUENCES).index_fill(1, torch.tensor(site), True).all(-1)
    log_rest = torch.logsumexp(log_prob[line], dim=0)
    weight = log_prob.exp().detach()
    if normalise:
        weight = weight / weight[line].sum()
    sum_over_line = (weight * log_scores(log_prob)[x])[line].sum()
    scale = 1.0 if normalise else log_rest.exp().detach()
    expected = -scale * gradient(log_prob[x] - log_rest, log_pi)
    torch.testing.assert_close(gradient(sum_over_line, log_pi), expected, atol=1e-10, rtol=0)


def locally_normalised_gradient(log_prob, reward, logits):
    """Expected SEPO gradient with each position's weights normalised over its line, to be climbed."""
    total = torch.zeros((), dtype=torch.float64)
    for x in range(N):
        for site in range(L):
            line = (SEQUENCES[x] == SEQUENCES).index_fill(1, torch.tensor(site), True).all(-1)
            weight = log_prob[line].softmax(0).detach()
            score = (weight * (log_prob[line] - log_prob[x])).sum()
            total = total - log_prob[x].exp().detach() * reward[x] * score
    return gradient(total, logits)


def test_local_neighbourhood_is_exact_for_product_laws():
    logits = torch.randn(L, V, dtype=torch.float64, requires_grad=True)
    log_prob = logits.log_softmax(-1)[torch.arange(L), SEQUENCES].sum(-1)
    reward = torch.randn(N, dtype=torch.float64)
    exact = gradient((log_prob.exp() * reward).sum(), logits)
    torch.testing.assert_close(locally_normalised_gradient(log_prob, reward, logits), exact, atol=1e-10, rtol=0)


def test_local_neighbourhood_is_biased_otherwise(log_pi):
    log_prob, reward = normalised(log_pi), torch.randn(N, dtype=torch.float64)
    exact = gradient((log_prob.exp() * reward).sum(), log_pi)
    assert (locally_normalised_gradient(log_prob, reward, log_pi) - exact).norm() > 0.1 * exact.norm()


def stationary_kernel(pi: torch.Tensor) -> torch.Tensor:
    """Single-site mask-and-refill, rows z, columns y: leaves pi unchanged and moves by at most one position."""
    kernel = torch.zeros(N, N, dtype=torch.float64)
    for site in range(L):
        line = (SEQUENCES[:, None] == SEQUENCES[None]).index_fill(2, torch.tensor(site), True).all(-1)
        kernel += line * pi / (line * pi).sum(-1, keepdim=True) / L
    torch.testing.assert_close(pi @ kernel, pi, atol=1e-14, rtol=0)
    return kernel


def snis_limit(log_prob: torch.Tensor, support: torch.Tensor, proposal: torch.Tensor, y: int) -> float:
    """What SNIS tends to: every z of the support, as often as the proposal draws it."""
    z = support.nonzero()[:, 0]
    log_weights = snis_log_weights(log_prob[y] - log_prob[z], proposal[z].log())
    # As many copies of z as the proposal has mass there.
    log_weights = (log_weights + proposal[z].log()).log_softmax(0)
    return snis_log_estimate(log_weights, stationary_kernel(log_prob.exp())[z, y].log()).exp().item()


@pytest.mark.parametrize("y", [0, 13, 26])
def test_snis_is_consistent_with_full_support(log_pi, y):
    log_prob = normalised(log_pi).detach()
    proposal = torch.rand(N, dtype=torch.float64).softmax(0)
    limit = snis_limit(log_prob, torch.ones(N, dtype=torch.bool), proposal, y)
    # The kernel reaches y from its ball only; what lies outside counts in the denominator.
    assert limit == pytest.approx(log_prob[y].exp().item(), abs=1e-10)


@pytest.mark.parametrize("y", [0, 13, 26])
def test_snis_with_hamming_one_support_sees_the_ball_only(log_pi, y):
    log_prob = normalised(log_pi).detach()
    ball = HAMMING[y] <= 1
    proposal = torch.where(ball, torch.rand(N, dtype=torch.float64), 0.0)
    limit = snis_limit(log_prob, ball, proposal / proposal.sum(), y)
    pi = log_prob.exp()
    assert limit == pytest.approx((pi[y] / pi[ball].sum()).item(), abs=1e-10)
    assert limit > 2 * pi[y].item()


def test_bias_of_snis_falls_with_the_number_of_draws(log_pi):
    log_prob = normalised(log_pi).detach()
    y, kernel = 13, stationary_kernel(log_prob.exp())
    bias = []
    for num_draws in (2, 8, 32, 128):
        z = torch.randint(N, (20_000, num_draws))
        log_weights = snis_log_weights(log_prob[y] - log_prob[z], torch.zeros_like(z, dtype=torch.float64))
        estimate = snis_log_estimate(log_weights, kernel[:, y].log()[z]).exp().mean()
        bias.append(abs(estimate / log_prob[y].exp() - 1).item())
    assert bias[0] > 2 * bias[1] > 4 * bias[2] > 8 * bias[3]
    assert bias[3] < 0.02


def test_ratios_from_independent_draws_leave_the_clip_range(log_pi):
    """With draws of their own, two copies of one policy disagree; with shared draws the ratio is 1."""
    log_prob = normalised(log_pi).detach()
    y, kernel = 13, stationary_kernel(log_prob.exp())

    def estimate(z: torch.Tensor) -> torch.Tensor:
        log_weights = snis_log_weights(log_prob[y] - log_prob[z], torch.zeros_like(z, dtype=torch.float64))
        return snis_log_estimate(log_weights, kernel[:, y].clamp(min=1e-12).log()[z])

    first, second = torch.randint(N, (2, 5000, 2))
    outside = ((estimate(first) - estimate(second)).exp() - 1).abs() > 0.2
    assert outside.double().mean() > 0.5
    assert torch.equal(estimate(first), estimate(first.clone()))
