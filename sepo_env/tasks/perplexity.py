"""Perplexity of texts, or of responses to prompts, under a causal language model."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sepo_env.arguments import Count, PathArgument, checked
from sepo_env.device import find_device
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.loading.hugging_face import load_folder, text_room

_TRIAL_LENGTH = 8
# A causal model's earlier predictions change by rounding alone, those of a bidirectional one by far more than this.
_MOST_LEAK = 1e-4


class Perplexity:
    r"""How surprised a causal language model is at texts, each token weighing the same.

    .. math:: \exp\Big( -\frac{1}{\sum_b |I_b|} \sum_b \sum_{i \in I_b} \log p(w_{b,i} | w_{b,<i}) \Big)

    where :math:`I_b` are the tokens of a text but its first one, which has nothing to its left and is not predicted;
    or, with a prompt, those that are not wholly the prompt's, which is context and not predicted. Low is not good as
    such: texts that repeat themselves are easy to predict; look at distinct-n beside it.

    Args:
        path: a folder that ``AutoModelForCausalLM`` reads, with its tokenizer, or a hub id ``"hub:owner/name"``.
        batch_size: texts at a time.
        max_length: tokens of a text, more are cut off at the end; None is what the model has room for.
        device: where to compute.

    Raises:
        CheckpointError: no such folder, another kind of model, or one whose predictions look at what follows.
        MissingExtraError: transformers is not installed.
    """

    @checked
    def __init__(
        self,
        path: PathArgument,
        *,
        batch_size: Count = 4,
        max_length: Count | None = None,
        device: str | torch.device | int = "cpu",
    ) -> None:
        self.device = find_device(device)
        model, self.tokenizer = load_folder(path, "AutoModelForCausalLM")
        self.model: Any = model.requires_grad_(False).to(self.device)
        self.batch_size = batch_size
        limits = [limit for limit in (max_length, text_room(model)) if limit is not None]
        self.max_length = min(limits) if limits else None
        self._refuse_foresight(path)

    @torch.no_grad()
    def _refuse_foresight(self, path: str | os.PathLike[str]) -> None:
        """Raise if predictions change with a token behind them: BERT loads as a causal model, and is none."""
        special = set(self.tokenizer.all_special_ids)
        ids = [index for index in range(len(self.tokenizer)) if index not in special][:_TRIAL_LENGTH]
        ids = ids[: self.max_length]
        if len(ids) < 3:
            return
        # They differ in the last token only.
        batch = torch.tensor([ids[:-1], [*ids[:-2], ids[-1]]], device=self.device)
        logits = self.model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits.float()
        change = (logits[0] - logits[1]).abs().amax(-1)
        if bool(change[:-1].max() > _MOST_LEAK * change[-1]):
            raise CheckpointError(
                path,
                f"its {type(self.model).__name__} is not causal: what it predicts for a token depends on those behind "
                "it, so that its perplexity would mean nothing",
                "give a causal language model, such as the folder of a GPT-2",
            )

    @torch.no_grad()
    def log_likelihoods(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
        """Log-likelihood of each text, or of its response, and how many tokens of it are predicted.

        Args:
            texts: B whole texts, prompt and response.
            prompts: B beginnings of these texts, which are given and not predicted; "" and None: nothing is given. A
                token that reaches beyond its prompt counts as one of the response.

        Returns:
            float64 ``(B,)`` nats, and int64 ``(B,)``.

        Raises:
            InvalidArgumentError: another number of prompts, or a text that does not begin with its prompt.
        """
        prompts = [""] * len(texts) if prompts is None else prompts
        if len(prompts) != len(texts):
            raise InvalidArgumentError(f"{len(texts)} texts and {len(prompts)} prompts; give one for each.")
        spelled = [self._spell(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        ids = [row[: self.max_length] for row, _ in spelled]
        firsts = [max(1, first) for _, first in spelled]
        totals = torch.zeros(len(ids), dtype=torch.float64)
        counts = torch.tensor([max(0, len(row) - first) for row, first in zip(ids, firsts, strict=True)]).long()
        told = [row for row in sorted(range(len(ids)), key=lambda row: len(ids[row])) if counts[row] > 0]
        for start in range(0, len(told), self.batch_size):
            rows = told[start : start + self.batch_size]
            longest = len(ids[rows[-1]])
            batch = torch.zeros(len(rows), longest, dtype=torch.int64)
            mask, predicted = torch.zeros_like(batch), torch.zeros_like(batch)
            for index, row in enumerate(rows):
                batch[index, : len(ids[row])] = torch.tensor(ids[row])
                mask[index, : len(ids[row])] = 1
                predicted[index, firsts[row] : len(ids[row])] = 1
            batch, mask, predicted = (part.to(self.device) for part in (batch, mask, predicted))
            logits = self.model(input_ids=batch, attention_mask=mask).logits[:, :-1].float()
            loss = torch.nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none").double()
            totals[rows] = -(loss * predicted[:, 1:]).sum(-1).cpu()
        return totals, counts

    def _spell(self, text: str, prompt: str) -> tuple[list[int], int]:
        """The tokens of a text, and the first of them that is not wholly its prompt's."""
        if not text.startswith(prompt):
            raise InvalidArgumentError(f"the text {text!r} does not begin with its prompt {prompt!r}; give it whole.")
        fast = bool(prompt) and self.tokenizer.is_fast
        spelled = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
        ids: list[int] = spelled["input_ids"]
        if not prompt:
            return ids, 0
        if fast:
            ends = [stop for _, stop in spelled["offset_mapping"]]
            return ids, next((index for index, stop in enumerate(ends) if stop > len(prompt)), len(ids))
        given = self.tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        agree = [one == other for one, other in zip(ids, given, strict=False)]
        return ids, agree.index(False) if False in agree else len(agree)

    def __call__(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> float:
        """The perplexity of all texts together, or of the responses in them; arguments as for `log_likelihoods`.

        Raises:
            InvalidArgumentError: nothing to predict in any text.
        """
        totals, counts = self.log_likelihoods(texts, prompts)
        if int(counts.sum()) == 0:
            raise InvalidArgumentError(
                "no text has two tokens, or none a response that there is room for, so that there is nothing to "
                "predict; give longer texts, or a model with more room."
            )
        return math.exp(-float(totals.sum()) / int(counts.sum()))
