"""The spec of actions says what TorchRL's own would, and stores two numbers."""

import pickle

import pytest
import torch
from torchrl.data import Bounded
from torchrl.envs.utils import check_env_specs

from sepo_env import TorchRLEnv
from sepo_env.envs.rate_spec import LARGEST_RATE, RateSpec

SHAPE = (2, 1, 3)


@pytest.fixture
def pair():
    return RateSpec(SHAPE), Bounded(0.0, LARGEST_RATE, SHAPE, dtype=torch.float32)


@pytest.mark.parametrize(
    "change",
    [
        lambda spec: spec.expand(4, 2, 1, 3),
        lambda spec: spec.expand((4, *SHAPE)),
        lambda spec: spec.reshape(6),
        lambda spec: spec.unflatten(0, (2, 1)),
        lambda spec: spec.squeeze(1),
        lambda spec: spec.squeeze(),
        lambda spec: spec.unsqueeze(0),
        lambda spec: spec.unbind(0)[1],
        lambda spec: spec[0],
        lambda spec: spec[:, 0],
        lambda spec: spec.clone(),
        lambda spec: spec.to("cpu"),
        lambda spec: spec.to(None),
        lambda spec: spec.to(torch.float64),
    ],
)
def test_every_view_has_the_shape_and_the_bounds_of_torchrls_own(pair, change) -> None:
    ours, theirs = map(change, pair)
    assert isinstance(ours, Bounded)
    assert (ours.shape, ours.dtype, ours.device) == (theirs.shape, theirs.dtype, theirs.device)
    for one, other in zip(ours.space, theirs.space, strict=True):
        assert torch.equal(one, other)


def test_the_same_values_are_in_it(pair) -> None:
    good = torch.zeros(SHAPE)
    for value in (good, good - 1, good + torch.inf, good.double(), good[0], good + LARGEST_RATE):
        assert bool(pair[0].is_in(value)) == bool(pair[1].is_in(value))
    assert torch.equal(pair[0].project(good - 1), good)
    assert pair[0].is_in(pair[0].rand())
    assert pair[0].is_in(pair[0].rand((4,)))
    assert torch.equal(pair[0].zero(), good)


def test_specs_of_one_shape_are_equal(pair) -> None:
    ours = pair[0]
    assert ours == ours.clone() == pickle.loads(pickle.dumps(ours))
    assert ours != ours[0]
    assert ours != pair[1]


def test_nothing_of_an_actions_size_is_stored() -> None:
    spec = RateSpec((4, 1024, 50257))
    for view in (spec, spec.clone(), spec.expand(8, *spec.shape), spec[0]):
        assert max(bound.untyped_storage().nbytes() for bound in view.space) == 4
    env = TorchRLEnv("ToyCTMC-v0", num_envs=4)
    assert isinstance(env.action_spec, RateSpec)
    assert env.full_action_spec["action"].space.low.untyped_storage().nbytes() == 4
    check_env_specs(env)
