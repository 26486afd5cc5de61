"""The bounded memory of values, against a plain model of it."""

import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards.cache import ValueCache


@given(
    st.lists(st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 6)), max_size=60),
    st.integers(1, 5),
)
def test_it_keeps_what_was_used_last(actions, max_entries):
    cache = ValueCache(max_entries)
    model: list[tuple[int, float]] = []  # the one used last stands last
    for step, (action, number) in enumerate(actions):
        key = str(number).encode()
        held = dict(model)
        if action == "get":
            assert cache.get(key) == held.get(number)
            if number in held:
                model = [entry for entry in model if entry[0] != number] + [(number, held[number])]
        else:
            cache.put(key, float(step))
            model = [entry for entry in model if entry[0] != number] + [(number, float(step))]
            model = model[-max_entries:]
    assert len(cache) == len(model)


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=20))
def test_keys_are_equal_exactly_for_equal_rows(rows):
    keys = ValueCache.keys(torch.tensor(rows))
    assert [[a == b for b in rows] for a in rows] == [[a == b for b in keys] for a in keys]


def test_keys_do_not_depend_on_the_layout():
    tokens = torch.arange(12).view(3, 4)
    assert ValueCache.keys(tokens.t().contiguous().t()) == ValueCache.keys(tokens)


def test_a_copy_in_another_process_starts_empty():
    cache = ValueCache(3)
    cache.put(b"x", 1.0)
    copy = pickle.loads(pickle.dumps(cache))
    assert (len(copy), copy.max_entries) == (0, 3)
    assert cache.get(b"x") == 1.0


def test_it_must_hold_something():
    with pytest.raises(InvalidArgumentError, match="max_entries is 0"):
        ValueCache(0)
