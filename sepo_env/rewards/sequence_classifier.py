"""Sequence classifiers of Hugging Face Transformers as rewards: reward models, sentiment, toxicity, function ..."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sepo_env.arguments import PathArgument, Size, checked
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.identity import class_name, describe
from sepo_env.loading.hugging_face import load_config, load_folder, text_room
from sepo_env.rewards.base import Reward, RewardRole

Output = Literal["log-odds", "probability"]


class SequenceClassifierReward(Reward):
    r"""What a sequence classifier says of the decoded sequences.

    A model with one label is a reward model, and its logit :math:`\ell` is the reward. One with several labels is asked
    for one of them, c:

    .. math:: R(x) = \log \frac{p_c(x)}{1 - p_c(x)} \text{ (``"log-odds"``)} \quad \text{or} \quad p_c(x)
              \text{ (``"probability"``)}, \qquad p = \mathrm{softmax}(\ell)

    and, where its labels do not exclude each other (``problem_type`` of the model), :math:`p = \mathrm{sigmoid}(\ell)`.
    Log-odds keep their slope where a probability is all but 0 or 1.

    Args:
        path: a folder that ``AutoModelForSequenceClassification`` reads, with its tokenizer; such as the
            ``reward_model`` folder that ``python -m agents.reward_model`` writes; or a hub id ``"hub:owner/name"``.
        decode: tokens ``(B, L)`` -> texts, as the classifier shall read them; a task's ``decode``.
        label: the label's name or number; needed with several labels.
        output: ``"log-odds"`` or ``"probability"``; read with several labels.
        batch_size: texts at a time.
        max_length: tokens of a text, more are cut off at the tokenizer's ``truncation_side``; None is what the model
            has room for; a model without a limit reads the whole text.
        name: of the reward; the label's, or the folder's, where it is not given.
        role: what the values may be used for.
        trust_remote_code: run Python code that the folder brings along; it can do whatever you can.

    Raises:
        CheckpointError: no such folder, or one of another kind of model.
        UnknownNameError: no such label, or no such output.
        InvalidArgumentError: several labels and none chosen, or an argument of another type or out of its range.
        MissingExtraError: transformers is not installed.
    """

    @checked
    def __init__(
        self,
        path: PathArgument,
        *,
        decode: Callable[[Tensor], list[str]],
        label: str | int | None = None,
        output: Output = "log-odds",
        batch_size: Size = 32,
        max_length: Size | None = None,
        name: str | None = None,
        role: RewardRole = "any",
        trust_remote_code: bool = False,
    ) -> None:
        model, tokenizer = load_folder(path, "AutoModelForSequenceClassification", trust_remote_code=trust_remote_code)
        self.model = model.requires_grad_(False)
        self.tokenizer = tokenizer
        self.label = _find_label(model.config, label, path)
        self.output: Output = output
        self.batch_size = batch_size
        self.max_length = max_length or text_room(model, tokenizer)
        self.role = role
        folder = os.path.basename(os.path.normpath(path))
        self.name = name or (folder if self.label is None else str(model.config.id2label[self.label]))
        self._decode = decode
        own = getattr(model.config, "pad_token_id", None)
        if tokenizer.pad_token_id is None:  # GPT-2's has none
            fallback = tokenizer.eos_token or tokenizer.unk_token
            tokenizer.pad_token = fallback if own is None else tokenizer.convert_ids_to_tokens(own)
        # Causal classifiers read the last token that is no padding: theirs must be what texts are padded with.
        model.config.pad_token_id = tokenizer.pad_token_id

    def identity(self) -> dict[str, Any]:
        """The model's weights, the tokenizer's vocabulary, and what is read off."""
        vocabulary = tuple(sorted(self.tokenizer.get_vocab().items()))
        cut = {name: getattr(self.tokenizer, name, None) for name in ("truncation_side", "padding_side")}
        return {
            "name": self.name,
            "model": describe(self.model),
            "tokenizer": {"class": class_name(type(self.tokenizer)), "vocabulary": describe(vocabulary), **cut},
            "label": self.label,
            "output": self.output,
            "max_length": self.max_length,
        }

    def score(self, tokens: Tensor) -> Tensor:
        """Return the values ``(B,)`` of ``tokens`` ``(B, L)``, computed on their device."""
        return self.score_texts(self._decode(tokens), tokens.device)

    def score_texts(self, texts: list[str], device: torch.device | str = "cpu") -> Tensor:
        """Return the values of texts, float32 ``(B,)``."""
        self.model.to(device)
        # Texts of like length together: less padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        values = torch.empty(len(texts), dtype=torch.float32, device=device)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = self.tokenizer(
                [texts[row] for row in rows],
                padding=True,
                truncation=self.max_length is not None,
                max_length=self.max_length,
                return_tensors="pt",
            )
            with torch.no_grad():
                logits = self.model(**{key: value.to(device) for key, value in batch.items()}).logits.float()
            values[torch.tensor(rows, device=device)] = self._read(logits)
        return values

    def _read(self, logits: Tensor) -> Tensor:
        """Values ``(B,)`` of logits ``(B, labels)``."""
        if self.label is None:
            return logits[:, 0]
        if self.model.config.problem_type == "multi_label_classification":
            log_odds = logits[:, self.label]
        else:
            others = torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], dim=1)
            log_odds = logits[:, self.label] - others.logsumexp(dim=1)
        return log_odds if self.output == "log-odds" else F.logsigmoid(log_odds).exp()


def check_classifier(path: PathArgument, label: str | int | None) -> None:
    """Refuse the folder or label that a `SequenceClassifierReward` would refuse, before any weights are read.

    Raises:
        CheckpointError: no folder of a model.
        UnknownNameError: no such label.
        InvalidArgumentError: several labels and none chosen, or one chosen where there are none.
        MissingExtraError: transformers is not installed.
    """
    _find_label(load_config(path), label, path)


def _find_label(config: Any, label: str | int | None, path: str | os.PathLike[str]) -> int | None:
    """The number of the label; None where there is but one."""
    names = {int(number): str(name) for number, name in config.id2label.items()}
    if config.num_labels == 1:
        if label is not None:
            raise InvalidArgumentError(f"{path} has one output and no labels to choose from; leave label out.")
        return None
    if label is None:
        raise InvalidArgumentError(f"{path} has the labels {list(names.values())}; say which one with label=.")
    if isinstance(label, int):
        if label not in names:
            raise InvalidArgumentError(f"label {label} is none of 0 to {len(names) - 1}: {list(names.values())}.")
        return label
    numbers = {name: number for number, name in names.items()}
    if label not in numbers:
        raise UnknownNameError("label", label, numbers)
    return numbers[label]
