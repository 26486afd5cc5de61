"""Worker processes that end: by themselves, by a signal, with the process that they work for."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from sepo_env.errors import RewardError
from sepo_env.rewards import as_reward, isolate
from sepo_env.rewards.guard import GUARD, Guard

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and process groups are POSIX")


def is_running(pid: int) -> bool:
    """Whether the process is there and no zombie, which waits for an init process that collects it."""
    with contextlib.suppress(FileNotFoundError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    if os.path.isdir("/proc/self"):
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_end(pids, seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_running, pids))


def exits():
    sys.exit(3)


def exits_with_a_thread():
    import threading
    import time

    threading.Thread(target=time.sleep, args=(600,)).start()
    sys.exit(6)


def exits_with_words():
    sys.exit("no more")


def writes_into_pipes():
    import contextlib

    for number in range(3, 20):
        with contextlib.suppress(OSError):
            os.write(number, b"\xff" * 64)


def exits_at_once():
    os._exit(4)


def crashes():
    import ctypes

    ctypes.string_at(0)


def is_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def is_interrupted():
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


@POSIX
@pytest.mark.parametrize(
    ("end", "words"),
    [
        (exits, "ended its worker process with exit code 3"),
        (exits_at_once, "ended its worker process with exit code 4"),
        (exits_with_a_thread, "ended its worker process with exit code 6"),
        (exits_with_words, "ended its worker process with exit code 1"),
        (writes_into_pipes, "broke the pipe to its worker process"),
        (crashes, "lost its worker process to SIGSEGV"),
        (is_killed, r"lost its worker process to SIGKILL \(perhaps for lack of memory\)"),
        (is_interrupted, "lost its worker process to SIGTERM"),
    ],
)
def test_the_end_of_a_worker_is_told_as_what_it_is(decode, encode, end, words):
    body = end.__code__

    def ends_on_t(sequences):
        import types

        if any("T" in sequence for sequence in sequences):
            types.FunctionType(body, {"os": os, "sys": sys, "signal": signal})()
        return [1.0 for _ in sequences]

    with as_reward(ends_on_t, decode=decode, registry={}, workers=1) as reward:
        with pytest.raises(RewardError, match=rf"'ends_on_t' {words} for sequence 1 \('TTT', 3 letters\) of 2"):
            reward(encode("AAA", "TTT"))
        assert reward(encode("AAA")).tolist() == [1.0]


def test_the_end_of_a_worker_that_loads_is_told_as_what_it_is(decode, encode, tmp_path, monkeypatch):
    (tmp_path / "exiting_module.py").write_text("def score(sequences):\n    return [0.0 for _ in sequences]\n")
    monkeypatch.syspath_prepend(tmp_path)
    import exiting_module

    with as_reward(exiting_module.score, decode=decode, registry={}, workers=1) as reward:
        (tmp_path / "exiting_module.py").write_text("import sys\nsys.exit(5)\n")
        with pytest.raises(RewardError, match=r"cannot be loaded in a worker process \(it ended .* exit code 5\)"):
            reward(encode("AAA"))


@POSIX
def test_a_worker_that_died_between_calls_is_replaced(decode, encode):
    # A time limit sends each sequence alone: no second try would hide the loss.
    with as_reward(
        lambda sequences: [os.getpid()] * len(sequences), decode=decode, registry={}, workers=1, timeout=60.0
    ) as reward:
        first = int(reward(encode("AAA")))
        os.kill(first, signal.SIGKILL)
        assert await_end([first])
        assert int(reward(encode("AAA"))) != first


PARENT = """
import os, torch
from sepo_env.rewards import as_reward

def busy(sequences):
    import ctypes, subprocess, sys, time
    asleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    program = f"import subprocess; p = subprocess.Popen({asleep!r}); print(p.pid, flush=True); p.wait()"
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    apart = subprocess.Popen(asleep, start_new_session=True)
    print("started", os.getpid(), child.pid, int(child.stdout.readline()), apart.pid, file=sys.stderr, flush=True)
    WAIT
    return [0.0 for _ in sequences]

reward = as_reward(busy, decode=lambda tokens: ["A"] * len(tokens), registry={}, workers=1)
reward(torch.zeros(1, 1, dtype=torch.int64))
"""


@POSIX
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc tells what has a session of its own")
@pytest.mark.parametrize(
    "wait",
    ["time.sleep(600)", "ctypes.PyDLL(None).sleep(600)  # and no thread of Python's runs meanwhile"],
    ids=["asleep", "holding the interpreter"],
)
def test_busy_workers_and_all_that_they_started_end_with_a_parent_that_is_killed(wait, project_root):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.replace("WAIT", wait)], stderr=subprocess.PIPE, text=True, cwd=project_root
    )
    with parent:
        line = next(line for line in parent.stderr if line.startswith("started "))
        started = [int(pid) for pid in line.split()[1:]]
        assert all(map(is_running, started))
        parent.kill()
    assert await_end(started)


@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_that_watches_ends_with_its_pipe(busy):
    program = f"import sys; sys.path.insert(0, {os.path.dirname(isolate.__file__)!r}); import isolate; "
    worker = subprocess.Popen(
        [sys.executable, "-c", program + "isolate.serve(watched=True)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with worker:
        import pickle

        isolate.send(worker.stdin, pickle.dumps(sys.path))
        isolate.send(worker.stdin, pickle.dumps(time.sleep))
        assert pickle.loads(isolate.receive(worker.stdout)) is None
        if busy:
            isolate.send(worker.stdin, pickle.dumps((600, True)))
            time.sleep(0.2)
        worker.stdin.close()
        assert worker.wait(10) == (1 if busy else 0)


def sleeper() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)


@POSIX
def test_a_guard_ends_the_groups_that_are_left():
    guard = Guard()
    with sleeper() as left, sleeper() as gone:
        try:
            guard.add(left.pid)
            guard.add(gone.pid)
            guard.discard(gone.pid)
            guard.close()
            assert left.wait(10) == -signal.SIGKILL
            assert is_running(gone.pid)
        finally:
            gone.kill()
            left.kill()


@POSIX
def test_a_guard_that_was_killed_is_replaced():
    guard = Guard()
    with sleeper() as one, sleeper() as other:
        try:
            guard.add(one.pid)
            guard._process.kill()
            guard._process.wait()
            guard.add(other.pid)
            guard.close()
            assert one.wait(10) == other.wait(10) == -signal.SIGKILL
        finally:
            one.kill()
            other.kill()


@POSIX
def test_a_fork_does_not_keep_the_guard_waiting(project_root):
    program = textwrap.dedent("""
        import os, subprocess, sys, time
        from sepo_env.rewards.guard import GUARD
        asleep = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        GUARD.add(asleep.pid)
        if fork := os.fork():
            print(asleep.pid, fork, flush=True)
        time.sleep(600)
    """)
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=project_root)
    with parent:
        asleep, fork = map(int, parent.stdout.readline().split())
        parent.kill()
        try:
            assert await_end([asleep])
            assert is_running(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


def test_closed_rewards_are_no_longer_guarded(decode, encode):
    with as_reward(lambda sequences: [os.getpid()] * len(sequences), decode=decode, registry={}, workers=1) as reward:
        pid = int(reward(encode("AAA")))
        assert (pid in GUARD._leaders) == (os.name == "posix")
    assert pid not in GUARD._leaders
