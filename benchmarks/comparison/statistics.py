"""Aggregates over seeds that hold up with few of them: interquartile mean, bootstrap, probability of improvement.

Runs of one method differ between seeds by more than methods differ from each other, so every figure carries its
interval and no winner is declared by a mean (Agarwal et al. 2021, arXiv 2108.13264).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from sepo_env.tasks.language_metrics import Games, length_controlled_win_rate

NUM_RESAMPLES = 5000
# The length-controlled rate is fitted anew to each.
_NUM_REFITS = 1000


class Estimate(NamedTuple):
    """A statistic with its two-sided bootstrap interval; the interval is NaN where there is one run only."""

    value: float
    low: float
    high: float


def interquartile_mean(values: ArrayLike, axis: int = -1) -> NDArray[np.float64]:
    """Mean of the middle half of the runs: floor(n / 4) are cut at each end, so up to three runs give the plain mean.

    >>> float(interquartile_mean([0.0, 4.0, 5.0, 6.0, 100.0]))
    5.0
    """
    return scipy.stats.trim_mean(np.asarray(values, dtype=np.float64), 0.25, axis=axis)


def interquartile_estimate(values: ArrayLike, level: float = 0.95, seed: int = 0) -> Estimate:
    """Interquartile mean over seeds (S,) with the percentile bootstrap interval that resamples the seeds.

    With S runs the interval cannot leave the range of the runs: for two or three seeds read it as that range. A run
    without a value (NaN) leaves the whole estimate without one.
    """
    values = np.asarray(values, dtype=np.float64)
    value = float(interquartile_mean(values))
    if values.size < 2 or np.isnan(value):
        return Estimate(value, np.nan, np.nan)
    interval = scipy.stats.bootstrap(
        (values,),
        interquartile_mean,
        n_resamples=NUM_RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def probability_of_improvement(better: ArrayLike, worse: ArrayLike, level: float = 0.95, seed: int = 0) -> Estimate:
    r"""Chance that a run of one method beats a run of another, ties counting one half.

    .. math:: \frac{1}{S S'} \sum_{ij} 1[x_i > y_j] + \tfrac12 1[x_i = y_j]

    It is the Mann-Whitney U over S S'; its interval resamples the runs of both methods independently.

    >>> probability_of_improvement([3.0, 4.0], [1.0, 3.0]).value
    0.875
    """
    x, y = np.asarray(better, dtype=np.float64), np.asarray(worse, dtype=np.float64)
    value = float(_wins(x, y))
    if x.size < 2 or y.size < 2:
        return Estimate(value, np.nan, np.nan)
    interval = scipy.stats.bootstrap(
        (x, y),
        _wins,
        n_resamples=NUM_RESAMPLES,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def win_rate_estimates(games: Games, level: float = 0.95, seed: int = 0) -> tuple[Estimate, Estimate]:
    """Win rate and length-controlled win rate with percentile bootstrap intervals over the prompts.

    Each game is one draw of a prompt and of both its responses: games are resampled whole, and both rates are taken of
    the same resamples. Resamples that leave the length-controlled rate undetermined are left out of its interval.
    """

    def rates(chosen: NDArray[np.int64]) -> tuple[float, float]:
        found = length_controlled_win_rate(games.wins[chosen], games.length_differences[chosen])
        return found.raw, found.length_controlled

    number = len(games.wins)
    values = rates(np.arange(number))
    if number < 2:
        return Estimate(values[0], np.nan, np.nan), Estimate(values[1], np.nan, np.nan)
    drawn = np.random.default_rng(seed).integers(number, size=(_NUM_REFITS, number))
    resamples = np.array([rates(chosen) for chosen in drawn])
    raw, controlled = (_with_interval(*pair, level) for pair in zip(values, resamples.T, strict=True))
    return raw, controlled


def _with_interval(value: float, drawn: NDArray[np.float64], level: float) -> Estimate:
    """The percentile interval of those resamples that have a value; none where the statistic itself has none."""
    known = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(known):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(value, float(low), float(high))


def _wins(x: NDArray[np.float64], y: NDArray[np.float64], axis: int = -1) -> NDArray[np.float64]:
    """Share of pairs won along the last axis: (..., S), (..., S') -> (...,)."""
    x, y = np.moveaxis(x, axis, -1)[..., :, None], np.moveaxis(y, axis, -1)[..., None, :]
    return ((x > y) + 0.5 * (x == y)).mean(axis=(-2, -1))
