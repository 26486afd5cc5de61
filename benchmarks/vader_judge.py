"""A judge for ``benchmarks/language.py --judge benchmarks/vader_judge.py:more_cheerful``, and an example of one.

Any such function may ask whatever it likes, a service of yours for instance. Needs the extra ``text``.
"""

from functools import cache

from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer


@cache
def _analyzer() -> SentimentIntensityAnalyzer:
    return SentimentIntensityAnalyzer()


def more_cheerful(prompt: str, first: str, second: str) -> float:
    """Whether VADER finds the first response the more positive one: 1, 0, or 1/2 where it sees no difference."""
    one, other = (_analyzer().polarity_scores(f"{prompt} {text}")["compound"] for text in (first, second))
    return 0.5 * (1.0 + (one > other) - (one < other))
