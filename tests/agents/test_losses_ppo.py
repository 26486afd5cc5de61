"""PPO: the critic's part, and its independence from the policy's."""

import pytest
import torch
from tensordict import TensorDict

from agents.objectives import DDPOLoss, PPOLoss
from agents.policies.rates import Critic, ValueNetwork
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from tests.comparisons import assert_same

PROCESS = DiffusionProcess(Absorbing(2), LogLinear())


@pytest.fixture
def states() -> TensorDict:
    return TensorDict(
        {
            "tokens": torch.tensor([[2, 2], [2, 1]]),
            "time": torch.tensor([[1.0], [0.25]]),
            "next": {"tokens": torch.tensor([[2, 1], [0, 1]]), "time": torch.tensor([[0.25], [0.0]])},
            "final_tokens": torch.tensor([[0, 1], [0, 1]]),
            "advantage": torch.tensor([[0.5], [-1.5]]),
            "value_target": torch.tensor([[2.0], [1.0]]),
            "trajectory": torch.tensor([0, 0]),
        },
        batch_size=[2],
    )


def constant_critic(value: float) -> Critic:
    critic = Critic(ValueNetwork(PROCESS))
    with torch.no_grad():
        critic.module.head[-1].weight.zero_()
        critic.module.head[-1].bias.fill_(value)
    return critic


def test_error_of_the_critic_is_averaged_over_time(states):
    """V = 3: 0.75 of the time it is off by 1, a quarter by 2."""
    loss = PPOLoss(TabularDenoiser(2, 2, 3), PROCESS, constant_critic(3.0), critic_coeff=0.1)
    assert loss(states)["loss_critic"].item() == pytest.approx(0.1 * (0.75 * 1 + 0.25 * 4))


def test_policy_and_critic_do_not_mix(states):
    denoiser, critic = TabularDenoiser(2, 2, 3), Critic(ValueNetwork(PROCESS))
    out = PPOLoss(denoiser, PROCESS, critic)(states)
    out["loss_critic"].backward(retain_graph=True)
    assert denoiser.logits.grad is None
    assert all(parameter.grad is not None for parameter in critic.parameters())
    critic.zero_grad(set_to_none=True)
    out["loss_objective"].backward()
    assert denoiser.logits.grad.any()
    assert all(parameter.grad is None for parameter in critic.parameters())


def test_policy_part_is_that_of_ddpo_with_advantages_of_steps(states):
    denoiser = TabularDenoiser(2, 2, 3, generator=torch.Generator().manual_seed(0))
    ppo, ddpo = PPOLoss(denoiser, PROCESS, constant_critic(0.0)), DDPOLoss(denoiser, PROCESS)
    states["old_log_prob"] = ppo.log_probs(states) - 0.1
    assert_same(ppo(states)["loss_objective"], ddpo(states)["loss_objective"])


def test_all_parameters_are_trained_by_one_optimiser(states):
    denoiser, critic = TabularDenoiser(2, 2, 3), Critic(ValueNetwork(PROCESS))
    loss = PPOLoss(denoiser, PROCESS, critic, entropy_coeff=0.01)
    optimiser = torch.optim.Adam(loss.parameters(), lr=0.01)
    before = loss(states)["loss_critic"].item()
    for _ in range(20):
        optimiser.zero_grad()
        out = loss(states)
        sum(value for key, value in out.items() if key.startswith("loss_")).backward()
        optimiser.step()
    assert loss(states)["loss_critic"].item() < 0.5 * before
    assert denoiser.logits.abs().sum() > 0


def test_renamed_value_and_target(states):
    denoiser = TabularDenoiser(2, 2, 3)
    loss = PPOLoss(denoiser, PROCESS, Critic(ValueNetwork(PROCESS), value_key=("critic", "v")))
    with pytest.raises(KeyError, match="state_value"):
        loss(states)
    loss.set_keys(value=("critic", "v"), value_target="G")
    assert loss(states.rename_key_("value_target", "G"))["loss_critic"].isfinite()
