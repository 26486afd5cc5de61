"""REINFORCE's gradient, step by step."""

import torch
from tensordict import TensorDict

from agents.functional import leave_one_out_advantage
from agents.objectives import DDPOLoss, ReinforceLoss
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from tests.comparisons import assert_same

PROCESS = DiffusionProcess(Absorbing(2), LogLinear())


def states_of(ends: list[list[int]], reward: torch.Tensor) -> TensorDict:
    """Trajectories of one step, all masks at once."""
    x_0 = torch.tensor(ends)
    return TensorDict(
        {
            "tokens": torch.full_like(x_0, 2),
            "time": torch.ones(len(x_0), 1),
            "next": {"tokens": x_0, "time": torch.zeros(len(x_0), 1)},
            "final_tokens": x_0,
            "advantage": leave_one_out_advantage(reward)[:, None],
            "trajectory": torch.arange(len(x_0)),
        },
        batch_size=[len(x_0)],
    )


def test_gradient_by_hand():
    """From a fair coin, d log p(v) / d logits = onehot(v) - 1/2; advantages are -3 and 3 for rewards 0 and 3."""
    denoiser = TabularDenoiser(2, 2, 3)
    ReinforceLoss(denoiser, PROCESS)(states_of([[0, 0], [0, 1]], torch.tensor([0.0, 3.0])))["loss_objective"].backward()
    gradient = denoiser.logits.grad[denoiser.state_index(torch.tensor([[2, 2]]))[0]]
    # Position 0 holds token 0 both times, and the advantages cancel; position 1 moves towards token 1.
    torch.testing.assert_close(gradient, torch.tensor([[0.0, 0.0], [1.5, -1.5]]))


def test_is_the_score_function_form_of_ddpo():
    states = states_of([[0, 0], [0, 1], [1, 1]], torch.tensor([0.0, 3.0, 1.0]))
    denoiser = TabularDenoiser(2, 2, 3, generator=torch.Generator().manual_seed(0))
    one, other = ReinforceLoss(denoiser, PROCESS)(states), DDPOLoss(denoiser, PROCESS, form="sf")(states)
    assert_same(one["loss_objective"], other["loss_objective"])


def test_no_ratio_and_no_clipping():
    """Old log-probabilities change what is reported, not what is learnt."""
    states = states_of([[0, 0], [0, 1]], torch.tensor([0.0, 3.0]))
    loss = ReinforceLoss(TabularDenoiser(2, 2, 3), PROCESS)
    expected = loss(states)["loss_objective"]
    states["old_log_prob"] = loss.log_probs(states) - 2.0
    out = loss(states)
    assert_same(out["loss_objective"], expected)
    assert out["clip_fraction"].item() == 0.0
    assert out["kl_approx"].item() > 0.0
