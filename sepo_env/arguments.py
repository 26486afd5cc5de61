r"""The one check of arguments: types and ranges of every setting, read from its annotation.

A constructor under `checked`, or a dataclass that calls `check_fields`, states each rule once, as the type of the
parameter: ``num_steps: Count``, ``floor: float | None``, ``sampler: Literal["k-step", "first-hitting"]``. pydantic does
the comparing, strictly: text is no number, and ``True`` is no count. NumPy's numbers are taken as Python's, whole
floats as integers, whatever ``os.PathLike`` as a path. All else is an error of one line, with the name of the setting,
what was given and what is wanted.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from annotated_types import DocInfo, Ge, Gt, Le, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainValidator, TypeAdapter, ValidationError

from sepo_env.errors import InvalidArgumentError, InvalidCallError, UnknownNameError, UnknownOptionError

_Function = TypeVar("_Function", bound=Callable[..., Any])

MOST = 2**31 - 1
"""Largest count of anything, so that a slip of the keyboard is refused and does not fill the memory."""

Count = Annotated[int, Ge(1), Le(MOST)]
"""How many, at least one."""
Size = Annotated[int, Ge(1), Le(1_000_000)]
"""How many of what is held in memory side by side: trajectories, steps, positions."""
WholeNumber = Annotated[int, Ge(0), Le(MOST)]
"""How many, or none."""
Seed = Annotated[int, Ge(0), Le(2**63 - 1)]
"""A seed: seeds that are 2^63 apart would draw the same numbers."""
Positive = Annotated[float, Gt(0)]
"""A finite number above 0."""
NonNegative = Annotated[float, Ge(0)]
"""A finite number of at least 0."""
Share = Annotated[float, Ge(0), Le(1)]
"""A share or a probability."""
PathArgument = str | os.PathLike[str]
"""A path, as callers give it."""


def _path_as_text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _not_empty(text: str) -> str:
    if not text or "\0" in text:
        raise ValueError("no system has such a path")
    return text


PathText = Annotated[str, BeforeValidator(_path_as_text), AfterValidator(_not_empty)]
"""A path, as callers give it, kept as text: for what is written down as JSON. No text is no path."""

_STRICT = ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True)
_LONGEST = 80


def checked(function: _Function) -> _Function:
    """Check, and take as what they are meant to be, the arguments of a function at each call.

    Args:
        function: a function, or a constructor, with annotations. Parameters that say nothing, or ``Any``, take all.

    Raises:
        InvalidArgumentError: at a call, an argument of another type than its annotation, or out of its range.
        UnknownNameError: at a call, text that is none of the choices of a ``Literal``.
        UnknownOptionError: at a call, an argument of a name that the function does not have.
        InvalidCallError: at a call, too many arguments, or one missing.

    >>> @checked
    ... def repeat(text: str, times: Count = 1) -> str:
    ...     return text * times
    >>> repeat("ab", np.int64(2)), repeat("ab", 2.0)
    ('abab', 'abab')
    >>> repeat("ab", 2.5)
    Traceback (most recent call last):
    sepo_env.errors.InvalidArgumentError: times is 2.5 (float), but must be a whole number from 1 to 2147483647.
    >>> repeat("ab", tims=2)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sepo_env.errors.UnknownOptionError: repeat got an unexpected keyword argument 'tims'; did you mean 'times'? ...
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function, include_extras=True)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise _wrong_call(function.__qualname__, signature, kwargs, error) from None
        for name, value in bound.arguments.items():
            if signature.parameters[name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
                continue
            if name in hints():
                bound.arguments[name] = check_argument(name, value, hints()[name])
        return function(*bound.args, **bound.kwargs)

    return typing.cast("_Function", call)


def _wrong_call(name: str, signature: inspect.Signature, given: Mapping[str, Any], error: TypeError) -> TypeError:
    """The error of a call that does not fit a signature, with the names that do."""
    name = name.removesuffix(".__init__").rpartition("<locals>.")[2]
    open_kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    known = [
        key for key, parameter in signature.parameters.items() if key != "self" and parameter.kind not in open_kinds
    ]
    unknown = [key for key in given if key not in known]
    if unknown and not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in signature.parameters.values()):
        return UnknownOptionError.of(name, unknown[0], known)
    return InvalidCallError(f"{name}: {error}; it takes: {', '.join(known)}.")


def check_fields(instance: Any) -> None:
    """Check the fields of a dataclass by their annotations, frozen or not; for its ``__post_init__``.

    Raises:
        InvalidArgumentError: a field of another type than its annotation, or out of its range.
        UnknownNameError: text that is none of the choices of a ``Literal``.

    >>> @dataclasses.dataclass(frozen=True)
    ... class Config:
    ...     steps: Count = 8
    ...     mode: Literal["fast", "exact"] = "fast"
    ...
    ...     def __post_init__(self):
    ...         check_fields(self)
    >>> Config(steps=4.0)
    Config(steps=4, mode='fast')
    >>> Config(mode="fsat")
    Traceback (most recent call last):
    sepo_env.errors.UnknownNameError: unknown mode 'fsat'; did you mean 'fast'? Known: exact, fast.
    """
    cls: Any = type(instance)
    hints = _field_hints(cls)
    for field in dataclasses.fields(instance):
        value = check_argument(field.name, getattr(instance, field.name), hints[field.name])
        object.__setattr__(instance, field.name, value)


def check_argument(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as what ``hint`` asks for.

    Args:
        name: of the setting, for the message.
        value: what was given.
        hint: a type annotation; bounds stand in ``Annotated``, as in `Count`.

    Raises:
        InvalidArgumentError: another type, or out of range.
        UnknownNameError: text that is none of the choices of a ``Literal``.

    >>> check_argument("seed", np.float32(3), Seed), check_argument("rate", 1, Positive | None)
    (3, 1.0)
    >>> check_argument("seed", -1, Seed)
    Traceback (most recent call last):
    sepo_env.errors.InvalidArgumentError: seed is -1, but must be a whole number from 0 to 9223372036854775807.
    """
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError:
        pass
    choices = _choices(hint)
    if choices and isinstance(value, str):
        raise UnknownNameError(name, value, choices)
    kind = "" if isinstance(value, (str, int, type(None))) else f" ({type(value).__name__})"
    raise InvalidArgumentError(f"{name} is {shown(value)}{kind}, but must be {describe(hint)}.")


def shown(value: Any, longest: int = _LONGEST) -> str:
    """Show any value in one line of at most ``longest`` characters, even one whose ``repr`` fails.

    >>> shown("a" * 100, 20)
    "'aaaaaaaaaaaaaaaa..."
    """
    try:
        text = " ".join(repr(value).split())
    except Exception:  # somebody else's object
        text = f"<{type(value).__name__}>"
    return text if len(text) <= longest else text[: longest - 3] + "..."


def describe(hint: Any) -> str:
    """Say in words what an annotation asks for: in those of its ``annotated_types.doc``, if it has one.

    >>> describe(Positive | None), describe(Literal["a", "b"]), describe(Sequence[str])
    ('a finite number above 0, or None', "'a' or 'b'", 'a sequence of text')
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint == PathText:
        return "a path"
    if origin is Annotated:
        in_words = [entry.documentation for entry in args[1:] if isinstance(entry, DocInfo)]
        return in_words[0] if in_words else describe(args[0]) + _bounds(args[1:])
    if origin in (Union, types.UnionType):
        return ", or ".join(dict.fromkeys(describe(arg) for arg in args))
    if origin is Literal:
        return " or ".join(filter(None, [", ".join(map(repr, args[:-1])), repr(args[-1])]))
    if origin in (list, tuple, Sequence, Collection):
        items = [arg for arg in args if arg is not ...]
        if origin is tuple and ... not in args and items:
            return f"a tuple of {len(items)}: {', '.join(describe(arg) for arg in items)}"
        return f"a sequence of {describe(items[0])}" if items else "a sequence"
    if origin in (dict, Mapping):
        return "a mapping"
    if hint is Callable or origin is Callable:
        return "a function"
    names = {bool: "True or False", int: "a whole number", float: "a finite number", str: "text"}
    if hint in (None, types.NoneType):
        return "None"
    if hint in names:
        return names[hint]
    plain = origin or hint
    return "a path" if plain is os.PathLike else f"a {getattr(plain, '__name__', plain)}"


def _bounds(metadata: Iterable[Any]) -> str:
    low = high = above = below = None
    for entry in metadata:
        low = entry.ge if isinstance(entry, Ge) else low
        high = entry.le if isinstance(entry, Le) else high
        above = entry.gt if isinstance(entry, Gt) else above
        below = entry.lt if isinstance(entry, Lt) else below
    if low is not None and high is not None:
        return f" from {low} to {high}"
    said = [
        f" {words} {bound}"
        for words, bound in (("of at least", low), ("above", above), ("of at most", high), ("below", below))
        if bound is not None
    ]
    return " and".join(said)


@functools.cache
def _field_hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _choices(hint: Any) -> list[str]:
    """The choices of Literals of strings, alone or beside None; none where something else is taken, too."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return [arg for arg in args if isinstance(arg, str)]
    if origin in (Union, types.UnionType):
        parts = [_choices(arg) for arg in args if arg is not types.NoneType]
        return [choice for part in parts for choice in part] if all(parts) else []
    return []


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:
    return TypeAdapter(_strict(hint), config=_STRICT)


def _strict(hint: Any) -> Any:
    """The annotation as pydantic is to read it: numbers as above, classes by ``isinstance`` and nothing more."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *args[1:])]
    if origin in (Union, types.UnionType):
        return Union[tuple(_strict(arg) for arg in args)]  # noqa: UP007 - made at run time
    if origin in (list, tuple, dict, Sequence, Mapping):
        inner: Any = operator.getitem(origin, tuple(arg if arg is ... else _strict(arg) for arg in args))
        before = {tuple: _items, Sequence: _plain}.get(origin)
        return Annotated[inner, BeforeValidator(before)] if before else inner
    if hint in _NUMBERS:
        return _NUMBERS[hint]
    if origin is Literal or hint in (str, types.NoneType, None, Any, object):
        return Any if hint is object else hint
    if hint is Callable or origin is Callable:
        return Callable[..., Any]
    if origin is Collection or origin is Iterable or origin is Iterator:
        return _instance_of(origin)
    plain = origin or hint
    if not isinstance(plain, type) or (
        getattr(plain, "_is_protocol", False) and not getattr(plain, "_is_runtime_protocol", False)
    ):
        return Any  # a type variable, or a protocol that `isinstance` cannot tell
    return _instance_of(plain)


def _instance_of(cls: type) -> Any:
    """Objects of a class, passed through; pydantic's own ``InstanceOf`` looks into dataclasses."""

    def check(value: Any) -> Any:
        if not isinstance(value, cls):
            raise ValueError(f"no {cls.__name__}")
        return value

    return Annotated[Any, PlainValidator(check)]


def _whole(value: Any) -> Any:
    """NumPy's integers and whole floats as int; the rest as it is, for pydantic to refuse."""
    if isinstance(value, (bool, np.bool_)):
        return value
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return int(value)
    return value


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, (np.integer, np.floating)) else value


def _items(value: Any) -> Any:
    """A list as a tuple: JSON has no tuples."""
    return tuple(value) if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """A range, or one of the kinds of tuple that are not built from their items, such as ``torch.Size``, as a tuple."""
    return tuple(value) if isinstance(value, (tuple, range)) else value


def _truth(value: Any) -> Any:
    return bool(value) if isinstance(value, np.bool_) else value


_NUMBERS: dict[Any, Any] = {
    int: Annotated[int, BeforeValidator(_whole)],
    float: Annotated[float, BeforeValidator(_real)],
    bool: Annotated[bool, BeforeValidator(_truth)],
}
