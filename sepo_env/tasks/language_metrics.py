"""How samples of text are judged: perplexity under a causal language model, win rates with lengths controlled for."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor

from sepo_env.device import find_device
from sepo_env.errors import InvalidArgumentError, RewardError
from sepo_env.hugging_face import load_folder

Judge = Callable[[str, str, str], float | bool]
"""Prompt and two responses -> the probability that the first response is better, or whether it is."""

_MOST_LOG_ODDS = 30.0


class Perplexity:
    r"""How surprised a causal language model is at texts, each token weighing the same.

    .. math:: \exp\Big( -\frac{1}{\sum_b (n_b - 1)} \sum_b \sum_{i = 2}^{n_b} \log p(w_{b,i} | w_{b,<i}) \Big)

    The first token of a text has nothing to its left and is not predicted. Low is not good as such: texts that repeat
    themselves are easy to predict; look at distinct-n beside it.

    Args:
        path: a folder that ``AutoModelForCausalLM`` reads, with its tokenizer, or a hub id ``"hub:owner/name"``.
        batch_size: texts at a time.
        max_length: tokens of a text, more are cut off at the end; None is what the model has room for.
        device: where to compute.

    Raises:
        CheckpointError: no such folder, or another kind of model.
        MissingExtraError: transformers is not installed.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 4,
        max_length: int | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.device = find_device(device)
        model, self.tokenizer = load_folder(path, "AutoModelForCausalLM")
        self.model: Any = model.requires_grad_(False).to(self.device)
        self.batch_size = batch_size
        room = getattr(model.config, "max_position_embeddings", None)
        limits = [limit for limit in (max_length, room) if limit is not None]
        self.max_length = min(limits) if limits else None

    @torch.no_grad()
    def log_likelihoods(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each text, float64 ``(B,)`` nats, and the number of tokens predicted, int64 ``(B,)``."""
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"][: self.max_length] for text in texts]
        totals = torch.zeros(len(ids), dtype=torch.float64)
        counts = torch.tensor([max(0, len(row) - 1) for row in ids], dtype=torch.int64)
        told = [row for row in sorted(range(len(ids)), key=lambda row: len(ids[row])) if len(ids[row]) > 1]
        for start in range(0, len(told), self.batch_size):
            rows = told[start : start + self.batch_size]
            longest = len(ids[rows[-1]])
            batch = torch.zeros(len(rows), longest, dtype=torch.int64)
            mask = torch.zeros_like(batch)
            for index, row in enumerate(rows):
                batch[index, : len(ids[row])] = torch.tensor(ids[row])
                mask[index, : len(ids[row])] = 1
            batch, mask = batch.to(self.device), mask.to(self.device)
            logits = self.model(input_ids=batch, attention_mask=mask).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none").double()
            totals[rows] = -(loss * mask[:, 1:]).sum(-1).cpu()
        return totals, counts

    def __call__(self, texts: Sequence[str]) -> float:
        """The perplexity of all texts together.

        Raises:
            InvalidArgumentError: no text has two tokens.
        """
        totals, counts = self.log_likelihoods(texts)
        if int(counts.sum()) == 0:
            raise InvalidArgumentError("no text has two tokens, so that there is nothing to predict; give longer ones.")
        return math.exp(-float(totals.sum()) / int(counts.sum()))


@dataclass(frozen=True)
class WinRate:
    """How often one side is better than the other.

    Attributes:
        raw: mean probability of a win.
        length_controlled: that at equal lengths, by the fit.
        length_effect: log-odds by which one (saturated) standard deviation of length moves the judge.
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
    which keeps it finite where length alone decides. Swapping the sides gives 1 less the rate.

    Args:
        wins: probability that the first side wins each game, in [0, 1], ``(N,)``.
        length_differences: length of the first side's response less the second's, ``(N,)``.
        prior_sd: standard deviation of the prior on :math:`\phi`, which is centred at 0; infinity: no prior.

    Raises:
        InvalidArgumentError: no game, other shapes, values outside of [0, 1], or lengths that always differ by the same
            amount, which leaves their effect undetermined.
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
        raise InvalidArgumentError(
            f"all length differences are {d[0]:g}, so that the effect of length cannot be told from the rest; give "
            "responses of varying length."
        )
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


def play(
    judge: Judge,
    prompts: Sequence[str],
    responses: Sequence[str],
    baselines: Sequence[str],
    *,
    both_orders: bool = True,
) -> WinRate:
    """Let a judge compare two sets of responses to the same prompts; lengths are numbers of characters.

    Args:
        judge: asked once for each game and order.
        prompts: N.
        responses: N, of the side whose win rate is wanted.
        baselines: N, of the other side.
        both_orders: show each pair in both orders and average, which takes out a preference for the first place.

    Raises:
        InvalidArgumentError: other numbers of texts.
        RewardError: the judge's answer is no probability.
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
    return length_controlled_win_rate(wins, lengths)


def _ask(judge: Judge, prompt: str, first: str, second: str) -> float:
    answer = float(judge(prompt, first, second))
    if not 0.0 <= answer <= 1.0:
        raise RewardError(f"the judge answered {answer} to the prompt {prompt!r}; it must give a value in [0, 1].")
    return answer


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
