"""N-gram models of windows of tokens: what a denoiser of text must beat."""

from collections import Counter

import numpy as np
import numpy.typing as npt

DISCOUNTS = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


class NGram:
    r"""Interpolated absolute discounting, from the uniform law up to words after ``order`` others.

    .. math:: p_n(v \mid c) = \frac{\max(N_{cv} - D_n, 0)}{N_c} + \lambda_c\, p_{n-1}(v \mid c'), \qquad
              \lambda_c = 1 - \sum_v \frac{\max(N_{cv} - D_n, 0)}{N_c}

    c' is the context c without its first token; where c was never seen, :math:`p_n = p_{n-1}`. Windows begin with a
    token of their own, so that the first words are predicted as first words. Overlapping windows count their words
    more than once, hence discounts above 1.

    Args:
        tokens: training windows, int64 ``(N, L)``.
        num_tokens: V.
        order: tokens of context, 0 for the unigram model.
        validation: windows that choose each :math:`D_n` among `DISCOUNTS`.
    """

    def __init__(
        self, tokens: npt.NDArray[np.int64], num_tokens: int, order: int, validation: npt.NDArray[np.int64]
    ) -> None:
        self.num_tokens = num_tokens
        self._levels: list[tuple[Counter[tuple[int, ...]], Counter[tuple[int, ...]], Counter[tuple[int, ...]]]] = []
        self._discounts: list[float] = []
        for context in range(order + 1):
            words = Counter(gram for row in tokens for gram in _grams(row, context, num_tokens))
            totals: Counter[tuple[int, ...]] = Counter()
            for gram, count in words.items():
                totals[gram[:-1]] += count
            self._levels.append((words, totals, Counter()))
            bits = {}
            for discount in DISCOUNTS:
                self._set(context, discount)
                bits[discount] = self.bits(validation)[0]
            self._set(context, min(bits, key=lambda discount: bits[discount]))

    def _set(self, context: int, discount: float) -> None:
        """Take a discount for contexts of that length, and sum what it leaves to longer words."""
        words, _, kept = self._levels[context]
        self._discounts[context:] = [discount]
        kept.clear()
        for gram, count in words.items():
            kept[gram[:-1]] += max(count - discount, 0.0)  # type: ignore[assignment]

    def probability(self, gram: tuple[int, ...]) -> float:
        """Return the probability of the last token of ``gram`` after the others, which are ``order`` tokens."""
        value = 1.0 / self.num_tokens
        for context, (words, totals, kept) in enumerate(self._levels):
            part = gram[len(gram) - 1 - context :]
            total = totals[part[:-1]]
            if total:
                seen = max(words[part] - self._discounts[context], 0.0) / total
                value = seen + (1.0 - kept[part[:-1]] / total) * value
        return value

    def bits(self, tokens: npt.NDArray[np.int64]) -> tuple[float, float]:
        """Return the bits a token of windows ``(N, L)``, and the standard error over the windows."""
        order = len(self._levels) - 1
        each = np.array(
            [
                np.mean([-np.log2(self.probability(gram)) for gram in _grams(row, order, self.num_tokens)])
                for row in tokens
            ]
        )
        return float(each.mean()), float(each.std(ddof=1) / len(each) ** 0.5)


def _grams(row: npt.NDArray[np.int64], context: int, start: int) -> list[tuple[int, ...]]:
    """Each token of a window with the ``context`` tokens before it; before the first one stands ``start``."""
    padded = [start] * context + row.tolist()
    return [tuple(padded[i : i + context + 1]) for i in range(len(row))]
