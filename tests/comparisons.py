"""Comparing what was worked out in two ways: tokens to the letter, floats to the rounding."""

import torch
from tensordict import TensorDictBase
from torch import Tensor

ROUNDING = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Relative and absolute. A sum in another order, or by another kernel, differs in the last bits: 6e-8 of the largest
term in float32, 1e-16 in float64, at each of the few hundred operations of a small network."""


def assert_same(found: Tensor | TensorDictBase, expected: Tensor | TensorDictBase, tolerance: float = 0.0) -> None:
    """Raise unless two tensors, or all entries of two tensordicts, are the same up to rounding.

    Whole numbers and truths are the same to the letter. Only what the same operations gave, on the same machine and in
    the same batch, may be compared bit for bit instead.

    Args:
        found: what is tested.
        expected: what it ought to be.
        tolerance: of floats; 0 takes `ROUNDING`.
    """
    if isinstance(expected, TensorDictBase):
        assert isinstance(found, TensorDictBase)
        names = set(expected.keys(include_nested=True, leaves_only=True))
        assert set(found.keys(include_nested=True, leaves_only=True)) == names
        for name in names:
            assert_same(found[name], expected[name], tolerance)
        return
    assert isinstance(found, Tensor)
    if not expected.dtype.is_floating_point:
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        return
    allowed = tolerance or ROUNDING[expected.dtype]
    torch.testing.assert_close(found, expected, rtol=allowed, atol=allowed)
