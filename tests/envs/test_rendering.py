"""Texts and pictures of denoising, letter by letter and cell by cell."""

import re

import gymnasium as gym
import numpy as np
import pytest

from sepo_env.envs.rendering import History, ansi, token_colours

FUTURE, MASK = [246, 247, 249], [218, 222, 228]
CODES = re.compile("\x1b\\[[0-9]m")


def test_text_shows_masks_dim_and_fresh_tokens_bright():
    before, now = np.array([4, 0, 4, 4]), np.array([4, 0, 2, 4])
    text = ansi(now, before, "ACGT?", step=3, time=0.25)
    assert text == "step 3, t = 0.250\n\x1b[0m\x1b[2m?\x1b[0mA\x1b[0m\x1b[1mG\x1b[0m\x1b[2m?\x1b[0m"


def test_text_breaks_long_sequences_into_lines_and_keeps_every_letter():
    tokens = np.arange(250) % 5
    lines = ansi(tokens, None, "ACGT?", step=0, time=1.0).split("\n")
    assert [len(CODES.sub("", line)) for line in lines[1:]] == [100, 100, 50]
    assert "".join(CODES.sub("", line) for line in lines[1:]) == "ACGT?" * 50


def test_a_finished_sequence_has_no_codes_left_over():
    assert ansi(np.array([0, 1]), np.array([0, 1]), "AB?", step=1, time=0.0) == "step 1, t = 0.000\nAB"


def test_words_are_kept_whole_and_lines_broken_between_them():
    letters = [" lord", ",", " god" * 30, "_"]
    before, now = np.array([3, 3, 2, 3]), np.array([0, 1, 2, 3])
    text = ansi(now, before, letters, step=1, time=0.5)
    bright, dim, plain = "\x1b[1m", "\x1b[2m", "\x1b[0m"
    assert text.split("\n")[1:] == [f"{plain}{bright} lord,{plain}", " god" * 30, f"{plain}{dim}_{plain}"]


def test_large_vocabularies_repeat_their_colours_and_stay_visible():
    colours = token_colours(100)
    assert np.array_equal(colours[0], colours[24])
    assert len({tuple(colour) for colour in colours.tolist()}) == 24
    assert (colours.min(axis=1) < 240).all()


def test_colours_differ_from_each_other_and_from_masks():
    for num_tokens in (2, 4, 20):
        colours = [tuple(colour) for colour in token_colours(num_tokens).tolist()]
        assert len({*colours, tuple(MASK), tuple(FUTURE)}) == num_tokens + 2


def test_a_picture_has_a_cell_for_each_token_and_step():
    history = History(num_envs=2, length=3, horizon=2, num_tokens=2)
    history.record(np.array([[2, 2, 2], [2, 2, 2]]), np.array([0, 0]))
    history.record(np.array([[2, 1, 2], [0, 2, 2]]), np.array([1, 1]))
    picture = history.image(0)
    colours = token_colours(2).tolist()
    size = 48  # the largest cell
    assert picture.shape == (12 + 3 * size + 12 + size + 12, 12 + 3 * size + 12, 3)
    assert picture.dtype == np.uint8

    def cell(row, column):
        top, left = 12 + row * size + (12 if row == 3 else 0), 12 + column * size
        block = picture[top : top + size, left : left + size]
        inner = block[1:-1, 1:-1]
        assert (inner == inner[0, 0]).all()
        assert (block[[0, -1]] == 255).all()
        assert (block[:, [0, -1]] == 255).all()
        return inner[0, 0].tolist()

    assert [cell(0, i) for i in range(3)] == [MASK] * 3
    assert [cell(1, i) for i in range(3)] == [MASK, colours[1], MASK]
    assert [cell(2, i) for i in range(3)] == [FUTURE] * 3
    assert [cell(3, i) for i in range(3)] == [MASK, colours[1], MASK]  # the present sequence
    assert (picture[:12] == 255).all()
    assert (picture[:, -12:] == 255).all()


def test_a_new_episode_begins_a_new_picture_in_its_row_alone():
    history = History(2, 3, 2, 2)
    for step in range(3):
        history.record(np.full((2, 3), step % 2), np.array([step, step]))
    other = history.image(1)
    history.record(np.array([[2, 2, 2], [0, 0, 0]]), np.array([0, 2]))
    fresh = History(1, 3, 2, 2)
    fresh.record(np.array([[2, 2, 2]]), np.array([0]))
    assert np.array_equal(history.image(0), fresh.image(0))
    assert np.array_equal(history.image(1), other)
    assert history.previous(0) is None
    assert history.previous(1).tolist() == [1, 1, 1]


@pytest.mark.parametrize("options", [{}, {"sampler": "first-hitting"}, {"remask": True}])
def test_every_frame_of_an_episode_has_the_same_shape(options):
    env = gym.make("ToyCTMC-v0", render_mode="rgb_array", **options)
    env.reset(seed=0)
    frames, terminated = [env.render()], False
    while not terminated:
        terminated = env.step(env.unwrapped.pretrained_action())[2]
        frames.append(env.render())
    assert len({frame.shape for frame in frames}) == 1
    assert not np.array_equal(frames[0], frames[-1])
    env.reset(seed=0)
    assert np.array_equal(env.render(), frames[0])


def test_gymnasium_collects_the_frames_of_an_episode(env_id, few_steps):
    env = gym.make(env_id, render_mode="rgb_array_list", **few_steps)
    env.reset(seed=0)
    env.step(env.unwrapped.pretrained_action())
    assert len(env.render()) == 2


def test_a_vector_environment_renders_each_of_its_own(env_id, few_steps):
    single = gym.make(env_id, render_mode="ansi", **few_steps)
    envs = gym.make_vec(env_id, num_envs=2, render_mode="ansi", **few_steps)
    single.reset(seed=4), envs.reset(seed=3)
    assert envs.render()[1] == single.render()
    actions = np.ones(envs.action_space.shape, dtype=np.float32)
    single.step(actions[1]), envs.step(actions)
    assert envs.render()[1] == single.render()
    assert "\x1b[1m" in single.render()


def test_rendering_without_a_mode_warns():
    env = gym.make("ToyCTMC-v0").unwrapped
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="render_mode"):
        assert env.render() is None
