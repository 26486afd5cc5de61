"""What an agent wrote before it was trained and what it writes now, from the same seeds, for people to read."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from torch import Tensor

from sepo_env.files import write_atomically
from sepo_env.rewards import Reward
from sepo_env.tasks import Task

SAMPLES_FILE = "samples.csv"


@dataclass(frozen=True)
class Sample:
    """One sequence.

    Attributes:
        when: ``"before"`` or ``"after"`` the training.
        reward: what the agent is trained on makes of it.
        held_out_reward: what the judge makes of it.
        sequence: in the task's alphabet.
    """

    when: str
    reward: float
    held_out_reward: float
    sequence: str


def judged(task: Task, reward: Reward, before: Tensor, after: Tensor) -> list[Sample]:
    """The samples of both times, int64 ``(N, L)`` each, with their rewards; sequence i of both has the same seed."""
    judge = task.judge()
    return [
        Sample(when, *figures)
        for when, tokens in (("before", before), ("after", after))
        for figures in zip(reward(tokens).tolist(), judge(tokens).tolist(), task.decode(tokens), strict=True)
    ]


def as_text(samples: Sequence[Sample]) -> str:
    """One line a sample, under a heading."""
    lines = [f"{'':6}  {'reward':>8}  {'held-out':>8}"]
    lines += [f"{s.when:6}  {s.reward:+8.3f}  {s.held_out_reward:+8.3f}  {s.sequence}" for s in samples]
    return "\n".join(lines)


def write_samples(folder: Path, samples: Sequence[Sample]) -> None:
    """Write ``samples.csv`` into a folder, whole or not at all."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow([field.name for field in fields(Sample)])
    writer.writerows(astuple(sample) for sample in samples)
    write_atomically(folder / SAMPLES_FILE, table.getvalue().encode())
