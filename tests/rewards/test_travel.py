"""Callables of every kind in worker processes: they score there what they score here, or are refused by name."""

import functools
import subprocess
import sys
import textwrap
import urllib.parse

import cloudpickle
import numpy as np
import pytest

from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards import as_reward
from sepo_env.rewards.travel import dump_function


def share_of(letter, sequences):
    return [sequence.count(letter) / len(sequence) for sequence in sequences]


def cached_helper():
    @functools.lru_cache(maxsize=7, typed=True)
    def slow(sequence):
        return sequence.count("A")

    return lambda sequences: [float(slow(sequence)) for sequence in sequences]


def cached_that_calls_itself():
    @functools.cache
    def count(sequence):
        return (sequence[0] == "A") + count(sequence[1:]) if sequence else 0

    return lambda sequences: [count(sequence) for sequence in sequences]


def cached_method():
    class Scorer:
        @functools.lru_cache  # noqa: B019 - as users write it
        def slow(self, sequence):
            return sequence.count("A")

        def __call__(self, sequences):
            return [self.slow(sequence) for sequence in sequences]

    return Scorer()


def bound_method():
    class Scorer:
        def __init__(self, letter):
            self.letter = letter

        def score(self, sequences):
            return [sequence.count(self.letter) for sequence in sequences]

    return Scorer("A").score


def decorated():
    def doubled(function):
        @functools.wraps(function)
        def inner(sequences):
            return [2 * value for value in function(sequences)]

        return inner

    @doubled
    def half(sequences):
        return [sequence.count("A") / 2 for sequence in sequences]

    return half


def vectorised():
    return np.vectorize(lambda sequence: sequence.count("A"), otypes=[float])


def a_class():
    class Scores(list):
        def __init__(self, sequences):
            super().__init__(sequence.count("A") for sequence in sequences)

        def __reduce__(self):
            return list, (list(self),)

    return Scores


def partial():
    def count(letter, sequences, scale=2.0):
        return [scale * sequence.count(letter) for sequence in sequences]

    return functools.partial(count, "A", scale=1.0)


def partial_of_cached():
    @functools.cache
    def count(letter, sequence):
        return sequence.count(letter)

    return functools.partial(
        lambda helper, sequences: [helper(sequence) for sequence in sequences], functools.partial(count, "A")
    )


@pytest.mark.parametrize(
    "make",
    [
        cached_helper,
        cached_that_calls_itself,
        cached_method,
        bound_method,
        decorated,
        vectorised,
        a_class,
        partial,
        partial_of_cached,
    ],
)
def test_callables_of_every_kind_score_in_workers_as_here(decode, encode, make):
    tokens = encode("AACG", "CCCC", "AAAA")
    assert as_reward(make(), decode=decode, registry={})(tokens).tolist() == [2.0, 0.0, 4.0]
    with as_reward(make(), decode=decode, registry={}, workers=1) as reward:
        assert reward(tokens).tolist() == [2.0, 0.0, 4.0]


def test_a_script_with_a_cached_helper_scores_in_workers(tmp_path, project_root):
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import functools, sys
        sys.path.insert(0, sys.argv[1])
        import torch
        from sepo_env import tasks

        @functools.lru_cache(maxsize=None)
        def slow_score(sequence):
            return float(sequence.count("A"))

        def reward(sequences: list[str]) -> list[float]:
            return [slow_score(sequence) for sequence in sequences]

        with tasks.make("toy").make_reward(reward, workers=2) as scored:
            print(scored(torch.tensor([[0, 0, 1, 2], [1, 1, 2, 2]])).tolist())
    """)
    )
    done = subprocess.run(
        [sys.executable, script, project_root], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.stdout == "[2.0, 0.0]\n", done.stderr


def test_a_cached_function_keeps_its_settings_and_attributes_and_starts_empty():
    @functools.lru_cache(maxsize=7, typed=True)
    def slow(number):
        return number + 1

    slow.unit = "letters"
    slow(1)
    copy = cloudpickle.loads(dump_function(slow))
    assert copy.cache_parameters() == {"maxsize": 7, "typed": True}
    assert copy.cache_info().currsize == 0
    assert copy.unit == "letters"
    assert copy.__name__ == "slow"
    assert copy(1) == 2


def test_what_can_be_imported_travels_by_name():
    assert cloudpickle.loads(dump_function(urllib.parse.urlsplit)) is urllib.parse.urlsplit
    # Of the same name, and another function.
    cached = functools.lru_cache(urllib.parse.urlsplit.__wrapped__)
    assert cloudpickle.loads(dump_function(cached)) is not urllib.parse.urlsplit


def test_what_cannot_travel_is_refused_by_name(decode):
    @functools.cache
    def helper(sequence):
        return next(numbers)

    def score(sequences):
        return [1.0 for _ in sequences]

    numbers = (number for number in range(10))
    with pytest.raises(InvalidArgumentError, match=r"workers=1 sends the reward 'helper' .* cannot be pickled .*"):
        as_reward(helper, decode=decode, registry={}, workers=1)
    with pytest.raises(InvalidArgumentError, match=r"workers=1 sends the reward 'score' .* cannot be pickled"):
        as_reward(functools.singledispatch(score), decode=decode, registry={}, workers=1)
    named_only = np.frompyfunc(lambda sequence: 1.0, 1, 1)
    with pytest.raises(InvalidArgumentError, match=r"workers=1 sends the reward 'ufunc' .* cannot be pickled"):
        as_reward(named_only, decode=decode, registry={}, workers=1)
