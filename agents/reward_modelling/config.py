"""What the training of a reward model can be told; the command line is generated from this."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from sepo_env.errors import InvalidArgumentError

# A resumed run may go on for longer; where it computes and how often it writes says nothing about what it is.
FREE_ON_RESUME = frozenset({"num_epochs", "log_dir", "device", "save_every", "pairs", "eval_pairs", "base"})


@dataclass(frozen=True)
class RewardModelConfig:
    """Settings of the training of a reward model on pairs of texts.

    Raises:
        InvalidArgumentError: a value out of its range, or values that exclude each other.
    """

    pairs: str
    """JSONL file (or .jsonl.gz) of preferences, one object a line: {"chosen": "...", "rejected": "..."}, whole
    dialogues as in HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    log_dir: str
    """Folder of the run: checkpoints, metrics.csv and, at the end, the model itself in reward_model/."""
    base: str | None = None
    """Folder of a pretrained model and its tokenizer, such as a downloaded gpt2, or a hub id; None starts a small GPT-2
    from scratch, with a byte-level tokenizer trained on the pairs."""
    eval_pairs: str | None = None
    """JSONL file of held-out pairs; None holds back a share of the pairs."""
    eval_share: float = 0.1
    """Share of the prompts that are held out, with all their pairs; read where eval_pairs is not given."""
    num_epochs: int = 3
    """Passes over the training pairs."""
    batch_size: int = 16
    """Pairs per optimiser step."""
    learning_rate: float | None = None
    """Step size of AdamW, falling linearly to 0; None is 1e-3 from scratch and 1e-5 with a base."""
    warmup_share: float = 0.05
    """Share of the optimiser steps over which the step size rises."""
    weight_decay: float = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this total norm."""
    max_length: int = 512
    """Tokens of a text; of longer ones the beginning is cut off, because the answer stands at the end."""
    vocab_size: int = 2048
    """Tokens of the tokenizer that is trained on the pairs, at most; read without base."""
    width: int = 128
    """Width of the model from scratch; read without base."""
    depth: int = 2
    """Blocks of the model from scratch; read without base."""
    heads: int = 4
    """Attention heads of the model from scratch; read without base."""
    save_every: int = 200
    """Optimiser steps between checkpoints; the end of each epoch writes its figures, too."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), or cpu."""
    seed: int = 0
    """Seed of the weights, of the order of the pairs and of what is held out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("num_epochs", "batch_size", "save_every", "width", "depth", "heads"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        self._require("max_length", self.max_length >= 2, "at least 2")
        self._require(
            "vocab_size", self.vocab_size >= 258, "at least 258: a token for every byte, and two special ones"
        )
        self._require("eval_share", 0 < self.eval_share < 1, "between 0 and 1")
        self._require("learning_rate", self.learning_rate is None or self.learning_rate > 0, "positive, or None")
        self._require("warmup_share", 0 <= self.warmup_share < 1, "from 0 to below 1")
        self._require("weight_decay", self.weight_decay >= 0, "at least 0")
        self._require("max_grad_norm", self.max_grad_norm > 0, "positive")
        self._require("heads", self.width % self.heads == 0, f"a divisor of the width {self.width}")
        self._require("device", self.device in ("auto", "cpu"), "auto or cpu")

    def _require(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise InvalidArgumentError(f"{name} is {getattr(self, name)!r}, but must be {rule}.")

    @property
    def step_size(self) -> float:
        """The learning rate, or its default."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.base is None else 1e-5

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON would read them back."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields
