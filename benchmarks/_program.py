"""How a program of the benchmarks is called: flags from a dataclass, one line for an error, an exit status."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, TypeVar

import tyro
from annotated_types import doc
from pydantic import AfterValidator
from tyro.constructors import PrimitiveConstructorSpec

from agents.command_line import DONE, FAILED, INTERRUPTED, flags_of, run, settings_of
from sepo_env.arguments import PathArgument
from sepo_env.loading.paths import as_path

AMISS, REFUSED = 1, 2

_EXIT_STATUS = f"""Exit status: {DONE} all is well; {AMISS} something failed, is missing or misses its goal, and the
output says what; {REFUSED} refused, with the reason; {INTERRUPTED} stopped with Ctrl-C."""

_Options = TypeVar("_Options")


def _expanded(path: PathArgument) -> Path:
    if not os.fspath(path):
        raise ValueError("no text is no path")
    return as_path(path)


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
    how_to_go_on: str = "",
    arguments: Sequence[str] | None = None,
) -> int:
    """Read the command line, do the work, and say in one line what went wrong; returns the exit status.

    Args:
        options: a dataclass, each field of which is a flag.
        main: does the work; told the options and the whole command, returns the exit status.
        file: name of the program's file, for the command.
        description: what ``--help`` says before the flags; the exit statuses are said below it.
        how_to_go_on: what to tell whoever has stopped the program.
        arguments: those of the command line; None takes the process's own.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    program = f"python benchmarks/{file}"
    said = f"{description}\n{_EXIT_STATUS}"
    settings = settings_of(options, tyro.cli(flags_of(options), prog=program, description=said, args=given))
    status = REFUSED

    def work() -> None:
        nonlocal status
        status = main(settings, f"{program} {shlex.join(given)}".strip())

    ended = run(work, how_to_go_on)
    return ended if ended not in (DONE, FAILED) else status
