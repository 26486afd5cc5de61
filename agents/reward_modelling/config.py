"""What the training of a reward model can be told; the command line is generated from this."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt

from sepo_env.arguments import Count, NonNegative, PathText, Positive, Size, check_fields
from sepo_env.errors import InvalidArgumentError
from sepo_env.loading.paths import as_path

# A resumed run may go on for longer; where it computes and how often it writes says nothing about what it is.
FREE_ON_RESUME = frozenset({"num_epochs", "log_dir", "device", "save_every", "pairs", "eval_pairs", "base"})


@dataclass(frozen=True)
class RewardModelConfig:
    """Settings of the training of a reward model on pairs of texts.

    Raises:
        InvalidArgumentError: a value of another type or out of its range, or values that exclude each other.
    """

    pairs: PathText
    """JSONL file (or .jsonl.gz) of preferences, one object a line: {"chosen": "...", "rejected": "..."}, whole
    dialogues as in HH-RLHF: "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    log_dir: PathText
    """Folder of the run: checkpoints, metrics.csv and, at the end, the model itself in reward_model/."""
    base: PathText | None = None
    """Folder of a pretrained model and its tokenizer, such as a downloaded gpt2, or a hub id; None starts a small GPT-2
    from scratch, with a byte-level tokenizer trained on the pairs."""
    eval_pairs: PathText | None = None
    """JSONL file of held-out pairs; None holds back a share of the pairs."""
    eval_share: Annotated[float, Gt(0), Lt(1)] = 0.1
    """Share of the prompts that are held out, with all their pairs; read where eval_pairs is not given."""
    num_epochs: Count = 3
    """Passes over the training pairs."""
    batch_size: Size = 16
    """Pairs per optimiser step."""
    learning_rate: Positive | None = None
    """Step size of AdamW, falling linearly to 0; None is 1e-3 from scratch and 1e-5 with a base."""
    warmup_share: Annotated[float, Ge(0), Lt(1)] = 0.05
    """Share of the optimiser steps over which the step size rises."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this total norm."""
    max_length: Annotated[Size, Ge(2)] = 512
    """Tokens of a text; of longer ones the beginning is cut off, because the answer stands at the end."""
    vocab_size: Annotated[Size, Ge(258)] = 2048
    """Tokens of the tokenizer that is trained on the pairs, at most, and at least one for every byte and two special
    ones; read without base."""
    width: Size = 128
    """Width of the model from scratch; read without base."""
    depth: Size = 2
    """Blocks of the model from scratch; read without base."""
    heads: Size = 4
    """Attention heads of the model from scratch; read without base."""
    save_every: Count = 200
    """Optimiser steps between checkpoints; the end of each epoch writes its figures, too."""
    device: Literal["auto", "cpu"] = "auto"
    """Where to compute: auto (a GPU where there is one), or cpu."""
    seed: Annotated[int, Ge(0), Le(2**32 - 1)] = 0
    """Seed of the weights, of the order of the pairs and of what is held out."""

    def __post_init__(self) -> None:
        """Check types, ranges, and what two fields must agree on."""
        check_fields(self)
        if self.width % self.heads:
            raise InvalidArgumentError(f"heads is {self.heads}, but must be a divisor of the width {self.width}.")
        for name in ("pairs", "log_dir", "eval_pairs"):
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, str(as_path(path)) if path else path)

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
