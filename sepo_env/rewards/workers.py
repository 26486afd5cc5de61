"""Slow functions of strings, spread over processes, with a time limit."""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from sepo_env.errors import InvalidArgumentError, RewardError, RewardTimeoutError
from sepo_env.rewards.isolate import Attempt
from sepo_env.rewards.travel import dump_function
from sepo_env.rewards.values import say
from sepo_env.rewards.worker_process import Worker, WorkerDied

START_SECONDS = 120.0
"""The most that a worker may take to import what the reward needs."""

_CHUNKS_PER_WORKER = 4
"""Smaller pieces than one a worker even out sequences that take different times."""


def _close_all(slots: list[Worker | None], owner: int) -> None:
    """Close the workers, unless this process is a fork of the one that they belong to."""
    for slot, worker in enumerate(slots):
        if worker is not None and os.getpid() == owner:
            worker.close()
        slots[slot] = None


@dataclass
class _Board:
    """What the threads of one call share; appending and clearing are atomic."""

    sequences: Sequence[str]
    fail_fast: bool
    queue: deque[tuple[int, int]]
    answers: list[tuple[int, int, Attempt]] = field(default_factory=list)
    stopped: bool = False


class WorkerPool:
    """Processes that each hold a copy of a function of strings.

    They start at the first call, stay between calls, and end with `close`, with the pool, or with the
    interpreter. A pickled or forked pool starts processes of its own.

    Args:
        function: the reward; sent by value, so that functions of a notebook and lambdas work too.
        name: of the reward, for messages.
        workers: the number of processes.
        timeout: seconds for one call, all sequences together; None waits as long as it takes. The time in
            which the processes start does not count.

    Raises:
        InvalidArgumentError: the function cannot be pickled.
    """

    def __init__(self, function: Callable[[list[str]], Any], name: str, workers: int, timeout: float | None) -> None:
        try:
            self._payload: bytes = dump_function(function)
        except Exception as error:
            raise InvalidArgumentError(
                f"workers={workers} sends the reward {name!r} to other processes, but it cannot be pickled "
                f"({say(error)}); make what does not travel (open files, locks, connections) inside of the function, "
                "or take workers=0."
            ) from error
        self._name = name
        self._workers = workers
        self._timeout = timeout
        self._open_slots()

    def _open_slots(self) -> None:
        self._owner = os.getpid()
        self._slots: list[Worker | None] = [None] * self._workers
        self._finalizer = weakref.finalize(self, _close_all, self._slots, self._owner)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in _OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._open_slots()

    def attempt(self, sequences: Sequence[str], fail_fast: bool) -> Attempt:
        """Score the sequences as `isolate.attempt` does, in the processes.

        Without a time limit they travel in chunks. With one, each travels alone, so that one that hangs takes
        no other with it; its process is ended and another takes its place.

        Raises:
            RewardError: the function cannot be loaded in a worker process.
        """
        if self._owner != os.getpid():
            self._open_slots()
        count = len(sequences)
        size = 1 if self._timeout is not None else -(-count // (self._workers * _CHUNKS_PER_WORKER))
        chunks = deque((start, min(start + size, count)) for start in range(0, count, size))
        board = _Board(sequences, fail_fast, chunks)
        busy = range(min(self._workers, len(chunks)))
        with ThreadPoolExecutor(len(busy)) as threads:
            try:
                self._await_start([threads.submit(self._worker, slot) for slot in busy])
                calls = [threads.submit(self._drive, slot, board) for slot in busy]
                _, late = wait(calls, self._timeout)
                board.stopped = True
                for slot, call in zip(busy, calls, strict=True):
                    if call in late:
                        self._discard(slot)  # which is what makes its thread return
                    call.result()
            except BaseException:
                # After Ctrl-C too: an answer still to come would be taken for that of the next call.
                board.stopped = True
                self.close()
                raise
        return _merge(board, bool(late))

    def close(self) -> None:
        """End the processes; a later call starts new ones."""
        _close_all(self._slots, self._owner)

    def _await_start(self, starts: list[Future[Worker]]) -> None:
        done, late = wait(starts, START_SECONDS)
        for start in done:
            start.result()
        if late:
            raise RewardTimeoutError(
                f"the reward {self._name!r} was not loaded in its worker processes within "
                f"{START_SECONDS:.0f} s; import less in its module, or take workers=0."
            )

    def _worker(self, slot: int) -> Worker:
        """Return the slot's worker, started where there is none, or where it has died since the last call."""
        if (worker := self._slots[slot]) is not None and not worker.is_alive():
            self._discard(slot)
        worker = self._slots[slot]
        if worker is None:
            worker = self._slots[slot] = Worker(self._payload, self._name)
            try:
                worker.start()
            except Exception as error:
                cause = f"it {error}" if isinstance(error, WorkerDied) else say(error)
                raise RewardError(
                    f"the reward {self._name!r} cannot be loaded in a worker process ({cause}); make sure that the "
                    "modules it needs can be imported in a new interpreter, or take workers=0."
                ) from error
        return worker

    def _discard(self, slot: int) -> None:
        worker, self._slots[slot] = self._slots[slot], None
        if worker is not None:
            worker.close()

    def _drive(self, slot: int, board: _Board) -> None:
        """Feed chunks of the queue to one worker until none is left."""
        while not board.stopped:
            try:
                start, stop = board.queue.popleft()
            except IndexError:
                return
            try:
                worker = self._worker(slot)
                if board.stopped:
                    return
                answer = worker.ask(board.sequences[start:stop], board.fail_fast)
            except RewardError:
                if board.stopped:
                    return
                raise
            except WorkerDied as error:
                if board.stopped:
                    return
                self._discard(slot)
                if stop - start > 1:
                    # Which of them ended the process? Each alone will tell.
                    board.queue.extend((row, row + 1) for row in range(start, stop))
                    continue
                answer = Attempt([], {0: error})
            board.answers.append((start, stop, answer))
            if board.fail_fast and (answer.errors or answer.batch_error):
                board.queue.clear()


_OF_THIS_PROCESS = frozenset({"_owner", "_slots", "_finalizer"})


def _merge(board: _Board, timed_out: bool) -> Attempt:
    """Put the answers of the chunks together, rows counted in the whole batch."""
    pieces: list[tuple[int, int, Any]] = []
    errors: dict[int, Exception] = {}
    batch_error: Exception | None = None
    missing = set(range(len(board.sequences)))
    for first, last, answer in board.answers:
        pieces += [(first + start, first + stop, raw) for start, stop, raw in answer.pieces]
        errors |= {first + row: error for row, error in answer.errors.items()}
        batch_error = batch_error or answer.batch_error
        missing -= set(range(first, last))
    return Attempt(pieces, errors, batch_error, tuple(sorted(missing)) if timed_out else ())
