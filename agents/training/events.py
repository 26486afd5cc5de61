"""A run's rows as TensorBoard events, in line with its table however often it was stopped.

PyTorch's and TorchRL's writers hand events to a thread, which keeps them for up to two minutes and tells of a full disk
when it likes. Rows are rare, so here each is one event, written and flushed at once by whoever adds it.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_Row = Mapping[str, float | int | None]

_FILES = "events.out.tfevents.*"


class Events:
    """Writes rows as events; whoever makes this has tensorboard.

    What an earlier part of the run has written later than the rows is hidden in TensorBoard's own way, by an event of
    a restart, and what of the rows stands nowhere yet is added.

    Args:
        folder: where event files stand; it is made.
        rows: those of the run so far.

    Attributes:
        file: the new event file.
    """

    def __init__(self, folder: Path, rows: Sequence[_Row]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event = Event
        folder.mkdir(parents=True, exist_ok=True)
        written = _steps(folder)
        # TensorBoard reads files in the order of their names.
        seconds, rest = divmod(time.time_ns(), 10**9)
        name = f"events.out.tfevents.{seconds:010d}.{rest:09d}.{socket.gethostname()}.{os.getpid()}"
        self.file = folder / name
        self._writer = RecordWriter(self.file.open("xb"))
        restart = 1 + max((_step(row) for row in rows), default=0)
        self._write(file_version="brain.Event:2")
        self._write(step=restart, session_log=SessionLog(status=SessionLog.START))
        for row in rows:
            self._add({name: v for name, v in _figures(row).items() if _step(row) not in written.get(name, ())}, row)

    def add(self, row: _Row) -> None:
        """Add one iteration's figures."""
        self._add(_figures(row), row)

    def _add(self, figures: Mapping[str, float], row: _Row) -> None:
        values = [{"tag": name, "simple_value": value} for name, value in figures.items()]
        if values:
            self._write(step=_step(row), summary={"value": values})

    def _write(self, **entries: Any) -> None:
        self._writer.write(self._event(wall_time=time.time(), **entries).SerializeToString())
        self._writer.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._writer.close()


def _step(row: _Row) -> int:
    return int(row["iteration"] or 0)


def _figures(row: _Row) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value is not None and name != "iteration"}


def _steps(folder: Path) -> dict[str, set[int]]:
    """The steps of each figure that a folder's event files show; what a killed writer has cut off is passed over."""
    from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    found: dict[str, set[int]] = {}
    for file in sorted(folder.glob(_FILES)):
        for record in RawEventFileLoader(str(file)).Load():
            event = Event.FromString(record)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                found = {name: {step for step in steps if step < event.step} for name, steps in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, set()).add(event.step)
    return found
