"""A reward function called so that one bad sequence does not hide the others, here or in another process.

This file is also the program that a worker process runs. It imports the standard library only, so that a worker
is up in a few hundredths of a second and holds only what the reward itself imports.
"""

from __future__ import annotations

import functools
import os
import pickle
import queue
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

_GRACE_SECONDS = 0.2


class Attempt(NamedTuple):
    """What came of scoring a batch.

    Attributes:
        pieces: ``(start, stop, what the function returned for these rows)``.
        errors: exceptions by row.
        batch_error: the exception of the whole batch, where no sequence raises alone.
        unanswered: rows that did not answer within the time limit.
    """

    pieces: list[tuple[int, int, Any]]
    errors: dict[int, Exception]
    batch_error: Exception | None = None
    unanswered: tuple[int, ...] = ()


def attempt(function: Callable[[Any], Any], batch: Any, fail_fast: bool, copy: Callable[[Any], Any] = list) -> Attempt:
    """Call ``function`` on the batch, and one by one on its sequences if that raises.

    Args:
        function: the reward, a function of a batch.
        batch: what it reads; ``batch[i : i + 1]`` is a batch of one.
        fail_fast: stop at the first sequence that raises.
        copy: makes of the batch what the function is given: whoever sorts or overwrites it changes nobody else's.

    >>> attempt(lambda numbers: [1 / n for n in numbers], [1, 0, 2], fail_fast=False)
    Attempt(pieces=[(0, 1, [1.0]), (2, 3, [0.5])], errors={1: ZeroDivisionError('division by zero')}, \
batch_error=None, unanswered=())
    """
    try:
        return Attempt([(0, len(batch), function(copy(batch)))], {})
    except Exception as error:
        if len(batch) == 1:
            return Attempt([], {0: error})
        batch_error = error
    pieces: list[tuple[int, int, Any]] = []
    errors: dict[int, Exception] = {}
    for row in range(len(batch)):
        try:
            pieces.append((row, row + 1, function(copy(batch[row : row + 1]))))
        except Exception as error:
            errors[row] = error
            if fail_fast:
                break
    return Attempt(pieces, errors, None if errors else batch_error)


def send(stream: BinaryIO, message: bytes) -> None:
    """Write one message, its length first."""
    stream.write(struct.pack("<Q", len(message)))
    stream.write(message)
    stream.flush()


def receive(stream: BinaryIO) -> bytes:
    """Read one message.

    Raises:
        EOFError: the other side has gone.
    """
    header = stream.read(8)
    size = struct.unpack("<Q", header)[0] if len(header) == 8 else 0
    message = stream.read(size)
    if len(header) < 8 or len(message) < size:
        raise EOFError("the other process has closed its end")
    return message


def sendable(error: Exception) -> Exception:
    """Return the exception with its traceback as a note, or a likeness where it cannot be pickled."""
    note = "In the worker process:\n" + "".join(traceback.format_exception(error)).rstrip()
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(note)
    return error


def _answer(function: Callable[[Any], Any], batch: list[str], fail_fast: bool) -> bytes:
    result = attempt(function, batch, fail_fast)
    errors = {row: sendable(error) for row, error in result.errors.items()}
    batch_error = result.batch_error and sendable(result.batch_error)
    try:
        return pickle.dumps((result.pieces, errors, batch_error))
    except Exception as error:
        return pickle.dumps(([], dict.fromkeys(range(len(batch)), sendable(error)), None))


class _Watched:
    """Requests read ahead by a thread, which ends this process where the other side goes in the middle of a batch.

    For systems where no guard does it (`sepo_env.rewards.guard`).
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._idle = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def receive(self) -> bytes:
        self._idle.set()
        message = self._messages.get()
        if message is None:
            raise EOFError("the other process has closed its end")
        self._idle.clear()
        return message

    def _read(self) -> None:
        try:
            while True:
                self._messages.put(receive(self._stream))
        except Exception:
            self._messages.put(None)
            time.sleep(_GRACE_SECONDS)  # in which it ends by itself, unless it works
            while self._idle.is_set():
                time.sleep(_GRACE_SECONDS)
            os._exit(1)


def serve(watched: bool = os.name != "posix") -> None:
    """Score batches from standard input to standard output until the other side goes.

    Args:
        watched: see in a thread whether the other side is still there.
    """
    requests, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # What the reward itself reads or prints must not mix with the messages.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(2, 1)
    # Standard output was a pipe when Python opened it: unbuffered, or what is printed would show at the very end.
    sys.stdout = sys.stderr
    following = _Watched(requests).receive if watched else functools.partial(receive, requests)
    sys.path[:] = pickle.loads(following())
    try:
        function = pickle.loads(following())
    except Exception as error:
        send(answers, pickle.dumps(sendable(error)))
        return
    send(answers, pickle.dumps(None))
    while True:
        try:
            message = following()
        except EOFError:
            return
        batch, fail_fast = pickle.loads(message)
        send(answers, _answer(function, batch, fail_fast))


def _run() -> None:
    """Serve, and end at once where the reward ends the process: threads that it has started would keep it alive."""
    try:
        serve()
    except SystemExit as ending:
        code = ending.code
        if isinstance(code, str):
            print(code, file=sys.stderr, flush=True)
        os._exit(code & 0xFF if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    _run()
