"""Metrics of a batch of generated sequences: pure functions of clean tokens, or of the scores of them.

Every function takes ``tokens``, int64 of shape (B, L) with values in {0..V-1} (no mask tokens), or one value per
sequence, and answers in float64 unless it says otherwise. V is called ``num_tokens``. Published protocols report the
median activity, the share of accessible sequences, the 3-mer correlation and the diversity side by side
(DRAKES, 2410.13643): the highest rewards come with collapsed statistics, and only all of them together show it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError
from sepo_env.precision import without_autocast

__all__ = [
    "accessibility_rate",
    "distinct_n",
    "distinct_tokens",
    "kmer_correlation",
    "kmer_counts",
    "mean_hamming",
    "nearest_hamming",
    "pearson",
    "position_counts",
    "position_entropy",
    "quantiles",
    "reward_gap",
    "share_within",
    "uniqueness",
]

_ONE_HOT_BUDGET = 2**24
"""Elements of the block of pairwise comparisons that :func:`nearest_hamming` holds at a time (64 MB)."""


def kmer_counts(tokens: Tensor, k: int, num_tokens: int) -> Tensor:
    r"""Count the overlapping k-mers of all sequences together.

    .. math:: c_w = \sum_b \sum_{i=0}^{L-k} 1[(x_{b,i}, \dots, x_{b,i+k-1}) = w]

    Args:
        tokens: (B, L) int64.
        k: length of the words, 1 to L.
        num_tokens: V.

    Returns:
        (V^k,) int64, words in lexicographic order: index = sum_j x_{i+j} V^{k-1-j}; the sum is B (L - k + 1).

    >>> kmer_counts(torch.tensor([[0, 1, 1, 1]]), k=2, num_tokens=2).tolist()
    [0, 1, 0, 2]
    """
    tokens = check_tokens(tokens, num_tokens)
    if not 1 <= k <= tokens.shape[1]:
        raise InvalidArgumentError(f"k is {k}, but a word has 1 to L = {tokens.shape[1]} tokens; choose such a k.")
    width = tokens.shape[1] - k + 1
    index = torch.zeros_like(tokens[:, :width])
    for offset in range(k):
        index = index * num_tokens + tokens[:, offset : offset + width]
    return torch.bincount(index.reshape(-1), minlength=num_tokens**k)


def distinct_n(tokens: Tensor, n: int, free: Tensor | None = None) -> Tensor:
    r"""Number of different n-grams of all sequences together, over the number of n-grams (arXiv:1510.03055).

    Args:
        tokens: (B, L) int64.
        n: 1 to L.
        free: (B, L) bool, positions that were written and not given: n-grams with any other are not counted; None: all.

    Returns:
        (), in (0, 1]; 1 if no n-gram occurs twice, NaN where no n free positions are neighbours. It falls as B grows:
        compare sets of one size only.

    >>> distinct_n(torch.tensor([[0, 1, 0, 1]]), 2).item()  # 01, 10, 01
    0.6666666666666666
    """
    tokens = check_tokens(tokens)
    if not 1 <= n <= tokens.shape[1]:
        raise InvalidArgumentError(f"n is {n}, but an n-gram has 1 to L = {tokens.shape[1]} tokens; choose such an n.")
    grams = tokens.unfold(1, n, 1).reshape(-1, n)
    if free is not None:
        if free.shape != tokens.shape:
            raise InvalidShapeError("free", free.shape, f"the shape {tuple(tokens.shape)} of tokens")
        grams = grams[free.unfold(1, n, 1).reshape(-1, n).all(-1)]
    share = len(torch.unique(grams, dim=0)) / len(grams) if len(grams) else math.nan
    return torch.tensor(share, dtype=torch.float64, device=tokens.device)


def distinct_tokens(tokens: Tensor) -> Tensor:
    """How many different tokens each sequence holds: (B, L) -> (B,) int64, 1 to L; repeats make it small.

    >>> distinct_tokens(torch.tensor([[0, 1, 0, 1], [2, 2, 2, 2]])).tolist()
    [2, 1]
    """
    ordered = check_tokens(tokens).sort(dim=1).values
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(1)


def kmer_correlation(tokens: Tensor, reference_counts: Tensor, k: int, num_tokens: int) -> Tensor:
    """Pearson's r between the k-mer counts of the samples and those of reference sequences.

    Args:
        tokens: (B, L) int64.
        reference_counts: (V^k,) counts (or frequencies) of the reference set, in the order of :func:`kmer_counts`.
        k: length of the words.
        num_tokens: V.

    Returns:
        () in [-1, 1]; NaN if one of the two sets has every word equally often.

    >>> tokens = torch.tensor([[0, 1, 1, 1]])
    >>> round(kmer_correlation(tokens, 5 * kmer_counts(tokens, 2, 2), k=2, num_tokens=2).item(), 6)
    1.0
    """
    counts = kmer_counts(tokens, k, num_tokens)
    if reference_counts.shape != counts.shape:
        raise InvalidShapeError("reference_counts", reference_counts.shape, f"(V^k,) = {tuple(counts.shape)}")
    return pearson(counts, reference_counts.to(counts.device))


def pearson(x: Tensor, y: Tensor) -> Tensor:
    """Pearson's correlation coefficient of two samples (N,); a scalar in [-1, 1], NaN if one of them is constant."""
    if x.ndim != 1 or x.shape != y.shape:
        raise InvalidShapeError("y", y.shape, f"(N,) as x, {tuple(x.shape)}")
    centred_x, centred_y = x.double() - x.double().mean(), y.double() - y.double().mean()
    r = (centred_x @ centred_y) / (centred_x.norm() * centred_y.norm())
    return r.clamp(-1.0, 1.0)


def uniqueness(tokens: Tensor) -> Tensor:
    """Share of distinct sequences, (number of distinct rows) / B; a scalar in [1/B, 1].

    >>> uniqueness(torch.tensor([[0, 1], [0, 1], [1, 1], [0, 0]])).item()
    0.75
    """
    tokens = check_tokens(tokens)
    distinct = torch.unique(tokens, dim=0).shape[0]
    return torch.tensor(distinct / tokens.shape[0], dtype=torch.float64, device=tokens.device)


def position_counts(tokens: Tensor, num_tokens: int) -> Tensor:
    """How often each token stands at each position: (B, L) -> (L, V) int64, rows sum to B.

    >>> position_counts(torch.tensor([[0, 1], [0, 0]]), num_tokens=2).tolist()
    [[2, 0], [1, 1]]
    """
    tokens = check_tokens(tokens, num_tokens)
    length = tokens.shape[1]
    cell = tokens + num_tokens * torch.arange(length, device=tokens.device)
    return torch.bincount(cell.reshape(-1), minlength=length * num_tokens).view(length, num_tokens)


def mean_hamming(tokens: Tensor, num_tokens: int) -> Tensor:
    r"""Mean Hamming distance over all pairs of different samples, exactly, from counts in O(B L).

    .. math:: \frac{1}{B (B-1)} \sum_i \left( B^2 - \sum_v c_{i,v}^2 \right), \qquad c = \text{position_counts}

    Args:
        tokens: (B, L) int64, B >= 2.
        num_tokens: V.

    Returns:
        (), in positions, 0 to L. It can stay flat while :func:`nearest_hamming` collapses: report both.

    >>> mean_hamming(torch.tensor([[0, 1], [0, 1], [1, 0]]), num_tokens=2).item()  # distances 0, 2, 2
    1.3333333333333333
    """
    batch = _check_pairs(tokens)
    counts = position_counts(tokens, num_tokens)
    differing = batch**2 * tokens.shape[1] - (counts * counts).sum()
    return differing.double() / (batch * (batch - 1))


@without_autocast()
def nearest_hamming(tokens: Tensor, num_tokens: int) -> Tensor:
    """Hamming distance of each sample to the nearest other sample, exactly, in blocks of bounded memory.

    Args:
        tokens: (B, L) int64, B >= 2.
        num_tokens: V.

    Returns:
        (B,) int64, in positions, 0 to L; 0 for a sequence that occurs twice.

    >>> nearest_hamming(torch.tensor([[0, 1], [0, 1], [1, 0]]), num_tokens=2).tolist()
    [0, 0, 2]
    """
    batch = _check_pairs(tokens)
    tokens = check_tokens(tokens, num_tokens)
    length = tokens.shape[1]
    # Agreements are inner products of one-hot rows: exact in float32, since they are integers up to L < 2^24.
    one_hot = torch.nn.functional.one_hot(tokens, num_tokens).view(batch, -1).float()
    nearest = tokens.new_empty(batch)
    rows = max(1, _ONE_HOT_BUDGET // batch)
    for start in range(0, batch, rows):
        agreements = one_hot[start : start + rows] @ one_hot.T
        own = torch.arange(start, start + agreements.shape[0], device=tokens.device)
        agreements[own - start, own] = -1.0
        nearest[start : start + rows] = length - agreements.max(dim=1).values.round().long()
    return nearest


def position_entropy(tokens: Tensor, num_tokens: int) -> Tensor:
    r"""Shannon entropy of the tokens at each position, in bits (plug-in estimate).

    .. math:: H_i = - \sum_v f_{i,v} \log_2 f_{i,v}, \qquad f = \text{position_counts} / B

    Args:
        tokens: (B, L) int64.
        num_tokens: V.

    Returns:
        (L,) in bits, 0 to log2 V. The plug-in estimate lies below the truth by about (V - 1) / (2 B ln 2) bits.

    >>> position_entropy(torch.tensor([[0, 1], [0, 0]]), num_tokens=2).tolist()
    [0.0, 1.0]
    """
    frequencies = position_counts(tokens, num_tokens).double() / tokens.shape[0]
    return torch.special.entr(frequencies).sum(dim=1) / math.log(2.0)


def quantiles(values: Tensor, levels: Sequence[float] = (0.05, 0.25, 0.5, 0.75, 0.95)) -> Tensor:
    """Quantiles of one value per sequence, linearly interpolated: (B,) -> (Q,), in the units of ``values``.

    >>> quantiles(torch.tensor([0.0, 1.0, 2.0, 3.0]), (0.0, 0.5, 1.0)).tolist()
    [0.0, 1.5, 3.0]
    """
    values = _check_values("values", values)
    if not all(0.0 <= level <= 1.0 for level in levels):
        raise InvalidArgumentError(f"levels are {tuple(levels)}; a quantile level lies in [0, 1].")
    return torch.quantile(values, torch.tensor(levels, dtype=torch.float64, device=values.device))


def reward_gap(training: Tensor, held_out: Tensor) -> Tensor:
    """Median of the training oracle minus median of the held-out oracle, on the same samples.

    Args:
        training: (B,) scores by the oracle that the agent was trained on.
        held_out: (B,) scores by the judge, in the same units.

    Returns:
        () in the units of the oracles. Compare it with the gap of the pretrained samples: what it grows by
        is reward that the judge does not confirm.

    >>> reward_gap(torch.tensor([2.0, 3.0, 9.0]), torch.tensor([1.0, 2.0, 2.5])).item()
    1.0
    """
    training, held_out = _check_values("training", training), _check_values("held_out", held_out)
    if training.shape != held_out.shape:
        raise InvalidShapeError("held_out", held_out.shape, f"(B,) as training, {tuple(training.shape)}")
    return torch.quantile(training, 0.5) - torch.quantile(held_out, 0.5)


def accessibility_rate(probabilities: Tensor, threshold: float = 0.5) -> Tensor:
    """Share of sequences whose predicted probability of being accessible exceeds the threshold: (B,) -> ().

    >>> accessibility_rate(torch.tensor([0.2, 0.5, 0.7, 0.9])).item()
    0.5
    """
    return (_check_values("probabilities", probabilities) > threshold).double().mean()


def share_within(values: Tensor, low: float, high: float) -> Tensor:
    """Share of values in [low, high]: (B,) -> ().

    With ``low`` and ``high`` the quantiles of the log-likelihoods of real sequences it says how many samples are as
    likely as real ones: a likelihood far above that band is collapse (repeats are easy to predict), not quality.

    >>> share_within(torch.tensor([-9.0, -5.0, -4.0, 0.0]), low=-6.0, high=-3.0).item()
    0.5
    """
    if not low <= high:
        raise InvalidArgumentError(f"low is {low} and high is {high}; an interval needs low <= high.")
    values = _check_values("values", values)
    return ((values >= low) & (values <= high)).double().mean()


def check_tokens(tokens: Tensor, num_tokens: int | None = None) -> Tensor:
    """Return tokens that are clean sequences (B, L), int64 in 0..V-1; anything else is refused by name."""
    if tokens.ndim != 2 or tokens.shape[0] == 0 or tokens.shape[1] == 0:
        raise InvalidShapeError("tokens", tokens.shape, "(B, L) with at least one sequence of one token")
    if tokens.dtype != torch.int64:
        raise InvalidTokensError(f"tokens have dtype {tokens.dtype}, expected torch.int64; convert with .long().")
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or (num_tokens is not None and high >= num_tokens):
        raise InvalidTokensError(
            f"tokens range from {low} to {high}, but metrics are of clean sequences over {num_tokens} tokens from 0; "
            "finish the denoising first: a mask is no token of a clean sequence."
        )
    return tokens


def _check_pairs(tokens: Tensor) -> int:
    batch = check_tokens(tokens).shape[0]
    if batch < 2:
        raise InvalidArgumentError("a distance between samples needs two of them or more; sample a larger batch.")
    return batch


def _check_values(name: str, values: Tensor) -> Tensor:
    if values.ndim != 1 or values.shape[0] == 0:
        raise InvalidShapeError(name, values.shape, "(B,), one value per sequence")
    return values.double()
