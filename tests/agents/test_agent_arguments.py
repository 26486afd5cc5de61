"""What an agent is given: of the right kind, or named in one line; and how its reward is called."""

import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents import SEPO, Agent, agent_class
from agents.lookup import named_task
from agents.registry import learners
from sepo_env.errors import InvalidArgumentError, RewardError, RewardTimeoutError, UnknownNameError
from sepo_env.tasks import make
from tests.comparisons import assert_same

SMALL: dict[str, Any] = {
    "num_iterations": 1,
    "batch_size": 8,
    "num_steps": 4,
    "states_per_trajectory": 0,
    "eval_every": 0,
    "tensorboard": "off",
    "device": "cpu",
}

every_agent = pytest.mark.parametrize("name", learners())


def small(name: str = "sepo", **options: Any) -> Agent:
    return agent_class(name)("ToyCTMC-v0", **(SMALL | options))


@every_agent
def test_numbers_of_numpy_and_whole_floats_are_numbers(name: str) -> None:
    agent = small(name)
    expected = agent.sample(3, seed=3)
    assert agent.sample(np.int64(3), seed=np.int64(3)) == expected
    assert agent.sample(3.0, seed=np.uint8(3), num_steps=4.0) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": "3"}, "num_samples is '3', but must be a whole number from 1 to 1000000"),
        ({"num_samples": -1}, "num_samples is -1"),
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 10**12}, "num_samples is 1000000000000"),
        ({"num_samples": 2.5}, "num_samples is 2.5"),
        ({"num_samples": None}, "num_samples is None"),
        ({"num_samples": True}, "num_samples is True"),
        ({"num_samples": 3, "seed": -1}, "seed is -1"),
        ({"num_samples": 3, "seed": 2**63}, "seed is 9223372036854775808"),
        ({"num_samples": 3, "seed": "0"}, "seed is '0'"),
        ({"num_samples": 3, "num_steps": 0}, "num_steps is 0"),
        ({"num_samples": 3, "num_steps": 1.5}, "num_steps is 1.5"),
    ],
)
def test_wrong_numbers_of_samples_are_named(options: dict[str, Any], message: str) -> None:
    agent = small()
    for draw in (agent.sample, agent.sample_tokens):
        with pytest.raises(InvalidArgumentError, match=message) as caught:
            draw(**options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda: SEPO(3), "task is 3, but must be text, or a Task"),
        (lambda: SEPO(SEPO), "task is <class 'agents.algorithms.sepo.SEPO'>.*, but must be text, or a Task"),
        (lambda: SEPO("toy", config={"seed": 3}), "config is {'seed': 3}"),
        (lambda: SEPO("toy", device=3), "device is 3"),
        (lambda: SEPO("toy", workers=-1), "workers is -1"),
        (lambda: SEPO("toy", timeout="3"), "timeout is '3'"),
        (lambda: SEPO("toy", floor="low"), "floor is 'low'"),
        (lambda: SEPO("toy", cache="yes"), "cache is 'yes'"),
        (lambda: Agent.load(3), "path is 3, but must be text, or a path"),
        (lambda: Agent.load("x", task="toy"), "task is 'toy', but must be a Task, or None"),
        (lambda: small().save(3), "folder is 3"),
        (lambda: small().train(resume="yes"), "resume is 'yes'"),
        (lambda: small().train(progress=None), "progress is None"),
        (lambda: small().train(callbacks=3), "callbacks is 3"),
        (lambda: small().train(callbacks=[print, 3]), "callbacks is .*but must be a sequence of a function"),
        (lambda: small().train(callbacks=print), "callbacks is <built-in function print>"),
        (lambda: named_task(None), "task is None"),
        (lambda: named_task("toy", 3), "options is 3"),
    ],
    ids=range(18),
)
def test_arguments_of_another_kind_are_named(use: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        use()
    assert "\n" not in str(caught.value)


def test_callbacks_are_looked_at_before_anything_is_spent(tmp_path: Path) -> None:
    agent = small(log_dir=str(tmp_path / "run"))
    with pytest.raises(InvalidArgumentError, match="callbacks"):
        agent.train(progress=False, callbacks=[3])
    assert not (tmp_path / "run").exists()
    assert agent.reward.calls == 0


def share_of_a(sequences: list[str]) -> list[float]:
    return [sequence.count("A") / len(sequence) for sequence in sequences]


def failing(sequences: list[str]) -> list[float]:
    return [1 / ("A" in sequence) for sequence in sequences]


@every_agent
def test_an_agent_takes_the_options_of_its_reward(name: str) -> None:
    """Failures are floored, in a process of its own, and repeated sequences are scored once."""
    with small(name, reward=failing, workers=1, timeout=60.0, on_error="floor", floor=-1.0, cache=True) as agent:
        with pytest.warns(RuntimeWarning, match="floor -1.0"):
            agent.train(progress=False)
        assert agent.reward.failures > 0
        tokens = agent.task.encode(["BBBB", "ABBB", "ABBB"])
        assert agent.reward(tokens).tolist() == [-1.0, 1.0, 1.0]
        hits = agent.reward.cache_hits
        agent.reward(tokens[1:])
        assert agent.reward.cache_hits == hits + 2


@every_agent
def test_how_a_reward_is_called_changes_no_sample(name: str) -> None:
    plain = small(name, reward=share_of_a)
    plain.train(progress=False)
    with small(name, reward=share_of_a, workers=2, cache=100) as spread:
        spread.train(progress=False)
        assert_same(spread.denoiser.logits.detach(), plain.denoiser.logits.detach())


def test_options_of_the_reward_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown on_error 'flor'; did you mean 'floor'"):
        small(on_error="flor")
    with pytest.raises(InvalidArgumentError, match="floor"):
        small(reward=share_of_a, floor=-1.0)
    with pytest.raises(InvalidArgumentError, match="spreads functions of strings"):
        small(workers=2)
    with pytest.raises(RewardError):
        small(reward=failing).train(progress=False)


def slow(sequences: list[str]) -> list[float]:
    import time

    time.sleep(60)
    return [0.0] * len(sequences)


def test_a_reward_that_is_too_slow_is_named() -> None:
    with small(reward=slow, workers=1, timeout=0.5) as agent, pytest.raises(RewardTimeoutError, match="'slow'"):
        agent.train(progress=False)


def test_a_loaded_agent_takes_them_too(tmp_path: Path) -> None:
    small().save(tmp_path)
    options: dict[str, Any] = {"workers": 1, "on_error": "floor", "floor": -1.0, "cache": 10}
    loaded = Agent.load(tmp_path, reward=failing, device="cpu", **options)
    with loaded as agent, pytest.warns(RuntimeWarning, match="floor -1.0"):
        assert agent.reward(agent.task.encode(["BBBB", "ABBB"])).tolist() == [-1.0, 1.0]
    with pytest.raises(UnknownNameError, match="did you mean 'seed'"):
        Agent.load(tmp_path, sed=3)


def process_of(sequences: list[str]) -> list[float]:
    import os

    return [float(os.getpid())] * len(sequences)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(os.name != "posix", reason="asks for processes by signal 0")
@pytest.mark.parametrize("end", ["close", "with", "gone", "failed"])
def test_no_process_outlives_the_agent(end: str) -> None:
    agent: Agent | None = SEPO(make("toy"), reward=process_of, workers=1, **SMALL)
    assert agent is not None
    agent.train(progress=False)
    pid = int(agent.reward(agent.task.encode(["AAAA"])).item())
    assert pid != os.getpid()
    assert is_running(pid)
    if end == "close":
        agent.close()
    elif end == "with":
        with agent:
            agent.sample(1)
    elif end == "failed":
        with pytest.raises(ZeroDivisionError), agent:
            agent.train(progress=False, callbacks=[lambda row: 1 / 0])
    else:
        there = weakref.ref(agent)
        agent = None
        gc.collect()
        assert there() is None
    assert not is_running(pid)


def test_a_closed_agent_can_be_used_again() -> None:
    agent = small(reward=process_of, workers=1)
    with agent:
        first = agent.reward(agent.task.encode(["AAAA"]))
    with agent:
        assert agent.reward(agent.task.encode(["AAAA"])) != first
