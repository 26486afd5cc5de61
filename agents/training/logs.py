"""What a run writes down: metrics.csv, one row an iteration, and the same rows to TensorBoard.

TorchRL's `CSVLogger` writes one file a scalar, without header, and appends to what it finds; a resumed run would
repeat rows there, and a table needs joining first. The table is therefore written here.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from agents.config import TensorBoard
from agents.training.events import Events
from sepo_env.errors import FolderError, MissingExtraError
from sepo_env.files import sync, write_atomically, writing

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"

Row = dict[str, float | int | None]
"""One iteration's figures by name; None where a figure was not taken in that iteration."""


class RunLog:
    """Writes the rows of a run, and brings what is on the disk in line with them, whatever happens to it.

    Args:
        folder: where to write; None writes nothing.
        tensorboard: whether TensorBoard events are written: "auto" where tensorboard is installed.
        rows: those of the part of the run that is being continued. A list is watched: `update` writes what has been
            added to it. The table is written anew from them, so that rows later than the checkpoint do not stand in it
            twice; so it is where somebody has removed it, and after an interruption, which may come in the middle of a
            row.
        restore: called before anything is written: makes the folder again, or raises a `FolderError` where it is not
            this run's own any more.

    Raises:
        MissingExtraError: TensorBoard events were asked for, and tensorboard is not installed.
        FolderError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path | None,
        tensorboard: TensorBoard,
        rows: Iterable[Row] = (),
        *,
        restore: Callable[[], object] = lambda: None,
    ) -> None:
        self._folder = folder
        self._restore = restore
        self._rows = rows if isinstance(rows, list) else list(rows)
        self._table: TextIO | None = None
        self._num_written = 0
        self._events: Events | None = None
        self._has_events = folder is not None and _wants_events(tensorboard)
        with writing(folder or ""):
            self._open()

    def append(self, row: Row) -> None:
        """Add one iteration's row, flushed, so that a run can be watched."""
        self._rows.append(row)
        self.update()

    def update(self) -> None:
        """Write the rows that are not written yet; all of them where what was written is gone.

        Raises:
            FolderError: they cannot be written.
        """
        if self._folder is None or self._table is None:
            return
        with writing(self._folder):
            self._restore()
            if not all(os.path.exists(path) for path in self._written_paths()):
                self._close()
                self._open()
            while self._num_written < len(self._rows):
                row = self._rows[self._num_written]
                self._write_rows(self._table, [row])
                self._table.flush()
                if self._events is not None:
                    self._events.add(row)
                self._num_written += 1

    def _written_paths(self) -> Iterable[Path]:
        assert self._folder is not None
        yield self._folder / METRICS_FILE
        if self._events is not None:
            yield self._events.file

    def _open(self) -> None:
        if self._folder is None:
            return
        self._restore()
        text = io.StringIO(newline="")
        self._write_rows(text, self._rows)
        # Beside the old table: a full disk shall not cost what stood there.
        write_atomically(self._folder / METRICS_FILE, text.getvalue().encode())
        self._num_written = len(self._rows)
        self._table = (self._folder / METRICS_FILE).open("a", newline="", encoding="utf-8")
        if self._has_events:
            self._events = Events(self._folder / TENSORBOARD_FOLDER, self._rows)

    def _write_rows(self, table: TextIO, rows: Sequence[Row]) -> None:
        if not rows:
            return
        # repr, the default of the csv module, keeps every digit of a float.
        writer = csv.DictWriter(table, fieldnames=list(self._rows[0]))
        if rows[0] is self._rows[0]:
            writer.writeheader()
        writer.writerows(rows)

    def _close(self) -> None:
        table, self._table = self._table, None
        events, self._events = self._events, None
        try:
            if table is not None:
                with table:
                    table.flush()
                    sync(table.fileno())
        finally:
            if events is not None:
                events.close()

    def close(self) -> None:
        """Write out what is buffered and let go of the files."""
        self.update()
        with writing(self._folder or ""):
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
            return
        try:
            with writing(self._folder or ""):
                try:
                    self._close()
                finally:
                    self._open()
                    self._close()
        except FolderError as trouble:
            if not isinstance(error, FolderError):  # which says the same
                error.add_note(f"The log could not be brought up to date: {trouble}")


def _wants_events(tensorboard: TensorBoard) -> bool:
    if tensorboard == "off":
        return False
    if importlib.util.find_spec("tensorboard") is None:
        if tensorboard == "on":
            raise MissingExtraError("tensorboard", "logs")
        return False
    return True


def read_metrics(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of a run's metrics.csv; empty cells come back as None, whole numbers as int."""

    def number(text: str) -> float | int | None:
        if not text:
            return None
        return int(text) if text.lstrip("-").isdigit() else float(text)

    with (Path(folder) / METRICS_FILE).open(newline="", encoding="utf-8") as file:
        rows: Iterable[Mapping[str, str]] = csv.DictReader(file)
        return [{name: number(text) for name, text in row.items()} for row in rows]
