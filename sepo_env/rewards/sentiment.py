"""The polarity of a text: a small classifier over tokens to be trained on, and VADER to judge."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Count, PathArgument, Share, Size, check_fields, checked
from sepo_env.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.identity import describe
from sepo_env.loading.tensorfile import build_from, read_tensors
from sepo_env.precision import float32_default
from sepo_env.rewards.base import Reward
from sepo_env.textfile import parse_json

FORMAT = "sepo_env.sentiment/1"


@dataclass(frozen=True)
class SentimentConfig:
    """The shape of a `SentimentClassifier`.

    Attributes:
        num_tokens: ``V``; the id ``V`` stands for no token.
        channels: of the embedding and of the convolutions.
        kernel_size: of the convolutions, in tokens; odd.
        dropout: the share of features dropped in training.
    """

    num_tokens: Count
    channels: Size = 64
    kernel_size: Size = 3
    dropout: Share = 0.3

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kernel_size % 2 == 0:
            raise InvalidArgumentError(
                f"kernel_size is {self.kernel_size}, but a centred convolution needs an odd one."
            )


class SentimentClassifier(nn.Module):
    r"""Two convolutions over embedded tokens, pooled by mean and maximum: the log-odds that a text is positive.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, V]`` -> ``(B,)`` float32; positions with the id V are read as empty.
    """

    @checked
    @float32_default()
    def __init__(self, config: SentimentConfig) -> None:
        super().__init__()
        self.config = config
        channels, padding = config.channels, config.kernel_size // 2
        self.embedding = nn.Embedding(config.num_tokens + 1, channels, padding_idx=config.num_tokens)
        nn.init.normal_(self.embedding.weight[: config.num_tokens], std=0.3)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, config.kernel_size, padding=padding) for _ in range(2)
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * channels, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the log-odds ``(B,)`` of tokens ``(B, L)``."""
        there = (tokens < self.config.num_tokens)[:, None]  # (B, 1, L)
        # What is empty stays empty, so that padding does not change the answer.
        hidden = self.dropout(self.embedding(tokens)).mT * there
        for convolution in self.convolutions:
            hidden = (hidden + F.gelu(convolution(hidden))) * there
        mean = hidden.sum(-1) / there.sum(-1).clamp(min=1)
        largest = hidden.masked_fill(~there, -torch.inf).amax(-1).nan_to_num(neginf=0.0)
        logits: Tensor = self.head(self.dropout(torch.cat([mean, largest], dim=-1)))
        return logits[:, 0]


class SentimentReward(Reward):
    r"""The polarity that a trained classifier sees, :math:`2 p - 1 = \tanh(z / 2)` of its log-odds z, in [-1, 1].

    Args:
        classifier: also at hand as ``reward.classifier``.
        name: of the reward.

    Raises:
        InvalidTokensError: on scoring, tokens that are not visible ones.
    """

    role = "training"

    @checked
    def __init__(self, classifier: SentimentClassifier, *, name: str = "sentiment") -> None:
        self.classifier = classifier.eval()
        self.name = name
        self.num_ids = classifier.config.num_tokens

    def score(self, tokens: Tensor) -> Tensor:
        """Return the polarities ``(B,)`` of ``tokens`` ``(B, L)``, computed on their device."""
        return torch.tanh(self.classifier.to(tokens.device)(tokens) / 2)


class VaderReward(Reward):
    """The compound score of VADER, a lexicon with rules (Hutto and Gilbert 2014), in [-1, 1]; it only judges.

    Args:
        decode: tokens ``(B, L)`` -> texts.
        name: of the reward.

    Attributes:
        lexicon: the words that it rates.

    Raises:
        MissingExtraError: the package vaderSentiment is not installed.
    """

    role = "held_out"

    @checked
    def __init__(self, decode: Callable[[Tensor], list[str]], *, name: str = "vader") -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise MissingExtraError("vaderSentiment", "text") from error
        self._analyzer = SentimentIntensityAnalyzer()
        self.lexicon: Mapping[str, float] = self._analyzer.lexicon
        self._decode = decode
        self.name = name

    def identity(self) -> dict[str, Any]:
        """Its lexicon."""
        return {"name": self.name, "rule": "VADER", "lexicon": describe(tuple(sorted(self.lexicon.items())))}

    def score(self, tokens: Tensor) -> Tensor:
        """Return the compound scores ``(B,)`` of the decoded texts."""
        scores = [self._analyzer.polarity_scores(text)["compound"] for text in self._decode(tokens)]
        return torch.tensor(scores, dtype=torch.float32)


def save_sentiment(classifier: SentimentClassifier, path: Path, provenance: Mapping[str, str]) -> None:
    """Write a classifier as float16, whole or not at all; `load_sentiment` reads it as float32."""
    tensors = {key: value.detach().half().contiguous() for key, value in classifier.state_dict().items()}
    metadata = {**provenance, "format": FORMAT, "config": json.dumps(asdict(classifier.config))}
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata=metadata)
    temporary.chmod(0o644)  # safetensors writes files that only their owner may read
    os.replace(temporary, path)


@checked
def load_sentiment(path: PathArgument) -> SentimentClassifier:
    """Read a classifier from safetensors, on the CPU, in float32, in evaluation mode and frozen.

    Raises:
        CheckpointError: no such file, not a classifier, or tensors that differ from what its configuration asks for, or
            are not finite.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            path, f"expected the format {FORMAT!r}, found {metadata.get('format')!r}", "give one of save_sentiment"
        )

    def build() -> SentimentClassifier:
        return SentimentClassifier(SentimentConfig(**parse_json(metadata["config"])))

    return build_from(path, build, tensors).eval().requires_grad_(False)
