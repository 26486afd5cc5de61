"""What of a text was given, and what was written."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.diffusion.random import keys_from_seed
from sepo_env.tasks import Task


def prompts_of(task: Task, count: int, seed: int) -> Tensor | None:
    """The prompts that texts with the seeds ``seed .. seed + count - 1`` start from; None where there are none."""
    return task.prompt(keys_from_seed(torch.arange(seed, seed + count))) if task.conditional else None


def prompts_and_responses(task: Task, tokens: Tensor, given: Tensor | None) -> tuple[list[str], list[str]]:
    """The text that each row begins with where it was given, and the rest; the two together are the decoded row.

    Where given tokens stand behind free ones, the prompt is "" and the response the whole text.
    """
    texts = task.decode(tokens)
    if given is None:
        return [""] * len(tokens), texts
    borders = []
    for text, row in zip(texts, given, strict=True):
        free = row == task.num_tokens
        first = int(free.int().argmax()) if bool(free.any()) else len(row)
        prefix = task.decode(row[:first][None])[0] if first and bool(free[first:].all()) else ""
        # A letter of several tokens may reach across the border: then the prompt ends before it.
        agree = [one == other for one, other in zip(prefix, text, strict=False)]
        borders.append(agree.index(False) if False in agree else len(agree))
    pairs = list(zip(texts, borders, strict=True))
    return [text[:border] for text, border in pairs], [text[border:] for text, border in pairs]
