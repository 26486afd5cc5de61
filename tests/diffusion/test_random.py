"""Counter-based random numbers: published values, uniformity, and independence of the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sepo_env.diffusion.random import _GOLDEN_GAMMA, _mix, keys_from_seed, sample_categorical, uniforms


def test_the_hash_is_splitmix64():
    # First outputs of the reference generator seeded with 1234567.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    states = torch.tensor([1234567]) + _GOLDEN_GAMMA * torch.arange(1, 4)
    outputs = [value % (1 << 64) for value in _mix(states).tolist()]
    assert outputs == expected


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 2), st.integers(0, 10**6), st.integers(1, 20))
def test_a_row_does_not_depend_on_its_batch(seed, counter, num):
    keys = keys_from_seed(torch.tensor([seed, seed + 1, 5]))
    together = uniforms(keys, counter, num)
    alone = uniforms(keys[1:2], torch.tensor([counter]), num)
    assert torch.equal(together[1:2], alone)
    assert ((together > 0) & (together < 1)).all()
    assert together.shape == (3, num)


def test_uniformity_and_no_correlation_between_rows_counters_and_positions():
    keys = keys_from_seed(torch.arange(300))
    u = torch.stack([uniforms(keys, k, 40) for k in range(5)])
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 1e-3
    bound = 5 / math.sqrt(u[0].numel())
    for a, b in [(u[0], u[1]), (u[0, :-1], u[0, 1:]), (u[0, :, :-1], u[0, :, 1:])]:
        assert abs(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) < bound


def test_episodes_of_one_seed_differ():
    first = keys_from_seed(torch.tensor([3, 3]), torch.tensor([0, 1]))
    assert first[0] != first[1]
    assert len(keys_from_seed(torch.arange(100_000)).unique()) == 100_000


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(lambda p: sum(p) > 1e-3),
    st.floats(1e-9, 1 - 1e-9),
)
def test_inversion_against_a_plain_loop(probs, u):
    total, running = sum(probs), 0.0
    expected = None
    for index, p in enumerate(probs):
        running += p / total
        if running > u:
            expected = index
            break
    got = int(sample_categorical(torch.tensor(probs, dtype=torch.float64).log(), torch.tensor(u, dtype=torch.float64)))
    assert probs[got] > 0
    if expected is not None and abs(running - u) > 1e-9:
        assert got == expected


@pytest.mark.parametrize("u", [1e-17, 0.5, 1.0 - 2**-53])
def test_impossible_tokens_are_never_drawn(u):
    log_probs = torch.tensor([-torch.inf, -1e3, -torch.inf, -1e3, -torch.inf])
    assert int(sample_categorical(log_probs, torch.tensor(u, dtype=torch.float64))) in (1, 3)
