"""The single environment: Gymnasium's own checks on every id, seeds, errors, prompts, pickling, rewards."""

import json
import math
import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env, data_equivalence

from sepo_env import tasks
from sepo_env.envs.gym_env import DiffusionEnv
from sepo_env.errors import (
    ArtefactsError,
    HeldOutRewardError,
    InvalidActionError,
    InvalidArgumentError,
    InvalidPromptError,
    RewardError,
    UnknownNameError,
    UnknownOptionError,
)
from sepo_env.tasks.alphabet import AlphabetTask


def toy(**options):
    return gym.make("ToyCTMC-v0", **options)


def play(env, actions=None):
    """Walk to the end of the episode; return the observations and the last step's reward and info."""
    seen, terminated, steps = [], False, 0
    while not terminated:
        action = env.unwrapped.pretrained_action() if actions is None else actions[steps]
        observation, reward, terminated, truncated, info = env.step(action)
        seen.append(observation)
        steps += 1
        assert not truncated
        assert terminated or (reward == 0.0 and info == {})
    return seen, reward, info


# -- Gymnasium's contract, over the registry


def test_check_env_finds_nothing(env_id, few_steps):
    check_env(gym.make(env_id, **few_steps).unwrapped)  # warnings are errors here


def test_check_env_finds_nothing_in_any_kind_of_toy(toy_options):
    check_env(toy(**toy_options).unwrapped)


def test_an_episode_ends_with_the_sequence_and_its_reward(env_id, few_steps):
    env = gym.make(env_id, **few_steps)
    observation, info = env.reset(seed=3)
    assert info == {}
    assert observation["tokens"].dtype == np.int64
    assert observation["time"].dtype == np.float32
    assert observation["time"] == 1.0
    seen, reward, info = play(env)
    assert len(seen) == few_steps["num_steps"]
    assert [float(o["time"][0]) for o in seen] == pytest.approx([0.8, 0.6, 0.4, 0.2, 0.0])
    task = env.unwrapped.task
    tokens = torch.from_numpy(seen[-1]["tokens"])[None]
    assert info["sequence"] == task.decode(tokens)[0]
    if isinstance(task, AlphabetTask):
        assert set(info["sequence"]) <= set(task.alphabet)
    assert reward == pytest.approx(float(task.make_reward()(tokens)))
    assert info["reward_terms"] == {task.training_reward: reward, "reward": reward}


_SUMS = {
    "DNAEnhancer-v0": {"gc": -0.2},
    "TextRLHF-v0": {"sentiment": -0.2},
    "TextSentiment-v0": {"letters": -0.2},
    "ToyCTMC-v0": {"share_of_a": 1.0},
}
"""A weighted sum of each world's rewards."""


def test_the_spec_survives_json(env_id, few_steps):
    env = gym.make(env_id, reward=_SUMS[env_id], **few_steps)
    assert env.spec is not None
    spec = EnvSpec.from_json(env.spec.to_json())
    assert json.loads(spec.to_json()) == json.loads(env.spec.to_json())
    again = gym.make(spec)
    first, second = env.reset(seed=5), again.reset(seed=5)
    assert data_equivalence(first, second, exact=True)
    assert data_equivalence(play(env), play(again), exact=True)


def test_an_environment_pickled_in_mid_episode_goes_on_identically(env_id, few_steps):
    env = gym.make(env_id, render_mode="ansi", **few_steps)
    env.reset(seed=7)
    env.step(env.unwrapped.pretrained_action())
    copy = pickle.loads(pickle.dumps(env))
    assert data_equivalence(play(env), play(copy), exact=True)
    assert env.render() == copy.render()
    # ... and its stream goes on, too.
    env.reset(), copy.reset()
    assert data_equivalence(play(env), play(copy), exact=True)


def test_random_actions_are_in_the_space_and_make_episodes(env_id, few_steps):
    env = gym.make(env_id, **few_steps)
    env.action_space.seed(0)
    action = env.action_space.sample()
    # Exponential with mean 1, rather than uniform over all of float32.
    assert 0.3 < float(action.mean()) < 3.0
    assert action in env.action_space
    assert np.full_like(action, np.inf) not in env.action_space
    env.reset(seed=0)
    play(env, [env.action_space.sample() for _ in range(5)])


def test_spaces_follow_the_settings():
    env = toy(num_tokens=2, length=5).unwrapped
    assert env.action_space.shape == (5, 2)
    assert env.observation_space["tokens"].nvec.tolist() == [3] * 5  # MASK is a category
    assert toy(num_tokens=2, length=5, remask=True).action_space.shape == (5, 3)
    assert toy(graph="uniform").observation_space["tokens"].nvec.tolist() == [3] * 4
    assert set(toy().observation_space) == {"tokens", "time"}
    assert set(toy(conditional=True).observation_space) == {"tokens", "time", "prompt_mask"}
    assert set(toy(prompted=True).observation_space) == {"tokens", "time", "prompt_mask"}
    assert set(toy(prompted=True, conditional=False).observation_space) == {"tokens", "time"}


# -- seeds


def test_the_same_seed_gives_the_same_episodes_and_reset_goes_on_with_the_stream(toy_options):
    env = toy(**toy_options)

    def episode(**reset):
        first = env.reset(**reset)
        return first, play(env)

    one, two = episode(seed=11), episode()
    assert data_equivalence(episode(seed=11), one, exact=True)
    assert data_equivalence(episode(), two, exact=True)
    assert not data_equivalence(one, two, exact=True)
    assert not data_equivalence(episode(seed=12), one, exact=True)
    assert env.unwrapped.np_random_seed == 12


def test_without_a_seed_environments_differ():
    sequences = []
    for _ in range(3):
        env = toy(length=6, num_tokens=4)
        env.reset()
        sequences += [play(env)[2]["sequence"]]
    assert len(set(sequences)) > 1


def test_a_generator_put_into_np_random_governs_the_stream():
    env = toy()
    episodes = []
    for _ in range(2):
        env.unwrapped.np_random = np.random.default_rng(3)
        both = []
        for _ in range(2):
            env.reset()
            both.append(play(env)[2]["sequence"])
        episodes.append(both)
    assert episodes[0] == episodes[1]


# -- actions


@pytest.mark.parametrize("value", [math.nan, -1.0, math.inf])
def test_a_bad_action_is_refused_and_changes_nothing(env_id, few_steps, value):
    env, twin = (gym.make(env_id, **few_steps) for _ in range(2))
    env.reset(seed=1), twin.reset(seed=1)
    bad = env.unwrapped.pretrained_action()
    bad[3, 1] = value
    letter = env.unwrapped.task.token_texts[1]
    with pytest.raises(InvalidActionError, match=f"environment 0, position 3, token '{letter}'"):
        env.step(bad)
    assert data_equivalence(play(env), play(twin), exact=True)


def test_a_mask_without_a_rate_on_the_last_step_is_refused_and_the_caller_can_act_again():
    env = toy(num_steps=1)
    env.reset(seed=0)
    action = np.ones((4, 3), dtype=np.float32)
    action[2] = 0.0
    with pytest.raises(InvalidActionError, match=r"position 2: .*'A', 'B', 'C'.*last step"):
        env.step(action)
    action[2, 1] = 0.1
    _, _, terminated, _, info = env.step(action)
    assert terminated
    assert info["sequence"][2] == "B"


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (np.ones((4, 4), dtype=np.float32), r"shape \(4, 4\), expected \(4, 3\)"),
        (np.ones((4, 3)), "float64, expected float32"),
        (np.ones((4, 3), dtype=np.int64), "int64, expected float32"),
    ],
)
def test_actions_of_another_shape_or_dtype_are_refused(action, words):
    env = toy().unwrapped
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=words):
        env.step(action)


def test_stepping_needs_a_running_episode():
    env = toy(num_steps=1).unwrapped
    action = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(ResetNeeded):
        env.step(action)
    env.reset(seed=0)
    env.step(action)
    with pytest.raises(ResetNeeded):
        env.step(action)


def test_a_reward_that_fails_leaves_the_episode_where_it_was():
    moods = iter([[float("nan")], [2.5]])
    env = toy(num_steps=2, reward=lambda sequences: next(moods))
    env.reset(seed=0)
    env.step(np.zeros((4, 3), dtype=np.float32))
    action = np.ones((4, 3), dtype=np.float32)
    with pytest.raises(RewardError):
        env.step(action)
    _, reward, terminated, _, _ = env.step(action)
    assert (reward, terminated) == (2.5, True)


# -- prompts


@pytest.mark.parametrize("prompt", ["A??C", [0, 3, 3, 2], np.array([0, -1, -1, 2])])
def test_a_prompt_is_clamped_and_shown(prompt):
    env = toy(graph="absorbing")
    for _ in range(3):
        observation, info = env.reset(options={"prompt": prompt})
        assert observation["tokens"].tolist() == [0, 3, 3, 2]
        assert info["prompt_mask"].tolist() == [True, False, False, True]
        final = play(env)[2]["sequence"]
        assert (final[0], final[3]) == ("A", "C")
    assert env.reset()[1] == {}  # a prompt is for one episode


def test_a_conditional_environment_shows_the_prompt_in_its_observation():
    env = toy(conditional=True)
    observation, info = env.reset(seed=0)
    assert observation["prompt_mask"].tolist() == [0, 0, 0, 0]
    observation, info = env.reset(options={"prompt": "?B??"})
    assert observation["prompt_mask"].tolist() == [0, 1, 0, 0]
    assert info == {}
    seen, _, _ = play(env)
    assert all(o["prompt_mask"].tolist() == [0, 1, 0, 0] for o in seen)


def test_the_task_draws_prompts_of_its_own():
    env = toy(prompted=True)
    env.reset(seed=0)
    prompts = set()
    for _ in range(200):
        observation, _ = env.reset()
        assert observation["prompt_mask"].sum() == 1
        position = int(observation["prompt_mask"].argmax())
        prompts.add((position, int(observation["tokens"][position])))
    assert len(prompts) == 12  # each of the 4 positions with each of the 3 tokens
    given, _ = env.reset(options={"prompt": "AB??"})  # the caller's goes first
    assert given["tokens"].tolist() == [0, 1, 3, 3]


NO_PROMPTS = [
    *("ABCA", "AB", "AXCA", "ABC??", b"A???", 3, 0.5, object(), {}, {"A": 1}, [], [[]], ["A???", 3], [None, 0]),
    *([0, 1], [[0, 3], [1]], [[[0, 3, 3, 3]]], [[0, 3, 3, 3]] * 2, ["A???"] * 2, lambda: "A???"),
    *(np.array([0.5, 1, 1, 1]), np.ones(4, bool), np.ones(4, complex), np.array(["A", "?", "?", "?"]), torch.ones(4)),
    # Ids of another vocabulary, all of them or one: they are no free positions.
    *([7, 8, 9, 10], [0, 3, 3, 4], [0, 3, 3, -2], torch.full((4,), 101), np.full(4, 50256), [0, 1, 2, -100]),
]


@pytest.mark.parametrize("prompt", NO_PROMPTS)
@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_a_prompt_that_does_not_fit_is_named_and_the_episode_goes_on(prompt, graph):
    env, twin = toy(graph=graph), toy(graph=graph)
    env.reset(seed=0), twin.reset(seed=0)
    with pytest.raises(InvalidPromptError) as caught:
        env.reset(options={"prompt": prompt})
    assert "\n" not in str(caught.value)
    assert data_equivalence(play(env), play(twin), exact=True)


@pytest.mark.parametrize("options", [3, "prompt", [("prompt", "A???")], object(), True])
def test_options_of_a_reset_are_a_dictionary(options):
    with pytest.raises(InvalidArgumentError, match=r"^options is .* but must be a mapping, or None"):
        toy().reset(options=options)
    with pytest.raises(InvalidArgumentError, match=r"^options is .* but must be a mapping, or None"):
        gym.make_vec("ToyCTMC-v0", num_envs=2).reset(options=options)


def test_a_reset_option_that_nobody_reads_is_refused():
    with pytest.raises(UnknownNameError, match="did you mean 'prompt'"):
        toy().reset(options={"promt": "A???"})


# -- settings


def test_rewards_of_every_kind_reach_the_end_of_an_episode():
    def count_a(sequences):
        return [s.count("A") for s in sequences]

    def tokens_a(tokens: torch.Tensor):
        return (tokens == 0).sum(-1)

    class Module(torch.nn.Module):
        def forward(self, tokens):
            return (tokens == 0).sum(-1).float()

    for spec, scale in [
        (count_a, 1.0),
        (tokens_a, 1.0),
        (Module(), 1.0),
        ("share_of_a", 0.25),
        ({"share_of_a": 4.0, "table": 0.0}, 1.0),
    ]:
        env = toy(reward=spec)
        env.reset(seed=2)
        _, reward, info = play(env)
        assert reward == pytest.approx(scale * info["sequence"].count("A"))
    assert set(info["reward_terms"]) == {"share_of_a", "table", "reward"}


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"reward": "tabel"}, UnknownNameError, "did you mean 'table'"),
        ({"artefacts": "/data"}, ArtefactsError, "only for dna_enhancer"),
        ({"schedule": "cosin"}, UnknownNameError, "cosine"),
        ({"sampler": "first-hitting", "num_steps": 3}, InvalidArgumentError, "num_steps"),
        ({"num_steps": 0}, InvalidArgumentError, "num_steps"),
        ({"render_mode": "video"}, UnknownNameError, "render_mode"),
        ({"length": 30}, InvalidArgumentError, "2 to 6"),
        ({"colour": "red"}, UnknownOptionError, "unexpected keyword argument 'colour'.* It takes: denoiser, "),
        ({"on_error": "floor"}, InvalidArgumentError, "floor"),
    ],
)
def test_wrong_settings_are_refused_when_the_environment_is_made(options, error, words):
    with pytest.raises(error, match=words):
        DiffusionEnv("toy", **options)


def test_reward_options_are_passed_on():
    def picky(sequences):
        return [float("nan") for _ in sequences]

    env = toy(reward=picky, on_error="floor", floor=-1.5, num_steps=1)
    env.reset(seed=0)
    with pytest.warns(RuntimeWarning, match="floor"):
        assert play(env)[1] == -1.5
    assert env.unwrapped.episodes.reward.failures == 1


def test_a_ready_task_is_taken_but_not_changed():
    task = tasks.make("toy", length=3)
    env = DiffusionEnv(task, num_steps=2)
    assert env.task is task
    with pytest.raises(InvalidArgumentError, match="schedule"):
        DiffusionEnv(task, schedule="cosine")


def test_the_held_out_reward_trains_nobody():
    with pytest.raises(HeldOutRewardError):
        gym.make("DNAEnhancer-v0", reward="held_out_activity")
    with pytest.raises(HeldOutRewardError):
        gym.make("DNAEnhancer-v0", reward={"gc": 1.0, "held_out_activity": 0.1})


def test_first_hitting_episodes_last_as_long_as_there_are_masks():
    env = toy(sampler="first-hitting", length=5)
    env.reset(seed=0)
    assert len(play(env)[0]) == 5
    env.reset(options={"prompt": "?A?C?"})
    assert len(play(env)[0]) == 3


def test_the_pretrained_action_is_the_posterior_at_masked_positions():
    env = toy().unwrapped
    env.reset(options={"prompt": "?A??"})
    action = env.pretrained_action()
    state = env.episodes.running_state()
    posterior = env.task.denoiser(state.tokens, state.time).exp()[0].detach().numpy()
    np.testing.assert_allclose(action[[0, 2, 3]], posterior[[0, 2, 3]])
    assert not action[1].any()
    assert action.dtype == np.float32
