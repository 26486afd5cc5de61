"""Clauses of the King James Bible, to be made cheerful: shipped weights, a trained classifier, VADER as the judge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepo_env.arguments import Seed, Size, WholeNumber, checked
from sepo_env.assets import asset_path
from sepo_env.denoisers import Denoiser, DenoiserArgument, load_denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, Schedule, make_schedule
from sepo_env.rewards import Reward, SentimentReward, VaderReward, load_sentiment
from sepo_env.tasks import metrics
from sepo_env.tasks.codec import WordPieceCodec
from sepo_env.tasks.tokenizer import TokenizerTask

LENGTH = 24


class Letters(Reward):
    """The mean number of letters of a token, blanks not counted: the score of a text that only grows longer words."""

    name = "letters"

    def __init__(self, token_texts: Sequence[str]) -> None:
        self.num_ids = len(token_texts)
        self._letters = torch.tensor([len(text.strip()) for text in token_texts], dtype=torch.float32)

    def score(self, tokens: Tensor) -> Tensor:
        """Return the means ``(B,)``."""
        return self._letters.to(tokens.device)[tokens].mean(-1)


class TextSentimentTask(TokenizerTask):
    r"""Write clauses of 24 words and signs: fine-tune a denoiser of the King James Bible towards positive sentiment.

    The denoiser was trained on the King James text (public domain), the classifier on film reviews and on the word
    ratings of AFINN; VADER, an independent lexicon with rules, judges. Each asset has a model card beside it in
    ``sepo_env/assets``. Text is lower-case; words and punctuation are tokens, rare words are spelled in letters.

    Rewards, each in [-1, 1] (negative to positive) unless said otherwise:

    - ``"sentiment"`` (training): the classifier's :math:`2 p - 1`;
    - ``"vader"`` (judging only): VADER's compound score of the decoded text; needs the extra ``text``;
    - ``"letters"``: mean number of letters a token.

    Args:
        schedule: name of a noise schedule, or one.
        num_steps: K.
        denoiser: another pretrained denoiser than the shipped one.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.
        prompt: a text to begin with, ``"the lord is my"``; or with free words in between, ``"_ _ is my shepherd"``; or
            several such prompts, one of which is drawn for each episode.

    Raises:
        InvalidPromptError: a prompt that does not fit.
    """

    training_reward = "sentiment"
    held_out_reward = "vader"

    @checked
    def __init__(
        self,
        *,
        schedule: str | Schedule = "log-linear",
        num_steps: Size = LENGTH,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
        prompt: str | Sequence[str] | None = None,
    ) -> None:
        codec = WordPieceCodec.load(asset_path("text_codec.json"))
        super().__init__(
            name="text_sentiment",
            codec=codec,
            length=LENGTH,
            process=DiffusionProcess(Absorbing(codec.num_tokens), make_schedule(schedule)),
            num_steps=num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        if prompt is not None:
            self.start_from(prompt)

    def _load_default_denoiser(self) -> Denoiser:
        return load_denoiser(asset_path("text_denoiser.safetensors"))

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        return {
            "sentiment": lambda: SentimentReward(load_sentiment(asset_path("text_sentiment.safetensors"))),
            "vader": lambda: VaderReward(self.decode),
            "letters": lambda: Letters(self.token_texts),
        }

    @property
    def reference(self) -> dict[str, np.ndarray[Any, Any]]:
        """Tables of real clauses by name; ``assets/text_sentiment_tables.md`` lists them."""
        with np.load(asset_path("text_sentiment_tables.npz")) as tables:
            return dict(tables)

    @checked
    def metrics(
        self,
        tokens: Tensor,
        *,
        prompt_mask: Tensor | None = None,
        num_likelihood_steps: Size = LENGTH,
        likelihood_samples: WholeNumber | None = None,
        seed: Seed = 0,
    ) -> dict[str, float]:
        """How positive the texts are to both rewards, how natural to the pretrained denoiser, and how different.

        Args:
            tokens: finished texts, int64 ``(B, 24)``.
            prompt_mask: which positions were given, bool ``(B, 24)``; None: none. They are no part of the likelihood
                and of distinct-n.
            num_likelihood_steps: steps of the likelihood bound; each costs a forward pass a text.
            likelihood_samples: how many of the texts, from the first, the likelihood is estimated on; None is all, 0
                leaves the likelihood out.
            seed: of the likelihood's noise.

        Returns:
            By name: ``held_out_mean``, ``held_out_median`` and its quantiles ``held_out_q05`` .. ``held_out_q95``,
            ``training_median``, ``oracle_gap`` (median of training less median of held-out), all in [-1, 1];
            ``log_likelihood_median`` (nats a text); ``likely_as_real`` (share within the central 90 % of the bounds
            of real clauses: far above them is collapse); ``varied_as_real`` (share whose number of different tokens is
            within that of the central 90 % of real clauses: below them words are repeated, which the likelihood may
            miss); ``distinct_1`` .. ``distinct_3``; and what `Task.diversity` gives.
        """
        self.check_finished(tokens, prompt_mask)
        held_out, training = self.judge()(tokens), self.make_reward()(tokens)
        figures = {"held_out_mean": float(held_out.mean())}
        names = ("held_out_q05", "held_out_q25", "held_out_median", "held_out_q75", "held_out_q95")
        figures |= dict(zip(names, metrics.quantiles(held_out).tolist(), strict=True))
        figures["training_median"] = float(metrics.quantiles(training, (0.5,)))
        figures["oracle_gap"] = float(metrics.reward_gap(training, held_out))
        given = None if prompt_mask is None or not prompt_mask.any() else prompt_mask
        if likelihood_samples != 0:
            bound = self.log_likelihood(
                tokens[:likelihood_samples],
                num_steps=num_likelihood_steps,
                prompt_mask=None if given is None else given[:likelihood_samples],
                seed=seed,
            )
            figures["log_likelihood_median"] = float(metrics.quantiles(bound, (0.5,)))
            if given is None and self._given_denoiser is None and num_likelihood_steps == LENGTH:
                low, high = self.reference["log_likelihood_percentiles_test"][[5, 95]].tolist()
                figures["likely_as_real"] = float(metrics.share_within(bound, low, high))
        if given is None:
            low, high = self.reference["distinct_tokens_percentiles_test"][[5, 95]].tolist()
            figures["varied_as_real"] = float(metrics.share_within(metrics.distinct_tokens(tokens), low, high))
        return {**figures, **self.distinct(tokens, given), **self.diversity(tokens)}
