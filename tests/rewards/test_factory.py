"""What `as_reward` makes of what it is given."""

import pytest
import torch
from torch import Tensor, nn

from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, RewardError, UnknownNameError
from sepo_env.rewards import (
    FOR_JUDGING,
    LetterContent,
    OracleEnsemble,
    OracleReward,
    Reward,
    WeightedSum,
    as_reward,
    gc_content,
    string_reward,
)
from sepo_env.rewards.oracles import OracleConfig, build_member

CONFIG = OracleConfig("residual", channels=4)


def oracle(role: str) -> OracleEnsemble:
    return OracleEnsemble([build_member(CONFIG)], CONFIG, role=role, quantity="activity", units="log2")


REGISTRY = {
    "gc": gc_content,
    "activity": lambda: OracleReward(oracle("training"), name="activity"),
    "held_out_activity": lambda: OracleReward(oracle("held_out"), name="held_out_activity"),
}
TOKENS = torch.tensor([[0, 1, 2, 2] * 4, [3, 3, 0, 0] * 4])


@pytest.fixture
def make(decode):
    return lambda spec, **options: as_reward(spec, decode=decode, registry=REGISTRY, **options)


def length(sequences):
    return [len(s) for s in sequences]


def test_a_reward_stays_itself(make):
    reward = gc_content()
    assert make(reward) is reward


def test_a_name_is_built_from_the_registry(make):
    reward = make("gc")
    assert isinstance(reward, LetterContent)
    assert reward(TOKENS).tolist() == [0.75, 0.0]


def test_an_unknown_name_lists_the_known_ones(make):
    with pytest.raises(UnknownNameError, match="unknown reward 'activty'; did you mean 'activity'"):
        make("activty")
    with pytest.raises(UnknownNameError, match="unknown reward 'at'"):
        make({"gc": 1.0, "at": 1.0})


def test_an_ensemble_becomes_its_mean(make):
    ensemble = oracle("training")
    torch.testing.assert_close(make(ensemble)(TOKENS), ensemble(TOKENS).mean(0).detach())


@pytest.mark.parametrize("spec", [None, 3, 1.5, ["gc"], object()])
def test_what_scores_nothing_is_refused(make, spec):
    with pytest.raises(InvalidArgumentError, match="does not score sequences; give a function of list"):
        make(spec)


def test_a_sum_of_everything(make):
    def total(tokens: Tensor) -> Tensor:
        return tokens.sum(-1)

    class Sum(nn.Module):
        def forward(self, tokens):
            return tokens.sum(-1)

    named = string_reward(length, "n")
    reward = make({"gc": 4.0, total: 1.0, Sum(): -1.0, length: 0.5, LetterContent("A", name="a"): 8.0, named: 0.0})
    assert reward(TOKENS).tolist() == [4 * 0.75 + 0.5 * 16 + 8 * 0.25, 0.5 * 16 + 8 * 0.5]
    assert list(reward.terms(TOKENS)) == ["gc", "total", "Sum", "length", "a", "n", "reward"]


@pytest.mark.parametrize(
    "spec",
    [
        "held_out_activity",
        {"gc": 1.0, "held_out_activity": 0.0},
        oracle("held_out"),
        nn.Sequential(oracle("held_out"), nn.Flatten(0)),
        OracleReward(oracle("held_out")),
        {OracleReward(oracle("held_out")): 1.0},
    ],
)
@pytest.mark.parametrize("options", [{}, {"cache": True}, {"on_error": "floor", "floor": 0.0}])
def test_the_held_out_oracle_never_trains(make, spec, options):
    with pytest.raises(HeldOutRewardError, match=r"is held out: it judges .*role any or training"):
        make(spec, **options)
    assert make(spec, allow_roles=FOR_JUDGING, **options).role == "held_out"


@pytest.mark.parametrize(
    "spec", ["activity", {"gc": 1.0, "activity": 1.0}, oracle("training"), nn.Sequential(oracle("training"))]
)
def test_the_training_oracle_never_judges(make, spec):
    with pytest.raises(HeldOutRewardError, match=r"drives the training, so it cannot judge .*role any or held_out"):
        make(spec, allow_roles=FOR_JUDGING)
    assert make(spec).role == "training"


@pytest.mark.parametrize("spec", ["gc", length, {"gc": 1.0, length: 1.0}])
def test_neutral_rewards_do_both(make, spec):
    assert make(spec).role == make(spec, allow_roles=FOR_JUDGING).role == "any"


def test_workers_are_for_functions_of_strings(make):
    for spec in ("gc", gc_content(), nn.Flatten(), {"gc": 1.0}):
        with pytest.raises(InvalidArgumentError, match=r"spreads functions of strings .* take workers=0"):
            make(spec, workers=2)
    # In a sum they serve the terms that they can serve.
    with make({"gc": 1.0, lambda sequences: [len(s) for s in sequences]: 1.0}, workers=1) as reward:
        assert reward(TOKENS).tolist() == [16.75, 16.0]


class Fragile(Reward):
    """Cannot score a sequence that starts with T."""

    name = "fragile"

    def score(self, tokens: Tensor) -> Tensor:
        return torch.where(tokens[:, 0] == 3, torch.nan, 1.0)


def test_floor_and_cache_reach_ready_rewards(make):
    with pytest.raises(RewardError, match="'fragile' returned nan for sequence 1"):
        make(Fragile())(TOKENS)
    reward = make(Fragile(), on_error="floor", floor=-1.0, cache=True)
    with pytest.warns(RuntimeWarning, match="fragile"):
        assert reward(TOKENS).tolist() == [1.0, -1.0]
    assert reward(TOKENS[:1]).tolist() == [1.0]
    assert (reward.name, reward.calls, reward.cache_hits, reward.failures) == ("fragile", 2, 1, 1)


def test_options_reach_the_terms_of_a_ready_sum(make):
    ready = make({"gc": 2.0, Fragile(): 1.0})
    reward = make(ready, cache=True, on_error="floor", floor=-1.0)
    assert isinstance(reward, WeightedSum)
    with pytest.warns(RuntimeWarning, match="fragile"):
        terms = reward.terms(TOKENS)
    assert {name: values.tolist() for name, values in terms.items()} == {
        "gc": [0.75, 0.0],
        "fragile": [1.0, -1.0],
        "reward": [2.5, -1.0],
    }
