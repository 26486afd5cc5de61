"""Rewards in worker processes. The functions are nested, so that workers need not import this file (and torch)."""

import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time

import cloudpickle
import pytest
import torch

from sepo_env.errors import InvalidArgumentError, RewardError, RewardTimeoutError
from sepo_env.rewards import as_reward
from sepo_env.rewards.workers import WorkerPool


@pytest.fixture
def make(decode):
    """Build rewards with workers, and close them at the end of the test."""
    made = []

    def build(spec, **options):
        reward = as_reward(spec, decode=decode, registry={}, **{"workers": 2, **options})
        made.append(reward)
        return reward

    yield build
    for reward in made:
        reward.close()


def process_ids():
    """A reward that answers with the id of the process that scores."""
    return lambda sequences: [os.getpid() for _ in sequences]


def hang_on_t():
    """A reward that never answers for sequences with a T."""

    def score(sequences):
        if any("T" in s for s in sequences):
            time.sleep(600)
        return [s.count("G") for s in sequences]

    return score


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def await_end(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not is_running(pid)


@pytest.mark.parametrize(("on_error", "asked"), [("raise", 1), ("floor", 4)])
def test_after_a_failure_that_ends_all_nothing_more_is_asked(make, tmp_path, on_error, asked):
    """Four chunks of two sequences, all of which fail; the rest of a chunk is asked for one by one."""
    log = str(tmp_path / "asked")

    def fails(sequences):
        with open(log, "a") as file:
            file.write(f"{len(sequences)}\n")
        raise ValueError

    reward = make(fails, workers=1, on_error=on_error, floor=0.0 if on_error == "floor" else None)
    tokens = torch.arange(16).reshape(8, 2) % 4
    if on_error == "raise":
        with pytest.raises(RewardError):
            reward(tokens)
    else:
        with pytest.warns(RuntimeWarning, match="given the floor"):
            assert reward(tokens).tolist() == [0.0] * 8
    with open(log) as file:
        assert file.read().split().count("2") == asked


@pytest.mark.parametrize("timeout", [None, 60.0])
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_values_keep_their_order(make, workers, timeout):
    def position_value(sequences):
        return [sum(4**i * "ACGT".index(letter) for i, letter in enumerate(s)) for s in sequences]

    tokens = torch.randint(4, (37, 5))
    reward = make(position_value, workers=workers, timeout=timeout)
    expected = make(position_value, workers=0)(tokens)
    torch.testing.assert_close(reward(tokens), expected, rtol=0, atol=0)
    torch.testing.assert_close(reward(tokens[:1]), expected[:1], rtol=0, atol=0)
    assert reward.calls == 38


def test_they_score_elsewhere_and_stay_between_calls(make):
    reward = make(process_ids())
    tokens = torch.zeros(8, 2, dtype=torch.int64)
    seen = {*reward(tokens).int().tolist(), *reward(tokens).int().tolist()}
    assert os.getpid() not in seen
    assert len(seen) <= 2


def test_lambdas_closures_arrays_and_prints_travel(make, encode, capfd):
    bonus = torch.tensor(10.0)

    def talkative(sequences):
        print("on standard output")
        return bonus + torch.tensor([float(len(s)) for s in sequences])

    assert make(talkative, workers=1)(encode("AAA", "AAA")).tolist() == [13.0, 13.0]
    assert "on standard output" in capfd.readouterr().err


def test_exceptions_come_back_with_sequence_index_and_traceback(make, encode):
    def fails_on_c(sequences):
        if any("C" in s for s in sequences):
            raise ZeroDivisionError("no Cs")
        return [0.0] * len(sequences)

    with pytest.raises(
        RewardError, match=r"ZeroDivisionError: no Cs for sequence 2 \('GCA', 3 letters\) of 3"
    ) as caught:
        make(fails_on_c)(encode("AAA", "GGG", "GCA"))
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert "in fails_on_c" in cause.__notes__[0]


def test_the_floor_in_workers(make, encode):
    def fails_on_c(sequences):
        if any("C" in s for s in sequences):
            raise ZeroDivisionError("no Cs")
        return [float("nan") if "T" in s else 1.0 for s in sequences]

    reward = make(fails_on_c, on_error="floor", floor=-1.0)
    with pytest.warns(RuntimeWarning, match="no Cs for sequence 1"):
        values = reward(encode("AAA", "CAA", "TAA", "GAA", "CCC"))
    assert values.tolist() == [1.0, -1.0, -1.0, 1.0, -1.0]
    assert reward.failures == 3


def test_a_timeout_names_who_did_not_answer(make, encode):
    reward = make(hang_on_t(), timeout=1.0)
    reward(encode("AAA"))
    start = time.monotonic()
    with pytest.raises(RewardTimeoutError) as caught:
        reward(encode("AAA", "TTT", "GGA", "GAA"))
    assert time.monotonic() - start < 10
    assert "'score' did not answer within 1.0 s for 1 of 4 sequences: sequence 1 ('TTT', 3 letters); " in str(
        caught.value
    )
    assert isinstance(caught.value, TimeoutError)
    # The process that hung has been replaced.
    assert reward(encode("GGA", "GAA")).tolist() == [2.0, 1.0]


def test_a_timeout_with_a_floor(make, encode):
    reward = make(hang_on_t(), timeout=1.0, on_error="floor", floor=-9.0)
    with pytest.warns(RuntimeWarning, match=r"did not answer within 1.0 s for sequence 1 \('TTT'"):
        values = reward(encode("GAA", "TTT", "GGA", "AAA", "GGG"))
    assert values.tolist() == [1.0, -9.0, 2.0, 0.0, 3.0]
    assert reward.failures == 1


def test_a_timeout_also_ends_what_the_reward_started(make, encode, tmp_path):
    note = tmp_path / "pid"

    def starts_a_program(sequences):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        note.write_text(str(child.pid))
        return [child.wait() for _ in sequences]

    with pytest.raises(RewardTimeoutError):
        make(starts_a_program, workers=1, timeout=1.0)(encode("AAA"))
    assert await_end(int(note.read_text()))


def test_a_worker_that_dies_is_a_failure_of_its_sequence(make, encode):
    def dies_on_t(sequences):
        if any("T" in s for s in sequences):
            os._exit(3)
        return [1.0] * len(sequences)

    batch = encode(*["AAA"] * 20, "TTT", *["AAA"] * 20)
    with pytest.raises(RewardError, match=r"ended its worker process with exit code 3 for sequence 20 \('TTT'"):
        make(dies_on_t)(batch)
    reward = make(dies_on_t, on_error="floor", floor=0.0)
    with pytest.warns(RuntimeWarning, match="exit code 3 for sequence 20"):
        assert reward(batch).tolist() == [1.0] * 20 + [0.0] + [1.0] * 20


def test_close_ends_the_processes_and_a_later_call_starts_new_ones(make):
    reward = make(process_ids(), workers=1)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    first = int(reward(tokens))
    assert is_running(first)
    reward.close()
    assert not is_running(first)
    assert int(reward(tokens)) != first


def test_they_end_with_the_reward(decode):
    reward = as_reward(process_ids(), decode=decode, registry={}, workers=1)
    pid = int(reward(torch.zeros(1, 2, dtype=torch.int64)))
    del reward
    assert await_end(pid)


@pytest.mark.parametrize("ending", ["", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_they_end_with_the_interpreter(ending, project_root):
    program = f"""
import os, signal, torch
from sepo_env.rewards import as_reward
reward = as_reward(lambda xs: [os.getpid()] * len(xs), decode=lambda t: ["A"] * len(t), registry={{}}, workers=1)
print(int(reward(torch.zeros(1, 1, dtype=torch.int64))), flush=True)
{ending}
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False, cwd=project_root
    )
    assert await_end(int(done.stdout)), done.stderr


@pytest.fixture
def interruptible():
    """Python's own handler, which a shell takes away from what it starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_leaves_no_answer_behind(make, encode):
    reward = make(hang_on_t(), timeout=60.0)
    reward(encode("GAA", "AAA"))
    # To the main thread, as a terminal's Ctrl-C goes.
    interrupt = threading.Timer(0.5, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
    interrupt.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        reward(encode("GGG", "TTT"))
    assert time.monotonic() - start < 30
    interrupt.join()
    assert reward(encode("AAA", "GGA")).tolist() == [0.0, 2.0]


def test_a_pickled_copy_starts_its_own(make):
    reward = make(process_ids(), workers=1)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    first = int(reward(tokens))
    copy = pickle.loads(cloudpickle.dumps(reward))
    try:
        assert int(copy(tokens)) != first
        assert int(reward(tokens)) == first
    finally:
        copy.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_copy_starts_its_own(make):
    reward = make(process_ids(), workers=1)
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    first = int(reward(tokens))
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe()

    def child():
        with reward:
            sender.send(int(reward(tokens)))

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(60)
    other = receiver.recv()
    process.join(60)
    assert other != first
    assert int(reward(tokens)) == first, "the fork must leave this process's workers alone"


def test_what_cannot_be_pickled_is_named():
    lock = threading.Lock()

    def locked(sequences):
        with lock:
            return [0.0] * len(sequences)

    with pytest.raises(InvalidArgumentError, match=r"workers=2 sends the reward 'locked' .* cannot be pickled .*lock"):
        WorkerPool(locked, "locked", 2, None)


def test_what_cannot_be_loaded_is_named(make, encode, tmp_path, monkeypatch):
    (tmp_path / "vanishing_module.py").write_text("def score(sequences):\n    return [0.0] * len(sequences)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import vanishing_module

    reward = make(vanishing_module.score)
    (tmp_path / "vanishing_module.py").unlink()
    with pytest.raises(RewardError, match=r"cannot be loaded in a worker process \(ModuleNotFoundError: .*vanishing"):
        reward(encode("AAA"))


def test_answers_that_cannot_travel_are_named(make, encode):
    with pytest.raises(RewardError, match=re.escape("raised TypeError: cannot pickle 'generator' object")):
        make(lambda sequences: (len(s) for s in sequences))(encode("AAA"))


def test_a_cache_spares_the_workers(make, encode):
    reward = make(process_ids(), cache=True)
    assert reward(encode("AAA", "AAA", "AAA")).unique().numel() == 1
    assert (reward.calls, reward.cache_hits) == (1, 2)


def test_workers_import_only_what_the_reward_needs(make, encode):
    imported = make(lambda sequences: [float("torch" in sys.modules) for _ in sequences], workers=1)
    assert imported(encode("AAA")).tolist() == [0.0]
