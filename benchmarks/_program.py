"""How a program of the benchmarks is called: flags from a dataclass, one line for an error, an exit status."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from annotated_types import doc
from pydantic import AfterValidator
from tyro.constructors import PrimitiveConstructorSpec

from sepo_env.arguments import PathArgument
from sepo_env.errors import SepoEnvError

DONE, AMISS, REFUSED, INTERRUPTED = 0, 1, 2, 130
"""All is well; something failed or a goal was missed, and the output says what; nothing was done; Ctrl-C."""

EXIT_STATUS = f"""Exit status: {DONE} all is well; {AMISS} something failed or is missing, and the output says what;
{REFUSED} refused, with the reason; {INTERRUPTED} stopped with Ctrl-C."""

_Options = TypeVar("_Options")


def _expanded(path: PathArgument) -> Path:
    if not os.fspath(path):
        raise ValueError("no path")
    return Path(path).expanduser()


PathOption = Annotated[
    PathArgument,
    doc("a path"),
    AfterValidator(_expanded),
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=lambda given: given[0],
        is_instance=lambda value: isinstance(value, (str, os.PathLike)),
        str_from_instance=lambda value: [os.fspath(value)],
    ),
]
"""A path on a command line; ``~`` is the home folder, and no text is no path."""


def run_program(
    options: type[_Options],
    main: Callable[[_Options, str], int],
    *,
    file: str,
    description: str | None,
    when_stopped: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the command line, do the work, and say what went wrong in one line; returns the exit status.

    Args:
        options: a dataclass, each field of which is a flag.
        main: does the work; told the options and the whole command, returns the exit status.
        file: name of the program's file, for the command.
        description: what ``--help`` says before the flags.
        when_stopped: what Ctrl-C says besides.
        arguments: those of the command line; None takes the process's own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    command = f"python benchmarks/{file} {shlex.join(given)}".strip()
    parsed: Any = tyro.cli(options, prog=f"python benchmarks/{file}", description=description, args=given)
    try:
        return main(parsed, command)
    except KeyboardInterrupt as interrupt:
        said = ["\nstopped" + (f"; {when_stopped}" if when_stopped else "")]
        print("\n".join([*said, *getattr(interrupt, "__notes__", [])]), file=sys.stderr)
        return INTERRUPTED
    except SepoEnvError as error:
        print("\n".join([f"error: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return REFUSED
