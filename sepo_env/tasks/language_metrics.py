"""How samples of text are judged: perplexity, different n-grams, and win rates with lengths controlled for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from sepo_env.errors import InvalidArgumentError, RewardError
from sepo_env.tasks.perplexity import Perplexity

__all__ = [
    "Games",
    "Judge",
    "Perplexity",
    "WinRate",
    "length_controlled_win_rate",
    "play",
    "play_games",
    "reward_judge",
]

Judge = Callable[[str, str, str], float | bool]
"""Prompt and two responses -> the probability that the first response is better, or whether it is."""

_MOST_LOG_ODDS = 30.0


@dataclass(frozen=True)
class WinRate:
    """How often one side is better than the other.

    Attributes:
        raw: mean probability of a win.
        length_controlled: that at equal lengths, by the fit; NaN where the lengths always differ by the same amount.
        length_effect: log-odds by which one (saturated) standard deviation of length moves the judge; NaN as well.
        num_games: N.
    """

    raw: float
    length_controlled: float
    length_effect: float
    num_games: int


def length_controlled_win_rate(wins: ArrayLike, length_differences: ArrayLike, *, prior_sd: float = 5.0) -> WinRate:
    r"""The win rate that a judge would give if both sides wrote texts of equal length (arXiv:2404.04475).

    .. math:: P(win_i) = \sigma\big( \theta + \phi \tanh(d_i / \mathrm{sd}(d)) \big), \qquad
              \text{reported: } \sigma(\theta)

    fitted to probabilities or outcomes, ties being 1/2, by maximum likelihood with a normal prior on the length effect,
    which keeps it finite where length alone decides. Swapping the sides gives 1 less the rate. Where the lengths always
    differ by the same amount their effect is undetermined, and the rate at equal lengths is NaN.

    Args:
        wins: probability that the first side wins each game, in [0, 1], ``(N,)``.
        length_differences: length of the first side's response less the second's, ``(N,)``.
        prior_sd: standard deviation of the prior on :math:`\phi`, which is centred at 0; infinity: no prior.

    Raises:
        InvalidArgumentError: no game, other shapes, or values outside of [0, 1].
    """
    y, d = np.asarray(wins, dtype=float), np.asarray(length_differences, dtype=float)
    if y.ndim != 1 or y.shape != d.shape or not len(y):
        raise InvalidArgumentError(
            f"wins have shape {y.shape}, length_differences {d.shape}; give one of each for every game, and some game."
        )
    if not (((y >= 0) & (y <= 1)).all() and np.isfinite(d).all()):
        raise InvalidArgumentError("wins must be in [0, 1] and length_differences finite; check the judge.")
    if not d.any():
        rate = float(y.mean())
        return WinRate(rate, rate, 0.0, len(y))
    spread = float(d.std())
    if spread == 0.0:
        return WinRate(float(y.mean()), float("nan"), float("nan"), len(y))
    x = np.tanh(d / spread)
    penalty = 1.0 / (prior_sd**2 * len(y))

    def loss(parameters: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        theta, phi = parameters
        z = theta + phi * x
        # -y log sigmoid(z) - (1 - y) log sigmoid(-z)
        value = (np.logaddexp(0.0, z) - y * z).mean() + 0.5 * penalty * phi**2
        error = expit(z) - y
        return float(value), np.array([error.mean(), (error * x).mean() + penalty * phi])

    bounds = [(-_MOST_LOG_ODDS, _MOST_LOG_ODDS), (None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000}
    theta, phi = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return WinRate(float(y.mean()), float(expit(theta)), float(phi), len(y))


class Games(NamedTuple):
    """What a judge said of N pairs of responses.

    Attributes:
        wins: probability that the first side's response is the better one, float64 ``(N,)``.
        length_differences: characters of it less those of the other one, float64 ``(N,)``.
    """

    wins: np.ndarray[Any, Any]
    length_differences: np.ndarray[Any, Any]


def play_games(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    baselines: Sequence[str],
    *,
    both_orders: bool = True,
) -> Games:
    """Let a judge compare two sets of responses to the same prompts.

    Args:
        judge: asked once for each game and order.
        prompts: N.
        responses: N, of the side whose win rate is wanted.
        baselines: N, of the other side.
        both_orders: show each pair in both orders and average, which takes out a preference for the first place.

    Raises:
        InvalidArgumentError: other numbers of texts.
        RewardError: the judge failed, or its answer is no probability; with the prompt and the cause.
    """
    if not len(prompts) == len(responses) == len(baselines):
        raise InvalidArgumentError(
            f"{len(prompts)} prompts, {len(responses)} responses and {len(baselines)} baselines; give as many of each."
        )
    wins = []
    for prompt, ours, theirs in zip(prompts, responses, baselines, strict=True):
        win = _ask(judge, prompt, ours, theirs)
        wins.append((win + 1.0 - _ask(judge, prompt, theirs, ours)) / 2 if both_orders else win)
    lengths = [len(ours) - len(theirs) for ours, theirs in zip(responses, baselines, strict=True)]
    return Games(np.array(wins, dtype=float), np.array(lengths, dtype=float))


def play(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    baselines: Sequence[str],
    *,
    both_orders: bool = True,
) -> WinRate:
    """The win rate in the games that `play_games` plays, of which it takes the arguments and raises the errors."""
    return length_controlled_win_rate(*play_games(judge, prompts, responses, baselines, both_orders=both_orders))


def _ask(judge: Judge, prompt: str, first: str, second: str) -> float:
    try:
        answer = judge(prompt, first, second)
    except Exception as error:  # whatever the user's function, or the service behind it, raises
        raise RewardError(
            f"the judge failed on the prompt {prompt!r} ({type(error).__name__}: {error}); mend it, or let it retry."
        ) from error
    try:
        value = float(answer)
    except (TypeError, ValueError, RuntimeError):
        value = float("nan")
    if isinstance(answer, str) or not 0.0 <= value <= 1.0:
        raise RewardError(
            f"the judge answered {answer!r} to the prompt {prompt!r}; it must give the probability that the first "
            "response is better, a number in [0, 1]."
        )
    return value


def reward_judge(score: Callable[[list[str]], Tensor]) -> Judge:
    r"""The judge that a reward model is: :math:`\sigma(r(prompt\, a) - r(prompt\, b))` (Bradley and Terry).

    Args:
        score: texts -> values ``(B,)``, such as `SequenceClassifierReward.score_texts`; each text is the prompt and,
            after it, the response. A blank is put between the two where neither has one.
    """

    def judge(prompt: str, first: str, second: str) -> float:
        values = score([_join(prompt, first), _join(prompt, second)])
        return float(torch.sigmoid(values[0].double() - values[1].double()))

    return judge


def _join(prompt: str, response: str) -> str:
    blank = not prompt or prompt[-1].isspace() or not response or response[0].isspace()
    return prompt + response if blank else f"{prompt} {response}"
