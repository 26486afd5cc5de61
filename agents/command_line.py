"""What the command lines share: flags from dataclasses, one line for whatever goes wrong, and exit codes."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from sepo_env.errors import DivergenceError, InvalidArgumentError, SepoEnvError, UnknownNameError

DONE, FAILED, WRONG_USAGE, DIVERGED, INTERRUPTED = 0, 1, 2, 3, 130

_Settings = TypeVar("_Settings")

# What torch says on a CPU; on a GPU there is an exception for it.
_NO_MEMORY = ("can't allocate memory", "not enough memory")


def flags_of(cls: type[_Settings]) -> type[_Settings]:
    """A dataclass of the same flags that takes any values: `settings_of` checks them, and tells the user.

    tyro would tell them in a box, with names that are its own.
    """
    twin = type(cls.__name__, (cls,), {"__post_init__": lambda self: None, "__doc__": cls.__doc__})
    return dataclasses.dataclass(frozen=True)(twin)


def settings_of(cls: type[_Settings], flags: _Settings) -> _Settings:
    """The settings that flags stand for; values that cannot be end the program as wrong usage."""
    values = {field.name: getattr(flags, field.name) for field in dataclasses.fields(flags)}  # type: ignore[arg-type]
    try:
        return cls(**values)
    except (InvalidArgumentError, UnknownNameError) as error:
        say(_in_words(error))
        raise SystemExit(WRONG_USAGE) from error


def run(work: Callable[[], Any], how_to_go_on: str = "") -> int:
    """Do the work; return the exit code, and say on standard error what went wrong.

    Args:
        work: what is to be done.
        how_to_go_on: what to say to whoever has stopped it.
    """
    try:
        work()
    except KeyboardInterrupt as error:
        say(" ".join(filter(None, [*getattr(error, "__notes__", []), how_to_go_on])) or "Stopped.")
        return INTERRUPTED
    except (SepoEnvError, OSError) as error:  # the latter is of files that others read
        say(_in_words(error))
        return DIVERGED if isinstance(error, DivergenceError) else FAILED
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        say(f"{_in_words(error)}\nGive a smaller --micro-batch-size or --batch-size. {how_to_go_on}".rstrip())
        return FAILED
    return DONE


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(hint in str(error) for hint in _NO_MEMORY)


def _in_words(error: BaseException) -> str:
    lines = [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", [])]
    return "\n".join(lines)


def say(text: str) -> None:
    """Write to standard error, through tqdm, so that a bar that is still standing is not torn."""
    tqdm.write(text, file=sys.stderr)
