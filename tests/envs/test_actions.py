"""Actions in every skin: another shape or dtype is refused by name, and does no harm to the episode."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence

from sepo_env import TorchRLEnv
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.wrappers import (
    KLPenalty,
    LogitAction,
    TokenAction,
    VectorKLPenalty,
    VectorLogitAction,
    VectorTokenAction,
)
from sepo_env.errors import InvalidActionError, InvalidArgumentError

B, L, V = 2, 4, 3


def toy():
    return gym.make("ToyCTMC-v0", num_tokens=V, length=L, disable_env_checker=True)


def toys():
    return gym.make_vec("ToyCTMC-v0", num_envs=B, num_tokens=V, length=L)


SKINS = {
    "rates": toy,
    "vector rates": toys,
    "logits": lambda: LogitAction(toy()),
    "vector logits": lambda: VectorLogitAction(toys()),
    "choices": lambda: TokenAction(toy()),
    "vector choices": lambda: VectorTokenAction(toys()),
    "penalty": lambda: KLPenalty(toy(), 0.1),
    "vector penalty": lambda: VectorKLPenalty(toys(), 0.1),
    "logits and penalty": lambda: LogitAction(KLPenalty(toy(), 0.1)),
}


class Broken:
    """Somebody else's object."""

    def __array__(self, *args, **kwargs):
        raise RuntimeError("no array\nat all")


def wrong_shapes(good):
    yield good[None]
    yield good[..., None]
    yield good[..., :-1]
    if good.ndim > 1:
        yield good.reshape(-1)
        yield np.ascontiguousarray(good.T)
        yield np.swapaxes(good, 0, 1)
        yield np.moveaxis(good, -1, 0)
    yield good.flat[0]
    yield np.zeros(0, good.dtype)


def wrong_kinds(good):
    yield from ("x", None, object(), {}, Broken(), [[1.0], [1.0, 2.0]], 0)
    yield from (good > 0, good.astype(complex), good.astype(object), good.astype(str), good.astype("m8[s]"))
    yield np.ma.masked_array(good, mask=good > 0)
    yield good.astype(np.float64 if good.dtype == np.int64 else np.int64)
    if good.dtype == np.float32:
        yield torch.tensor(good, requires_grad=True)


@pytest.mark.parametrize("skin", sorted(SKINS))
@pytest.mark.parametrize("wrong", [wrong_shapes, wrong_kinds])
def test_what_is_no_action_is_named_and_the_episode_goes_on_as_it_was(skin, wrong):
    env, twin = SKINS[skin](), SKINS[skin]()
    env.reset(seed=1), twin.reset(seed=1)
    env.action_space.seed(0)
    good = env.action_space.sample()
    for bad in wrong(good):
        with pytest.raises(InvalidActionError) as caught:
            env.step(bad)
        assert "\n" not in str(caught.value)
        if isinstance(bad, np.ndarray) and bad.shape != good.shape:
            assert str(bad.shape) in str(caught.value)
            assert str(good.shape) in str(caught.value)
    assert data_equivalence(env.step(good), twin.step(good), exact=True)


@pytest.mark.parametrize("skin", sorted(SKINS))
def test_lists_are_arrays_where_their_numbers_are(skin):
    env = SKINS[skin]()
    env.reset(seed=1)
    env.action_space.seed(0)
    good = env.action_space.sample()
    if "logits" in skin or "choices" in skin:
        env.step(good.tolist())
    else:
        with pytest.raises(InvalidActionError, match=r"dtype float64, expected float32; use .astype"):
            env.step(good.tolist())


@pytest.mark.parametrize("skin", sorted(SKINS))
def test_read_only_and_scattered_arrays_are_arrays(skin):
    env, twin = SKINS[skin](), SKINS[skin]()
    env.reset(seed=1), twin.reset(seed=1)
    env.action_space.seed(0)
    good = env.action_space.sample()
    scattered = np.repeat(good, 2, axis=-1)[..., ::2]
    scattered.setflags(write=False)
    assert data_equivalence(env.step(scattered), twin.step(good), exact=True)  # warnings are errors here


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.longdouble, ">f4"])
def test_logits_are_floats_of_any_width(dtype):
    one, other = LogitAction(toy()), LogitAction(toy())
    one.reset(seed=0), other.reset(seed=0)
    logits = np.arange(L * V).reshape(L, V)
    assert data_equivalence(one.step(logits.astype(dtype)), other.step(logits.astype(np.float32)), exact=True)
    with pytest.raises(InvalidActionError, match=r"logit is 1e\+300; logits are finite float32"):
        one.step(np.full((L, V), 1e300))


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int32])
def test_choices_are_integers_of_any_width(dtype):
    one, other = TokenAction(toy()), TokenAction(toy())
    one.reset(seed=0), other.reset(seed=0)
    choices = np.array([0, 1, 2, 3])
    assert data_equivalence(one.step(choices.astype(dtype)), other.step(choices), exact=True)


@pytest.mark.parametrize(
    "bad",
    [
        torch.ones(B, V, L),
        torch.ones(B, L * V),
        torch.ones(B, L, V).double(),
        torch.ones(B, L, V).long(),
        torch.ones(B, L, V).bool(),
        torch.ones(B, L, V).to(torch.complex64),
        torch.ones(B, L, V).to_sparse(),
        "x",
        None,
    ],
)
def test_the_torchrl_environment_compares_shapes_and_dtypes_too(bad):
    env, twin = (TorchRLEnv("ToyCTMC-v0", num_envs=B, num_tokens=V, length=L, seed=0) for _ in range(2))
    start = env.reset()
    with pytest.raises(InvalidActionError):
        env.step(start.clone() if bad is None else start.clone().set("action", bad))
    good = torch.ones(B, L, V)
    expected = twin.step(twin.reset().set("action", good))["next", "tokens"]
    assert torch.equal(env.step(start.set("action", good))["next", "tokens"], expected)


@pytest.mark.parametrize(
    "bad", [None, 3, "x", [[1.0]], np.ones((B, L, V), np.float32), torch.ones(B, L, V, device="meta")]
)
def test_episodes_themselves_take_tensors_only(bad):
    run = Episodes("toy", B, num_tokens=V, length=L)
    run.seed([0, 1])
    before = run.reset()
    with pytest.raises(InvalidActionError, match="the action is"):
        run.step(bad)
    assert run.running_state() is before
    for rows in (3, "x", [True, False], torch.ones(B), torch.ones(B + 1).bool()):
        with pytest.raises(InvalidArgumentError, match="^rows "):
            run.reset(rows)
    for seeds in (3, None, "12", [1, 2, 3], [1, "2"], [1, -1]):
        with pytest.raises(InvalidArgumentError, match="seeds"):
            run.seed(seeds)
    assert run.running_state() is before
