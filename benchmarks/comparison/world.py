"""What a comparison takes place in: the task, and what it, its pretrained denoiser, reward and judge are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import sepo_env
from agents.identity import describe_reward
from agents.lookup import named_task
from benchmarks.comparison.suite import Suite
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import prompts_fingerprint


def make_task(env_id: str, prompt: Sequence[str] = (), options: Mapping[str, Any] | None = None) -> Task:
    """The task behind a Gymnasium id, with its options and what every sequence keeps, if anything.

    Raises:
        UnknownOptionError: options that it does not take.
        InvalidPromptError: a prompt that does not fit.
    """
    task = named_task(env_id, options)
    if prompt:
        task.start_from(prompt)
    return task


def world_of(suite: Suite) -> dict[str, Any]:
    """What decides over a suite's results beside its settings, for JSON; told as a training tells it of itself.

    Names and paths are not enough: behind them may be another file tomorrow. Published artefacts are known by their
    files, so that their oracles (3 GB) need not be loaded for it.
    """
    task = make_task(suite.task, suite.prompt, suite.task_options)
    prompts = prompts_fingerprint(task)
    world = {"task": task.identity(), **({} if prompts is None else {"prompts": prompts})}
    if task.fingerprints:
        return world
    with task.make_reward(suite.reward) as reward, task.judge() as judge:
        return {**world, "reward": describe_reward(reward), "judge": describe_reward(judge)}


def weights_fingerprint() -> str:
    """A short hash of the shipped weights, so that results of rebuilt ones are not mixed with old results."""
    found = hashlib.sha256()
    for path in sorted((Path(sepo_env.__file__).parent / "assets").glob("*.safetensors")):
        found.update(path.name.encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]
