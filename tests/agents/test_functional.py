"""Ratios, clipping, advantages, importance weights and divergences against numbers worked out by hand."""

import math

import pytest
import torch

from agents.functional import (
    ADVANTAGES,
    batch_mean_advantage,
    clip_gate,
    clipped_surrogate,
    effective_sample_share,
    gated_surrogate,
    group_normalised_advantage,
    k3_kl,
    leave_one_out_advantage,
    log_effective_sample_size,
    log_importance_ratio,
    mean_where,
    path_entropy,
    path_kl,
    snis_log_estimate,
    snis_log_weights,
    step_log_ratio,
    subsample_steps,
    subsample_steps_with_last,
    sum_where,
)
from sepo_env.diffusion import StepLaw
from sepo_env.errors import InvalidArgumentError, InvalidShapeError

# (advantage, ratio) -> does PPO with epsilon 0.2 still push?
TRUTH_TABLE = [
    (2.0, 0.5, True),
    (2.0, 0.79, True),
    (2.0, 1.0, True),
    (2.0, 1.19, True),
    (2.0, 1.21, False),
    (2.0, 3.0, False),
    (-2.0, 0.5, False),
    (-2.0, 0.79, False),
    (-2.0, 0.81, True),
    (-2.0, 1.0, True),
    (-2.0, 1.21, True),
    (-2.0, 3.0, True),
]


def as_double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("advantage", "ratio", "pushes"), TRUTH_TABLE)
def test_clip_gate_is_where_ppo_has_a_gradient(advantage, ratio, pushes):
    ratio = as_double(ratio).requires_grad_()
    value = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)  # as the paper writes it
    gradient = torch.autograd.grad(value.sum(), ratio)[0].item()
    assert gradient == pytest.approx(advantage if pushes else 0.0)
    assert clip_gate(ratio.log(), as_double(advantage), 0.2).item() is pushes
    assert clipped_surrogate(ratio.log(), as_double(advantage), 0.2).item() == pytest.approx(value.item())


@pytest.mark.parametrize("surrogate", ["clipped", "gated"])
def test_both_surrogates_have_the_gradient_of_ppo(surrogate):
    advantage = torch.randn(1000, dtype=torch.float64)
    log_prob = torch.randn(1000, dtype=torch.float64, requires_grad=True)
    old = (log_prob + 0.5 * torch.randn(1000)).detach()
    ratio = (log_prob - old).exp()
    reference = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).sum()
    if surrogate == "clipped":
        ours = clipped_surrogate(log_prob - old, advantage, 0.2).sum()
    else:
        ours = gated_surrogate(log_prob, log_prob - old, advantage, 0.2).sum()
    ours, reference = (torch.autograd.grad(value, log_prob, retain_graph=True)[0] for value in (ours, reference))
    torch.testing.assert_close(ours, reference, atol=1e-10, rtol=0)


def test_detached_minimum_is_not_ppo():
    """The weight min(r A, clip(r) A) without gradient goes on pushing where PPO has let go."""
    log_prob = as_double(math.log(1.5)).requires_grad_()
    detached = clipped_surrogate(log_prob, as_double(1.0), 0.2).detach() * log_prob
    assert torch.autograd.grad(detached.sum(), log_prob)[0].item() == pytest.approx(1.2)
    gated = gated_surrogate(log_prob, log_prob, as_double(1.0), 0.2)
    assert torch.autograd.grad(gated.sum(), log_prob)[0].item() == 0.0


def test_clipping_is_element_by_element():
    """The minimum of two batch means is 1.0 here, clipped or not; PPO's value is lower."""
    value = clipped_surrogate(as_double(2.0, 0.1).log(), as_double(1.0, -1.0), 0.2)
    assert value.tolist() == pytest.approx([1.2, -0.8])


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_clip_range_is_checked(epsilon):
    with pytest.raises(InvalidArgumentError, match="clip_epsilon"):
        clipped_surrogate(torch.zeros(1), torch.ones(1), epsilon)


def test_log_ratio_reads_only_what_counts():
    log_prob = torch.tensor([[-1.0, -torch.inf, 3.0]], requires_grad=True)
    old = torch.tensor([[-3.0, -torch.inf, torch.nan]])
    log_ratio = log_importance_ratio(log_prob, old, torch.tensor([[1.0, 0.0, 0.0]]))
    assert log_ratio.tolist() == [[2.0, 0.0, 0.0]]
    assert torch.autograd.grad(log_ratio.sum(), log_prob)[0].tolist() == [[1.0, 0.0, 0.0]]


def test_log_ratio_of_other_shapes_is_refused():
    with pytest.raises(InvalidShapeError, match="old_log_prob"):
        log_importance_ratio(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3))


def test_step_ratio_is_the_likelihood_ratio_of_the_step():
    """Averaged over positions it would be sqrt(6)."""
    log_ratio = as_double(2.0, 3.0, 0.25).log()[None]
    assert step_log_ratio(log_ratio, torch.tensor([[1.0, 1.0, 0.0]])).exp().item() == pytest.approx(6.0)


def test_advantages_by_hand():
    reward, group = as_double(1.0, 5.0, 3.0, 10.0, 30.0), torch.tensor([4, 4, 4, 9, 9])
    assert batch_mean_advantage(reward, group).tolist() == [-2.0, 2.0, 0.0, -10.0, 10.0]
    assert leave_one_out_advantage(reward, group).tolist() == [-3.0, 3.0, 0.0, -20.0, 20.0]
    std = math.sqrt(8 / 3)
    expected = [-2 / std, 2 / std, 0.0, -1.0, 1.0]
    assert group_normalised_advantage(reward, group).tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_baselines_never_mix_prompts(name):
    """Shifting or shuffling the rewards of one prompt leaves the advantages of the other alone."""
    estimator, group = ADVANTAGES[name], torch.tensor([0, 1, 0, 1, 0, 1])
    reward = torch.randn(6, dtype=torch.float64)
    shifted = reward + 100.0 * group
    torch.testing.assert_close(estimator(shifted, group), estimator(reward, group), atol=1e-9, rtol=0)
    alone = estimator(reward[group == 0], None)
    torch.testing.assert_close(estimator(shifted, group)[group == 0], alone, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_of_one_has_no_baseline(name):
    with pytest.raises(InvalidArgumentError, match="at least 2 trajectories a prompt"):
        ADVANTAGES[name](as_double(1.0, 2.0, 3.0), torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("name", ADVANTAGES)
def test_equal_rewards_give_zero_advantage(name):
    assert ADVANTAGES[name](torch.full((4,), 0.3), None).abs().max() < 1e-6


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_refuse_other_shapes(name):
    with pytest.raises(InvalidShapeError, match="reward"):
        ADVANTAGES[name](torch.zeros(4, 1), None)
    with pytest.raises(InvalidShapeError, match="group"):
        ADVANTAGES[name](torch.zeros(4), torch.zeros(3))


def test_leave_one_out_needs_others():
    with pytest.raises(InvalidArgumentError, match="at least 2"):
        leave_one_out_advantage(torch.ones(3), torch.tensor([0, 0, 1]))


def test_snis_by_hand():
    """Weights 1 / (s q): 1/(2 * 1/4) = 2 and 1/(1/3 * 1/2) = 6, so the mean of 8 and 16 is 14."""
    log_weights = snis_log_weights(as_double(2.0, 1 / 3).log(), as_double(1 / 4, 1 / 2).log())
    assert log_weights.exp().tolist() == pytest.approx([0.25, 0.75])
    assert snis_log_estimate(log_weights, as_double(8.0, 16.0).log()).exp().item() == pytest.approx(14.0)


def test_snis_stays_in_log_space():
    log_weights = snis_log_weights(as_double(-2000.0, -2000.0), as_double(0.0, 0.0))
    assert snis_log_estimate(log_weights, as_double(-900.0, -900.0)).item() == pytest.approx(-900.0)


def test_effective_sample_size():
    assert log_effective_sample_size(as_double(5.0, 5.0, 5.0, 5.0)).exp().item() == pytest.approx(4.0)
    assert log_effective_sample_size(as_double(3.0, 1.0).log()).exp().item() == pytest.approx(1.6)
    everything, nothing = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.bool)
    assert effective_sample_share(as_double(3.0, 1.0).log(), everything).item() == pytest.approx(0.8)
    assert effective_sample_share(as_double(3.0, 1.0).log(), nothing).item() == pytest.approx(0.8)


def test_k3_is_unbiased_and_never_negative():
    p, q = torch.rand(5).double().softmax(0), torch.rand(5).double().softmax(0)
    estimate = k3_kl((p / q).log())
    assert (estimate >= 0).all()
    assert (q * estimate).sum().item() == pytest.approx((q * (q / p).log()).sum().item(), abs=1e-14)


def test_path_kl_and_entropy_by_hand():
    half, skewed = as_double(0.5, 0.5, 0.0), as_double(0.25, 0.75, 0.0)
    law, reference = (StepLaw(torch.stack([row, row]).log()[None]) for row in (half, skewed))
    free = torch.tensor([[True, False]])
    kl = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert path_kl(law, reference, free).tolist() == pytest.approx([kl])
    assert path_kl(law, reference, torch.ones_like(free)).tolist() == pytest.approx([2 * kl])
    assert path_entropy(law, free).tolist() == pytest.approx([math.log(2)])


def test_masked_reductions_do_not_read_what_is_masked():
    values = torch.tensor([[1.0, torch.nan], [2.0, 4.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    assert sum_where(values, mask).tolist() == [1.0, 6.0]
    assert mean_where(values, mask).item() == pytest.approx(7 / 3)
    none = mean_where(values, torch.zeros_like(mask))
    assert none.item() == 0.0
    assert torch.autograd.grad(none, values)[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(("num_steps", "num_kept"), [(4, 1), (4, 3), (5, 2), (7, 7), (128, 8)])
def test_every_step_is_kept_with_the_same_probability(num_steps, num_kept):
    offsets = (torch.arange(num_steps * 40, dtype=torch.float64) + 0.5) / (num_steps * 40)
    steps, weight = subsample_steps(offsets, num_steps, num_kept)
    assert (steps.diff(dim=1) > 0).all()  # no step twice
    assert weight == num_steps / num_kept
    frequency = steps.flatten().bincount(minlength=num_steps) / len(offsets)
    torch.testing.assert_close(frequency, torch.full_like(frequency, num_kept / num_steps), atol=1e-6, rtol=0)


@pytest.mark.parametrize("num_kept", [0, 5])
def test_cannot_keep_more_steps_than_there_are(num_kept):
    with pytest.raises(InvalidArgumentError, match="keep from 1 to 4"):
        subsample_steps(torch.rand(3), 4, num_kept)


@pytest.mark.parametrize(("num_steps", "num_kept"), [(1, 1), (2, 2), (5, 2), (8, 3), (8, 8)])
def test_the_last_step_is_certain_and_sums_over_all_steps_unbiased(num_steps: int, num_kept: int) -> None:
    uniforms = (torch.arange(840, dtype=torch.float64) + 0.5) / 840
    steps, weights = subsample_steps_with_last(uniforms, num_steps, num_kept)
    assert steps.shape == weights.shape == (840, num_kept)
    assert (steps[:, -1] == num_steps - 1).all()
    assert (weights[:, -1] == 1).all()
    assert (steps.diff(dim=1) > 0).all()
    values = torch.randn(num_steps, dtype=torch.float64)
    estimate = (values[steps] * weights).sum(1).mean()
    torch.testing.assert_close(estimate, values.sum(), atol=1e-9, rtol=0)


def test_the_last_step_alone_weighs_one() -> None:
    steps, weights = subsample_steps_with_last(torch.rand(3), 7, 1)
    assert (steps.tolist(), weights.tolist()) == ([[6]] * 3, [[1.0]] * 3)
    for wrong in (0, 8):
        with pytest.raises(InvalidArgumentError, match="keep from 1 to 7"):
            subsample_steps_with_last(torch.rand(3), 7, wrong)
