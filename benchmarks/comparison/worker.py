"""One run from its beginning, or from its checkpoint, to its results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from torch import Tensor

from agents.policies.sampling import PolicySampler
from agents.registry import learner_class
from agents.training.recovery import checkpoint_path
from benchmarks.comparison.runs import Run
from benchmarks.comparison.suite import Suite, evaluations_per_call
from benchmarks.comparison.tables import COST_COLUMNS, PRETRAINED
from benchmarks.comparison.world import make_task
from sepo_env.denoisers import ClassifierFreeGuidance, Denoiser
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import resolve_prompts

_CHUNK = 64
_SAMPLE_SEED = 1_000_000_007
"""Sequence i of a sampler depends on ``seed + i`` alone: seeds this far apart share no sequence."""


class Progress(NamedTuple):
    """Where a run is: its name, the work done (network evaluations), and a note for the eye."""

    run: str
    work: float
    note: str


Report = Callable[[Progress], None]


def total_work(run: Run) -> float:
    """Network evaluations of a run, training and sampling for the judge: the length of its progress line."""
    sampling = run.evaluation.num_samples * run.evaluation.num_steps * evaluations_per_call(run.guidance_scale)
    return run.settings.get("max_nfe", 0) + sampling


def execute(run: Run, output: Path, device: str, report: Report) -> None:
    """Train the run's agent, judge it, and write the results into the run's folder.

    Args:
        run: what to do.
        output: the comparison's folder.
        device: where the networks live.
        report: called with the progress after every step; what it raises stops the run, which can be resumed.
    """
    folder = run.claim(output)
    task = make_task(run.task, run.prompt, run.task_options)
    report(Progress(run.name, 0.0, "starting"))
    if run.agent == PRETRAINED:
        curve, cost = pd.DataFrame(columns=["iteration"]), dict.fromkeys(COST_COLUMNS, 0)
        draw: Callable[..., Tensor] = _pretrained_sampler(task, device, run.guidance_scale)
    else:
        agent = _train(run, task, folder, device, report)
        curve, last = pd.DataFrame(agent.history), agent.history[-1]
        cost = {name: last[name] for name in COST_COLUMNS}
        draw = agent.sample_tokens
    spent = float(cost["nfe"])
    samples, figures = _judge(run, task, draw, lambda work, note: report(Progress(run.name, spent + work, note)))
    run.finish(output, curve, samples, {**cost, **figures})


def check(suite: Suite) -> None:
    """Make a suite's task once, so that what does not fit is refused before anything runs.

    Raises:
        InvalidArgumentError: guidance by prompts where none are given.
        UnknownOptionError: options that the task does not take.
        InvalidPromptError: a prompt that does not fit.
    """
    task = make_task(suite.task, suite.prompt, suite.task_options)
    if suite.guidance_scale > 0 and not task.conditional:
        raise InvalidArgumentError(
            f"guidance_scale is {suite.guidance_scale}, but {suite.task} draws no prompts to be guided by; give "
            "--prompt, or prompts in --task-options."
        )


def _train(run: Run, task: Task, folder: Path, device: str, report: Report) -> Any:
    log_dir = folder / "log"
    agent = learner_class(run.agent)(
        task, reward=run.reward, device=device, seed=run.seed, log_dir=str(log_dir), **run.settings
    )

    held_out = ""

    def show(row: Mapping[str, Any]) -> None:
        nonlocal held_out
        if row["held_out_reward"] is not None:
            held_out = f", held-out {row['held_out_reward']:.2f}"
        note = f"iteration {row['iteration']}, reward {row['reward_median']:.2f}{held_out}"
        report(Progress(run.name, float(row["nfe"]), note))

    resume = checkpoint_path(log_dir).exists()
    try:
        agent.train(resume=resume, callbacks=[show], progress=False)
    except CheckpointError as error:
        if not resume:
            raise
        cure = f"delete the folder {folder}, and the same command does this run from its beginning"
        raise CheckpointError(checkpoint_path(log_dir), "the run cannot go on from it", cure) from error
    return agent


def _pretrained_sampler(task: Task, device: str, guidance_scale: float = 0.0) -> Callable[..., Tensor]:
    """The sampler of the agents, on the pretrained denoiser."""
    denoiser: Denoiser = task.denoiser.to(device)
    if guidance_scale > 0:
        denoiser = ClassifierFreeGuidance(denoiser, guidance_scale)

    def draw(num_samples: int, num_steps: int, seed: int) -> Tensor:
        sampler = PolicySampler(task, num_steps, 0, 1.0, _CHUNK, torch.device(device))
        return sampler.sample(denoiser, num_samples, seed)

    return draw


def _given(task: Task, num_samples: int, seed: int) -> Tensor | None:
    """Which positions of the sequences with the seeds ``seed`` .. were given by the task, bool ``(N, L)``."""
    prompt = resolve_prompts(task, None, keys_from_seed(torch.arange(seed, seed + num_samples)))
    return None if prompt is None else prompt < task.num_tokens


def _judge(
    run: Run, task: Task, draw: Callable[..., Tensor], report: Callable[[float, str], None]
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Draw the run's sequences and score them: one row a sequence, and the figures of all together."""
    evaluation = run.evaluation
    first_seed, evaluations = run.seed * _SAMPLE_SEED, evaluation.num_steps * evaluations_per_call(run.guidance_scale)
    parts = []
    for start in range(0, evaluation.num_samples, _CHUNK):
        count = min(_CHUNK, evaluation.num_samples - start)
        report(float(start * evaluations), "sampling")
        parts.append(draw(count, num_steps=evaluation.num_steps, seed=first_seed + start))
    tokens = torch.cat(parts)
    given = _given(task, evaluation.num_samples, first_seed)
    report(float(evaluation.num_samples * evaluations), "judging")
    samples = pd.DataFrame(
        {
            "sequence": task.decode(tokens),
            "training_reward": task.make_reward()(tokens).cpu().numpy(),
            "held_out_reward": task.judge()(tokens).cpu().numpy(),
        }
    )
    given = None if given is None else given.to(tokens.device)
    return samples, task.metrics(tokens, prompt_mask=given, **evaluation.metrics)
