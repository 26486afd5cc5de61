"""One process that holds a reward, and how it is told what became of it."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO

from sepo_env.errors import RewardError
from sepo_env.rewards import isolate
from sepo_env.rewards.guard import GUARD, end_processes
from sepo_env.rewards.isolate import Attempt
from sepo_env.rewards.values import say

_GRACE_SECONDS = 5.0
"""The most that a process may take to end after it has closed its pipes, as it does when it exits."""
_POSIX = os.name == "posix"


class WorkerDied(Exception):
    """The process ended in the middle of a call; says how, in words that follow the reward's name."""


class Worker:
    """A fresh interpreter with the reward, in a group of its own, and the two pipes to it.

    Args:
        payload: the pickled reward.
        name: of the reward, for messages.
    """

    def __init__(self, payload: bytes, name: str) -> None:
        # A fresh interpreter, not a fork: a child forked while torch's threads hold locks can hang.
        self.process = subprocess.Popen(
            [sys.executable, "-P", isolate.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # One thread each: the processes are the parallelism.
            env={**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
            # A group of its own, so that `kill` also reaches programs that the reward has started.
            start_new_session=True,
        )
        self._payload = payload
        self._name = name
        self._ended = False
        if _POSIX:
            GUARD.add(self.process.pid)

    @property
    def _pipes(self) -> tuple[BinaryIO, BinaryIO]:
        requests, answers = self.process.stdin, self.process.stdout
        assert requests is not None
        assert answers is not None
        return requests, answers  # type: ignore[return-value]

    def start(self) -> None:
        """Send the reward and wait until it is loaded; raises what loading it raises."""
        error = self._exchange(pickle.dumps(sys.path), self._payload)
        if error is not None:
            raise error

    def is_alive(self) -> bool:
        """Whether the process still runs."""
        return self.process.poll() is None

    def ask(self, batch: Sequence[str], fail_fast: bool) -> Attempt:
        """Score a batch as `isolate.attempt` does."""
        return Attempt(*self._exchange(pickle.dumps((list(batch), fail_fast))))

    def _exchange(self, *messages: bytes) -> Any:
        requests, answers = self._pipes
        try:
            for message in messages:
                isolate.send(requests, message)
            answer = isolate.receive(answers)
        # ValueError: the pipe has been closed here; the last two: what came is no message.
        except (EOFError, OSError, ValueError, MemoryError, OverflowError) as error:
            raise WorkerDied(self._how_it_ended()) from error
        try:
            return pickle.loads(answer)
        except Exception as error:
            raise RewardError(
                f"the reward {self._name!r} returned what cannot be read in this process ({say(error)}); return plain "
                "numbers."
            ) from error

    def _how_it_ended(self) -> str:
        # Its pipes close before it has ended, and whoever kills it then takes its own signal for the cause.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_GRACE_SECONDS)
        code = self.process.returncode
        self.kill()
        if code is None:
            return "broke the pipe to its worker process"
        return f"ended its worker process with exit code {code}" if code >= 0 else _by_signal(-code)

    def kill(self) -> None:
        """End the process and whatever it started, and wait for it; its pipes reach their end."""
        if self._ended:  # another process may have its number by now
            return
        self._ended = True
        if _POSIX:
            end_processes(self.process.pid)
        else:
            self.process.kill()
        self.process.wait()
        if _POSIX:
            GUARD.discard(self.process.pid)

    def close(self) -> None:
        """End the process and give back its pipes."""
        self.kill()
        for pipe in self._pipes:
            with contextlib.suppress(OSError):  # what was still to be written has no reader any more
                pipe.close()


def _by_signal(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = " (perhaps for lack of memory)" if name == "SIGKILL" else ""
    return f"lost its worker process to {name}{hint}"
