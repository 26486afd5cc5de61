"""Network evaluations and reward calls, counted where they happen."""

import copy
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from agents.cost import CostMeter
from agents.losses import SEPOLoss
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear

PROCESS = DiffusionProcess(Absorbing(2), LogLinear())
TOKENS, TIME = torch.full((7, 3), 2), torch.ones(7)


@pytest.fixture
def denoiser() -> TabularDenoiser:
    return TabularDenoiser(2, 3, 3)


class Scores:
    """A reward that has been called before."""

    calls = 100


def test_forward_counts_one_and_a_gradient_two_more(denoiser):
    meter = CostMeter(denoiser)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    assert meter.nfe == 7
    denoiser(TOKENS, TIME)
    assert meter.nfe == 7 + 21


def test_frozen_network_has_no_backward_pass(denoiser):
    meter = CostMeter(denoiser.requires_grad_(False))
    denoiser(TOKENS, TIME)
    assert meter.nfe == 7


@pytest.mark.parametrize(("needs_grad", "cost"), [(True, 21), (False, 7)])
def test_functional_parameters(denoiser, needs_grad, cost):
    """What counts is what the call can be differentiated by, not what the module holds."""
    meter = CostMeter(denoiser)
    logits = denoiser.logits.detach().clone().requires_grad_(needs_grad)
    torch.func.functional_call(denoiser, {"logits": logits}, (TOKENS, TIME))
    assert meter.nfe == cost


def test_through_tensordict_modules_and_losses(denoiser):
    reference = copy.deepcopy(denoiser)
    meter = CostMeter(denoiser, reference)
    states = TensorDict(
        {
            "tokens": TOKENS,
            "time": torch.ones(7, 1),
            "next": {"tokens": torch.zeros_like(TOKENS), "time": torch.zeros(7, 1)},
            "final_tokens": torch.zeros_like(TOKENS),
            "advantage": torch.ones(7, 1),
            "trajectory": torch.arange(7),
        },
        batch_size=[7],
    )
    TensorDictModule(denoiser, in_keys=["tokens", "t"], out_keys=["out"])(states.clone().set("t", TIME))
    assert meter.nfe == 21
    loss = SEPOLoss(denoiser, PROCESS, reference=reference, kl_coeff=0.1)
    loss(states)
    assert meter.nfe == 21 + 21 + 7
    loss.log_probs(states)
    assert meter.nfe == 21 + 21 + 7 + 7


def test_a_network_given_twice_counts_once(denoiser):
    meter = CostMeter(denoiser, denoiser)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    assert meter.nfe == 7


def test_reward_calls_from_now_on():
    reward = Scores()
    meter = CostMeter(reward=reward)
    assert meter.reward_calls == 0
    reward.calls += 12
    assert meter.reward_calls == 12
    assert CostMeter().reward_calls == 0


def test_counts_continue_from_a_checkpoint(denoiser):
    reward = Scores()
    meter = CostMeter(denoiser, reward=reward)
    meter.load_state_dict({"nfe": 1000, "reward_calls": 50})
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    reward.calls += 5
    assert meter.state_dict() == {"nfe": 1007, "reward_calls": 55}


def test_closed_meter_counts_no_more(denoiser):
    meter = CostMeter(denoiser)
    meter.close()
    denoiser(TOKENS, TIME)
    assert meter.nfe == 0


def test_hooked_network_can_be_copied_and_pickled(denoiser):
    """Copies go to other processes; what they do is theirs to count."""
    meter = CostMeter(denoiser)
    for clone in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
        clone(TOKENS, TIME)
    assert meter.nfe == 0
