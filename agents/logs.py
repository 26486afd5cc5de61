"""What a run writes down: metrics.csv, one row an iteration, and the same rows to TensorBoard.

TorchRL's `CSVLogger` writes one file a scalar, without header, and appends to what it finds; a resumed run would
repeat rows there, and a table needs joining first. The table is therefore written here; TensorBoard events go
through TorchRL's `TensorboardLogger`.
"""

from __future__ import annotations

import csv
import importlib.util
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from torchrl.record.loggers import Logger, TensorboardLogger

from agents.config import TensorBoard
from sepo_env.errors import MissingExtraError

METRICS_FILE = "metrics.csv"
TENSORBOARD_FOLDER = "tensorboard"

Row = dict[str, float | int | None]
"""One iteration's figures by name; None where a figure was not taken in that iteration."""


class RunLog:
    """Writes the rows of a run.

    Args:
        folder: where to write; None writes nothing.
        tensorboard: whether TensorBoard events are written: "auto" where tensorboard is installed.
        rows: those of the part of the run that is being continued. The table is written anew from them, so that
            rows later than the checkpoint do not stand in it twice.

    Raises:
        MissingExtraError: TensorBoard events were asked for, and tensorboard is not installed.
    """

    def __init__(self, folder: Path | None, tensorboard: TensorBoard, rows: Iterable[Row] = ()) -> None:
        self._table: TextIO | None = None
        self._writer: csv.DictWriter[str] | None = None
        self._logger = None if folder is None else _tensorboard_logger(folder, tensorboard)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            self._table = (folder / METRICS_FILE).open("w", newline="", encoding="utf-8")
        for row in rows:
            self._write(row)

    def append(self, row: Row) -> None:
        """Add one iteration's row, flushed, so that a run can be watched."""
        self._write(row)
        if self._table is not None:
            self._table.flush()
        if self._logger is not None:
            figures = {name: value for name, value in row.items() if value is not None and name != "iteration"}
            self._logger.log_metrics(figures, step=int(row["iteration"] or 0))

    def _write(self, row: Row) -> None:
        if self._table is None:
            return
        if self._writer is None:
            self._writer = csv.DictWriter(self._table, fieldnames=list(row))
            self._writer.writeheader()
        # repr, the default of the csv module, keeps every digit of a float.
        self._writer.writerow(row)

    def close(self) -> None:
        """Write out what is buffered and let go of the files."""
        if self._table is not None:
            self._table.flush()
            os.fsync(self._table.fileno())
            self._table.close()
        if self._logger is not None:
            self._logger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _tensorboard_logger(folder: Path, tensorboard: TensorBoard) -> Logger | None:
    if tensorboard == "off":
        return None
    if importlib.util.find_spec("tensorboard") is None:
        if tensorboard == "on":
            raise MissingExtraError("tensorboard", "logs")
        return None
    return TensorboardLogger(exp_name=TENSORBOARD_FOLDER, log_dir=str(folder))


def read_metrics(folder: str | os.PathLike[str]) -> list[Row]:
    """The rows of a run's metrics.csv; empty cells come back as None, whole numbers as int."""

    def number(text: str) -> float | int | None:
        if not text:
            return None
        return int(text) if text.lstrip("-").isdigit() else float(text)

    with (Path(folder) / METRICS_FILE).open(newline="", encoding="utf-8") as file:
        rows: Iterable[Mapping[str, str]] = csv.DictReader(file)
        return [{name: number(text) for name, text in row.items()} for row in rows]
