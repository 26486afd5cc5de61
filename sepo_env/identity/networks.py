"""What a module of torch is: its weights, and class and settings of each of its parts."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.identity import code
from sepo_env.identity.values import CANNOT_BE_TOLD, class_name, short, tensors_digest, text_digest

Describe = Callable[[Any], Any]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_SETTINGS = (bool, int, float, str, tuple)
_FUNCTIONS = (FunctionType, MethodType, functools.partial)
# Of a configuration of Transformers, where it came from and what wrote it.
_PROVENANCE = frozenset({"_name_or_path", "transformers_version", "dtype", "torch_dtype", "architectures"})


def describe_module(module: nn.Module, describe: Describe, describe_type: Callable[[type], dict[str, Any]]) -> Any:
    """What a module is; a compiled one is what was compiled.

    Args:
        module: any.
        describe: says what an attribute is.
        describe_type: says what the class of the user's is.
    """
    while isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
        module = inner
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    configs: set[int] = set()
    parts = {}
    for name, part in module.named_modules():
        installed = code.is_library(type(part).__module__) and not code.is_ours(type(part))
        attributes = _installed(part, describe, configs) if installed else _attributes(part, describe)
        told = {"class": class_name(type(part))} if installed else describe_type(type(part))
        parts[name] = {**told, **({"attributes": attributes} if attributes else {})}
    whole = {**parts.pop(""), "weights": tensors_digest(tensors.items())}
    text = json.dumps(parts, sort_keys=True)
    if parts:
        whole["parts"] = parts if CANNOT_BE_TOLD in text else f"{len(parts)} {text_digest(text)}"
    return whole


def _attributes(module: nn.Module, describe: Describe) -> dict[str, Any]:
    """What a module of ours, or of the user's, keeps beside its weights."""
    cls: Any = type(module)
    ours = code.is_ours(cls)
    ignored = code.changing_attributes(cls) | _OF_EVERY_MODULE
    names = [name for name in sorted(vars(module)) if name not in ignored and not (ours and name.startswith("_"))]
    # What is no part of the state_dict is not among the weights.
    hidden = {name: module._buffers[name] for name in sorted(module._non_persistent_buffers_set)}
    return {name: describe(value) for name, value in ({name: vars(module)[name] for name in names} | hidden).items()}


def _installed(module: nn.Module, describe: Describe, configs: set[int]) -> dict[str, Any]:
    """What a module of torch, or of another package, says of its settings, and the functions that it was given."""
    found = {name: getattr(module, name, None) for name in sorted(getattr(module, "__constants__", ()))}
    told: dict[str, Any] = {name: short(repr(value)) for name, value in found.items() if type(value) in _SETTINGS}
    told |= {name: describe(value) for name, value in sorted(vars(module).items()) if isinstance(value, _FUNCTIONS)}
    if isinstance(module, (torch.jit.ScriptModule, torch.fx.GraphModule)):
        told["program"] = text_digest(str(module.code))
    config: Any = getattr(module, "config", None)
    if callable(getattr(config, "to_diff_dict", None)) and id(config) not in configs:  # of Transformers
        configs.add(id(config))
        settings = {key: value for key, value in config.to_diff_dict().items() if key not in _PROVENANCE}
        told["config"] = text_digest(json.dumps(settings, sort_keys=True, default=str))
    return told
