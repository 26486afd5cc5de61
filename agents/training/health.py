"""Whether what is trained is still healthy: its weights after each step, and the outputs that samples are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.errors import DivergenceError

LARGEST_WEIGHT = 2.0**24
"""From here on float32 does not tell one unit from the next, and a log-probability made of such numbers is none."""

CURE = "lower learning_rate or max_grad_norm, or look at the reward's scale"


class WeightCheck:
    """Looks at all that an optimiser changes, in two fused reductions and one transfer from the device.

    Weights must be finite and at most `LARGEST_WEIGHT`, or twice the largest at the start where that is more; what
    the optimiser remembers must be finite.

    Args:
        parameters: by name.
        optimiser: theirs.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], optimiser: torch.optim.Optimizer) -> None:
        self._parameters = dict(parameters)
        self.optimiser = optimiser
        largest = float(_largest(list(self._parameters.values())))
        self._limit = max(LARGEST_WEIGHT, 2 * largest if math.isfinite(largest) else 0.0)

    def __call__(self) -> None:
        """Check everything, after a step.

        Raises:
            DivergenceError: with the name of a tensor that is not healthy.
        """
        if (fault := self.fault()) is not None:
            raise DivergenceError(f"after an optimiser step {fault}; {CURE}")

    @torch.no_grad()
    def fault(self) -> str | None:
        """What is not healthy, in words; None if all is."""
        moments = list(self._moments())
        weights = _largest(list(self._parameters.values()))
        largest, remembered = torch.stack([weights, _largest([m for _, m in moments]).to(weights)]).tolist()
        if largest <= self._limit and math.isfinite(remembered):  # NaN compares as False
            return None
        for name, parameter in self._parameters.items():
            size = float(_largest([parameter]))
            if not size <= self._limit:
                return f"the parameter {name} is as large as {size:.3g}, where {self._limit:.3g} is the most"
        name = next(name for name, moment in moments if not math.isfinite(float(_largest([moment]))))
        return f"what the optimiser remembers of the parameter {name} is not finite"

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        moved = [tensor for group in self.optimiser.param_groups for tensor in group["params"]]
        known = {id(parameter): name for name, parameter in self._parameters.items()}
        # An optimiser that moves copies has them in the order of the parameters.
        for copy_of, tensor in zip(self._parameters, moved, strict=True):
            for value in self.optimiser.state.get(tensor, {}).values():
                if isinstance(value, Tensor) and value.shape == tensor.shape and value.ndim:
                    yield known.get(id(tensor), copy_of), value


def _largest(tensors: list[Tensor]) -> Tensor:
    """The largest absolute value, a scalar; NaN where there is any."""
    return nn.utils.get_total_norm([tensor for tensor in tensors if tensor.numel()], norm_type=math.inf)


@contextmanager
def within_range() -> Iterator[None]:
    """Tell an optimiser step in the block that does not fit into a floating-point number as a divergence.

    Raises:
        DivergenceError: torch cannot convert the size of the step.
    """
    try:
        yield
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise DivergenceError(f"the optimiser step is larger than any number; {CURE}") from error


class OutputWatch:
    """Whether a network has answered NaN since it is watched."""

    def __init__(self, device: torch.device) -> None:
        self._seen = torch.zeros((), dtype=torch.bool, device=device)

    def look(self, module: nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook; nothing is transferred from the device."""
        if isinstance(output, Tensor):
            self._seen |= output.isnan().any()

    @property
    def broken(self) -> bool:
        """Whether it has."""
        return bool(self._seen)


@contextmanager
def sound_outputs(network: nn.Module, what: str) -> Iterator[None]:
    """Watch a network while it is sampled from.

    Args:
        network: the policy's.
        what: what is done in the block.

    Raises:
        DivergenceError: at the end of the block, whatever else it raises, if the network has answered NaN.
    """
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    watch = OutputWatch(device)
    handle = network.register_forward_hook(watch.look)
    try:
        yield
    except Exception as error:
        if watch.broken:
            raise _no_law(what) from error
        raise
    finally:
        handle.remove()
    if watch.broken:
        raise _no_law(what)


def _no_law(what: str) -> DivergenceError:
    return DivergenceError(
        f"the policy cannot be sampled from any more: {what}, its network answers NaN, though its weights are finite; "
        f"{CURE}"
    )
