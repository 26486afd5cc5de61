"""What an objective reads of a network's output, and what it must not: the mistakes of published code."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from agents.objectives import SEPOLoss, SNISForm
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.enumeration import all_states
from tests.comparisons import assert_same

MASK = 2
PROCESS = DiffusionProcess(Absorbing(2), LogLinear())
# Those that score the transitions that were sampled.
PATH_LOSSES = ["sepo-path", "sepo-path-step", "sepo-critic", "ppo", "ddpo-is", "ddpo-sf", "reinforce"]


class Perturbed(nn.Module):
    """A denoiser whose logits are changed at some positions of some kind."""

    def __init__(self, denoiser: TabularDenoiser, where: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.denoiser, self.where = denoiser, where
        self.parameterisation = denoiser.parameterisation

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        log_posterior = self.denoiser(tokens, time)
        noise = torch.randn(
            *log_posterior.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(int(tokens.sum()))
        )
        return torch.where(self.where(tokens)[..., None], log_posterior + 3.0 * noise, log_posterior).log_softmax(-1)


def test_outputs_at_visible_positions_are_never_read(losses, table, visited_states, total, gradients, name):
    states, options = visited_states(), {"kl_coeff": 0.3, "entropy_coeff": 0.2}
    losses = [
        losses[name](Perturbed(table(), where), reference=Perturbed(table(1), where), **options)
        for where in (lambda x: torch.zeros_like(x, dtype=torch.bool), lambda x: x != MASK)
    ]
    clean, noisy = (loss(states) for loss in losses)
    for key in clean.keys():  # noqa: SIM118
        assert_same(noisy[key], clean[key])
    clean, noisy = (gradients(loss, total(out)) for loss, out in zip(losses, (clean, noisy), strict=True))
    for parameter, gradient in clean.items():
        assert_same(noisy[parameter], gradient)


@pytest.mark.parametrize("site", [0, 1, 2])
def test_outputs_at_masked_positions_are_all_read(losses, table, visited_states, name, site):
    """Log-probabilities clamped as if they were probabilities would be constants."""
    states = visited_states()

    def where(tokens: torch.Tensor) -> torch.Tensor:
        return (tokens == MASK) & (torch.arange(3) == site)

    denoiser, perturbed = table(), Perturbed(table(), where)
    states["old_log_prob"] = losses[name](denoiser).log_probs(states)
    with torch.no_grad():
        denoiser.logits.sub_(20.0 * nn.functional.one_hot(torch.tensor(0), 2))  # some log-probabilities near -20
    clean, noisy = (losses[name](network)(states)["loss_objective"] for network in (denoiser, perturbed))
    assert (clean - noisy).abs() > 1e-6


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_only_tokens_that_jumped_are_scored(losses, table, visited_states, name):
    states, denoiser = visited_states(), table()
    log_prob = losses[name](denoiser).log_probs(states)
    jumped = states["tokens"] != states["next", "tokens"]
    expected = denoiser(states["tokens"], states["time"][:, 0]).gather(-1, states["final_tokens"][..., None])[..., 0]
    fill = PROCESS.unmask_prob(states["time"].double(), states["next", "time"].double()).log()
    torch.testing.assert_close(log_prob, torch.where(jumped, expected + fill, 0.0))


@pytest.mark.parametrize("name", PATH_LOSSES)
def test_log_probabilities_are_summed_over_positions(losses, table, visited_states, gradients, name):
    """Averaged over positions, the objective of longer sequences would shrink."""
    states, denoiser = visited_states(), table()
    loss = losses[name](denoiser)
    jumped = states["tokens"] != states["next", "tokens"]
    log_posterior = denoiser(states["tokens"], states["time"][:, 0])
    log_prob = log_posterior.gather(-1, states["final_tokens"][..., None])[..., 0]
    policy_gradient = -(states["advantage"] * log_prob * jumped).sum() / 6
    expected = torch.autograd.grad(policy_gradient, denoiser.logits)[0]
    ours = gradients(loss, loss(states)["loss_objective"])["policy_network_params.logits"]
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_states_without_masks_give_zeros_not_nan(losses, table, visited_states, total, gradients, name):
    states = visited_states()
    states["tokens"] = states["next", "tokens"] = states["final_tokens"]
    loss = losses[name](table(), reference=table(1), kl_coeff=0.3, entropy_coeff=0.2)
    out = loss(states)
    assert all(value.isfinite() for value in out.values())
    assert all(gradient.isfinite().all() for gradient in gradients(loss, total(out)).values())
    if name != "sepo-snis":  # which reads the end of the trajectory, wherever it is
        assert out["loss_objective"].item() == 0.0
        assert out["entropy"].item() == out["kl_reference"].item() == 0.0


def test_a_finished_trajectory_may_stand_still(losses, table, visited_states, total, gradients, name):
    """Padding at time 0 adds nothing, and no 0/0."""
    states = visited_states()
    states["num_trajectories"] = torch.full((len(states), 1), 6)
    still = states.clone()
    still["tokens"] = still["next", "tokens"] = still["final_tokens"]
    still["time"] = still["next", "time"] = torch.zeros(len(still), 1)
    loss = losses[name](table(), reference=table(1), kl_coeff=0.3, entropy_coeff=0.2)
    log_prob = loss.log_probs(states)
    shift = torch.linspace(-0.3, 0.3, len(states), dtype=torch.float64).reshape(-1, *[1] * (log_prob.ndim - 1))
    states["old_log_prob"] = torch.where(log_prob != 0, log_prob - shift, 0.0)
    still["old_log_prob"] = torch.zeros_like(log_prob)
    alone, padded = loss(states), loss(torch.cat([states, still]))
    assert alone["ESS"] < 1.0
    for key in alone.keys():  # noqa: SIM118
        torch.testing.assert_close(padded[key], alone[key], atol=1e-12, rtol=0)
    torch.testing.assert_close(gradients(loss, total(padded)), gradients(loss, total(alone)), atol=1e-12, rtol=0)


def test_prompted_positions_are_no_decisions(losses, table, visited_states, total, name):
    """A clamped position adds nothing, whatever is there."""
    states = visited_states()
    states["prompt_mask"] = torch.tensor([False, True, False]).expand(len(states), 3)
    for key in ("tokens", ("next", "tokens")):
        states[key] = torch.where(states["prompt_mask"], states["final_tokens"], states[key])
    loss = losses[name](table(), reference=table(1), kl_coeff=0.3, entropy_coeff=0.2)
    log_prob = loss.log_probs(states)
    assert not log_prob[:, 1].any()
    assert log_prob[:, [0, 2]].any()
    assert total(loss(states)).isfinite()


@pytest.mark.parametrize("name", [*PATH_LOSSES, "sepo-snis"])
def test_uniform_noise_with_a_prompt(losses, table, visited_states, gradients, name):
    process = DiffusionProcess(Uniform(2), LogLinear())
    states = visited_states()
    for key in ("tokens", ("next", "tokens")):
        states[key] = states[key] % 2
    states["prompt_mask"] = torch.tensor([False, True, False]).expand(len(states), 3)
    denoiser = table(vocab_size=2)
    loss = losses[name](denoiser, process, reference=table(1, vocab_size=2), kl_coeff=0.3, entropy_coeff=0.2)
    assert not loss.log_probs(states)[:, 1].any()
    out = loss(states)
    assert all(value.isfinite() for value in out.values())
    gradient = gradients(loss, out["loss_kl"])["policy_network_params.logits"]
    assert not gradient[:, 1].any()
    assert gradient[:, 0].any()


@pytest.mark.parametrize("seed", range(6))
def test_kl_to_scores_that_belong_to_no_posterior_is_finite(seed: int) -> None:
    """At the last step such a reference rules tokens out that the policy may draw; training has to go on."""
    process = DiffusionProcess(Uniform(3), LogLinear())
    policy, reference = (
        TabularDenoiser(3, 3, 3, "score", torch.Generator().manual_seed(2 * seed + one)) for one in (0, 1)
    )
    tokens = all_states(3, 3)
    states = TensorDict(
        {
            "tokens": tokens,
            "time": torch.full((27, 1), 0.125),
            "next": {"tokens": tokens.roll(1, 0), "time": torch.zeros(27, 1)},
            "final_tokens": tokens.roll(1, 0),
            "advantage": torch.zeros(27, 1),
            "trajectory": torch.arange(27),
        },
        batch_size=[27],
    )
    t, s = states["time"][:, 0].double(), states["next", "time"][:, 0].double()
    ruled_out = process.step_law(reference(tokens, t), tokens, t, s, "score").log_probs == -torch.inf
    allowed = process.step_law(policy(tokens, t), tokens, t, s, "score").log_probs > -torch.inf
    assert bool((ruled_out & allowed).any())
    loss = SEPOLoss(policy, process, form="path", reference=reference, kl_coeff=1.0)
    out = loss(states)
    assert 0.0 < float(out["kl_reference"]) < torch.inf
    out["loss_kl"].backward()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in loss.parameters())


def test_time_is_read_as_a_real_number(visited_states):
    """Filling an integer tensor with a time makes it 0, and a time-conditioned network would not notice."""

    class Clock(TabularDenoiser):
        def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            scaled = super().forward(tokens, time) * (1.0 + time.to(torch.float64))[:, None, None]
            return scaled.log_softmax(-1)

    states = visited_states()
    loss = SEPOLoss(Clock(2, 3, 3, generator=torch.Generator().manual_seed(0)).double(), PROCESS, form="neighbours")
    expected = loss.policy_network(states["tokens"], states["time"][:, 0]).gather(
        -1, states["final_tokens"][..., None]
    )[..., 0]
    masked = states["tokens"] == MASK
    torch.testing.assert_close(loss.log_probs(states), torch.where(masked, expected, 0.0))
    snis = SEPOLoss(loss.policy_network, PROCESS, form=SNISForm(time=0.4)).log_probs(states)
    other = SEPOLoss(loss.policy_network, PROCESS, form=SNISForm(time=0.1)).log_probs(states)
    assert (snis - other).abs().max() > 1e-3
