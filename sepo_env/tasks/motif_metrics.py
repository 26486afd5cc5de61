"""Binding-site motifs counted in DNA the way FIMO counts them, and how far such counts agree with a reference.

Published protocols of enhancer design report the rank correlation of motif counts between generated and highly active
real sequences. They count with FIMO's method: a log-odds score for every window of both strands, and a threshold that
random sequences exceed with a given probability (Grant et al. 2011, doi 10.1093/bioinformatics/btr064).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Gt, Lt
from scipy.stats import rankdata
from torch import Tensor

from sepo_env.arguments import checked
from sepo_env.errors import InvalidShapeError
from sepo_env.tasks.metrics import check_tokens, pearson
from sepo_env.tasks.motifs import FloatArray, MotifCollection

P_VALUE = 1e-3
"""Of published counts: a motif's share of hits among the windows of uniformly random sequences."""
PValue = Annotated[float, Gt(0), Lt(1)]
_NUM_LETTERS = 4
_BIN = 0.1
"""Width of the score bins of the p-values, in bits."""
_SCORE_BUDGET = 2**18
"""Scores that `motif_counts` holds at a time (2 MB, which caches hold)."""


@checked
def motif_thresholds(motifs: MotifCollection, p_value: PValue = P_VALUE) -> FloatArray:
    r"""The score that a window of uniformly random letters reaches with a probability below ``p_value``.

    Log-odds are rounded to bins of 0.1 bits, :math:`n_{j,a} = \mathrm{round}(s_{j,a} / 0.1)`. The law of a window's
    binned score then follows exactly, position by position (Grant et al. 2011, doi 10.1093/bioinformatics/btr064):

    .. math:: P_0(n) = 1[n = 0], \qquad P_j(n) = \frac{1}{4} \sum_a P_{j-1}(n - n_{j,a}), \qquad
              t = 0.1 \min\Big\{ n : \sum_{m \ge n} P_w(m) < p \Big\}

    Where no word is rare enough, because the motif is short, t lies one bin above the best word's.

    Args:
        motifs: M of them.
        p_value: between 0 and 1.

    Returns:
        ``(M,)``, in bits.

    Raises:
        InvalidArgumentError: ``p_value`` is not between 0 and 1.

    >>> one = MotifCollection(("A",), (np.array([[1.0, 0.0, 0.0, 0.0]]),))
    >>> motif_thresholds(one, 0.3).round(1).tolist()  # one bin above what C, G and T score
    [-11.2]
    """
    return np.array([_threshold(np.round(scores / _BIN).astype(np.int64), p_value) for scores in motifs.log_odds])


def _threshold(bins: npt.NDArray[np.int64], p_value: float) -> float:
    """The threshold of one motif from its binned log-odds ``(w, 4)``."""
    lowest = bins.min(axis=1)
    law = np.ones(1)
    for shifts in bins - lowest[:, None]:
        longer = np.zeros(len(law) + shifts.max())
        for shift in shifts:
            longer[shift : shift + len(law)] += law / _NUM_LETTERS
        law = longer
    tail = np.cumsum(law[::-1])[::-1]  # falls with the score, so that the bins that do not pass come first
    return float(lowest.sum() + np.count_nonzero(tail >= p_value)) * _BIN


@checked
def motif_counts(tokens: Tensor, motifs: MotifCollection, p_value: PValue = P_VALUE) -> Tensor:
    r"""How many windows of all sequences together, on either strand, score above each motif's threshold.

    .. math:: c_m = \sum_b \sum_i 1\Big[\sum_j s_{j, x_{b,i+j}} > t_m\Big]
                  + 1\Big[\sum_j s_{w-1-j,\, \bar{x}_{b,i+j}} > t_m\Big]

    with s the motif's log-odds (`MotifCollection.log_odds`), t `motif_thresholds` and :math:`\bar{x}` the
    complement. Overlapping hits all count, and a palindromic site counts on each strand, as in the published code
    (gReLU's ``scan_sequences``, which is FIMO of memesuite-lite). Scores are not binned, as there. They are float64,
    so that the counts do not depend on the device.

    Args:
        tokens: (B, L) int64, A C G T = 0..3.
        motifs: M of them; one that is wider than L has no windows, and the count 0.
        p_value: of the thresholds.

    Returns:
        (M,) int64, on the device of the tokens; of uniformly random sequences about 2 B (L - w + 1) ``p_value``.

    Raises:
        InvalidTokensError: tokens outside of 0..3, such as masks, or of another dtype.
        InvalidShapeError: tokens that are not (B, L).
        InvalidArgumentError: ``p_value`` is not between 0 and 1.

    >>> site = MotifCollection(("ACGT",), (np.eye(4),))
    >>> motif_counts(torch.tensor([[0, 1, 2, 3, 3]]), site, p_value=0.01).tolist()  # its own reverse complement
    [2]
    """
    tokens = check_tokens(tokens, _NUM_LETTERS)
    thresholds = motif_thresholds(motifs, p_value)
    counts = torch.zeros(len(motifs), dtype=torch.int64, device=tokens.device)
    for index, weights in _by_width(motifs):
        num_windows = tokens.shape[1] - weights.shape[1] + 1
        if num_windows < 1:
            continue
        matrices = torch.from_numpy(weights).flatten(1).T.to(tokens.device)  # (4 w, 2 N), position-major
        limits = torch.from_numpy(np.tile(thresholds[index], 2)).to(tokens.device)
        chunk = max(1, _SCORE_BUDGET // (num_windows * len(limits)))
        hits = torch.zeros(len(limits), dtype=torch.int64, device=tokens.device)
        for part in tokens.split(chunk):
            one_hot = torch.nn.functional.one_hot(part, _NUM_LETTERS).double().flatten(1)
            windows = one_hot.unfold(1, len(matrices), _NUM_LETTERS).flatten(0, 1)  # (windows, 4 w)
            hits += (windows @ matrices > limits).sum(0)
        counts[torch.from_numpy(index).to(tokens.device)] = hits.view(2, -1).sum(0)
    return counts


def _by_width(motifs: MotifCollection) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray]]:
    """For each width: the indices ``(N,)`` of its motifs, and their log-odds ``(2 N, w, 4)``, both strands."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for index, matrix in enumerate(motifs.probabilities):
        groups[len(matrix)].append(index)
    log_odds = motifs.log_odds
    for members in groups.values():
        forward = np.stack([log_odds[index] for index in members])
        # The complement of token a is 3 - a: another strand is the matrix turned by half.
        yield np.array(members), np.concatenate([forward, forward[:, ::-1, ::-1]])


@checked
def motif_correlation(
    tokens: Tensor, reference_counts: Tensor, motifs: MotifCollection, p_value: PValue = P_VALUE
) -> Tensor:
    r"""Spearman's rank correlation, over motifs, of their counts in the samples and in reference sequences.

    .. math:: \rho = r\big(\mathrm{rank}(c), \mathrm{rank}(c^{\mathrm{ref}})\big)

    with c `motif_counts`, r Pearson's coefficient, and the mean rank for equal counts.

    Args:
        tokens: (B, L) int64, A C G T = 0..3.
        reference_counts: (M,) counts of the reference sequences, by the same motifs and p-value.
        motifs: M of them.
        p_value: of the thresholds.

    Returns:
        () in [-1, 1]; NaN if one of the two sets has all motifs equally often, as for `metrics.kmer_correlation`.

    Raises:
        InvalidShapeError: ``reference_counts`` is not (M,).
        InvalidTokensError: tokens outside of 0..3, such as masks, or of another dtype.
    """
    if reference_counts.shape != (len(motifs),):
        raise InvalidShapeError("reference_counts", reference_counts.shape, f"(M,) = ({len(motifs)},)")
    counts = motif_counts(tokens, motifs, p_value)
    ranks, reference_ranks = (torch.from_numpy(rankdata(c.cpu().numpy())) for c in (counts, reference_counts))
    return pearson(ranks, reference_ranks).to(tokens.device)
