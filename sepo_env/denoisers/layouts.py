"""What the loaders of published layouts share: configurations and tensors of other programs, read and checked."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion.schedule import Geometric, LogLinear, Schedule
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.loading.inert import Inert, shown
from sepo_env.loading.tensorfile import BUILD_ERRORS, check_finite, check_tensors, held_to

OTHER_FILE = "give the file of that model, or load this one with its own loader"
_DEEPEST = 32
_Choice = TypeVar("_Choice")
_Config = TypeVar("_Config")
_Model = TypeVar("_Model", bound=Denoiser)


def config_entry(source: str | os.PathLike[str], config: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return an entry of a configuration.

    Args:
        source: the file, for the message.
        config: the configuration.
        name: its sections and the entry, joined by dots.
        kind: of what type the entry must be.

    Raises:
        CheckpointError: no such entry, or one of another type; for a float, also one that is not finite.
    """
    value: Any = config
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    # A bool is an int to Python, and an int is as good as a float.
    if isinstance(value, bool) is not (kind is bool) or not isinstance(value, (int, float) if kind is float else kind):
        raise CheckpointError(
            source, f"expected {name} to be of type {kind.__name__}, found {shown(value)}", OTHER_FILE
        )
    if kind is float:
        value = _as_float(cast(float, value))
        if not math.isfinite(value):
            raise CheckpointError(source, f"expected a finite {name}, found {value}", OTHER_FILE)
    return value


def _as_float(value: float) -> float:
    """A number as a float; infinity where it is beyond all floats."""
    try:
        return float(value)
    except OverflowError:
        return math.inf


def config_choice(
    source: str | os.PathLike[str], config: Mapping[str, Any], name: str, choices: Mapping[str, _Choice]
) -> _Choice:
    """Return what an entry of a configuration stands for.

    Raises:
        CheckpointError: no such entry, or one that is none of the choices.
    """
    value = config_entry(source, config, name, str)
    if value not in choices:
        raise CheckpointError(
            source, f"expected {name} to be among {sorted(choices)}, found {shown(value)}", OTHER_FILE
        )
    return choices[value]


def noise_schedule(source: str | os.PathLike[str], config: Mapping[str, Any]) -> Schedule:
    """Return the schedule that the section ``noise`` of a published configuration describes.

    Raises:
        CheckpointError: none, or another kind than log-linear and geometric.
    """
    kind = config_choice(source, config, "noise.type", {"loglinear": LogLinear, "geometric": Geometric})
    if kind is LogLinear:
        return LogLinear()
    names = ("sigma_min", "sigma_max")
    settings = {name: config_entry(source, config, f"noise.{name}", float) for name in names}
    return build_config(source, Geometric, **settings)


def build_config(path: str | os.PathLike[str], kind: Callable[..., _Config], **settings: Any) -> _Config:
    """Return ``kind(**settings)``.

    Raises:
        CheckpointError: it refuses the settings.
    """
    try:
        return kind(**settings)
    except InvalidArgumentError as error:
        raise CheckpointError(path, f"its settings do not fit ({str(error).removesuffix('.')})", OTHER_FILE) from error


def fill_model(
    path: str | os.PathLike[str], kind: Callable[[_Config], _Model], config: _Config, tensors: Mapping[str, Tensor]
) -> _Model:
    """Return ``kind(config)`` with these tensors in float32, in evaluation mode.

    No random weights are drawn first: that takes its time for a large model, and moves the random state. Tensors are
    copied, for the last bit of a product depends on where in memory its factors begin, and a file puts them anywhere.

    Raises:
        CheckpointError: other tensors than those of the model, or such that are not finite in float32.
    """
    model = blank_model(path, kind, config, len(tensors))
    check_tensors(path, model.state_dict(), tensors, OTHER_FILE)
    copies = {key: _own_copy(value) for key, value in tensors.items()}
    check_finite(path, copies)
    model.load_state_dict(copies, assign=True)
    return model.eval()


def blank_model(
    path: str | os.PathLike[str], kind: Callable[[_Config], _Model], config: _Config, num_tensors: int
) -> _Model:
    """Return ``kind(config)`` with the names and shapes of its tensors alone, which take no memory.

    Raises:
        CheckpointError: there can be no such model, or none whose tensors are those ``num_tensors`` of the file.
    """
    try:
        with torch.device("meta"), held_to(path, num_tensors, OTHER_FILE):
            return kind(config)
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(path, f"its settings do not build ({error})", OTHER_FILE) from error


def _own_copy(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=torch.float32).copy_(tensor)


def plain(value: Any) -> Any:
    """Containers and values of an omegaconf object; interpolations stay the text that they are, never resolved.

    What several containers share is converted once; what lies deeper than any configuration becomes None.
    """
    done: dict[int, Any] = {}

    def convert(value: Any, depth: int) -> Any:
        if id(value) in done:
            return done[id(value)]
        if depth > _DEEPEST:
            return None
        if isinstance(value, Inert):
            state = value.state if isinstance(value.state, Mapping) else {}
            return convert(state.get("_content", state.get("_val")), depth + 1)
        if isinstance(value, Mapping):
            mapping = done[id(value)] = {}
            mapping.update({key: convert(entry, depth + 1) for key, entry in value.items()})
            return mapping
        if isinstance(value, list):
            entries = done[id(value)] = []
            entries.extend(convert(entry, depth + 1) for entry in value)
            return entries
        return value

    return convert(value, 0)
