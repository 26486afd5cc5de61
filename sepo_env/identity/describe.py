"""What something is, as JSON can hold it: the same text in another process for the same thing."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import json
import logging
import pathlib
import re
import types
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sepo_env.identity import code
from sepo_env.identity.networks import describe_module
from sepo_env.identity.values import (
    CANNOT_BE_TOLD,
    LONGEST,
    cannot_be_told,
    class_name,
    plain,
    short,
    tensors_digest,
    text_digest,
)

_MOST_ITEMS = 64
_DEEPEST = 24
# What shows its whole value, and nothing of where it is kept.
_SHOWN = (
    bytes,
    complex,
    range,
    slice,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    fractions.Fraction,
    np.dtype,
    np.generic,
    pathlib.PurePath,
    torch.device,
    torch.dtype,
    torch.Size,
    type(...),
    type(NotImplemented),
)
_COMPILED = (types.BuiltinFunctionType, types.MethodDescriptorType, types.WrapperDescriptorType, np.ufunc)


class Identified:
    """Marks what says what it is; by default its class, with its code where that is not ours, and its attributes."""

    _not_identity: ClassVar[frozenset[str]] = frozenset()
    """Attributes that change nothing of what it does."""

    def identity(self) -> dict[str, Any]:
        """What this is, for JSON: equal descriptions, equal behaviour, in another process as well.

        What cannot be told is an entry of its own (`cannot_be_told`). Attributes that scoring assigns, such as
        counters, are no part of it.
        """
        return describe_object(self, skip=self._not_identity)


def describe(value: Any) -> Any:
    """What a value is.

    Data stands for itself, or for a hash where it is large; functions and classes of the user's are told by their
    code, modules of torch by their weights, what is installed by its name.

    >>> describe((1, 2.5, "ab")), describe(float("inf"))
    ([1, 2.5, 'ab'], 'inf')
    >>> describe([1])
    {'cannot be told': 'a list, which may change', 'seen': [1]}
    """
    return _Describer().describe(value)


def describe_callable(function: Callable[..., Any]) -> dict[str, Any]:
    """What a function is that the user gives: where it can be told, by its code, defaults and what it closes over."""
    return _Describer().of_callable(function, given=True)


def describe_object(value: object, skip: Iterable[str] = ()) -> dict[str, Any]:
    """What an object is by its class and its attributes but those to skip, though it `Identified` itself."""
    return _Describer().of_object(value, frozenset(skip))


class _Describer:
    """One walk through what something is made of; what is met again is told once."""

    def __init__(self) -> None:
        self._met: dict[int, tuple[str, object]] = {}  # the objects as well, so that no number is given again
        self._depth = 0
        self._lenient = False

    def describe(self, value: Any) -> Any:
        if value is None or type(value) in (bool, str, int, float):
            return plain(value)
        if self._depth >= _DEEPEST:
            return cannot_be_told("nested too deep")
        self._depth += 1
        try:
            return self._describe(value)
        except Exception as error:  # somebody else's object
            return cannot_be_told(f"a {type(value).__name__} that cannot be described ({type(error).__name__})")
        finally:
            self._depth -= 1

    def _describe(self, value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return f"{class_name(type(value))}.{value.name}"
        if isinstance(value, re.Pattern):
            return {"pattern": repr(value.pattern), "flags": int(value.flags)}
        if isinstance(value, _SHOWN):
            return short(repr(value))
        if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta:
            return f"tensor {tensors_digest([('', value)])} {tuple(value.shape)} {value.dtype}"
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]
            return f"array {content} {value.shape} {value.dtype}"
        if isinstance(value, (list, dict, set, bytearray, collections.deque)) or type(value) in (tuple, frozenset):
            return self._container(value)
        if isinstance(value, types.ModuleType):
            return f"module {value.__name__}"
        if isinstance(value, logging.Logger):
            return f"logger {value.name}"
        if (again := self._met.get(id(value))) is not None:
            return f"again {again[0]}"
        self._met[id(value)] = (getattr(value, "__name__", type(value).__name__), value)
        if isinstance(value, Identified):
            return value.identity()
        if isinstance(value, nn.Module):
            return self._module(value)
        if isinstance(value, type):
            return self.of_type(value)
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, *_COMPILED)):
            return self.of_callable(value)
        if hasattr(value, "__wrapped__"):
            return {"class": class_name(type(value)), "wrapped": self.describe(value.__wrapped__)}
        if isinstance(value, tuple):  # a named one
            return {"class": class_name(type(value)), "items": [self.describe(item) for item in value]}
        if dataclasses.is_dataclass(value) and getattr(type(value), "__dataclass_params__").frozen:  # noqa: B009
            return self.of_object(value)
        live = {"object": cannot_be_told(f"a live {type(value).__name__}")}
        # What an installed class keeps in its objects is its own business.
        installed = code.is_library(type(value).__module__)
        return {"class": class_name(type(value)), **live} if installed else {**self.of_object(value), **live}

    def _container(self, value: Any) -> Any:
        kind = type(value).__name__
        if len(value) > _MOST_ITEMS and not isinstance(value, (tuple, frozenset)):
            return cannot_be_told(f"a {kind}, which may change", f"{len(value)} entries", unless_seen=self._lenient)
        if isinstance(value, dict):
            told: Any = {str(self.describe(key)): self.describe(item) for key, item in value.items()}
        elif isinstance(value, bytearray):
            told = short(repr(value))
        else:
            told = [self.describe(item) for item in value]
            if isinstance(value, (set, frozenset)):
                told.sort(key=lambda item: json.dumps(item, sort_keys=True))
        if len(text := json.dumps(told, sort_keys=True)) > 8 * LONGEST and CANNOT_BE_TOLD not in text:
            told = f"{kind} of {len(value)} {text_digest(text)}"
        if isinstance(value, (tuple, frozenset)):
            return told
        return cannot_be_told(f"a {kind}, which may change", told, unless_seen=self._lenient)

    def of_callable(self, function: Any, given: bool = False) -> dict[str, Any]:
        """A function, method, class or callable object; one that is ``given`` is all that there is to compare."""
        if isinstance(function, functools.partial):
            options = {name: self.describe(value) for name, value in sorted(function.keywords.items())}
            inner = self.of_callable(function.func, given)
            return {"partial": inner, "arguments": [self.describe(value) for value in function.args], **options}
        if isinstance(function, types.MethodType):
            owner = function.__self__
            if isinstance(owner, type):
                return {"method": self.of_callable(function.__func__), "of": self.describe(owner)}
            live = cannot_be_told(f"a bound method of a live {type(owner).__name__}")
            return {"method": self.of_callable(function.__func__), "of": self._owner(owner), "object": live}
        if isinstance(function, types.FunctionType):
            return self.of_function(function, given)
        if isinstance(function, _COMPILED):
            name = f"{getattr(function, '__module__', None) or ''}.{function.__name__}".lstrip(".")
            unknown = {"compiled": cannot_be_told("a C function")} if given else {}
            return {"function": name, **unknown}
        told = self.describe(function)
        return told if isinstance(told, dict) else {"callable": told}

    def _owner(self, owner: object) -> Any:
        """The object of a bound method, without a second word that it is alive."""
        told = self.describe(owner)
        return {name: entry for name, entry in told.items() if name != "object"} if isinstance(told, dict) else told

    def of_function(self, function: types.FunctionType, given: bool = False) -> dict[str, Any]:
        name = function.__name__
        # Where it is written; `functools.wraps` lends a decorator's function the module of what it wraps.
        module = str(function.__globals__.get("__name__", ""))
        library = code.is_library(module)
        if library and isinstance(wrapped := getattr(function, "__wrapped__", None), types.FunctionType):
            return {"wrapper": f"{module}.{function.__code__.co_qualname}", "wrapped": self.of_function(wrapped, given)}
        if library and not given:
            return {"function": f"{module}.{function.__qualname__}"}
        told: dict[str, Any] = {"function": name, "code": code.code_digest(function.__code__)}
        if function.__defaults__ or function.__kwdefaults__:
            defaults = [self.describe(value) for value in function.__defaults__ or ()]
            named = {key: self.describe(value) for key, value in sorted((function.__kwdefaults__ or {}).items())}
            told["defaults"] = {"positions": defaults, **named}
        rebound = code.rebound_cells(function)
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        closure = {key: self._cell(cell) for key, cell in cells.items() if key not in rebound and key != "__class__"}
        closure |= {key: cannot_be_told("a variable that it assigns") for key in sorted(rebound)}
        reads = {} if library else {key: self.describe(value) for key, value in code.used_globals(function).items()}
        imports = [] if library else code.late_imports(function)
        reads |= {key: cannot_be_told("a module that it imports when it is called") for key in imports}
        told |= {key: entries for key, entries in (("closure", closure), ("reads", reads)) if entries}
        if given and name == "<lambda>":
            told["lambda"] = cannot_be_told("a lambda")
        return told

    def _cell(self, cell: Any) -> Any:
        try:
            return self.describe(cell.cell_contents)
        except ValueError:
            return "not yet there"

    def of_type(self, cls: type) -> dict[str, Any]:
        """A class: by name where it is installed, else by the code of its methods and of the classes it is made of."""
        told: dict[str, Any] = {"class": class_name(cls)}
        if code.is_library(cls.__module__):
            return told
        if issubclass(cls, enum.Enum):
            return {**told, "members": {name: self.describe(member.value) for name, member in cls.__members__.items()}}
        told |= {name: self.describe(member) for name, member in code.members(cls)}
        bases = [base for base in cls.__bases__ if base is not object]
        return {**told, **({"bases": [self.describe(base) for base in bases]} if bases else {})}

    def of_object(self, value: object, skip: frozenset[str] = frozenset()) -> dict[str, Any]:
        cls: Any = type(value)
        self._met[id(value)] = (cls.__name__, value)
        ignored = code.changing_attributes(cls) | skip
        names = [*getattr(value, "__dict__", {})]
        slots = (getattr(kind, "__slots__", ()) for kind in cls.__mro__)
        names += [name for group in slots for name in ([group] if isinstance(group, str) else group)]
        told = {
            name: self.describe(getattr(value, name))
            for name in sorted(set(names) - ignored)
            if hasattr(value, name) and not name.startswith("__")
        }
        return {**self.of_type(cls), **({"attributes": told} if told else {})}

    def _module(self, module: nn.Module) -> Any:
        lenient, self._lenient = self._lenient, True  # lists and dictionaries of a network are settings
        try:
            return describe_module(module, self.describe, self.of_type)
        finally:
            self._lenient = lenient
