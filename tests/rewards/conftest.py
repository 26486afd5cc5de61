"""What the tests of rewards share: an alphabet with its decoder and encoder."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


@pytest.fixture
def decode() -> Callable[[Tensor], list[str]]:
    """Tokens ``(B, L)`` -> strings over ACGT."""
    return lambda tokens: ["".join("ACGT"[token] for token in row) for row in tokens.tolist()]


@pytest.fixture
def encode() -> Callable[..., Tensor]:
    """Strings over ACGT -> tokens ``(B, L)``."""
    return lambda *sequences: torch.tensor([["ACGT".index(letter) for letter in s] for s in sequences])
