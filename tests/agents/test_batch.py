"""Advantages of trajectories, and the states that are trained on, against numbers worked out by hand."""

import pytest
import torch
from tensordict import TensorDict
from torch import nn

from agents.policies.rates import Critic
from agents.training.batch import add_critic_advantages, add_group_advantages, prompt_groups, visited_states

B, K, L = 4, 3, 2


def trajectories(rewards: list[float], prompt_mask: torch.Tensor | None = None) -> TensorDict:
    tokens = torch.arange(B * (K + 1) * L).reshape(B, K + 1, L)
    time = torch.linspace(1, 0, K + 1).expand(B, K + 1)[..., None]
    reward = torch.zeros(B, K, 1)
    reward[:, -1, 0] = torch.tensor(rewards)
    done = torch.zeros(B, K, 1, dtype=torch.bool)
    done[:, -1] = True
    after = {"tokens": tokens[:, 1:], "time": time[:, 1:], "reward": reward, "done": done, "terminated": done.clone()}
    td = TensorDict({"tokens": tokens[:, :-1], "time": time[:, :-1], "next": after}, batch_size=[B, K])
    if prompt_mask is not None:
        td["prompt_mask"] = prompt_mask[:, None].expand(B, K, L)
    return td


def test_group_advantage_is_the_same_at_all_steps() -> None:
    td = trajectories([1.0, 2.0, 3.0, 6.0])
    add_group_advantages(td, "leave-one-out")
    expected = torch.tensor([1 - 11 / 3, 2 - 10 / 3, 3 - 9 / 3, 6 - 6 / 3])
    torch.testing.assert_close(td["advantage"], expected[:, None, None].expand(B, K, 1))


def test_prompts_make_the_groups() -> None:
    mask = torch.tensor([[True, False]] * B)
    td = trajectories([1.0, 3.0, 10.0, 20.0], mask)
    td["tokens"] = torch.tensor([[5, 0], [5, 1], [6, 0], [6, 1]])[:, None].expand(B, K, L)
    groups = prompt_groups(td)
    assert groups is not None
    assert groups.tolist() == [0, 0, 1, 1]
    add_group_advantages(td, "batch-mean")
    assert td["advantage"][:, 0, 0].tolist() == [-1, 1, -5, 5]
    assert prompt_groups(trajectories([0.0] * B)) is None


def test_a_prompt_of_ones_own_gives_no_baseline() -> None:
    td = trajectories([1.0, 2.0, 3.0, 4.0], torch.ones(B, L, dtype=torch.bool))
    with pytest.warns(UserWarning, match="a prompt of its own"):
        add_group_advantages(td, "group")
    assert not td["advantage"].any()


class TimeValue(nn.Module):
    """V(x, t) = 10 t."""

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return 10 * time


@pytest.mark.parametrize("gae_lambda", [0.0, 0.5, 1.0])
def test_critic_advantages_by_hand(gae_lambda: float) -> None:
    rewards = torch.tensor([1.0, 2.0, 3.0, 6.0])
    td = trajectories(rewards.tolist())
    add_critic_advantages(td, Critic(TimeValue()), gae_lambda=gae_lambda, micro_batch_size=5)
    value = torch.tensor([10.0, 20 / 3, 10 / 3])
    advantage = torch.zeros(B, K)
    following = torch.zeros(B)
    for k in reversed(range(K)):
        next_value = value[k + 1] if k + 1 < K else 0.0
        delta = (rewards if k + 1 == K else 0.0) + next_value - value[k]
        following = delta + gae_lambda * following
        advantage[:, k] = following
    torch.testing.assert_close(td["value_target"][..., 0], advantage + value)
    standardised = (advantage - advantage.mean()) / advantage.std()
    torch.testing.assert_close(td["advantage"][..., 0], standardised, rtol=1e-4, atol=1e-4)
    if gae_lambda == 1.0:  # then the target is the return
        torch.testing.assert_close(td["value_target"][..., 0], rewards[:, None].expand(B, K))


def test_visited_states_by_hand() -> None:
    td = trajectories([1.0, 2.0, 3.0, 6.0])
    add_group_advantages(td, "batch-mean")
    steps = torch.tensor([[0, 2], [1, 2], [0, 1], [0, 2]])
    states = visited_states(td, steps, inclusion_weight=1.5, first_id=40)
    assert states.batch_size == (8,)
    assert states["tokens"][3].tolist() == td["tokens"][1, 2].tolist()
    assert states["next", "tokens"][4].tolist() == td["next", "tokens"][2, 0].tolist()
    assert states["final_tokens"][:4].tolist() == td["next", "tokens"][[0, 0, 1, 1], -1].tolist()
    assert states["trajectory"].tolist() == [40, 40, 41, 41, 42, 42, 43, 43]
    assert states["step"].tolist() == steps.flatten().tolist()
    assert states["advantage"][:, 0].tolist() == [-2, -2, -1, -1, 0, 0, 3, 3]
    assert states["time"][:2, 0].tolist() == [1.0, td["time"][0, 2, 0].item()]
    assert states["inclusion_weight"].eq(1.5).all()
    assert "prompt_mask" not in states.keys()  # noqa: SIM118 - iterating over a tensordict walks its batch
    td["prompt_mask"] = torch.tensor([[True, False], [False, True], [True, True], [False, False]])[:, None].expand(
        B, K, L
    )
    states = visited_states(td, steps, inclusion_weight=1.5)
    assert states["prompt_mask"].tolist() == td["prompt_mask"][:, 0].repeat_interleave(2, dim=0).tolist()
    assert ("next", "reward") not in states.keys(include_nested=True)
