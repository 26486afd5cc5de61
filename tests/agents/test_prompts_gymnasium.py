"""Prompted Gymnasium environments, wrapped by TorchRL, feed the policy, the baselines and the losses."""

from typing import Any

import gymnasium as gym
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict
from torchrl.envs import GymWrapper

from agents.objectives import PPOLoss, ReinforceLoss, SEPOLoss
from agents.policies.rates import Critic, RatePolicy
from agents.training.batch import add_critic_advantages, add_group_advantages, prompt_groups, visited_states
from sepo_env import TorchRLEnv
from sepo_env.denoisers import ClassifierFreeGuidance, TabularDenoiser
from sepo_env.errors import InvalidArgumentError
from sepo_env.tasks import Task, make
from tests.comparisons import assert_same

B, K = 6, 3
OPTIONS: dict[str, Any] = {"num_tokens": 3, "length": 4, "prompted": True, "num_steps": K}


def from_vector(task: Task, denoiser: TabularDenoiser, seed: int, mode: str = "SameStep") -> list[TensorDict]:
    """Two episodes, one after the other, of groups of three."""
    envs = gym.make_vec("ToyCTMC-v0", num_envs=B, graph=_graph(task), prompt_repeats=3, autoreset_mode=mode, **OPTIONS)
    env = GymWrapper(envs)
    env.set_seed(seed)
    both = env.rollout(2 * K, RatePolicy(denoiser, task.process, num_steps=K), break_when_any_done=False)
    assert both["next", "done"][..., 0].nonzero()[:, 1].tolist() == [K - 1, 2 * K - 1] * B
    return [both[:, :K], both[:, K:]]


def from_single(task: Task, denoiser: TabularDenoiser, seed: int) -> list[TensorDict]:
    env = GymWrapper(gym.make("ToyCTMC-v0", graph=_graph(task), **OPTIONS), categorical_action_encoding=True)
    env.set_seed(seed)
    # Of 12 prompts two must agree.
    return [torch.stack([env.rollout(K, RatePolicy(denoiser, task.process, num_steps=K)) for _ in range(13)])]


def _graph(task: Task) -> str:
    return "uniform" if task.process.graph.mask_token is None else "absorbing"


@given(st.sampled_from(["absorbing", "uniform"]), st.booleans(), st.integers(0, 999))
@settings(max_examples=12, deadline=None)
def test_wrapped_environments_are_trained_on_as_native_ones(graph: str, vector: bool, seed: int) -> None:
    task = make("toy", num_tokens=3, length=4, graph=graph)
    denoiser = task.load_denoiser()
    episodes = from_vector(task, denoiser, seed) if vector else from_single(task, denoiser, seed)
    for trajectories in episodes:
        mask = trajectories["prompt_mask"]
        assert mask.dtype == torch.int8
        assert mask.sum(-1).eq(1).all()
        given_at_first = torch.where(mask[:, 0].bool(), trajectories["tokens"][:, 0], -1)
        for state in (trajectories, trajectories["next"]):
            assert torch.equal(state["prompt_mask"], mask)
            kept = torch.where(mask.bool(), state["tokens"], -1)
            assert torch.equal(kept, given_at_first[:, None].expand_as(kept))
        reward = task.make_reward()(trajectories["next", "tokens"][:, -1])
        torch.testing.assert_close(trajectories["next", "reward"][:, -1, 0].float(), reward)
        native = trajectories.clone()
        native["prompt_mask"] = mask.bool()
        group = prompt_groups(trajectories)
        assert group is not None
        assert torch.equal(group, native_groups := prompt_groups(native))
        if vector:
            assert torch.equal(native_groups.reshape(-1, 3), native_groups[::3, None].expand(-1, 3))
        torch.manual_seed(0)
        critic = Critic.of(task.process, conditional=True)
        losses = {
            "reinforce": ReinforceLoss(denoiser, task.process),
            "sepo": SEPOLoss(denoiser, task.process, form="path"),
            "ppo": PPOLoss(denoiser, task.process, critic, entropy_coeff=0.1),
        }
        for name, loss in losses.items():
            values = []
            for batch in (trajectories.clone(), native):
                if name == "ppo":
                    add_critic_advantages(batch, critic, gae_lambda=0.9, micro_batch_size=5)
                else:
                    add_group_advantages(batch, "group")
                states = visited_states(batch, torch.arange(K).repeat(len(batch), 1), inclusion_weight=1.0)
                values.append(loss(states))
            assert_same(values[0], values[1])
            assert values[0].isfinite().all()


def test_a_guided_policy_reads_the_prompt_by_itself() -> None:
    """Also where Gymnasium shows it as whole numbers; the entry is not asked for where there is none."""
    task = make("toy", num_tokens=2, length=3)
    denoiser = task.load_denoiser()
    guided = ClassifierFreeGuidance(denoiser, 2.0)
    tokens, time = torch.tensor([[1, 2, 2]]), torch.ones(1, 1)
    given_ = torch.tensor([[True, False, False]])
    expected = guided(tokens, torch.ones(1), given_).exp()[0, 1:]
    for mask in (given_, given_.to(torch.int8)):
        state = TensorDict({"tokens": tokens, "time": time, "prompt_mask": mask}, batch_size=[1])
        torch.testing.assert_close(RatePolicy(guided, task.process)(state)["action"][0, 1:], expected)
        assert not torch.allclose(RatePolicy(denoiser, task.process)(state)["action"][0, 1:], expected)
    unprompted = TensorDict({"tokens": tokens, "time": time}, batch_size=[1])
    plain = RatePolicy(denoiser, task.process)(unprompted.clone())["action"]
    assert_same(RatePolicy(guided, task.process)(unprompted)["action"], plain)
    assert_same(RatePolicy(guided, task.process)(tokens=tokens, time=time), plain)  # by keywords
    rollout = TorchRLEnv(task, num_envs=2, seed=0).rollout(2, RatePolicy(guided, task.process))
    assert "prompt_mask" not in rollout.keys()  # noqa: SIM118 - iterating over a tensordict walks its batch


def test_a_guided_policy_that_would_not_see_the_prompt_says_so() -> None:
    task = make("toy", num_tokens=2, length=3)
    denoiser = task.load_denoiser()
    given_ = torch.tensor([[True, False, False]])
    state = TensorDict({"tokens": torch.tensor([[1, 2, 2]]), "time": torch.ones(1, 1)}, batch_size=[1])
    at_the_root, nested = state.clone(), state.clone()
    at_the_root["prompt_mask"] = given_
    nested["seen", "prompt_mask"] = given_
    guided = ClassifierFreeGuidance(denoiser, 2.0)
    with pytest.raises(InvalidArgumentError, match="prompt_key='prompt_mask'"):
        RatePolicy(guided, task.process, prompt_key=None)(at_the_root)
    with pytest.raises(InvalidArgumentError, match=r"prompt_key=\('seen', 'prompt_mask'\)"):
        RatePolicy(guided, task.process)(nested)
    told = RatePolicy(guided, task.process, prompt_key=("seen", "prompt_mask"))(nested)["action"]
    assert_same(told, RatePolicy(guided, task.process)(at_the_root)["action"])
    RatePolicy(denoiser, task.process, prompt_key=None)(at_the_root)  # nothing is lost on one that reads tokens only
