"""A function as bytes, of which another interpreter makes the same function."""

from __future__ import annotations

import functools
import io
import operator
import sys
from collections import ChainMap
from collections.abc import Callable
from typing import Any, ClassVar

import cloudpickle

_Cached: Any = type(functools.lru_cache(len))


def dump_function(function: Callable[..., Any]) -> bytes:
    """Pickle a function by value where the other side could not import it: lambdas, those of a notebook or a script.

    >>> import pickle
    >>> pickle.loads(dump_function(lambda text: text.lower()))("ACGT")
    'acgt'
    """
    buffer = io.BytesIO()
    _Pickler(buffer).dump(function)
    return buffer.getvalue()


def _reduce_cached(cached: Any) -> str | tuple[Any, ...]:
    """By name where it can be imported, else as the function within and how it is cached; the cache starts empty."""
    if _is_importable(cached):
        return str(cached.__qualname__)

    # Not of this module, so that the other side need not import it (and torch).
    def cache(function: Callable[..., Any], parameters: dict[str, Any]) -> Any:
        import functools

        return functools.lru_cache(**parameters)(function)

    attributes = {name: value for name, value in vars(cached).items() if name != "__wrapped__"}
    return cache, (cached.__wrapped__, cached.cache_parameters()), attributes or None


def _is_importable(cached: Any) -> bool:
    module = sys.modules.get(cached.__module__)
    if module is None or module.__name__ == "__main__":
        return False
    try:
        return operator.attrgetter(cached.__qualname__)(module) is cached
    except AttributeError:
        return False


class _Pickler(cloudpickle.Pickler):
    """cloudpickle, which would send a function under `functools.lru_cache` by its name alone."""

    dispatch_table: ClassVar[Any] = ChainMap({_Cached: _reduce_cached}, cloudpickle.Pickler.dispatch_table)
