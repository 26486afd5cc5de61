"""Paths as callers give them, checked before anything is read."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from sepo_env.arguments import PathArgument, check_argument
from sepo_env.errors import CheckpointError, InvalidArgumentError


def as_path(path: object) -> Path:
    """Return a `Path`; ``~`` at its beginning is the user's home, which a shell is not always there to fill in.

    Raises:
        InvalidArgumentError: neither text nor an ``os.PathLike`` of text; the empty text, which would be the folder
            that the program runs in; or the home of a user whom nobody knows.
    """
    text: object = os.fspath(check_argument("path", path, PathArgument))
    if not isinstance(text, str) or not text:
        raise InvalidArgumentError(f"path is {text!r}, but must be text that names a file or a folder.")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise InvalidArgumentError(
            f"the path {text!r} begins with a home that this machine does not know; give it in full, or as './~...'."
        ) from error


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; a path that no system can have is none."""
    try:
        return path.is_dir()
    except OSError:
        return False


def check_file(path: object) -> Path:
    """Return the path of a file that is there.

    Raises:
        InvalidArgumentError: no path at all.
        CheckpointError: no such file, or something else than a file.
    """
    file = as_path(path)
    try:
        mode = file.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(file, "there is no such file", "check the path") from error
    except (OSError, ValueError) as error:  # too long, not allowed, a null character
        raise CheckpointError(file, f"it cannot be found ({error})", "check the path") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(file, "expected a file, found a folder", "give a file in it")
    if not stat.S_ISREG(mode):
        raise CheckpointError(file, "expected a file, found a device or a pipe", "give a file on the disk")
    return file
