"""Graphs: generators by matrix exponential, conversions by inversion, priors by counting."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo_env.diffusion import Absorbing, Uniform, make_graph
from sepo_env.diffusion.random import keys_from_seed, uniforms
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError, UnknownNameError


def generator_matrix(graph):
    """Q with rows summing to 0, from the graph's forward rates of every single token."""
    tokens = torch.arange(graph.vocab_size)[:, None]
    rates = graph.forward_rates(tokens, torch.float64)[:, 0]
    return rates - torch.diag(rates.sum(-1))


@pytest.mark.parametrize("graph", [Absorbing(4), Uniform(4)], ids=str)
def test_forward_law_is_the_exponential_of_the_generator(graph):
    sigma = torch.tensor(0.7, dtype=torch.float64)
    expected = torch.linalg.matrix_exp(sigma * generator_matrix(graph))
    tokens = torch.arange(graph.num_tokens)[:, None]
    got = graph.log_forward(tokens, torch.exp(-sigma).expand(graph.num_tokens))[:, 0].exp()
    torch.testing.assert_close(got, expected[: graph.num_tokens], rtol=1e-12, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([Absorbing, Uniform]), st.integers(2, 6), st.integers(1, 5), st.floats(0.05, 0.95))
def test_posterior_and_score_are_inverse_to_each_other(family, num_tokens, length, alpha):
    graph = family(num_tokens)
    generator = torch.Generator().manual_seed(num_tokens * 10 + length)
    tokens = torch.randint(0, graph.vocab_size, (3, length), generator=generator)
    log_posterior = torch.randn(3, length, num_tokens, generator=generator, dtype=torch.float64).log_softmax(-1)
    alphas = torch.full((3,), alpha, dtype=torch.float64)
    log_score = graph.log_score_from_posterior(log_posterior, tokens, alphas)
    back = graph.log_posterior_from_score(log_score, tokens, alphas)
    torch.testing.assert_close(back, log_posterior, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("graph", [Absorbing(3), Uniform(3)], ids=str)
def test_score_of_a_known_posterior_is_the_ratio_of_marginals(graph):
    """One position, data law p_0: the score must be p_t(v) / p_t(x)."""
    data = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    alpha = torch.tensor([0.4], dtype=torch.float64)
    forward = graph.log_forward(torch.arange(3)[:, None], alpha.expand(3))[:, 0].exp()
    marginal = data @ forward
    for x in range(graph.vocab_size):
        if graph.mask_token is not None and x != graph.mask_token:
            continue
        posterior = data * forward[:, x] / marginal[x]
        tokens = torch.tensor([[x]])
        log_score = graph.log_score_from_posterior(posterior.log()[None, None], tokens, alpha)
        torch.testing.assert_close(log_score.exp()[0, 0], marginal[:3] / marginal[x], rtol=1e-10, atol=0)


@pytest.mark.parametrize("graph", [Absorbing(4), Uniform(4)], ids=str)
def test_prior_and_noise_have_their_laws(graph):
    u = uniforms(keys_from_seed(torch.arange(4000)), 0, 3)
    counts = torch.bincount(graph.prior(u).flatten(), minlength=graph.vocab_size) / u.numel()
    expected = graph.log_prior(torch.arange(graph.vocab_size)[:, None])[:, 0].exp()
    assert (counts - expected).abs().max() < 0.02
    x_0 = torch.ones(4000, 3, dtype=torch.int64)
    noisy = graph.noise(x_0, torch.full((4000,), 0.3), u)
    kept = 0.3 if graph.mask_token is not None else 0.3 + 0.7 / 4
    assert (noisy == 1).double().mean() == pytest.approx(kept, abs=0.02)


def test_only_allowed_positions_jump():
    tokens = torch.tensor([[0, 4, 2]])
    assert Absorbing(4).can_jump(tokens).tolist() == [[False, True, False]]
    assert Uniform(5).can_jump(tokens).all()


def test_bad_tokens_are_named():
    graph = Absorbing(4)
    graph.check_tokens(torch.tensor([[0, 4]]))
    with pytest.raises(InvalidTokensError, match="ids from 0 to 5"):
        graph.check_tokens(torch.tensor([[0, 5]]))
    with pytest.raises(InvalidTokensError, match="dtype"):
        graph.check_tokens(torch.tensor([[0.0, 1.0]]))
    with pytest.raises(InvalidShapeError):
        graph.check_tokens(torch.tensor([0, 1]))
    with pytest.raises(InvalidArgumentError):
        Absorbing(1)
    with pytest.raises(UnknownNameError, match="absorbing"):
        make_graph("absorbin", 4)
