"""Metrics against brute force, scipy and hand-computed numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError
from sepo_env.tasks import metrics


@st.composite
def token_batches(draw: st.DrawFn, min_batch: int = 1) -> tuple[Tensor, int]:
    num_tokens = draw(st.integers(2, 5))
    batch, length = draw(st.integers(min_batch, 12)), draw(st.integers(3, 9))
    seed = draw(st.integers(0, 2**31))
    # Few distinct letters now and then, so that repeated sequences and empty counts do occur.
    used = draw(st.integers(1, num_tokens))
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(used, (batch, length), generator=generator), num_tokens


def pairwise(tokens: Tensor) -> np.ndarray:
    rows = tokens.numpy()
    return np.array([[(a != b).sum() for b in rows] for a in rows])


@given(token_batches(), st.integers(1, 3))
def test_kmer_counts_equals_counting_words(case: tuple[Tensor, int], k: int) -> None:
    tokens, num_tokens = case
    words = list(itertools.product(range(num_tokens), repeat=k))
    seen = [tuple(row[i : i + k]) for row in tokens.tolist() for i in range(len(row) - k + 1)]
    assert metrics.kmer_counts(tokens, k, num_tokens).tolist() == [seen.count(word) for word in words]


@given(token_batches(min_batch=2))
def test_distances_equal_brute_force(case: tuple[Tensor, int]) -> None:
    tokens, num_tokens = case
    distances = pairwise(tokens)
    others = ~np.eye(len(tokens), dtype=bool)
    assert metrics.mean_hamming(tokens, num_tokens).item() == pytest.approx(distances[others].mean(), abs=1e-12)
    nearest = np.where(others, distances, tokens.shape[1] + 1).min(axis=1)
    assert metrics.nearest_hamming(tokens, num_tokens).tolist() == nearest.tolist()


def test_nearest_hamming_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.randint(4, (50, 20), generator=torch.Generator().manual_seed(0))
    whole = metrics.nearest_hamming(tokens, 4)
    monkeypatch.setattr(metrics, "_ONE_HOT_BUDGET", 350)  # blocks of 7 rows, the last one of a single row
    assert torch.equal(metrics.nearest_hamming(tokens, 4), whole)


def test_mean_distance_stays_flat_while_nearest_neighbours_collapse() -> None:
    tokens = torch.randint(4, (64, 200), generator=torch.Generator().manual_seed(0))
    doubled = torch.cat([tokens[:32], tokens[:32]])
    ratio = metrics.mean_hamming(doubled, 4) / metrics.mean_hamming(tokens, 4)
    assert ratio.item() == pytest.approx(1.0, abs=0.03)
    assert metrics.nearest_hamming(doubled, 4).max() == 0
    assert metrics.nearest_hamming(tokens, 4).min() > 100


@given(token_batches())
def test_uniqueness_equals_the_size_of_a_set(case: tuple[Tensor, int]) -> None:
    tokens, _ = case
    assert metrics.uniqueness(tokens).item() == len(set(map(tuple, tokens.tolist()))) / len(tokens)


@given(token_batches())
def test_position_entropy_equals_scipy(case: tuple[Tensor, int]) -> None:
    tokens, num_tokens = case
    columns = [np.bincount(column, minlength=num_tokens) for column in tokens.numpy().T]
    np.testing.assert_array_equal(metrics.position_counts(tokens, num_tokens).numpy(), columns)
    expected = [scipy.stats.entropy(column, base=2) for column in columns]
    np.testing.assert_allclose(metrics.position_entropy(tokens, num_tokens).numpy(), expected, atol=1e-12)


def test_position_entropy_is_in_bits() -> None:
    tokens = torch.tensor([[0, 0], [1, 0], [2, 0], [3, 0]])
    assert metrics.position_entropy(tokens, 4).tolist() == pytest.approx([2.0, 0.0])


@given(token_batches(), st.integers(0, 1000))
@settings(max_examples=50)
def test_kmer_correlation_equals_scipy_and_ignores_scale(case: tuple[Tensor, int], seed: int) -> None:
    tokens, num_tokens = case
    reference = torch.randint(1, 100, (num_tokens**2,), generator=torch.Generator().manual_seed(seed))
    counts = metrics.kmer_counts(tokens, 2, num_tokens)
    value = metrics.kmer_correlation(tokens, reference, 2, num_tokens).item()
    if counts.unique().numel() == 1 or reference.unique().numel() == 1:
        assert math.isnan(value)
    else:
        assert value == pytest.approx(scipy.stats.pearsonr(counts.numpy(), reference.numpy()).statistic, abs=1e-10)
        assert metrics.kmer_correlation(tokens, 7 * reference, 2, num_tokens).item() == pytest.approx(value)


def test_kmer_correlation_by_hand() -> None:
    tokens = torch.tensor([[0, 0, 1, 1]])  # words 00, 01, 11: counts 1, 1, 0, 1
    reference = torch.tensor([1, 0, 1, 2])  # centred (0, -1, 0, 1) against (1, 1, -3, 1) / 4: orthogonal
    assert metrics.kmer_correlation(tokens, reference, 2, 2).item() == pytest.approx(0.0, abs=1e-15)


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), st.lists(st.floats(0, 1), min_size=1))
def test_quantiles_equal_numpy(values: list[float], levels: list[float]) -> None:
    ours = metrics.quantiles(torch.tensor(values, dtype=torch.float64), levels).numpy()
    np.testing.assert_allclose(ours, np.quantile(values, levels), atol=1e-12)


def test_the_median_of_an_even_batch_is_the_midpoint() -> None:
    # torch.median takes the lower of the two middle values; published tables take numpy's midpoint.
    gap = metrics.reward_gap(torch.tensor([0.0, 4.0]), torch.tensor([1.0, 2.0]))
    assert gap.item() == 0.5


def test_rates_count_strictly_above_and_intervals_are_closed() -> None:
    values = torch.tensor([0.4, 0.5, 0.6, 1.0], dtype=torch.float64)
    assert metrics.accessibility_rate(values).item() == 0.5
    assert metrics.share_within(values, 0.5, 0.6).item() == 0.5


def test_wrong_input_is_named() -> None:
    clean = torch.tensor([[0, 1, 3]])
    with pytest.raises(InvalidTokensError, match="finish the denoising"):
        metrics.kmer_counts(clean, 1, num_tokens=3)
    with pytest.raises(InvalidTokensError, match=r"\.long\(\)"):
        metrics.uniqueness(clean.int())
    with pytest.raises(InvalidShapeError, match=r"\(B, L\)"):
        metrics.uniqueness(clean[0])
    with pytest.raises(InvalidArgumentError, match="larger batch"):
        metrics.mean_hamming(clean, 4)
    with pytest.raises(InvalidArgumentError, match="larger batch"):
        metrics.nearest_hamming(clean, 4)
    with pytest.raises(InvalidArgumentError, match="1 to L = 3"):
        metrics.kmer_counts(clean, 4, 4)
    with pytest.raises(InvalidShapeError, match="reference_counts"):
        metrics.kmer_correlation(clean, torch.ones(4), 2, 4)
    with pytest.raises(InvalidShapeError, match="one value per sequence"):
        metrics.quantiles(torch.zeros(2, 1))
    with pytest.raises(InvalidArgumentError, match=r"\[0, 1\]"):
        metrics.quantiles(torch.zeros(2), (50.0,))
    with pytest.raises(InvalidShapeError, match="held_out"):
        metrics.reward_gap(torch.zeros(2), torch.zeros(3))
    with pytest.raises(InvalidArgumentError, match="low <= high"):
        metrics.share_within(torch.zeros(2), 1.0, 0.0)


def test_given_tokens_are_no_part_of_distinct_n() -> None:
    tokens = torch.tensor([[0, 1, 2, 2], [0, 1, 3, 2]])
    free = torch.tensor([[False, False, True, True], [False, False, True, True]])
    assert metrics.distinct_n(tokens, 1).item() == 4 / 8
    assert metrics.distinct_n(tokens, 1, free).item() == 2 / 4  # 2, 2, 3, 2
    assert metrics.distinct_n(tokens, 2, free).item() == 1.0  # 22, 32
    assert metrics.distinct_n(tokens, 2, torch.ones_like(free)) == metrics.distinct_n(tokens, 2)
    assert math.isnan(metrics.distinct_n(tokens, 3, free))
    with pytest.raises(InvalidShapeError):
        metrics.distinct_n(tokens, 1, free[:1])
