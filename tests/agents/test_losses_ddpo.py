"""DDPO's two surrogates against numbers worked out by hand."""

import math

import pytest
import torch
from tensordict import TensorDict

from agents.objectives import DDPOLoss
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear

PROCESS = DiffusionProcess(Absorbing(2), LogLinear())


@pytest.fixture
def states() -> TensorDict:
    """One trajectory of two steps: two tokens are filled, then one."""
    return TensorDict(
        {
            "tokens": torch.tensor([[2, 2, 2], [0, 1, 2]]),
            "time": torch.tensor([[1.0], [0.5]]),
            "next": {"tokens": torch.tensor([[0, 1, 2], [0, 1, 1]]), "time": torch.tensor([[0.5], [0.0]])},
            "final_tokens": torch.tensor([[0, 1, 1], [0, 1, 1]]),
            "advantage": torch.tensor([[2.0], [2.0]]),
            "trajectory": torch.tensor([0, 0]),
        },
        batch_size=[2],
    )


def test_importance_sampling_by_hand(states):
    """Ratios of the steps: 1.1 * 0.9 and 3, so -2 (0.99 + 1.2) and, with A = -2, 2 (0.99 + 3)."""
    loss = DDPOLoss(TabularDenoiser(2, 3, 3), PROCESS)
    ratio = torch.tensor([[1.1, 0.9, 1.0], [1.0, 1.0, 3.0]])
    states["old_log_prob"] = loss.log_probs(states) - ratio.log()
    out = loss(states)
    assert out["loss_objective"].item() == pytest.approx(-2 * (0.99 + 1.2), rel=1e-5)
    assert out["clip_fraction"].item() == 0.5
    assert out["ratio_max"].item() == pytest.approx(3.0, rel=1e-5)
    assert out["ESS"].item() == pytest.approx((0.99 + 3) ** 2 / (0.99**2 + 3**2) / 2, rel=1e-5)
    k3 = (0.99 - 1 - math.log(0.99) + 3 - 1 - math.log(3)) / 2
    assert out["kl_approx"].item() == pytest.approx(k3, rel=1e-5)
    states["advantage"] = -states["advantage"]
    assert loss(states)["loss_objective"].item() == pytest.approx(2 * (0.99 + 3), rel=1e-5)


def test_clip_level_of_tokens_by_hand(states):
    loss = DDPOLoss(TabularDenoiser(2, 3, 3), PROCESS, clip_level="token")
    ratio = torch.tensor([[1.1, 0.9, 1.0], [1.0, 1.0, 3.0]])
    states["old_log_prob"] = loss.log_probs(states) - ratio.log()
    assert loss(states)["loss_objective"].item() == pytest.approx(-2 * (1.1 + 0.9 + 1.2), rel=1e-5)


def test_score_function_by_hand(states):
    """Two of three masks are filled with probability 1/2 each, then the last for certain; each token is a fair coin."""
    loss = DDPOLoss(TabularDenoiser(2, 3, 3), PROCESS, form="sf")
    half_of_the_time = (0.5 * (1 - 1e-3) + 1e-3 - 1e-3) / (1 - 1e-3)
    last = math.log(0.5)
    first = 2 * (math.log(0.5) + math.log(half_of_the_time))
    assert loss(states)["loss_objective"].item() == pytest.approx(-2 * (first + last), rel=2e-3)
