"""Ratios of speed, measured in one run on one machine, each with its goal.

The two sides of a ratio are timed in turns, so that both see the same load of the machine; the figure is the median
over the turns of the ratio within a turn, with its bootstrap 95 % interval. A goal counts as missed where the whole
interval misses it::

    python benchmarks/speed.py --threads 2
    python benchmarks/speed.py --only sampler trainer --json speed.json
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import numpy as np
import pandas as pd
import scipy.stats
import torch
from tqdm import tqdm

from agents.command_line import DONE
from benchmarks._measurements import (
    Bench,
    MeasurementName,
    Options,
    sampler_against_loop,
    torchrl_step,
    trainer_overhead,
    vector_against_singles,
    vector_step,
)
from benchmarks._program import AMISS, run_program
from benchmarks.comparison.tables import markdown_table
from sepo_env.device import find_device
from sepo_env.files import write_atomically


@dataclass(frozen=True)
class Figure:
    """One ratio.

    Attributes:
        name: what is measured.
        value: median over the turns.
        low: lower end of its 95 % interval.
        high: upper end.
        goal: limit of the ratio.
        at_most: whether the ratio must stay below its goal, or reach it.
    """

    name: str
    value: float
    low: float
    high: float
    goal: float
    at_most: bool

    @property
    def reached(self) -> bool:
        """Whether the goal lies within the interval or on its good side."""
        return self.low <= self.goal if self.at_most else self.high >= self.goal


MEASUREMENTS: dict[MeasurementName, tuple[Callable[[Bench], Iterator[float]], str, float, bool]] = {
    "vector-step": (vector_step, "Gymnasium vector step / denoiser forward", 0.1, True),
    "torchrl-step": (torchrl_step, "TorchRL step / denoiser forward", 0.1, True),
    "vector": (vector_against_singles, "make_vec / SyncVectorEnv, steps a second", 20.0, False),
    "sampler": (sampler_against_loop, "K-step sampler / plain loop, sequences a second", 1.0, False),
    "trainer": (trainer_overhead, "trainer overhead over bare network time", 0.25, True),
}
"""Name -> what measures it, its title, its goal, and whether the goal is a ceiling."""


def measure(bench: Bench, name: MeasurementName) -> Figure:
    """Take one measurement, with a progress line."""
    work, title, goal, at_most = MEASUREMENTS[name]
    turns = tqdm(work(bench), desc=name, total=bench.options.repeats, leave=False, disable=not sys.stderr.isatty())
    ratios = np.array(list(turns))
    interval = scipy.stats.bootstrap(
        (ratios,), np.median, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return Figure(title, float(np.median(ratios)), float(interval.low), float(interval.high), goal, at_most)


def table(figures: list[Figure]) -> str:
    """The figures as Markdown."""
    rows = {
        figure.name: [
            f"{figure.value:.3g} [{figure.low:.3g}, {figure.high:.3g}]",
            f"{'<=' if figure.at_most else '>='} {figure.goal:g}",
            "pass" if figure.reached else "FAIL",
        ]
        for figure in figures
    }
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index", columns=["measured", "goal", ""]))


def main(options: Options, command: str = "") -> int:
    """Measure and print; the exit status is 1 if a goal is missed.

    Raises:
        FolderError: the file of the figures cannot be written; they are printed before.
    """
    options = dataclasses.replace(options, device=str(find_device(options.device)))
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    bench = Bench(options)
    figures = [measure(bench, name) for name in options.only or MEASUREMENTS]
    print(
        f"{options.num_envs} x {bench.task.length}, K = {options.num_steps}, {options.device}, "
        f"{torch.get_num_threads()} threads; median of {options.repeats} turns with bootstrap 95 % interval\n"
    )
    print(table(figures))
    if options.json is not None:
        records = [asdict(figure) | {"reached": figure.reached} for figure in figures]
        write_atomically(Path(options.json), json.dumps(records, indent=1).encode())
    return DONE if all(figure.reached for figure in figures) else AMISS


if __name__ == "__main__":
    sys.exit(run_program(Options, main, file="speed.py", description=__doc__))
