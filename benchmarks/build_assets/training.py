"""What the training scripts share: data augmentation, resumable checkpoints, learning rates, moving averages."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def reverse_complement(tokens: Tensor) -> Tensor:
    """Return the other strand of ``tokens`` ``(..., L)``; with A C G T = 0..3 the complement of v is 3 - v."""
    return 3 - tokens.flip(-1)


def random_strand(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``tokens`` ``(B, L)`` with each row on its own or on the other strand, at even odds."""
    flipped = torch.rand(len(tokens), 1, generator=generator) < 0.5
    return torch.where(flipped, reverse_complement(tokens), tokens)


def warmup_cosine(step: int, num_steps: int, warmup: int) -> float:
    """Return the factor on the learning rate: a linear rise over ``warmup`` steps, then half a cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, num_steps - warmup))))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the exponential average of the weights towards ``model``, faster at the start so that it forgets it."""
    weight = 1 - min(decay, (1 + step) / (10 + step))
    for target, source in zip(average.parameters(), model.parameters(), strict=True):
        target.lerp_(source, weight)


def save_atomically(state: Mapping[str, Any], path: Path) -> None:
    """Write ``state`` so that ``path`` always holds a whole checkpoint."""
    temporary = path.with_suffix(".tmp")
    torch.save(dict(state), temporary)
    os.replace(temporary, path)
