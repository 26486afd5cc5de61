"""Each estimator's expectation, by enumeration of all trajectories, against the exact gradient of J."""

import math

import pytest
import torch

from agents.functional import batch_mean_advantage, leave_one_out_advantage, subsample_steps
from agents.objectives import DDPOLoss, PolicyGradientLoss, PPOLoss, ReinforceLoss, SEPOLoss
from agents.policies.rates import Critic, ValueNetwork

PATH_LOSSES = {
    "sepo-token": lambda chain: SEPOLoss(chain.denoiser, chain.process, form="path"),
    "sepo-step": lambda chain: SEPOLoss(chain.denoiser, chain.process, form="path", clip_level="step"),
    "ddpo-is": lambda chain: DDPOLoss(chain.denoiser, chain.process, form="is"),
    "ddpo-sf": lambda chain: DDPOLoss(chain.denoiser, chain.process, form="sf"),
    "reinforce": lambda chain: ReinforceLoss(chain.denoiser, chain.process),
    "ppo": lambda chain: PPOLoss(chain.denoiser, chain.process, Critic(ValueNetwork(chain.process).double())),
}


def expected_gradient(chain, loss: PolicyGradientLoss, **entries) -> torch.Tensor:
    """Gradient that one would climb: minus that of the loss."""
    states = chain.expected(**entries)
    if isinstance(loss, PPOLoss):
        states["value_target"] = states["advantage"]
    return -torch.autograd.grad(loss(states)["loss_objective"], chain.denoiser.logits)[0]


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def test_probabilities_of_the_enumeration_sum_to_one(absorbing_chain, uniform_chain):
    for chain in (absorbing_chain(), absorbing_chain(joint=True), uniform_chain()):
        assert chain.log_prob(chain.denoiser).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_path_is_unbiased(absorbing_chain, name):
    chain = absorbing_chain()
    gradient = expected_gradient(chain, PATH_LOSSES[name](chain))
    torch.testing.assert_close(gradient, chain.exact_gradient(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_a_constant_baseline_changes_nothing(absorbing_chain, name):
    chain = absorbing_chain()
    advantage = (chain.reward - 7.0)[chain.row_of][:, None]
    gradient = expected_gradient(chain, PATH_LOSSES[name](chain), advantage=advantage)
    torch.testing.assert_close(gradient, chain.exact_gradient(), atol=1e-9, rtol=0)


def test_a_baseline_that_reads_the_state_changes_nothing(absorbing_chain):
    chain = absorbing_chain()
    value = torch.sin(chain.states["tokens"].double() @ torch.tensor([1.0, 3.0, 9.0]).double())
    advantage = chain.reward[chain.row_of][:, None] - value[:, None]
    gradient = expected_gradient(chain, PATH_LOSSES["ppo"](chain), advantage=advantage)
    torch.testing.assert_close(gradient, chain.exact_gradient(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_path_is_unbiased_with_uniform_noise(uniform_chain, name):
    chain = uniform_chain()
    gradient = expected_gradient(chain, PATH_LOSSES[name](chain))
    torch.testing.assert_close(gradient, chain.exact_gradient(), atol=1e-10, rtol=0)


def test_without_the_compensator_uniform_noise_is_biased(uniform_chain):
    chain = uniform_chain()
    stayed = chain.states["tokens"] == chain.states["next", "tokens"]
    gradient = expected_gradient(chain, PATH_LOSSES["reinforce"](chain), prompt_mask=stayed)
    assert (gradient - chain.exact_gradient()).norm() > 0.1 * chain.exact_gradient().norm()


def test_neighbours_is_biased_for_inconsistent_conditionals(absorbing_chain):
    chain = absorbing_chain()
    gradient = expected_gradient(chain, SEPOLoss(chain.denoiser, chain.process, form="neighbours"))
    exact = chain.exact_gradient()
    assert (gradient - exact).norm() > 0.1 * exact.norm()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_neighbours_points_the_right_way_for_a_joint_law(absorbing_chain, seed):
    chain = absorbing_chain(seed=seed, joint=True)
    gradient = expected_gradient(chain, SEPOLoss(chain.denoiser, chain.process, form="neighbours"))
    assert cosine(gradient, chain.exact_gradient()) > 0.99


def test_bias_of_neighbours_is_small_and_shrinks_with_the_number_of_steps(absorbing_chain):
    """About 3 % at K = 4, and O(1/K)."""
    bias = []
    for num_steps in (4, 8, 12):
        chain = absorbing_chain(num_steps=num_steps, joint=True)
        loss = SEPOLoss(chain.denoiser, chain.process, form="neighbours")
        exact = chain.exact_gradient()
        bias.append(((expected_gradient(chain, loss) - exact).norm() / exact.norm()).item())
    assert 0.01 < bias[0] < 0.05
    assert bias[1] < 0.65 * bias[0]
    assert bias[2] < 0.75 * bias[1]


def test_clip_levels_of_neighbours_agree_at_the_old_parameters(absorbing_chain):
    chain = absorbing_chain()
    token, step = (
        expected_gradient(chain, SEPOLoss(chain.denoiser, chain.process, form="neighbours", clip_level=level))
        for level in ("token", "step")
    )
    torch.testing.assert_close(token, step, atol=1e-12, rtol=0)


@pytest.mark.parametrize("num_kept", [1, 2, 3])
@pytest.mark.parametrize("form", ["path", "neighbours"])
def test_subsampled_states_are_unbiased(absorbing_chain, form, num_kept):
    chain = absorbing_chain()
    loss = SEPOLoss(chain.denoiser, chain.process, form=form)
    full = expected_gradient(chain, loss)
    # Averaged over a grid of offsets so fine that every choice of steps occurs as often as it should.
    total = torch.zeros_like(full)
    offsets = (torch.arange(12) + 0.5) / 12
    for offset in offsets:
        steps, weight = subsample_steps(offset[None], num_steps=4, num_kept=num_kept)
        kept = torch.isin(chain.states["step"], steps)
        states = chain.expected()[kept]
        states["inclusion_weight"] = states["inclusion_weight"] * weight
        total -= torch.autograd.grad(loss(states)["loss_objective"], chain.denoiser.logits)[0] / len(offsets)
    torch.testing.assert_close(total, full, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("estimator", "factor"), [(leave_one_out_advantage, 1.0), (batch_mean_advantage, 2 / 3)])
def test_expected_gradient_of_advantage_estimators(estimator, factor):
    """Over all groups of three independent samples: leave-one-out is unbiased, the group mean shrinks by (G - 1)/G."""
    logits = torch.randn(4, dtype=torch.float64, requires_grad=True)
    reward = torch.randn(4, dtype=torch.float64)
    log_prob = logits.log_softmax(0)
    groups = torch.cartesian_prod(*[torch.arange(4)] * 3)
    surrogate = sum(
        log_prob[group].sum().exp().detach() * (estimator(reward[group]) * log_prob[group]).mean() for group in groups
    )
    gradient = torch.autograd.grad(surrogate, logits, retain_graph=True)[0]
    exact = torch.autograd.grad((log_prob.exp() * reward).sum(), logits)[0]
    torch.testing.assert_close(gradient, factor * exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("noise", ["absorbing", "uniform"])
def test_path_kl_equals_enumeration_and_bounds_the_kl_of_the_ends(absorbing_chain, uniform_chain, make_table, noise):
    chain = absorbing_chain() if noise == "absorbing" else uniform_chain()
    reference = make_table(chain.denoiser.vocab_size, 7)
    log_p, log_q = chain.log_prob(chain.denoiser), chain.log_prob(reference)
    exact = (log_p.exp() * (log_p - log_q)).sum()
    loss = SEPOLoss(chain.denoiser, chain.process, form="path", reference=reference, kl_coeff=0.5)
    out = loss(chain.expected())
    assert out["kl_reference"].item() == pytest.approx(exact.item(), abs=1e-10)
    assert out["loss_kl"].item() == pytest.approx(0.5 * exact.item(), abs=1e-10)

    ends = chain.states["final_tokens"][chain.states["step"] == 0] @ torch.tensor([4, 2, 1])
    pi, pi_reference = (torch.zeros(8).double().index_add(0, ends, log.exp()) for log in (log_p, log_q))
    assert 0 < (pi * (pi / pi_reference).log()).sum() < exact


def test_gradient_of_the_kl_reaches_the_positions_that_are_sampled(absorbing_chain, make_table):
    """A KL masked by what is already visible would be zero on each of these steps."""
    chain = absorbing_chain()
    loss = SEPOLoss(chain.denoiser, chain.process, form="path", reference=make_table(3, 7), kl_coeff=1.0)
    gradient = torch.autograd.grad(loss(chain.expected())["loss_kl"], chain.denoiser.logits)[0]
    all_masked = chain.denoiser.state_index(torch.tensor([[2, 2, 2]]))
    assert (gradient[all_masked].abs().amax(dim=-1) > 1e-4).all()


def test_reported_entropy_is_that_of_the_tokens_on_the_path(absorbing_chain):
    chain = absorbing_chain()
    log_p = chain.log_prob(chain.denoiser)
    when = torch.tensor([0.25 * 0.999 / 0.999] * 3 + [0.25], dtype=torch.float64)  # log-linear: equal shares
    entropy_of_times = -3 * (when * when.log()).sum()
    exact = -(log_p.exp() * log_p).sum() - entropy_of_times
    loss = SEPOLoss(chain.denoiser, chain.process, form="path", entropy_coeff=0.1)
    out = loss(chain.expected())
    assert out["entropy"].item() == pytest.approx(exact.item(), abs=1e-10)
    assert out["loss_entropy"].item() == pytest.approx(-0.1 * exact.item(), abs=1e-10)
    assert exact < 3 * math.log(2)


def test_reported_entropy_with_uniform_noise_is_that_of_the_path(uniform_chain):
    chain = uniform_chain()
    log_p = chain.log_prob(chain.denoiser)
    loss = SEPOLoss(chain.denoiser, chain.process, form="path")
    exact = -(log_p.exp() * log_p).sum() - 3 * math.log(2)  # less the draw of the first state
    assert loss(chain.expected())["entropy"].item() == pytest.approx(exact.item(), abs=1e-10)
