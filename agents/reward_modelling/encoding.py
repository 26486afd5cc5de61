"""Pairs of texts as a model reads them: tokens, cut to its room, told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agents.reward_modelling.pairs import Pair
from sepo_env.errors import InvalidArgumentError

Example = dict[str, list[int]]


@dataclass(frozen=True)
class Encoded:
    """Pairs in tokens.

    Attributes:
        examples: ``chosen`` and ``rejected`` of each pair that is left.
        num_truncated: texts that were cut, of two for each pair.
        num_dropped: pairs whose texts are the same tokens, mostly after the cut: there is nothing to tell apart.
    """

    examples: list[Example]
    num_truncated: int
    num_dropped: int


def encode_pairs(pairs: Sequence[Pair], tokenizer: Any, max_length: int, kind: str) -> Encoded:
    """Spell pairs, cut them at the tokenizer's ``truncation_side``, and drop those that have become equal.

    Args:
        pairs: of two different texts each.
        tokenizer: the model's.
        max_length: tokens of a text.
        kind: what the pairs are called if none is left.

    Raises:
        InvalidArgumentError: no pair is left.
    """
    num_truncated = 0
    sides: list[list[list[int]]] = []
    for side in ("chosen", "rejected"):
        texts = [getattr(pair, side) for pair in pairs]
        whole = tokenizer(texts, verbose=False)["input_ids"]
        cut = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"]
        num_truncated += sum(len(long) > len(short) for long, short in zip(whole, cut, strict=True))
        sides.append(cut)
    examples = [
        {"chosen": chosen, "rejected": rejected} for chosen, rejected in zip(*sides, strict=True) if chosen != rejected
    ]
    if not examples:
        raise InvalidArgumentError(
            f"none of the {len(pairs)} {kind} pairs has two different texts within {max_length} tokens; give a larger "
            "max_length, a base that reads longer texts, or other pairs."
        )
    return Encoded(examples, num_truncated, len(pairs) - len(examples))
