"""Functions and modules as rewards: values, errors, floors, counting, caching."""

import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from sepo_env.errors import InvalidArgumentError, RewardError, UnknownNameError
from sepo_env.rewards import FunctionReward, ScoringOptions, as_reward, string_reward, token_reward

ALPHABET = "ACGT"


def decode_dna(tokens):
    return ["".join(ALPHABET[t] for t in row) for row in tokens.tolist()]


def count_g(sequences):
    return [s.count("G") for s in sequences]


def no_t(sequences):
    """Fails on T: raises on TT, returns NaN on another T."""
    if any("TT" in s for s in sequences):
        raise ValueError("two Ts")
    return [math.nan if "T" in s else s.count("A") for s in sequences]


@pytest.fixture
def make(decode):
    return lambda spec, **options: as_reward(spec, decode=decode, registry={}, **options)


def test_functions_of_strings_get_decoded_sequences(make, encode):
    seen = []

    def spy(sequences):
        seen.append(sequences)
        return np.arange(len(sequences))

    assert make(spy)(encode("ACG", "TTT")).tolist() == [0.0, 1.0]
    assert seen == [["ACG", "TTT"]]


def test_functions_of_tokens_get_the_tensor(make, encode):
    def last(tokens: Tensor) -> Tensor:
        assert tokens.dtype == torch.int64
        return tokens[:, -1]

    assert make(last)(encode("ACG", "TTT")).tolist() == [2.0, 3.0]


def test_the_same_score_through_strings_tokens_and_a_module(make):
    class CountOfG(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding.from_pretrained(torch.tensor([[0.0], [0.0], [1.0], [0.0]]))

        def forward(self, tokens):
            return self.table(tokens).sum((1, 2))

    tokens = torch.randint(4, (16, 9))
    expected = make(count_g)(tokens)
    torch.testing.assert_close(make(token_reward(lambda t: (t == 2).sum(-1)))(tokens), expected)
    module = make(CountOfG())
    torch.testing.assert_close(module(tokens), expected)
    assert not module(tokens).requires_grad
    assert module.name == "CountOfG"


def test_modules_score_in_evaluation_mode(make):
    dropping = nn.Sequential(nn.Embedding(4, 1), nn.Flatten(0), nn.Dropout(0.99))
    nn.init.ones_(dropping[0].weight)
    assert make(dropping)(torch.zeros(64, 1, dtype=torch.int64)).tolist() == [1.0] * 64


def test_an_exception_names_sequence_index_and_cure(make, encode):
    reward = make(no_t)
    with pytest.raises(RewardError) as caught:
        reward(encode("AAA", "ACG", "GTT", "TTC"))
    assert str(caught.value) == (
        "the reward 'no_t' raised ValueError: two Ts for sequence 2 ('GTT', 3 letters) of 4; mend the function so "
        "that every sequence has a finite value, or score such sequences with on_error='floor' and floor=VALUE."
    )
    assert isinstance(caught.value.__cause__, ValueError)


def test_nan_names_sequence_and_index(make, encode):
    with pytest.raises(RewardError, match=r"'no_t' returned nan for sequence 1 \('GTA', 3 letters\) of 2"):
        make(no_t)(encode("AAA", "GTA"))


def test_errors_of_token_functions_show_the_decoded_sequence(make, encode):
    with pytest.raises(RewardError, match=r"returned inf for sequence 1 \('GTA', 3 letters\) of 2"):
        make(token_reward(lambda tokens: torch.tensor([0.0, math.inf]), "t"))(encode("AAA", "GTA"))


def test_long_sequences_are_shown_by_their_ends(make):
    tokens = torch.zeros(1, 200, dtype=torch.int64)
    with pytest.raises(RewardError, match=r"sequence 0 \('A{24}\.\.\.A{24}', 200 letters\)"):
        make(lambda sequences: [None])(tokens)


def test_faults_of_the_whole_reward_raise_even_with_a_floor(make, encode):
    for options in ({}, {"on_error": "floor", "floor": 0.0}):
        with pytest.raises(RewardError, match=r"returned 1 values for 2 sequences, none for sequence 1 \('CCC'"):
            make(lambda sequences: [1.0], **options)(encode("AAA", "CCC"))
        with pytest.raises(RewardError, match="dtype bool"):
            make(lambda sequences: np.array([True, False]), **options)(encode("AAA", "CCC"))


def test_a_fault_with_batches_is_told_apart(make, encode):
    def one_at_a_time(sequences):
        (sequence,) = sequences
        return [len(sequence)]

    with pytest.raises(RewardError, match=r"raised ValueError: .* together, though for none of them alone"):
        make(one_at_a_time)(encode("AAA", "CCC"))


def test_the_floor_is_for_failing_sequences_only(make, encode):
    reward = make(no_t, on_error="floor", floor=-5.0)
    with pytest.warns(RuntimeWarning, match=r"'no_t' raised ValueError: two Ts for sequence 1 .* the floor -5.0"):
        values = reward(encode("AAC", "TTA", "CTC", "AAA"))
    assert values.tolist() == [2.0, -5.0, -5.0, 3.0]
    assert (reward.calls, reward.failures) == (4, 2)
    # Counted again, but not reported again: a warning would fail this test.
    assert reward(encode("TTT")).tolist() == [-5.0]
    assert (reward.calls, reward.failures) == (5, 3)


@given(st.lists(st.text(alphabet="AT", min_size=4, max_size=4), min_size=1, max_size=10))
@pytest.mark.filterwarnings("ignore:the reward 'no_t':RuntimeWarning")
def test_floors_do_not_move_other_values(sequences):
    reward = as_reward(no_t, decode=decode_dna, registry={}, on_error="floor", floor=-1.0)
    values = reward(torch.tensor([[ALPHABET.index(letter) for letter in s] for s in sequences]))
    assert values.tolist() == [-1.0 if "T" in s else 4.0 for s in sequences]
    assert reward.failures == sum("T" in s for s in sequences)


def test_repeated_sequences_are_scored_once(make, encode):
    seen = []

    def spy(sequences):
        seen.extend(sequences)
        return count_g(sequences)

    reward = make(spy, cache=True)
    assert reward(encode("GGA", "AAA", "GGA")).tolist() == [2.0, 0.0, 2.0]
    assert reward(encode("AAA", "GCG", "AAA", "GGA")).tolist() == [0.0, 2.0, 0.0, 2.0]
    assert seen == ["GGA", "AAA", "GCG"]
    assert (reward.calls, reward.cache_hits) == (3, 4)


@given(
    st.lists(st.lists(st.text(alphabet="GA", min_size=3, max_size=3), max_size=8), max_size=5),
    st.integers(1, 4),
)
def test_a_cache_of_any_size_changes_no_value(batches, size):
    reward = as_reward(count_g, decode=decode_dna, registry={}, cache=size)
    for batch in batches:
        tokens = torch.tensor([[ALPHABET.index(letter) for letter in s] for s in batch], dtype=torch.int64)
        assert reward(tokens.view(len(batch), 3)).tolist() == count_g(batch)
    assert reward.calls + reward.cache_hits == sum(map(len, batches))


def test_errors_behind_a_cache_count_rows_of_the_whole_batch(make, encode):
    reward = make(no_t, cache=True)
    reward(encode("AAA", "CCC"))
    with pytest.raises(RewardError, match=r"for sequence 3 \('GTT', 3 letters\)"):
        reward(encode("AAA", "CCC", "AAA", "GTT"))


def test_floored_values_are_tried_again(make, encode):
    healthy = []

    def recovers(sequences):
        if not healthy:
            raise OSError("offline")
        return [1.0 for _ in sequences]

    reward = make(recovers, on_error="floor", floor=0.0, cache=True)
    with pytest.warns(RuntimeWarning, match="offline"):
        assert reward(encode("AAA", "AAA")).tolist() == [0.0, 0.0]
    healthy.append(True)
    assert reward(encode("AAA")).tolist() == [1.0]
    assert (reward.calls, reward.failures) == (2, 1)


def test_no_sequences_no_call(make):
    def fail(sequences):
        raise AssertionError("called")

    assert make(fail)(torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)
    assert make(fail, cache=True)(torch.zeros(0, 3, dtype=torch.int64)).shape == (0,)


def test_terms_call_once(make, encode):
    reward = make(count_g)
    terms = reward.terms(encode("GGA"))
    assert {name: value.tolist() for name, value in terms.items()} == {"count_g": [2.0], "reward": [2.0]}
    assert reward.calls == 1


def test_it_pickles_with_its_counters_and_an_empty_cache(encode):
    reward = FunctionReward(string_reward(count_g), decode=decode_dna, options=ScoringOptions(cache=True))
    reward(encode("GGA"))
    copy = pickle.loads(pickle.dumps(reward))
    assert copy(encode("GGA")).tolist() == [2.0]
    assert (copy.calls, copy.cache_hits, reward.calls) == (2, 0, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": -1}, "workers is -1, but must be a whole number from 0"),
        ({"workers": True}, "workers is True, but"),
        ({"workers": 1.5}, "workers is 1.5"),
        ({"workers": "2"}, "workers is '2'"),
        ({"workers": 10**9}, "workers is 1000000000, but must be a whole number from 0 to 1024"),
        ({"timeout": 1.0}, "needs worker processes.*give workers=1"),
        ({"timeout": 0, "workers": 1}, "timeout is 0, but must be a finite number .*above 0"),
        ({"timeout": math.nan, "workers": 1}, "timeout is nan"),
        ({"timeout": math.inf, "workers": 1}, "timeout is inf"),
        ({"timeout": 1e300, "workers": 1}, "timeout is 1e.300"),
        ({"timeout": "1", "workers": 1}, "timeout is '1'"),
        ({"on_error": "ignore"}, "unknown on_error 'ignore'"),
        ({"on_error": None}, "on_error is None"),
        ({"on_error": "floor"}, "needs a value for the sequences that fail; give floor=VALUE"),
        ({"on_error": "floor", "floor": -math.inf}, "floor is -inf"),
        ({"on_error": "floor", "floor": math.nan}, "floor is nan"),
        ({"on_error": "floor", "floor": True}, "floor is True"),
        ({"floor": 0.0}, "give both or neither"),
        ({"cache": 0}, "cache is 0, but must be True or False, or a whole number from 1"),
        ({"cache": -1}, "cache is -1"),
        ({"cache": 1.5}, "cache is 1.5"),
        ({"cache": "yes"}, "cache is 'yes'"),
    ],
)
def test_options_that_cannot_work_are_refused(make, options, message):
    for build in (lambda: make(count_g, **options), lambda: ScoringOptions(**options)):
        with pytest.raises((InvalidArgumentError, UnknownNameError), match=message) as caught:
            build()
        assert "\n" not in str(caught.value)


def test_whole_floats_and_numpy_numbers_are_options():
    options = ScoringOptions(
        workers=np.int64(2), timeout=np.float32(2), on_error="floor", floor=np.int8(-1), cache=np.float64(10)
    )
    assert options == ScoringOptions(2, 2.0, "floor", -1.0, 10)
    assert [type(value) for value in (options.workers, options.floor, options.cache)] == [int, float, int]
