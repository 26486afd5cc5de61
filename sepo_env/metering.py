"""Evaluations are told where they happen: whoever observes a network learns of them, however it is called.

A method that evaluates sequences is marked by `evaluates`. A marked call is one evaluation of as many sequences as its
first tensor has rows, unless it is made of marked calls of the same object, which count instead: of ``forward`` that
calls ``logits`` one counts, and so do all ten of a method that calls ``forward`` ten times. Copies of an object are
observed by nobody.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

Observer = Callable[[int, bool], None]
"""Told how many sequences were evaluated, and whether a gradient can flow back through the result."""
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass
class _Call:
    """A call under way, of which object, and whether an evaluation in it has been told."""

    owner: int
    told: bool


_OBSERVERS: WeakKeyDictionary[object, list[Observer]] = WeakKeyDictionary()
_RUNNING: ContextVar[tuple[_Call, ...]] = ContextVar("_RUNNING", default=())


def evaluates(method: _Function) -> _Function:
    """Mark a method that evaluates the rows of the first tensor among its arguments."""

    @functools.wraps(method)
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        # The meter looks at what is compiled by a hook, which the compiler understands.
        if torch.compiler.is_compiling() or self not in _OBSERVERS:
            return method(self, *args, **kwargs)
        with _running(self) as here:
            output = method(self, *args, **kwargs)
        found = None if here.told else evaluated((args, kwargs), output)
        if found is not None:
            for observer in list(_OBSERVERS.get(self, ())):
                observer(*found)
        if found is not None or here.told:
            for outer in _RUNNING.get():
                outer.told = outer.told or outer.owner == id(self)
        return output

    return cast("_Function", mark(call))


def mark(function: _Function) -> _Function:
    """Say of a function made by `functools.wraps` that what it wraps is what its object does; see `unmarked`."""
    function.__dict__["_evaluates"] = True
    return function


def methods(cls: type, above: type) -> dict[str, FunctionType]:
    """Methods that a class has, of its own or by inheritance, beside those of a class above it and abstract ones."""
    names = {name for kind in cls.__mro__ if kind not in above.__mro__ for name in vars(kind)}
    found = {name: inspect.getattr_static(cls, name) for name in sorted(names)}
    return {
        name: member
        for name, member in found.items()
        if isinstance(member, FunctionType) and not getattr(member, "__isabstractmethod__", False)
    }


def unmarked(function: FunctionType) -> FunctionType:
    """The function that a marked one wraps; any other one itself."""
    while function.__dict__.get("_evaluates", False):
        function = function.__dict__["__wrapped__"]
    return function


def is_marked(cls: type) -> bool:
    """Whether a class has a marked method."""
    return any(
        isinstance(member, FunctionType) and member is not unmarked(member)
        for kind in cls.__mro__
        for member in vars(kind).values()
    )


@contextmanager
def _running(owner: object) -> Iterator[_Call]:
    here = _Call(id(owner), told=False)
    token = _RUNNING.set((*_RUNNING.get(), here))
    try:
        yield here
    finally:
        _RUNNING.reset(token)


@contextmanager
def running(owner: object) -> Iterator[None]:
    """Say that what happens meanwhile is the owner's doing, who counts by itself."""
    with _running(owner):
        yield


def is_running(owner: int) -> bool:
    """Whether a call of the object with this id is under way, in this thread."""
    return any(call.owner == owner for call in _RUNNING.get())


def evaluated(inputs: Any, output: Any) -> tuple[int, bool] | None:
    """How many sequences a call evaluated, and whether it can be differentiated; None where it was no evaluation.

    It was one if it made floating-point numbers of rows that it was given.
    """
    rows = next((leaf.shape[0] for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim > 0), None)
    found = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return None if rows is None or not found else (rows, any(leaf.requires_grad for leaf in found))


def observe(owner: object, observer: Observer) -> Callable[[], None]:
    """Tell ``observer`` of each evaluation of ``owner`` from now on, until what is returned is called."""
    _OBSERVERS.setdefault(owner, []).append(observer)

    def stop() -> None:
        observers = _OBSERVERS.get(owner, [])
        if observer in observers:
            observers.remove(observer)
        if not observers:
            _OBSERVERS.pop(owner, None)

    return stop
