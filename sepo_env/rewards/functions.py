"""Functions as rewards: what they read, strings or tokens, is told by annotation or said outright."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Literal

from sepo_env.arguments import check_fields, checked
from sepo_env.errors import InvalidArgumentError

Reads = Literal["strings", "tokens"]


@dataclass(frozen=True)
class RewardFunction:
    """A function of a batch of sequences, and what it reads.

    Attributes:
        function: called with ``list[str]``, or with tokens ``(B, L)`` int64; returns one number a sequence,
            as a list, an array or a tensor.
        reads: ``"strings"`` or ``"tokens"``.
        name: of the reward.
    """

    function: Callable[[Any], Any]
    reads: Reads
    name: str

    def __post_init__(self) -> None:
        check_fields(self)

    def __call__(self, batch: Any) -> Any:
        return self.function(batch)


@checked
def string_reward(function: Callable[[list[str]], Any], name: str | None = None) -> RewardFunction:
    """Say that a function reads decoded sequences, ``list[str]``.

    >>> string_reward(len, name="size")
    RewardFunction(function=<built-in function len>, reads='strings', name='size')
    """
    return RewardFunction(function, "strings", name or function_name(function))


@checked
def token_reward(function: Callable[[Any], Any], name: str | None = None) -> RewardFunction:
    """Say that a function reads tokens ``(B, L)`` int64."""
    return RewardFunction(function, "tokens", name or function_name(function))


def reward_function(function: Callable[[Any], Any]) -> RewardFunction:
    """Tell what a function reads by the annotation of its first parameter.

    A tensor type means tokens; ``list[str]``, ``Sequence[str]`` and the like, or no annotation, mean strings.

    Raises:
        InvalidArgumentError: the annotation says neither, or that the function reads one sequence only.

    >>> def brightness(sequences):
    ...     return [len(s) for s in sequences]
    >>> reward_function(brightness).reads
    'strings'
    >>> from torch import Tensor
    >>> def parity(tokens: Tensor):
    ...     return tokens.sum(-1) % 2
    >>> reward_function(parity).reads
    'tokens'
    """
    name = function_name(function)
    if inspect.iscoroutinefunction(function):
        raise InvalidArgumentError(f"the reward {name!r} is a coroutine; give a function that runs it to its end.")
    annotation = _first_annotation(function)
    # As text, so that annotations that cannot be evaluated here (``from __future__ import annotations`` with
    # names imported for type checkers only) read the same as those that can.
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    if "Tensor" in text:
        return token_reward(function, name)
    if text == "str":
        raise InvalidArgumentError(
            f"the reward {name!r} reads one sequence (str), but is called with a batch of them; "
            f"give lambda sequences: [{name}(s) for s in sequences]."
        )
    if annotation is inspect.Parameter.empty or re.search(r"\b(str|list|List|Sequence|Any)\b", text):
        return string_reward(function, name)
    raise InvalidArgumentError(
        f"whether the reward {name!r} reads strings or tokens cannot be told from the annotation {text} of its "
        "first parameter; annotate it list[str] or torch.Tensor, or wrap the function in string_reward or "
        "token_reward."
    )


def _first_annotation(function: Callable[[Any], Any]) -> Any:
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # builtins without a signature
        return inspect.Parameter.empty
    if not parameters:
        raise InvalidArgumentError(
            f"the reward {function_name(function)!r} takes no argument; give it one, the batch of sequences."
        )
    return parameters[0].annotation


def function_name(function: Callable[..., Any]) -> str:
    """Return the name by which messages and `terms` call a function."""
    if isinstance(function, RewardFunction):
        return function.name
    if isinstance(function, functools.partial):
        return function_name(function.func)
    if isinstance(function, FunctionType | BuiltinFunctionType | MethodType | type):
        return function.__name__
    wrapped = getattr(function, "__wrapped__", None)  # as functools.lru_cache leaves it
    if callable(wrapped):
        return function_name(wrapped)
    return type(function).__name__
