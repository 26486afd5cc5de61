"""Seeds in every environment: what is no seed is refused by name, and no two seeds are one trajectory."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence

from sepo_env import TorchRLEnv
from sepo_env.diffusion.likelihood import elbo
from sepo_env.diffusion.random import keys_from_seed, row_keys
from sepo_env.diffusion.sampler import first_hitting, sample
from sepo_env.envs.episodes import Episodes
from sepo_env.errors import InvalidArgumentError, InvalidPromptError
from sepo_env.tasks import make

LARGEST = 2**63 - 1
NO_SEEDS = [-1, -(2**62), 2**63, 2**63 + 7, 2**200, 1.5, float("nan"), "7", "a", b"7", True, {}, object(), [[1]]]


def tokens_of(env, steps=4):
    seen = []
    for _ in range(steps):
        observation, *_ = env.step(env.unwrapped.pretrained_action())
        seen.append(observation["tokens"].copy())
    return np.stack(seen)


def single(**options):
    return gym.make("ToyCTMC-v0", length=6, num_steps=16, **options)


def several(num_envs=2, **options):
    return gym.make_vec("ToyCTMC-v0", num_envs=num_envs, length=6, num_steps=16, **options)


@pytest.mark.parametrize("make_env", [single, several])
@pytest.mark.parametrize("seed", NO_SEEDS)
def test_what_is_no_seed_is_named_and_the_episode_goes_on(make_env, seed):
    env, twin = make_env(), make_env()
    env.reset(seed=3), twin.reset(seed=3)
    with pytest.raises(InvalidArgumentError, match="^seed is "):
        env.reset(seed=seed)
    assert np.array_equal(tokens_of(env), tokens_of(twin))
    assert data_equivalence(env.reset(), twin.reset(), exact=True)  # neither was the stream of random numbers touched
    assert np.array_equal(tokens_of(env), tokens_of(twin))


@pytest.mark.parametrize("seed", [seed for seed in NO_SEEDS if not isinstance(seed, list)])
def test_a_list_of_seeds_is_looked_into(seed):
    envs = several()
    envs.reset(seed=[1, None])
    with pytest.raises(InvalidArgumentError, match="^seed is "):
        envs.reset(seed=[1, seed])
    with pytest.raises(InvalidArgumentError, match="3 seeds for 2 environments"):
        envs.reset(seed=[1, 2, 3])


@pytest.mark.parametrize("seed", [*NO_SEEDS, [1, 2]])
def test_torchrls_seeds_are_refused_alike(seed):
    with pytest.raises(InvalidArgumentError, match="^seed is "):
        TorchRLEnv("ToyCTMC-v0", num_envs=2, seed=seed)
    env, twin = (TorchRLEnv("ToyCTMC-v0", num_envs=2, seed=3) for _ in range(2))
    with pytest.raises(InvalidArgumentError, match="^seed is "):
        env.set_seed(seed)

    def rollout(env):
        return env.rollout(8, lambda td: td.set("action", env.pretrained_action()))

    for _ in range(2):
        rollouts = [rollout(env), rollout(twin)]
        assert torch.equal(rollouts[0]["next", "tokens"], rollouts[1]["next", "tokens"])


def test_the_last_row_has_a_seed_too():
    several().reset(seed=LARGEST - 1)
    TorchRLEnv("ToyCTMC-v0", num_envs=2, seed=LARGEST - 1)
    with pytest.raises(InvalidArgumentError, match=f"last environment's seed is {LARGEST + 1}"):
        several().reset(seed=LARGEST)
    with pytest.raises(InvalidArgumentError, match=f"last row's seed is {LARGEST + 1}"):
        TorchRLEnv("ToyCTMC-v0", num_envs=2, seed=LARGEST)


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.uint64(7), 7.0, np.float32(7)])
def test_whole_numbers_of_any_kind_are_seeds(seed):
    env, plain = single(), single()
    env.reset(seed=seed), plain.reset(seed=7)
    assert env.unwrapped.np_random_seed == 7
    assert np.array_equal(tokens_of(env), tokens_of(plain))
    envs, others = several(), several()
    envs.reset(seed=seed), others.reset(seed=7)
    expected = tokens_of(others)
    assert np.array_equal(tokens_of(envs), expected)
    for both in ([seed, 8], np.array([7, 8]), (7, np.int32(8)), range(7, 9)):
        envs.reset(seed=both)
        assert np.array_equal(tokens_of(envs), expected)
    envs = TorchRLEnv("ToyCTMC-v0", num_envs=2, seed=seed, length=6, num_steps=16)
    rollout = envs.rollout(4, lambda td: td.set("action", envs.pretrained_action()))
    assert np.array_equal(rollout["next", "tokens"].transpose(0, 1).numpy(), expected)


def test_no_two_seeds_are_one_trajectory():
    seeds = [0, 1, 7, 2**31, 2**32 + 7, 2**53 + 1, 2**53 + 2, 2**62, 2**62 + 7, LARGEST - 7, LARGEST]
    run = Episodes("toy", len(seeds), length=6, num_steps=16)
    run.seed(seeds)
    assert len(run.reset().keys.unique()) == len(seeds)
    seen = []
    for seed in seeds:
        env = single()
        env.reset(seed=seed)
        seen.append(tokens_of(env, 12).tobytes())
    assert len(set(seen)) == len(seeds)


@pytest.mark.parametrize(
    "seeds", [torch.tensor([3, -1]), torch.tensor([-(2**63)]), torch.zeros(2), torch.zeros(2).int()]
)
def test_keys_are_made_of_seeds_only(seeds):
    with pytest.raises(InvalidArgumentError, match="the seeds are"):
        keys_from_seed(seeds)


def test_samplers_and_bounds_refuse_what_is_no_seed():
    task = make("toy")
    calls = [
        lambda seed: row_keys(seed, 2),
        lambda seed: sample(task.process, task.denoiser, 2, 4, num_steps=2, seed=seed),
        lambda seed: first_hitting(task.process, task.denoiser, 2, 4, seed=seed),
        lambda seed: elbo(task.process, task.denoiser, torch.zeros(2, 4).long(), num_steps=2, seed=seed),
        lambda seed: task.log_likelihood(torch.zeros(2, 4).long(), num_steps=2, seed=seed),
    ]
    for call in calls:
        call(LARGEST - 1)
        for seed in (-1, LARGEST, 2**63, "a", 0.5, None):
            with pytest.raises(InvalidArgumentError, match="seed is "):
                call(seed)


def test_a_prompt_that_does_not_fit_leaves_the_random_stream_as_it_was():
    for make_env in (single, several):
        env, twin = make_env(), make_env()
        env.reset(seed=3), twin.reset(seed=3)
        with pytest.raises(InvalidPromptError):
            env.reset(seed=4, options={"prompt": "no such letters"})
        assert np.array_equal(tokens_of(env), tokens_of(twin))
        assert data_equivalence(env.reset(), twin.reset(), exact=True)
        assert env.unwrapped.np_random_seed == twin.unwrapped.np_random_seed == 3
        assert np.array_equal(tokens_of(env), tokens_of(twin))


def test_without_a_seed_one_is_drawn_that_can_be_given_again():
    for make_env in (single, several):
        env = make_env()
        env.reset()
        first = tokens_of(env)
        again = make_env()
        again.reset(seed=env.unwrapped.np_random_seed % 2**63)
        assert np.array_equal(tokens_of(again), first)
