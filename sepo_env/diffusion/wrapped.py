"""Networks within torch's wrappers, whose names and marks the wrappers hide."""

from __future__ import annotations

from typing import Any

from torch import nn

_INNER = ("_orig_mod", "module")


def unwrapped(network: Any) -> Any:
    """Take the wrappers of `torch.compile`, of data parallelism and of averaged weights off a network.

    Their weights are the network's own, but a `torch.compile`\\ d network is none of its class. Modules of users that
    hold a network, and do something of their own with it, stay as they are, and so does what is no module.

    >>> unwrapped(nn.DataParallel(nn.Linear(1, 2)))
    Linear(in_features=1, out_features=2, bias=True)
    """
    while isinstance(network, nn.Module) and type(network).__module__.partition(".")[0] == "torch":
        inner = [child for name, child in network.named_children() if name in _INNER]
        if not inner:
            break
        network = inner[0]
    return network
