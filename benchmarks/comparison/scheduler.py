"""Runs in parallel processes, with one progress line for the whole and one for each run under way."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from benchmarks.comparison.runs import Run
from benchmarks.comparison.worker import Progress, Report, execute, total_work
from sepo_env.errors import SepoEnvError
from sepo_env.files import write_atomically

_POLL_SECONDS = 0.2
_LONGEST_REASON = 400
_LINE = "{desc:<22} {percentage:3.0f}% |{bar:24}| {elapsed}<{remaining}{postfix}"


class Failure(NamedTuple):
    """A run that stopped with an error; what it had done stays in its folder, with the traceback in ``error.txt``.

    The error itself is not kept: an exception may not survive the way from one process to another.

    Attributes:
        run: which one.
        message: class and message of the error, in one line.
    """

    run: Run
    message: str


def run_all(runs: Sequence[Run], output: Path, *, device: str, workers: int) -> list[Failure]:
    """Carry out every run that is not finished yet, ``workers`` at a time.

    A run that fails does not stop the others. Ctrl-C stops every run under way after its present step, which is saved.

    Args:
        runs: all runs of the comparison; those already finished count as done in the progress line.
        output: the comparison's folder.
        device: where the networks live.
        workers: processes; 1 stays in this one. The cores are shared out among them.

    Returns:
        The runs that failed.

    Raises:
        SepoEnvError: a process was killed from outside.
    """
    pending = [run for run in runs if not run.is_finished(output)]
    if not pending:
        return []
    workers = max(1, min(workers, len(pending)))
    carry_out = _in_this_process if workers == 1 else _in_processes
    with Board(runs, pending, lines=workers) as board:
        return carry_out(pending, output, device, workers, board)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


class Board:
    """The progress lines: the whole comparison first, then one line for each run under way.

    Where the error stream is no terminal, a line is written for each finished run instead.

    Args:
        runs: all runs.
        pending: those not finished yet.
        lines: how many may be under way at a time.
    """

    def __init__(self, runs: Sequence[Run], pending: Sequence[Run], lines: int) -> None:
        self._total_runs, self._done_runs = len(runs), len(runs) - len(pending)
        self._work = {run.name: 0.0 for run in pending}
        self._totals = {run.name: total_work(run) for run in pending}
        self._quiet = not sys.stderr.isatty()
        self._whole = self._line(0, sum(self._totals.values()))
        self._lines = [self._line(place + 1, 1.0) for place in range(lines)]
        self._shown: dict[str, int] = {}
        self._title()

    def show(self, progress: Progress) -> None:
        """Move the lines on to where a run is."""
        name = progress.run
        line = self._lines[self._place(name)]
        line.n = progress.work
        line.set_description_str(name, refresh=False)
        line.set_postfix_str(progress.note, refresh=True)
        self._advance(name, progress.work)

    def close(self, run: Run, failure: Failure | None) -> None:
        """Take a run off the board."""
        self._shown.pop(run.name, None)
        self._advance(run.name, self._totals[run.name])
        self._done_runs += failure is None
        self._title()
        outcome = "done" if failure is None else f"FAILED: {failure.message}"
        if self._quiet or failure is not None:
            self._whole.write(f"{run.name}: {outcome} ({self._done_runs}/{self._total_runs})", file=sys.stderr)

    def _place(self, name: str) -> int:
        if name not in self._shown:
            free = set(range(len(self._lines))) - set(self._shown.values())
            place = self._shown[name] = min(free)
            self._lines[place].set_postfix_str("", refresh=False)
            self._lines[place].reset(total=self._totals[name])
        return self._shown[name]

    def _advance(self, name: str, work: float) -> None:
        self._whole.update(max(0.0, work - self._work[name]))
        self._work[name] = max(work, self._work[name])

    def _title(self) -> None:
        self._whole.set_description_str(f"{self._done_runs}/{self._total_runs} runs", refresh=True)

    def _line(self, position: int, total: float) -> tqdm[Any]:
        return tqdm(total=total, position=position, bar_format=_LINE, leave=position == 0, disable=self._quiet)

    def __enter__(self) -> Board:
        return self

    def __exit__(self, *exception: object) -> None:
        for line in [*reversed(self._lines), self._whole]:
            line.close()


def _carry_out(run: Run, output: Path, device: str, report: Report) -> Failure | None:
    """Do one run; an error becomes a failure, its traceback a file in the run's folder."""
    try:
        execute(run, output, device, report)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        with suppress(SepoEnvError):  # where the disk is full, the reason is told all the same
            write_atomically(run.folder(output) / "error.txt", text.encode(errors="replace"))
        return Failure(run, _one_line(error))
    return None


def _one_line(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= _LONGEST_REASON else f"{text[: _LONGEST_REASON - 3]}..."


def _in_this_process(runs: Sequence[Run], output: Path, device: str, workers: int, board: Board) -> list[Failure]:
    failures = []
    for run in runs:
        failure = _carry_out(run, output, device, board.show)
        board.close(run, failure)
        if failure is not None:
            failures.append(failure)
    return failures


def _in_processes(runs: Sequence[Run], output: Path, device: str, workers: int, board: Board) -> list[Failure]:
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half dead
    reports, stop = context.Queue(), context.Event()
    threads = max(1, available_cores() // workers)
    waiting, failures = list(runs), []
    under_way: dict[Future[Failure | None], Run] = {}
    with ProcessPoolExecutor(workers, context, _start_worker, (reports, stop, threads)) as pool:
        try:
            while waiting or under_way:
                # No more than there are processes: what the pool has queued would still start after a Ctrl-C.
                while waiting and len(under_way) < workers:
                    run = waiting.pop(0)
                    under_way[pool.submit(_carry_out_in_worker, run, output, device)] = run
                done, _ = wait(under_way, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                _drain(reports, board)
                for future in done:
                    failure = future.result()
                    board.close(under_way.pop(future), failure)
                    if failure is not None:
                        failures.append(failure)
        except KeyboardInterrupt:
            stop.set()
            raise
        except BrokenProcessPool as error:
            raise SepoEnvError(
                "a process was killed from outside, most likely for lack of memory; call again with fewer --workers: "
                "what is finished is kept, and the rest goes on from its checkpoints."
            ) from error
    return failures


def _drain(reports: multiprocessing.Queue[Progress], board: Board) -> None:
    while True:
        try:
            board.show(reports.get_nowait())
        except queue.Empty:
            return


# Of a worker process, set as it starts.
_reports: multiprocessing.Queue[Progress]
_stop: Event


def _start_worker(reports: multiprocessing.Queue[Progress], stop: Event, threads: int) -> None:
    global _reports, _stop
    _reports, _stop = reports, stop
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A terminal sends Ctrl-C to all its processes; only the parent heeds it, and passes it on by the event, so that
    # a run is never stopped while it saves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _end_with_parent() -> None:
    """A parent that was killed cannot dismiss its processes, which would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _carry_out_in_worker(run: Run, output: Path, device: str) -> Failure | None:
    return _carry_out(run, output, device, _report)


def _report(progress: Progress) -> None:
    if _stop.is_set():
        raise KeyboardInterrupt
    _reports.put(progress)
