"""Logarithms of probabilities that may be 0, with gradients that stay finite there."""

from __future__ import annotations

import torch
from torch import Tensor


def safe_log(x: Tensor) -> Tensor:
    """Logarithm with log 0 = -inf and a gradient of 0, not NaN, there; negative numbers count as 0."""
    zero = x <= 0
    return x.masked_fill(zero, 1.0).log().masked_fill(zero, -torch.inf)


def safe_logaddexp(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\log(e^a + e^b)`; -inf with a gradient of 0, not NaN, where both are -inf."""
    zero = (a == -torch.inf) & (b == -torch.inf)
    return torch.logaddexp(a.masked_fill(zero, 0.0), b.masked_fill(zero, 0.0)).masked_fill(zero, -torch.inf)
