"""Baselines never mix prompts: what one prompt's trajectories earn says nothing about those of another."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.objectives.value import GAE

from agents import DDPO, PPO, SEPO, Agent, agent_class
from agents.functional import ADVANTAGES
from agents.policies.rates import Critic, RatePolicy
from agents.registry import learners
from agents.training.batch import add_critic_advantages, add_group_advantages, alone, prompt_figures, prompt_groups
from agents.training.collect import rollout_size
from agents.training.logs import read_metrics
from sepo_env import TorchRLEnv
from sepo_env.denoisers import TabularDenoiser
from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards import token_reward
from sepo_env.tasks import make
from tests.comparisons import assert_same

K, L = 3, 2
SMALL: dict[str, Any] = {
    "num_iterations": 2,
    "num_steps": K,
    "states_per_trajectory": 2,
    "eval_every": 2,
    "eval_samples": 6,
    "tensorboard": "off",
}
EVERY: list[tuple[str, dict[str, Any]]] = [(name, {}) for name in learners()]
EVERY += [("sepo", {"advantage": "critic"}), ("sepo", {"form": "path", "advantage": "leave-one-out"})]


class ByTokens(torch.nn.Module):
    """Some function of what it sees."""

    def forward(self, tokens: torch.Tensor, time: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        return time * 3 - tokens.float().sin().mean(-1, keepdim=True)


def batch_of(prompts: list[int], rewards: torch.Tensor, prompted: bool = True) -> TensorDict:
    """Trajectories ``(B, K)`` whose first token is a prompt's, and whose second is free."""
    size = len(prompts)
    tokens = torch.stack([torch.tensor(prompts)[:, None].expand(-1, K), torch.full((size, K), 9)], dim=-1)
    reward = torch.zeros(size, K, 1)
    reward[:, -1, 0] = rewards
    done = torch.zeros(size, K, 1, dtype=torch.bool)
    done[:, -1] = True
    entries = {
        "tokens": tokens,
        "time": torch.linspace(1, 0, K + 1)[:-1].expand(size, K)[..., None],
        "next": {"reward": reward, "done": done, "terminated": done.clone()},
    }
    if prompted:
        entries["prompt_mask"] = torch.tensor([True, False]).expand(size, K, L)
    return TensorDict(entries, batch_size=[size, K])


def critic_advantages(trajectories: TensorDict) -> torch.Tensor:
    add_critic_advantages(trajectories, Critic(ByTokens()), gae_lambda=0.9, micro_batch_size=4)
    return trajectories["advantage"]


def raw_advantages(trajectories: TensorDict, average: bool = False) -> torch.Tensor:
    """TorchRL's own, from the values that `critic_advantages` has written."""
    td = trajectories.clone()
    GAE(gamma=1.0, lmbda=0.9, value_network=None, average_gae=average)(td, time_dim=1)
    return td["advantage"]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_rewards_of_one_prompt_move_no_other_ones_advantages(name: str, options: dict[str, Any]) -> None:
    task = make("toy", num_tokens=3, length=4, prompted=True)
    settings_ = {"batch_size": 12, "num_steps": K, "group_size": 3, "kl_coeff": 0.0}
    agent = agent_class(name)(task, device="cpu", **settings_, **options)
    method = agent.make_method(task.load_denoiser())
    env = TorchRLEnv(task, num_envs=rollout_size(agent.config), num_steps=K, seed=1, prompt_repeats=3)
    trajectories = env.rollout(K, RatePolicy(agent.denoiser, task.process))
    group = prompt_groups(trajectories)
    assert group is not None
    assert int(group.max()) > 0
    advantages = []
    for shift in (0.0, 7.0):
        td = trajectories.clone()
        td["next", "reward"][group == 0, -1] += shift * torch.randn(int((group == 0).sum()), 1)
        method.samples(td, 0, torch.Generator())
        advantages.append(td["advantage"])
    assert_same(advantages[1][group != 0], advantages[0][group != 0])
    assert not torch.allclose(advantages[0][group == 0], advantages[1][group == 0])
    for one in range(int(group.max()) + 1):
        assert float(advantages[1][group == one].mean()) == pytest.approx(0.0, abs=1e-5)


@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("spread", [1.0, 0.0])
def test_one_group_is_standardised_as_torchrl_does(prompted: bool, spread: float) -> None:
    trajectories = batch_of([4] * 6, spread * torch.randn(6), prompted=prompted)
    found = critic_advantages(trajectories)
    assert_same(found, raw_advantages(trajectories, average=True))


@given(st.lists(st.integers(0, 4), min_size=2, max_size=12), st.integers(0, 999))
@settings(max_examples=40, deadline=None)
def test_baselines_on_random_prompts_by_hand(prompts: list[int], seed: int) -> None:
    rewards = torch.randn(len(prompts), generator=torch.Generator().manual_seed(seed))
    trajectories = batch_of(prompts, rewards)
    by_critic = critic_advantages(trajectories)
    raw = raw_advantages(trajectories)
    lone = [row for row, prompt in enumerate(prompts) if prompts.count(prompt) == 1]
    for row, prompt in enumerate(prompts):
        mates = [other for other, its in enumerate(prompts) if its == prompt]
        if row in lone:
            expected = raw[row] / (raw[lone] ** 2).mean().sqrt()
        else:
            expected = (raw[row] - raw[mates].mean()) / raw[mates].std().clamp_min(1e-4)
        torch.testing.assert_close(by_critic[row], expected, rtol=1e-3, atol=1e-3)
    if len(lone) == len(prompts):
        return
    for kind in ADVANTAGES:
        add_group_advantages(trajectories, kind)
        for row, prompt in enumerate(prompts):
            mine = [float(rewards[other]) for other, its in enumerate(prompts) if its == prompt]
            mean = sum(mine) / len(mine)
            if row in lone:
                by_hand = 0.0
            elif kind == "leave-one-out":
                by_hand = float(rewards[row]) - (sum(mine) - float(rewards[row])) / (len(mine) - 1)
            else:
                by_hand = float(rewards[row]) - mean
                deviation = (sum((one - mean) ** 2 for one in mine) / len(mine)) ** 0.5
                by_hand /= deviation + 1e-6 if kind == "group" else 1.0
            found = trajectories["advantage"][row].flatten().tolist()
            assert found == pytest.approx([by_hand] * K, rel=1e-3, abs=1e-3)


def test_lone_ones_keep_sign_and_relative_size_and_move_no_group() -> None:
    rewards = torch.tensor([1.0, 3.0, 100.0, -7.0])
    trajectories = batch_of([0, 0, 1, 2], rewards)
    found = critic_advantages(trajectories)
    raw = raw_advantages(trajectories)
    torch.testing.assert_close(found[2:] / found[2:, :1], raw[2:] / raw[2:, :1])
    torch.testing.assert_close(found[2] / raw[2], found[3] / raw[3])
    assert torch.equal(found[2:].sign(), raw[2:].sign())
    other = critic_advantages(batch_of([0, 0, 1, 2], torch.tensor([1.0, 3.0, -5.0, 2.0])))
    assert_same(other[:2], found[:2])
    everyone = critic_advantages(batch_of([0, 1, 2, 3], rewards))
    assert float(everyone.square().mean()) == pytest.approx(1.0, abs=1e-4)


def first_is_a(tokens: torch.Tensor) -> torch.Tensor:
    return (tokens[:, 0] == 0).float()


@pytest.mark.parametrize(("name", "options"), [("ppo", {}), ("sepo", {"form": "path", "advantage": "critic"})])
def test_critics_learn_what_the_given_positions_are_worth(name: str, options: dict[str, Any]) -> None:
    """On a uniform graph nothing else tells a prompt from noise: one given token decides the reward here."""
    task = make("toy", num_tokens=2, length=3, graph="uniform")
    task.start_from(["A??", "??A"])
    settings_ = {"batch_size": 64, "num_steps": 2, "learning_rate": 1e-2, "kl_coeff": 0.0, "num_iterations": 40}
    agent = agent_class(name)(task, device="cpu", reward=token_reward(first_is_a), **settings_, **options)
    methods = []
    make_method = agent.make_method
    agent.make_method = lambda reference: methods.append(make_method(reference)) or methods[-1]
    agent.train(progress=False)
    critic = methods[0].parts["critic"]
    assert critic.in_keys == ["tokens", "time", "prompt_mask"]
    tokens, time = torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 1)
    mask = torch.tensor([[True, False, False], [False, False, True]])
    sure, open_ = critic(TensorDict({"tokens": tokens, "time": time, "prompt_mask": mask}, batch_size=[2]))[
        "state_value"
    ].detach()
    assert float(sure) > float(open_) + 0.1


# -- trajectories without company


class Untouched(TabularDenoiser):
    """Refuses to be evaluated."""

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the network was evaluated")


def test_prompts_of_which_none_repeats_are_refused_before_anything_is_spent(tmp_path: Path) -> None:
    task = make("toy", num_tokens=4, length=4, prompted=True, denoiser=Untouched(4, 4, vocab_size=5))
    options = SMALL | {"batch_size": 2, "log_dir": str(tmp_path / "run")}
    with pytest.raises(InvalidArgumentError, match="group_size"):
        SEPO(task, device="cpu", **options).train(progress=False)
    assert not (tmp_path / "run").exists()
    trained = make("toy", num_tokens=4, length=4, prompted=True)
    SEPO(trained, device="cpu", **(SMALL | {"batch_size": 2, "group_size": 2})).train(progress=False)
    PPO(trained, device="cpu", **(SMALL | {"batch_size": 2})).train(progress=False)  # a critic needs no company


def test_one_that_is_alone_takes_no_part_and_is_reported() -> None:
    """Prompts A, A, B, C: A's two are compared, the others get 0 and shift nothing."""
    mask = torch.tensor([[True, False]]).expand(4, 2)
    tokens = torch.tensor([[0, 9], [0, 9], [1, 9], [2, 9]])
    rewards = torch.tensor([1.0, 3.0, 100.0, -7.0])
    for kind, expected in {"batch-mean": [-1.0, 1.0], "leave-one-out": [-2.0, 2.0], "group": [-1.0, 1.0]}.items():
        trajectories = TensorDict(
            {
                "tokens": tokens[:, None],
                "prompt_mask": mask[:, None],
                "next": {"reward": rewards[:, None, None]},
            },
            batch_size=[4, 1],
        )
        add_group_advantages(trajectories, kind)
        assert trajectories["advantage"].flatten().tolist() == pytest.approx([*expected, 0.0, 0.0], abs=1e-5)
    assert prompt_figures(trajectories) == {"prompts": 3, "lone_share": 0.5}
    assert alone(torch.tensor([2, 0, 2, 1])).tolist() == [False, True, False, True]
    assert prompt_figures(trajectories.exclude("prompt_mask")) == {}


def rare_prompts(seed: int, **options: Any) -> Agent:
    """Four trajectories over nine prompts: some batches have no two alike."""
    task = make("toy")
    task.start_from([first + second + "??" for first in "ABC" for second in "ABC"])
    return DDPO(task, device="cpu", **(SMALL | {"batch_size": 4, "num_iterations": 8, "seed": seed} | options))


def test_a_batch_without_company_is_passed_over_and_the_run_goes_on(tmp_path: Path) -> None:
    agent = rare_prompts(3, warmup_iterations=4, kl_coeff=1.0)
    weights = [agent.denoiser.logits.detach().clone()]
    with pytest.warns(UserWarning, match="a prompt of its own") as caught:
        rows = agent.train(
            progress=False, callbacks=[lambda row: weights.append(agent.denoiser.logits.detach().clone())]
        )
    assert len(caught) == 1
    assert len(rows) == 8
    passed = [row["lone_share"] == 1.0 for row in rows]
    assert any(passed)
    assert not all(passed)
    for row, lone, before, after in zip(rows, passed, weights, weights[1:], strict=False):
        assert torch.equal(before, after) == lone
        assert (row["loss_objective"] is None) == lone
        assert (row["ess"] is None) == lone
        assert row["learning_rate"] == pytest.approx(agent.config.learning_rate * min(1.0, row["iteration"] / 4))
        assert set(row) == set(rows[0])
    # Stopped right before such a batch, it is resumed like any other run.
    first = passed.index(True)
    folder = {"log_dir": str(tmp_path), "warmup_iterations": 4, "kl_coeff": 1.0}
    if first > 0:
        rare_prompts(3, num_iterations=first, **folder).train(progress=False)
    resumed = rare_prompts(3, **folder)
    with pytest.warns(UserWarning, match="a prompt of its own"):
        resumed.train(progress=False, resume=first > 0)
    assert torch.equal(resumed.denoiser.logits, agent.denoiser.logits)
    again = read_metrics(tmp_path)
    assert [row["loss_objective"] for row in again] == [row["loss_objective"] for row in rows]
