"""Files of text, JSON and JSON lines, whatever program wrote them.

Editors on Windows put a mark of the byte order in front of a text, or write UTF-16, whose mark says so; both are read
here, and the mark is no part of what is read.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sepo_env.errors import CheckpointError
from sepo_env.loading.paths import check_file

LARGEST_TEXT = 1 << 30
"""Bytes of a text; as many as fit into a memory beside all else."""
LARGEST_JSON = 1 << 26
"""Bytes of a JSON document, which takes ten times as many when it is read."""
LARGEST_GROWTH = 100
"""How many times larger than its file a compressed text may be, besides `FREE_GROWTH`."""
FREE_GROWTH = 1 << 24
_TEXTS = ("*.json", "*.txt", "*.jinja")
"""What a model's folder has in the way of texts."""
_GZIP = b"\x1f\x8b"
# The mark of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: object, largest: int = LARGEST_TEXT) -> str:
    """Read a text in UTF-8, or in the encoding that its mark of the byte order says, plain or gzipped.

    Args:
        path: of the file.
        largest: how many bytes it may have.

    Raises:
        InvalidArgumentError: no path.
        CheckpointError: no such file, no text, or a larger one.
    """
    file = check_file(path)
    try:
        with file.open("rb") as opened:
            content = opened.read(largest + 1)
        if content.startswith(_GZIP):
            largest = min(largest, LARGEST_GROWTH * len(content) + FREE_GROWTH)
            with gzip.open(io.BytesIO(content)) as unpacked:
                content = unpacked.read(largest + 1)
        if len(content) > largest:
            raise CheckpointError(file, f"a text of more than {largest:,} bytes", "give a smaller one, or parts of it")
        encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
        return content.decode(encoding)
    except (OSError, EOFError, MemoryError, UnicodeDecodeError, zlib.error) as error:
        raise CheckpointError(file, f"no text file ({error})", "give text in UTF-8, plain or gzipped") from error


@contextmanager
def without_marks(folder: Path) -> Iterator[Path]:
    """Yield a folder whose texts are plain UTF-8, for libraries that read nothing else.

    It is the folder itself, or where a text in it has a mark of the byte order, a folder of links to its files and of
    such texts without their marks.

    Raises:
        CheckpointError: a text with a mark that is no text, or something that is neither a file nor a folder.
    """
    for path in folder.iterdir():
        if path.exists() and not path.is_dir():
            check_file(path)  # they would wait for a pipe, and read a device without end
    texts = [path for pattern in _TEXTS for path in folder.glob(pattern) if _mark_of(path)]
    if not texts:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="sepo-texts-", ignore_cleanup_errors=True) as name:
        copy = Path(name, folder.resolve().name)  # libraries tell names of folders
        copy.mkdir()
        for path in folder.iterdir():
            if path in texts:
                (copy / path.name).write_text(read_text(path), encoding="utf-8", newline="")
            else:
                _link(path.resolve(), copy / path.name)
        yield copy


def _mark_of(path: Path) -> str | None:
    """The encoding that the mark of a file says; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        start = file.read(4)
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), None)


def _link(path: Path, link: Path) -> None:
    try:
        link.symlink_to(path)
    except OSError:  # Windows lets not everybody do so
        if path.is_dir():
            shutil.copytree(path, link)
        else:
            shutil.copyfile(path, link)


def text_lines(path: object) -> Iterator[tuple[int, str]]:
    """The lines of a text that are not blank, each with its number, counted from 1, and without its end.

    Raises:
        InvalidArgumentError: no path.
        CheckpointError: as `read_text`.
    """
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), start=1):
        if line.strip():
            yield number, line.rstrip("\n")


def parse_json(text: str) -> Any:
    """What a JSON text holds.

    Raises:
        ValueError: no JSON, or nested so deep that it is none to be read.

    >>> parse_json("[" * 100_000)
    Traceback (most recent call last):
    ValueError: containers nested too deep
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("containers nested too deep") from error


def half_letter(text: str) -> str | None:
    r"""The first half of a letter (a surrogate by itself), as where a text was cut in two; None where there is none.

    >>> half_letter("a\ud83d"), half_letter("a")
    ('\ud83d', None)
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return text[error.start]
    return None


def read_json(path: object) -> Any:
    """Read a JSON file.

    Raises:
        InvalidArgumentError: no path.
        CheckpointError: as `read_text`, or no JSON.
    """
    text = read_text(path, LARGEST_JSON)
    try:
        return parse_json(text)
    except ValueError as error:
        raise CheckpointError(check_file(path), f"it is no JSON ({error})", "copy or download it again") from error


def read_json_object(path: object) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        InvalidArgumentError: no path.
        CheckpointError: as `read_json`, or something else than an object.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        kind = type(found).__name__
        raise CheckpointError(check_file(path), f"expected a JSON object, found {kind}", "copy or download it again")
    return found
