"""Weighted sums: the arithmetic, the names, the roles."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, RewardError
from sepo_env.rewards import LetterContent, Reward, WeightedSum, WeightedTerm, as_reward


class Constant(Reward):
    def __init__(self, value, role="any", name="constant"):
        self.value = value
        self.role = role
        self.name = name

    def score(self, tokens: Tensor) -> Tensor:
        return torch.full((tokens.shape[0],), self.value)


TOKENS = torch.tensor([[0, 1, 2, 2], [3, 3, 0, 0]])
FLOATS = st.floats(-100, 100, width=32)


@given(st.lists(st.tuples(FLOATS, FLOATS), min_size=1, max_size=5))
def test_the_sum_is_weighted_and_the_terms_are_not(pairs):
    terms = [WeightedTerm(f"t{i}", weight, Constant(value)) for i, (weight, value) in enumerate(pairs)]
    values = WeightedSum(terms).terms(TOKENS)
    total = math.fsum(weight * value for weight, value in pairs)
    torch.testing.assert_close(values["reward"], torch.full((2,), total), rtol=1e-4, atol=1e-2)
    assert [values[f"t{i}"].tolist() for i in range(len(pairs))] == [[value] * 2 for _, value in pairs]


def test_by_hand(decode):
    def count_g(sequences: list[str]) -> list[float]:
        return [float(s.count("G")) for s in sequences]

    registry = {"a": lambda: LetterContent("A", name="a")}
    reward = as_reward({"a": 2.0, count_g: -0.5}, decode=decode, registry=registry)
    assert reward(TOKENS).tolist() == [2 * 0.25 - 0.5 * 2, 2 * 0.5]
    terms = {name: values.tolist() for name, values in reward.terms(TOKENS).items()}
    assert terms == {"a": [0.25, 0.5], "count_g": [2.0, 0.0], "reward": [-0.5, 1.0]}
    assert reward.weights == {"a": 2.0, "count_g": -0.5}


def test_counters_count_sequences_not_terms(decode):
    def count_g(sequences):
        return [s.count("G") for s in sequences]

    def mostly_failing(sequences):
        return [math.nan if "T" in s else 0.0 for s in sequences]

    reward = as_reward(
        {count_g: 1.0, mostly_failing: 1.0}, decode=decode, registry={}, cache=True, on_error="floor", floor=-1.0
    )
    with pytest.warns(RuntimeWarning, match="mostly_failing"):
        assert reward(TOKENS).tolist() == [2.0, -1.0]
    assert (reward.calls, reward.failures, reward.cache_hits) == (2, 1, 0)
    # The failed sequence is tried again by one of the terms; the other sequence by none.
    reward(TOKENS)
    assert (reward.calls, reward.failures, reward.cache_hits) == (3, 2, 1)


def test_names_are_made_distinct():
    terms = [WeightedTerm(name, 1.0, Constant(1.0)) for name in ("f", "f", "reward", "f")]
    assert list(WeightedSum(terms).weights) == ["f", "f_2", "reward_2", "f_3"]


@pytest.mark.parametrize("weight", [math.nan, math.inf, "1", None, True, 1j])
def test_weights_are_finite_numbers(weight):
    with pytest.raises(InvalidArgumentError, match=r"the weight of 'f' is .*, but must be a finite number"):
        WeightedSum([WeightedTerm("f", weight, Constant(1.0))])


@pytest.mark.parametrize(("weight", "value"), [(1e38, 1e3), (1e300, 1.0), (1e300, 0.0)])
def test_a_sum_that_float32_cannot_hold_is_named(weight, value):
    with pytest.raises(RewardError, match=rf"'weighted sum' is (inf|nan) for sequence 0 \('1e.*{value:g}'\)"):
        WeightedSum([WeightedTerm("f", weight, Constant(value))])(TOKENS)


def test_numpy_and_integer_weights_do():
    terms = [WeightedTerm("f", np.float32(0.5), Constant(1.0)), WeightedTerm("g", 2, Constant(1.0))]
    assert WeightedSum(terms)(TOKENS).tolist() == [2.5, 2.5]


def test_a_sum_of_nothing_is_refused(decode):
    with pytest.raises(InvalidArgumentError, match="at least one term"):
        as_reward({}, decode=decode, registry={})


@pytest.mark.parametrize(
    ("roles", "role"),
    [
        (["any"], "any"),
        (["any", "training"], "training"),
        (["held_out", "any"], "held_out"),
        (["training", "training"], "training"),
    ],
)
def test_the_role_is_the_strictest(roles, role):
    assert WeightedSum([WeightedTerm("f", 1.0, Constant(1.0, r)) for r in roles]).role == role


def test_training_and_held_out_do_not_add_up():
    terms = [
        WeightedTerm("judge", 0.0, Constant(1.0, "held_out")),
        WeightedTerm("teacher", 1.0, Constant(1.0, "training")),
    ]
    with pytest.raises(HeldOutRewardError, match="held-out reward 'judge' and the training reward 'teacher'"):
        WeightedSum(terms)


def test_closing_closes_every_term():
    closed = []

    class Closing(Constant):
        def close(self) -> None:
            closed.append(self.name)

    with WeightedSum([WeightedTerm("f", 1.0, Closing(1.0, name="f")), WeightedTerm("g", 1.0, Closing(1.0, name="g"))]):
        pass
    assert closed == ["f", "g"]


def test_it_pickles():
    reward = WeightedSum([WeightedTerm("a", 2.0, LetterContent("A"))])
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(TOKENS).tolist() == reward(TOKENS).tolist() == [0.5, 1.0]
