"""Reduction over states and trajectories, and what holds at the parameters that sampled."""

import pytest
import torch

from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from tests.comparisons import assert_same

MASK = 2
PROCESS = DiffusionProcess(Absorbing(2), LogLinear())


@pytest.mark.parametrize("size", [1, 5, 7])
def test_micro_batches_add_up(losses, table, visited_states, total, gradients, name, size):
    loss = losses[name](table(), reference=table(1), kl_coeff=0.3, entropy_coeff=0.2)
    states = visited_states()
    states["old_log_prob"] = loss.log_probs(states) + 0.1
    states["num_trajectories"] = torch.full((len(states), 1), 6)
    whole = gradients(loss, total(loss(states)))
    parts = [gradients(loss, total(loss(part))) for part in states.split(size)]
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value, atol=1e-12, rtol=1e-9)


def test_log_probs_of_micro_batches_are_those_of_the_batch(losses, table, visited_states, name):
    """Draws, where a form makes any, belong to the trajectory and not to the batch."""
    loss, states = losses[name](table()), visited_states()
    whole = loss.log_probs(states)
    assert not whole.requires_grad
    assert_same(torch.cat([loss.log_probs(part) for part in states.split(5)]), whole)


def test_loss_is_a_mean_over_trajectories(losses, table, visited_states, name):
    """Each trajectory twice, under another id: the same loss."""
    loss, states = losses[name](table()), visited_states()
    twice = torch.cat([states, states.clone()])
    twice["num_trajectories"] = torch.full((len(twice), 1), 12)
    torch.testing.assert_close(loss(twice)["loss_objective"], loss(states)["loss_objective"])


def test_inclusion_weight_multiplies(losses, table, visited_states, name):
    loss, states = losses[name](table()), visited_states()
    expected = 3.0 * loss(states)["loss_objective"]
    states["inclusion_weight"] = torch.full((len(states), 1), 3.0)
    torch.testing.assert_close(loss(states)["loss_objective"], expected)


def test_ratio_is_one_at_the_old_parameters(losses, table, visited_states, gradients, name):
    """Exactly where nothing is remembered; up to rounding where it is, which another kernel may have worked out."""
    loss, states = losses[name](table()), visited_states()
    implicit = loss(states)
    assert implicit["ratio_max"].item() == 1.0
    assert implicit["kl_approx"].item() == 0.0
    states["old_log_prob"] = loss.log_probs(states)
    explicit = loss(states)
    for out in (implicit, explicit):
        assert out["clip_fraction"].item() == 0.0
        for figure, value in (("ratio_max", 1.0), ("kl_approx", 0.0), ("ESS", 1.0)):
            assert out[figure].item() == pytest.approx(value, abs=1e-12)
    expected = gradients(loss, implicit["loss_objective"])
    for parameter, gradient in gradients(loss, explicit["loss_objective"]).items():
        assert_same(gradient, expected[parameter])


def test_no_advantage_no_gradient(losses, table, visited_states, gradients, name):
    loss, states = losses[name](table()), visited_states()
    states["advantage"] = torch.zeros(len(states), 1)
    states["old_log_prob"] = loss.log_probs(states) - 0.3
    for gradient in gradients(loss, loss(states)["loss_objective"]).values():
        assert not gradient.any()


@pytest.mark.parametrize("name", ["sepo-path", "sepo-path-step", "sepo-neighbours", "sepo-snis", "ppo", "ddpo-is"])
def test_what_has_gone_far_enough_is_let_go(losses, table, visited_states, gradients, name):
    """All ratios at e: nothing is left where A > 0, all is kept where A < 0."""
    loss, states = losses[name](table()), visited_states()
    log_prob = loss.log_probs(states)
    states["old_log_prob"] = torch.where(log_prob != 0, log_prob - 1.0, 0.0)
    for sign in (1.0, -1.0):
        states["advantage"] = torch.full((len(states), 1), sign)
        out = loss(states)
        gradient = gradients(loss, out["loss_objective"])["policy_network_params.logits"]
        assert bool(gradient.any()) == (sign < 0)
        assert out["clip_fraction"].item() == (1.0 if sign > 0 else 0.0)


def test_diagnostics_off_policy(losses, table, visited_states, name):
    loss, states = losses[name](table()), visited_states()
    shift = torch.linspace(-0.5, 0.5, len(states), dtype=torch.float64)
    log_prob = loss.log_probs(states)
    shift = shift.reshape(-1, *[1] * (log_prob.ndim - 1))
    states["old_log_prob"] = torch.where(log_prob != 0, log_prob - shift, 0.0)
    out = loss(states)
    counted = (log_prob != 0).flatten(1).any(1)
    assert out["ratio_max"].item() == pytest.approx(shift.flatten()[counted].max().exp().item())
    assert 0 < out["ESS"].item() < 1
    assert out["kl_approx"].item() > 0
