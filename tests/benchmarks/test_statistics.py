"""Aggregates over seeds against enumeration and hand-computed numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.comparison.statistics import (
    interquartile_estimate,
    interquartile_mean,
    probability_of_improvement,
    win_rate_estimates,
)
from sepo_env.tasks.language_metrics import Games, length_controlled_win_rate

RUNS = st.lists(st.floats(-10, 10), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], 3.0), ([1.0, 3.0], 2.0), ([0.0, 1.0, 5.0], 2.0), ([9.0, 1.0, 2.0, -50.0], 1.5)],
)
def test_interquartile_mean_by_hand(values: list[float], expected: float) -> None:
    assert float(interquartile_mean(values)) == pytest.approx(expected)


def test_bootstrap_interval_equals_the_enumerated_law_of_the_resamples() -> None:
    values = [0.0, 1.0, 3.0]
    means = np.sort([np.mean(draw) for draw in itertools.product(values, repeat=3)])  # 27 equally likely resamples
    estimate = interquartile_estimate(values)
    assert estimate.value == pytest.approx(4 / 3)
    # The extreme resamples have probability 1/27 > 2.5 % each, so that the interval is the whole range.
    assert (estimate.low, estimate.high) == (means[0], means[-1])
    narrow = interquartile_estimate(values, level=0.6)
    assert narrow.low == pytest.approx(np.quantile(means, 0.2, method="inverted_cdf"))
    assert narrow.high == pytest.approx(np.quantile(means, 0.8, method="inverted_cdf"))


def test_one_seed_has_no_interval_and_equal_seeds_a_point() -> None:
    alone = interquartile_estimate([1.5])
    assert alone.value == 1.5
    assert np.isnan([alone.low, alone.high]).all()
    assert interquartile_estimate([2.0, 2.0, 2.0]) == (2.0, 2.0, 2.0)
    assert np.isnan(interquartile_estimate([1.0, np.nan])).all()


@given(RUNS)
@settings(max_examples=20)
def test_interval_brackets_and_stays_within_the_runs(values: list[float]) -> None:
    estimate = interquartile_estimate(values)
    assert min(values) - 1e-9 <= estimate.value <= max(values) + 1e-9
    if len(values) > 1:
        assert min(values) - 1e-9 <= estimate.low <= estimate.high <= max(values) + 1e-9


@given(RUNS, RUNS)
def test_probability_of_improvement_is_the_mann_whitney_statistic(x: list[float], y: list[float]) -> None:
    expected = scipy.stats.mannwhitneyu(x, y).statistic / (len(x) * len(y))
    assert probability_of_improvement(x, y).value == pytest.approx(expected)
    assert probability_of_improvement(y, x).value == pytest.approx(1.0 - expected)


def test_a_method_that_always_wins_wins_with_certainty() -> None:
    assert probability_of_improvement([2.0, 3.0], [0.0, 1.0]) == (1.0, 1.0, 1.0)


def test_win_rates_have_intervals_over_the_prompts() -> None:
    generator = np.random.default_rng(0)
    wins, lengths = generator.beta(6, 4, 400), generator.normal(5.0, 20.0, 400).round()
    raw, controlled = win_rate_estimates(Games(wins, lengths))
    found = length_controlled_win_rate(wins, lengths)
    assert (raw.value, controlled.value) == (found.raw, found.length_controlled)
    # The normal interval of a mean of 400.
    half = 1.96 * wins.std() / np.sqrt(400)
    assert (raw.low, raw.high) == pytest.approx((raw.value - half, raw.value + half), abs=0.15 * half)
    assert controlled.low < controlled.value < controlled.high
    assert win_rate_estimates(Games(wins, lengths)) == (raw, controlled)
    # Lengths that always differ by the same amount, and a single game.
    raw, controlled = win_rate_estimates(Games(wins, np.full(400, 3.0)))
    assert raw.low < raw.value < raw.high
    assert np.isnan(controlled).all()
    single, _ = win_rate_estimates(Games(wins[:1], lengths[:1]))
    assert np.isnan([single.low, single.high]).all()
