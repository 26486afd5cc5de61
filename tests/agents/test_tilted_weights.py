"""Tilted weights, resampling and estimates of divergences, against sums over all there is."""

import pytest
import torch

from agents.functional.kl_estimators import KL_ESTIMATORS
from agents.functional.weights import systematic_resample, tilted_log_weights
from sepo_env.errors import InvalidArgumentError, InvalidShapeError


def test_weights_sum_to_one_within_each_group():
    reward, group = torch.randn(12), torch.tensor([0, 1, 2] * 4)
    log_weights = tilted_log_weights(reward, 0.3, group=group)
    for g in range(3):
        rows = group == g
        assert torch.allclose(log_weights[rows].exp(), (reward[rows].double() / 0.3).softmax(0))


def test_far_rewards_do_not_overflow():
    log_weights = tilted_log_weights(torch.tensor([1e6, -1e6, 1e6]), 1e-3)
    assert torch.allclose(log_weights.exp(), torch.tensor([0.5, 0.0, 0.5], dtype=torch.float64))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_is_positive(temperature):
    with pytest.raises(InvalidArgumentError, match="must be positive"):
        tilted_log_weights(torch.zeros(2), temperature)


def test_shapes_are_compared():
    with pytest.raises(InvalidShapeError, match="log_ratio"):
        tilted_log_weights(torch.zeros(2), 1.0, log_ratio=torch.zeros(2, 1))


def test_ancestors_stand_as_often_as_their_weight_says():
    log_weights = torch.randn(3, 64).double()
    expected = 64 * log_weights.softmax(-1)
    for u in (1e-12, 0.3, 0.999999):
        ancestors = systematic_resample(log_weights, torch.full((3,), u, dtype=torch.float64))
        counts = torch.nn.functional.one_hot(ancestors, 64).sum(1)
        assert ((counts - expected).abs() < 1 + 1e-9).all()


def test_resampling_is_unbiased():
    log_weights = torch.tensor([0.6, 0.3, 0.1, 0.0]).log()
    draws = torch.rand(20_000, dtype=torch.float64)
    ancestors = systematic_resample(log_weights.expand(20_000, 4), draws)
    counts = torch.nn.functional.one_hot(ancestors, 4).double().sum(1).mean(0)
    assert torch.allclose(counts, 4 * log_weights.double().exp(), atol=0.02)
    assert counts[3] == 0


def test_what_the_estimators_estimate_and_their_gradients_as_losses():
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    log_q, log_p = logits.log_softmax(0), torch.randn(5, dtype=torch.float64).log_softmax(0)
    q = log_q.exp().detach()
    forward, reverse = (log_q.exp() * (log_q - log_p)).sum(), (log_p.exp() * (log_p - log_q)).sum()
    for name, unbiased in (("k1", True), ("k2", False), ("k3", True)):
        value = (q * KL_ESTIMATORS[name](log_p - log_q)).sum()
        assert torch.isclose(value, forward) == unbiased
    wanted = {"k1": torch.zeros(5, dtype=torch.float64)}
    wanted["k2"] = torch.autograd.grad(forward, logits, retain_graph=True)[0]
    wanted["k3"] = torch.autograd.grad(reverse, logits, retain_graph=True)[0]
    for name, gradient in wanted.items():
        loss = (q * KL_ESTIMATORS[name](log_p - log_q)).sum()
        found = torch.autograd.grad(loss, logits, retain_graph=True)[0]
        assert torch.allclose(found, gradient, atol=1e-12)
