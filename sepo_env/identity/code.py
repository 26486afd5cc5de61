"""What code does, as a digest that another process finds again: bytecode, constants and names, wherever they stand."""

from __future__ import annotations

import dis
import hashlib
import importlib.util
import inspect
import sys
import sysconfig
from collections.abc import Iterator
from functools import cache, lru_cache
from pathlib import Path
from types import CodeType, FunctionType, GetSetDescriptorType, MemberDescriptorType, ModuleType
from typing import Any

from sepo_env.metering import unmarked

OURS = ("sepo_env", "agents")

_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__", "__setstate__"})
_SCORING = frozenset({"score", "score_texts", "terms", "forward", "__call__"})
_FLAGS = inspect.CO_VARARGS | inspect.CO_VARKEYWORDS | inspect.CO_GENERATOR | inspect.CO_COROUTINE
_FLAGS |= inspect.CO_ASYNC_GENERATOR | inspect.CO_ITERABLE_COROUTINE
# Since Python 3.14; before, the first constant of a named function is its docstring, or None.
_HAS_DOCSTRING: int | None = getattr(inspect, "CO_HAS_DOCSTRING", None)
# What Python 3.13 writes into the body of a class beside its code.
_CLASS_LINES = "__firstlineno__"

# Of a class's own dictionary, what says nothing about what it does.
_MACHINERY = frozenset(
    {
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__", "__hash__", "__repr__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__classdictcell__"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl", "__orig_bases__"),
        *("__parameters__", "__dataclass_params__", "__dataclass_fields__", "__match_args__", "__protocol_attrs__"),
        *("_is_protocol", "_is_runtime_protocol", "__str__", "__eq__", "__setattr__", "__delattr__", "__replace__"),
        *("__getstate__", "__setstate__", "__reduce__", "__reduce_ex__"),
    }
)


def code_digest(code: CodeType) -> str:
    """The version of the bytecode, and a hash of what the code does: not of its file, lines or docstrings.

    >>> one, two = (compile("def f(x): return x + 1", name, "exec").co_consts[0] for name in ("a.py", "b.py"))
    >>> code_digest(one) == code_digest(two)
    True
    """
    return f"{sys.implementation.cache_tag} {hashlib.sha256(repr(_content(code)).encode()).hexdigest()[:16]}"


def _content(code: CodeType) -> tuple[Any, ...]:
    consts = list(code.co_consts)
    if consts and _documented(code):
        consts[0] = None
    if _CLASS_LINES in code.co_names:  # and the names of the attributes that it assigns, in any order
        consts = [tuple(sorted(map(repr, value))) if isinstance(value, tuple) else value for value in consts]
        consts = [None if value == code.co_firstlineno else value for value in consts]
    return (
        code.co_code.hex(),
        getattr(code, "co_exceptiontable", b"").hex(),
        tuple(_constant(value) for value in consts),
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & _FLAGS),
    )


def _documented(code: CodeType) -> bool:
    if _HAS_DOCSTRING is not None:
        return bool(code.co_flags & _HAS_DOCSTRING)
    # Lambdas and comprehensions have none, and no place for one.
    return not code.co_name.startswith("<") and isinstance(code.co_consts[0], str)


def _constant(value: Any) -> Any:
    """A constant by kind and value: 1, 1.0 and True are equal to Python, and sets have no order of their own."""
    if isinstance(value, CodeType):
        return _content(value)
    if isinstance(value, tuple):
        return tuple(_constant(item) for item in value)
    if isinstance(value, frozenset):
        return ("frozenset", *sorted(repr(_constant(item)) for item in value))
    return type(value).__name__, repr(value)


def code_of(function: FunctionType) -> Iterator[CodeType]:
    """The code of a function and of all that is defined in it."""
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        yield code
        stack += [value for value in code.co_consts if isinstance(value, CodeType)]


def used_globals(function: FunctionType) -> dict[str, Any]:
    """The globals that a function reads, by name, those of a module of the user's as ``module.name``.

    Builtins are left out, as are names that are not there yet, and those that the function assigns itself.
    """
    found: dict[str, Any] = {}
    assigned: set[str] = set()
    for code in code_of(function):
        chain: tuple[str, Any] | None = None
        for step in dis.get_instructions(code):
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and step.argval in function.__globals__:
                chain = step.argval, function.__globals__[step.argval]
            elif chain is not None and step.opname in ("LOAD_ATTR", "LOAD_METHOD") and _is_own_module(chain[1]):
                name = str(step.argval)
                chain = (f"{chain[0]}.{name}", vars(chain[1])[name]) if name in vars(chain[1]) else None
            elif step.opname not in ("CACHE", "PRECALL"):
                chain = None
            if step.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
                assigned.add(step.argval)
            if chain is not None:
                found[chain[0]] = chain[1]
    # Of a module, only what is taken from it matters.
    return {name: value for name, value in sorted(found.items()) if name not in assigned and not _is_own_module(value)}


def rebound_cells(function: FunctionType) -> set[str]:
    """Variables of an enclosing function that this one assigns: counters and the like."""
    stored = {"STORE_DEREF", "DELETE_DEREF"}
    return {
        step.argval for code in code_of(function) for step in dis.get_instructions(code) if step.opname in stored
    } & set(function.__code__.co_freevars)


def late_imports(function: FunctionType) -> list[str]:
    """Modules of the user's that a function imports when it is called."""
    names = {
        str(step.argval)
        for code in code_of(function)
        for step in dis.get_instructions(code)
        if step.opname == "IMPORT_NAME"
    }
    return sorted(name for name in names if not is_library(name))


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """What a class itself defines, by name: its functions, those of its properties, and its constants."""
    for name, member in sorted(vars(cls).items()):
        if isinstance(member, FunctionType):
            member = unmarked(member)
        if name in _MACHINERY or isinstance(member, (MemberDescriptorType, GetSetDescriptorType)):
            continue
        if isinstance(member, property):
            parts = {"": member.fget, ".setter": member.fset}
            yield from ((name + end, part) for end, part in parts.items() if part is not None)
        else:
            yield name, member.__func__ if isinstance(member, (staticmethod, classmethod)) else member


@lru_cache(maxsize=256)
def changing_attributes(cls: type) -> frozenset[str]:
    """Attributes that scoring assigns, such as counters: the object's state, not what it is."""
    changed: set[str] = set()
    for kind in filter(_is_ours_or_own, cls.__mro__):
        for name, member in vars(kind).items():
            member = unmarked(member) if isinstance(member, FunctionType) else member
            helper = name.startswith("_") and not name.startswith("__")
            if isinstance(member, FunctionType) and name not in _CONSTRUCTORS and (helper or name in _SCORING):
                for code in code_of(member):
                    steps = dis.get_instructions(code)
                    changed |= {step.argval for step in steps if step.opname in ("STORE_ATTR", "DELETE_ATTR")}
    return frozenset(changed)


def is_ours(cls: type) -> bool:
    """Whether a class is of this library."""
    return cls.__module__.partition(".")[0] in OURS


def _is_ours_or_own(cls: type) -> bool:
    return is_ours(cls) or not is_library(cls.__module__)


def _is_own_module(value: Any) -> bool:
    return isinstance(value, ModuleType) and not is_library(value.__name__)


@cache
def is_library(name: str) -> bool:
    """Whether a module is Python's, installed or ours: known by its name, not by its code."""
    top = name.partition(".")[0]
    if top == "__main__" or not top:
        return False
    if top in OURS or top in sys.stdlib_module_names:
        return True
    module = sys.modules.get(top)
    try:
        spec = getattr(module, "__spec__", None) or importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        spec = None
    origin = getattr(module, "__file__", None) or getattr(spec, "origin", None)
    if origin is None:  # a folder without __init__.py is told by where it lies
        places = list(getattr(spec, "submodule_search_locations", None) or ())
        origin = places[0] if places else None
    return origin is not None and (origin in ("built-in", "frozen") or _is_installed(Path(origin)))


def _is_installed(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return any(path.is_relative_to(sysconfig.get_paths()[name]) for name in ("stdlib", "platstdlib"))
