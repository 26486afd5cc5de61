r"""Estimates of :math:`KL(q \| p)` from samples of q: the k1, k2 and k3 of J. Schulman (2020), as values.

With :math:`r = p(x)/q(x)`: k1 :math:`= -\log r`, k2 :math:`= (\log r)^2 / 2`, k3 :math:`= r - 1 - \log r`. k1 and k3
are unbiased, k2 is biased and never negative. As *losses* they differ more: differentiated through :math:`\log q` on
samples of q that are held fixed, k1 has an expected gradient of 0, k2 exactly that of :math:`KL(q \| p)`, and k3 that
of the other direction, :math:`KL(p \| q)`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from agents.functional.divergences import k3_kl


def k1_kl(log_ratio: Tensor) -> Tensor:
    r"""The k1 estimate :math:`-\log r`, unbiased; single samples may be negative.

    Args:
        log_ratio: :math:`\log p(x) - \log q(x)` at samples x of q, any shape.

    >>> import torch
    >>> k1_kl(torch.tensor([0.0, 1.0]))
    tensor([-0., -1.])
    """
    return -log_ratio


def k2_kl(log_ratio: Tensor) -> Tensor:
    r"""The k2 estimate :math:`(\log r)^2 / 2`; biased, and with the right gradient through :math:`\log q`.

    Args:
        log_ratio: :math:`\log p(x) - \log q(x)` at samples x of q, any shape.

    >>> import torch
    >>> k2_kl(torch.tensor([0.0, 2.0]))
    tensor([0., 2.])
    """
    return log_ratio.square() / 2


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": k1_kl, "k2": k2_kl, "k3": k3_kl}
