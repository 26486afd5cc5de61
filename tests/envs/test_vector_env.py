"""The vector environment against a loop of single ones, and against the exact law of what it samples."""

import copy
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import data_equivalence
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from sepo_env.envs.vector_env import DiffusionVectorEnv
from sepo_env.errors import InvalidActionError, InvalidArgumentError

BOTH_MODES = [AutoresetMode.SAME_STEP, AutoresetMode.DISABLED]


def toys(num_envs=3, **options):
    return gym.make_vec("ToyCTMC-v0", num_envs=num_envs, **options)


def loop_of(env_id, num_envs, mode=AutoresetMode.SAME_STEP, **options):
    return SyncVectorEnv([lambda: gym.make(env_id, **options)] * num_envs, autoreset_mode=mode)


def random_rates(envs, number, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.exponential(size=envs.action_space.shape).astype(np.float32) for _ in range(number)]


def same(loop, batch):
    """Whether both made the same step, floats up to 1e-5; the batch's final_info repeats the final observation."""
    infos = copy.deepcopy(batch[-1])
    for name in loop[0]:
        values, flags = (infos.get("final_info", {}).pop(key, None) for key in (name, f"_{name}"))
        for env in np.flatnonzero(flags) if flags is not None else ():
            assert np.array_equal(values[env], infos["final_obs"][env][name])
    return data_equivalence(loop, (*batch[:-1], infos), exact=False)


# -- parity


def test_it_equals_a_loop_of_single_environments(env_id, few_steps):
    loop = loop_of(env_id, 3, **few_steps)
    batch = gym.make_vec(env_id, num_envs=3, **few_steps)
    assert isinstance(batch.unwrapped, DiffusionVectorEnv)
    assert data_equivalence(loop.reset(seed=5), batch.reset(seed=5), exact=True)
    for action in random_rates(batch, 12):
        one, other = loop.step(action), batch.step(action)
        # Oracles see batches of one and of three: floats may differ in the last digit, tokens may not.
        assert data_equivalence(one[0], other[0], exact=True)
        assert same(one, other)


def test_it_equals_the_loop_in_any_kind_of_toy(toy_options):
    loop, batch = loop_of("ToyCTMC-v0", 4, **toy_options), toys(4, **toy_options)
    assert data_equivalence(loop.reset(seed=9), batch.reset(seed=9), exact=True)
    for action in random_rates(batch, 25):
        assert same(loop.step(action), batch.step(action))
    # Seeds for some, none for others; and prompts.
    seeds = [3, None, 8, None]
    for reset in ({"seed": seeds}, {"seed": None}, {"options": {"prompt": "?A??"}}):
        assert data_equivalence(loop.reset(**copy.deepcopy(reset)), batch.reset(**reset), exact=True)
        for action in random_rates(batch, 6):
            assert same(loop.step(action), batch.step(action))


def test_without_autoreset_it_equals_the_loop_and_resets_by_mask():
    options = {"sampler": "first-hitting", "length": 5}
    loop = loop_of("ToyCTMC-v0", 3, AutoresetMode.DISABLED, **options)
    batch = toys(3, autoreset_mode=AutoresetMode.DISABLED, **options)
    loop.reset(seed=1), batch.reset(seed=1)
    prompted = np.array([False, True, False])
    reset = {"reset_mask": prompted, "prompt": "A?B?C"}
    assert data_equivalence(loop.reset(options=dict(reset)), batch.reset(options=reset), exact=True)
    actions = random_rates(batch, 5)
    for step in range(2):
        one, other = loop.step(actions[step]), batch.step(actions[step])
        assert same(one, other)
    assert other[2].tolist() == [False, True, False]
    with pytest.raises(ResetNeeded, match="environment 1"):
        batch.step(actions[2])
    reset = {"reset_mask": prompted}
    assert data_equivalence(loop.reset(options=dict(reset)), batch.reset(options=reset), exact=True)
    for step in range(2, 5):
        assert same(loop.step(actions[step]), batch.step(actions[step]))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # Python 3.12 on fork
def test_async_workers_walk_the_same_way(env_id, few_steps):
    workers = [lambda: gym.make(env_id, **few_steps)] * 2
    envs = AsyncVectorEnv(workers, autoreset_mode=AutoresetMode.SAME_STEP, context="fork")
    try:
        batch = gym.make_vec(env_id, num_envs=2, **few_steps)
        assert data_equivalence(envs.reset(seed=4), batch.reset(seed=4), exact=True)
        for action in random_rates(batch, 9):
            one, other = envs.step(action), batch.step(action)
            assert data_equivalence(one[0], other[0], exact=True)
            assert same(one, other)
    finally:
        envs.close()


def test_a_trajectory_does_not_depend_on_its_batch():
    few, many = toys(2), toys(7)
    few.reset(seed=3), many.reset(seed=0)
    for action in random_rates(many, 9):
        one, other = few.step(action[3:5]), many.step(action)
        assert np.array_equal(one[0]["tokens"], other[0]["tokens"][3:5])
        np.testing.assert_allclose(one[1], other[1][3:5], rtol=1e-5)


# -- Gymnasium's conventions


def test_spaces_modes_and_flags(env_id, few_steps):
    envs = gym.make_vec(env_id, num_envs=2, **few_steps)
    assert envs.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.unwrapped.autoreset_mode is AutoresetMode.SAME_STEP
    assert DiffusionVectorEnv.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert envs.single_action_space == gym.make(env_id, **few_steps).action_space
    observation, _ = envs.reset(seed=0)
    assert observation in envs.observation_space
    envs.action_space.seed(0)
    action = envs.action_space.sample()
    assert 0.3 < float(action.mean()) < 3.0
    observation, rewards, terminated, truncated, _ = envs.step(action)
    assert observation in envs.observation_space
    assert (rewards.dtype, terminated.dtype, truncated.dtype) == (np.float64, np.bool_, np.bool_)
    envs.close()


def test_a_next_step_autoreset_is_refused():
    with pytest.raises(InvalidArgumentError, match="SAME_STEP or DISABLED"):
        toys(autoreset_mode=AutoresetMode.NEXT_STEP)


def test_make_vec_forbids_wrappers_around_single_environments():
    with pytest.raises(gym.error.Error, match="wrappers"):
        toys(wrappers=[gym.wrappers.RecordEpisodeStatistics])


def test_returned_data_is_never_reused():
    envs = toys(autoreset_mode="Disabled", num_steps=3)
    first, _ = envs.reset(seed=0)
    kept = copy.deepcopy(first)
    for action in random_rates(envs, 3):
        envs.step(action)
    assert data_equivalence(first, kept, exact=True)


def test_it_is_pickled_in_mid_episode(env_id, few_steps):
    envs = gym.make_vec(env_id, num_envs=3, **few_steps)
    envs.reset(seed=2)
    actions = random_rates(envs, 12)
    for action in actions[:3]:
        envs.step(action)
    twin = pickle.loads(pickle.dumps(envs))
    for action in actions[3:]:
        assert data_equivalence(envs.step(action), twin.step(action), exact=True)


@pytest.mark.parametrize(
    ("reset", "words"),
    [
        ({"seed": [1, 2]}, "2 seeds for 3"),
        ({"options": {"reset_mask": np.zeros(3, dtype=bool)}}, "reset_mask"),
        ({"options": {"reset_mask": np.array([1, 0, 0])}}, "reset_mask"),
        ({"options": {"reset_mask": [True, [True], False]}}, "reset_mask"),
        ({"options": {"reset_mask": "yes"}}, "reset_mask"),
        ({"options": {"reset_mask": np.ones((3, 1), dtype=bool)}}, "reset_mask"),
    ],
)
def test_resets_that_make_no_sense_are_refused(reset, words):
    with pytest.raises(InvalidArgumentError, match=words):
        toys().reset(**reset)


def test_a_bad_action_names_its_environment_and_changes_nothing():
    envs, twin = toys(), toys()
    envs.reset(seed=1), twin.reset(seed=1)
    action = random_rates(envs, 1)[0]
    bad = action.copy()
    bad[2, 1, 0] = -3.0
    with pytest.raises(InvalidActionError, match="environment 2, position 1, token 'A': the rate is -3"):
        envs.step(bad)
    assert data_equivalence(envs.step(action), twin.step(action), exact=True)


# -- what episodes sample


@pytest.mark.parametrize(
    "options",
    [
        {"num_steps": 1},
        {"num_steps": 3},
        {"num_steps": 3, "parameterisation": "score"},
        {"num_steps": 4, "schedule": "cosine"},
        {"num_steps": 3, "remask": True},
        {"num_steps": 3, "prompted": True},
        {"num_steps": 3, "graph": "uniform"},
        {"num_steps": 2, "graph": "uniform", "prompted": True},
        {"sampler": "first-hitting"},
        {"sampler": "first-hitting", "prompted": True},
    ],
    ids=str,
)
def test_episodes_under_the_pretrained_action_have_the_exact_law(options, final_tokens, p_value):
    envs = toys(4000, num_tokens=2, length=3, **options)
    task = envs.unwrapped.task
    sampler = options.get("sampler", "k-step")
    law = task.exact_law(task.denoiser, options.get("num_steps"), sampler=sampler)
    tokens = final_tokens(envs)
    assert p_value(tokens, law) > 1e-3
    assert p_value(tokens, torch.full_like(law, 1 / len(law))) < 1e-6  # the test can tell laws apart


def test_a_given_prompt_conditions_the_law(final_tokens, p_value):
    for options in ({"num_steps": 3}, {"sampler": "first-hitting"}):
        envs = toys(4000, num_tokens=2, length=3, **options)
        task = envs.unwrapped.task
        law = task.exact_law(
            task.denoiser,
            options.get("num_steps"),
            sampler=options.get("sampler", "k-step"),
            prompt=torch.tensor([2, 1, 2]),
        )
        assert p_value(final_tokens(envs, prompt="?B?"), law) > 1e-3


def test_many_steps_tend_to_first_hitting(final_tokens, p_value):
    envs = toys(3000, num_tokens=2, length=3, num_steps=200)
    task = envs.unwrapped.task
    assert p_value(final_tokens(envs), task.exact_law(task.denoiser, sampler="first-hitting")) > 1e-3


def test_episodes_that_follow_each_other_are_independent(final_tokens, p_value):
    envs = toys(1000, num_tokens=2, length=2, num_steps=1)
    task = envs.unwrapped.task
    one = final_tokens(envs)
    envs.step(envs.unwrapped.pretrained_action())
    _, _, _, _, infos = envs.step(envs.unwrapped.pretrained_action())
    two = torch.tensor(np.stack([last["tokens"] for last in infos["final_obs"]]))
    law = task.exact_law(task.denoiser, 1)
    assert p_value(torch.cat([one, two], dim=1), torch.outer(law, law).flatten()) > 1e-3
