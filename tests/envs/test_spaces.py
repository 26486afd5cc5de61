"""Spaces of the Gymnasium environments."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, MultiDiscrete, flatten
from gymnasium.vector.utils import batch_space
from torchrl.data import Categorical, OneHot
from torchrl.envs import GymWrapper, check_env_specs

from sepo_env import TorchRLEnv
from sepo_env.envs.spaces import box, rate_space


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 5)])
def test_a_space_of_rates_stores_one_bound_and_means_what_a_box_means(shape) -> None:
    space, box = rate_space(shape), Box(0.0, float(np.finfo(np.float32).max), shape, np.float32)
    assert space == box
    assert not any(any(bound.strides) for bound in (space.low, space.high, space.bounded_below, space.bounded_above))
    assert space.low.flags.writeable  # torch warns of others, once a process
    assert space.high.flags.writeable
    space.seed(0)
    drawn = np.stack([space.sample() for _ in range(2000)])
    assert drawn.mean() == pytest.approx(1.0, abs=0.03)
    for value in (drawn[0], drawn[0] - 100, drawn[0][0], np.full(shape, np.inf, np.float32)):
        assert space.contains(value) == box.contains(value)


@pytest.mark.parametrize("bound", [10.0, np.inf])
def test_a_box_with_one_bound_is_gymnasiums_and_stores_it_once(bound) -> None:
    ours, theirs = box(-bound, bound, (3, 4)), Box(-bound, bound, (3, 4), np.float32)
    assert ours == theirs
    assert not any(any(limit.strides) for limit in (ours.low, ours.high, ours.bounded_below, ours.bounded_above))
    for space in (ours, theirs):
        space.seed(0)
    assert np.array_equal(ours.sample(), theirs.sample())


# -- tokens are categories


def vocab_size(task) -> int:
    return task.process.graph.vocab_size


def test_tokens_are_categories_for_one_environment(env_id, few_steps) -> None:
    env = gym.make(env_id, **few_steps)
    task, space = env.unwrapped.task, env.observation_space["tokens"]
    assert isinstance(space, MultiDiscrete)
    assert space.dtype == np.int64
    assert space.nvec.tolist() == [vocab_size(task)] * task.length
    observation, _ = env.reset(seed=0)
    assert observation in env.observation_space
    # What a stock agent reads: one number for each category, and no magnitudes.
    flat = flatten(space, observation["tokens"])
    assert flat.tolist() == np.eye(vocab_size(task))[observation["tokens"]].reshape(-1).tolist()


def test_tokens_are_categories_in_a_vector_batched_as_gymnasium_does_it(env_id, few_steps) -> None:
    envs = gym.make_vec(env_id, num_envs=3, **few_steps)
    assert isinstance(envs.single_observation_space["tokens"], MultiDiscrete)
    assert envs.single_observation_space == gym.make(env_id, **few_steps).observation_space
    assert envs.observation_space == batch_space(envs.single_observation_space, 3)
    assert envs.reset(seed=0)[0] in envs.observation_space


def test_tokens_are_categories_for_torchrl_and_no_one_hot_is_made(env_id, few_steps) -> None:
    env = TorchRLEnv(env_id, num_envs=2, **few_steps)
    spec = env.observation_spec["tokens"]
    assert type(spec) is Categorical
    assert (spec.n, spec.shape, spec.dtype) == (vocab_size(env.task), (2, env.task.length), torch.int64)
    assert env.fake_tensordict()["tokens"].shape == (2, env.task.length)
    assert len(pickle.dumps(spec)) < 2000  # nothing of the size of the vocabulary, or of the batch
    assert spec.is_in(env.reset()["tokens"])


def test_wrapped_by_torchrl_tokens_are_ids_or_one_hot_as_the_caller_says() -> None:
    plain = gym.make("ToyCTMC-v0")
    for ids, spec, shape in ((True, Categorical, (4,)), (False, OneHot, (4, 4))):
        env = GymWrapper(gym.make("ToyCTMC-v0"), categorical_action_encoding=ids)
        assert isinstance(env.observation_spec["tokens"], spec)
        env.set_seed(0)
        tokens = env.reset()["tokens"]
        assert tokens.shape == shape
        found = tokens if ids else tokens.long().argmax(-1)
        assert found.tolist() == plain.reset(seed=0)[0]["tokens"].tolist()
        check_env_specs(env)


def test_a_uniform_graph_has_no_category_for_mask() -> None:
    assert gym.make("ToyCTMC-v0", graph="uniform").observation_space["tokens"].nvec.tolist() == [3] * 4
    assert TorchRLEnv("ToyCTMC-v0", num_envs=1, graph="uniform").observation_spec["tokens"].n == 3
