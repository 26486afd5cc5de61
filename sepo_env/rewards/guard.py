"""What ends worker processes, with all that they have started, even if the process that they work for is killed.

A killed process cannot tidy up. Its workers would notice at their next message, after hours perhaps, and what a reward
has started would never notice. So a small process of its own, this file's program, knows their groups and sees by the
end of its input that nobody is left to work for. It needs the standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from typing import BinaryIO

_END_SECONDS = 5.0


def end_processes(leader: int) -> None:
    """Kill a process, its group, and its descendants in groups of their own (where /proc tells them)."""
    descendants = _descendants(leader)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)
    for process in descendants:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, signal.SIGKILL)


def _descendants(process: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/children") as children:
                for child in map(int, children.read().split()):
                    found += [child, *_descendants(child)]
    return found


def watch(stream: Iterable[bytes]) -> None:
    """Read the leaders of groups that have come (``+12``) and gone (``-12``); at the end, end those that are left."""
    leaders: set[int] = set()
    for line in stream:
        leader = int(line[1:])
        if line.startswith(b"+"):
            leaders.add(leader)
        else:
            leaders.discard(leader)
    for leader in leaders:
        end_processes(leader)


class Guard:
    """This process's side of the guard, which starts with the first group that there is to know."""

    def __init__(self) -> None:
        self._leaders: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.RLock()  # a pool that is collected as garbage may come in between
        self._inherited: list[subprocess.Popen[bytes]] = []

    def add(self, leader: int) -> None:
        """End the group of this process when this one has gone."""
        with self._lock:
            self._leaders.add(leader)
            if not self._tell(b"+%d\n" % leader):
                self._start()

    def discard(self, leader: int) -> None:
        """Forget a group that has ended."""
        with self._lock:
            self._leaders.discard(leader)
            self._tell(b"-%d\n" % leader)

    def close(self) -> None:
        """End the guard, and the groups that are left."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(OSError):
                _pipe(process).close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_END_SECONDS)

    def forget(self) -> None:
        """In a fork: leave the guard and the groups to the process that they belong to."""
        if self._process is not None:
            _pipe(self._process).close()  # or this fork would keep the guard waiting
            self._inherited.append(self._process)  # so that nobody waits for another's child
        self._leaders, self._process, self._lock = set(), None, threading.RLock()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # out of reach of a terminal's Ctrl-C
        )
        self._tell(b"".join(b"+%d\n" % leader for leader in sorted(self._leaders)))

    def _tell(self, line: bytes) -> bool:
        """Write to the guard; False if there is none."""
        process = self._process
        if process is None:
            return False
        try:
            _pipe(process).write(line)
        except OSError:  # it was killed
            _pipe(process).close()
            process.wait()
            self._process = None
            return False
        return True


def _pipe(process: subprocess.Popen[bytes]) -> BinaryIO:
    assert process.stdin is not None
    return process.stdin  # type: ignore[return-value]


GUARD = Guard()
"""That of this process."""
atexit.register(GUARD.close)
if os.name == "posix":
    os.register_at_fork(after_in_child=GUARD.forget)

if __name__ == "__main__":
    watch(sys.stdin.buffer)
