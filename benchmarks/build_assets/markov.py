"""Markov models of order 0 to 5: what a denoiser must beat."""

import numpy as np
import numpy.typing as npt

PSEUDOCOUNT = 1.0


def context_counts(tokens: npt.NDArray[np.int64], order: int) -> npt.NDArray[np.float64]:
    """Return how often each letter follows each context ``(4 ** order, 4)`` in ``tokens`` ``(N, L)``."""
    words = _words(tokens, order + 1)
    return np.bincount(words.ravel(), minlength=4 ** (order + 1)).reshape(-1, 4).astype(np.float64)


def markov_bits(training: npt.NDArray[np.int64], test: npt.NDArray[np.int64], order: int) -> tuple[float, float]:
    r"""Return the bits a base of ``test`` ``(N, L)`` under a Markov chain, and the standard error over sequences.

    :math:`p(v \mid c) = (n_{cv} + 1) / (n_c + 4)` with counts from ``training``, both strands together (each sequence
    and its reverse complement). The first ``order`` letters of a sequence are scored by the chains of lower order.
    """
    bits = np.zeros(test.shape)
    both = np.concatenate([training, 3 - training[:, ::-1]])
    for lower in range(order + 1):
        counts = context_counts(both, lower) + PSEUDOCOUNT
        log_p = np.log2(counts / counts.sum(axis=1, keepdims=True)).ravel()
        last = None if lower == order else lower + 1
        bits[:, lower:last] = -log_p[_words(test, lower + 1)][:, : None if lower == order else 1]
    each = bits.mean(axis=1)
    return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


def _words(tokens: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Return the numbers in base 4 of all words ``(N, L - size + 1)`` of ``size`` letters."""
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size, axis=1)
    return np.asarray(windows @ (4 ** np.arange(size - 1, -1, -1)))
