"""Choose each agent's settings with equal effort: the same grid for every agent, at the comparison's own cost.

The criterion is the median held-out reward at the end of the run. So the judge of the comparison has a say in the
settings, on one seed that no comparison uses; what it selects is one of a handful of configurations an agent, the
same handful for all. The winners are entered by hand under ``tuned`` in benchmarks/comparison/suite.py. Interrupted,
the same command goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import tyro
from comparison.runs import Run, plan, write_atomically
from comparison.scheduler import available_cores, run_all
from comparison.suite import Suite, SuiteName, make_suite
from comparison.tables import markdown_table

from agents.registry import AGENTS
from sepo_env.errors import InvalidArgumentError, SepoEnvError

GRID: dict[str, tuple[float, ...]] = {
    "learning_rate": (1e-3, 3e-3),
    "kl_coeff": (0.003, 0.03),
}
"""Values of the settings that are tuned; every agent tries all combinations. The path KL is in nats a sequence."""

CRITERION = "held_out_median"


@dataclass(frozen=True)
class Options:
    """Choose each agent's settings with equal effort."""

    task: str = "DNAEnhancer-v0"
    """Gymnasium id of the world."""
    suite: SuiteName = "default"
    """The suite whose cost a run has."""
    agents: tuple[str, ...] = tuple(AGENTS)
    """Names in the registry of agents."""
    budget: int | None = None
    """Network evaluations a run; None is the suite's."""
    seed: int = 1000
    """Seed of the runs; no suite may compare on it."""
    device: str = "cpu"
    """Where the networks live."""
    workers: int = available_cores()
    """Runs at a time, each in a process of its own."""
    output: Path = Path("runs/tuning")
    """Folder of the runs."""
    table: Path = Path(__file__).parent / "results" / "tuning.csv"
    """File for the results of all configurations."""


def configurations() -> list[dict[str, float]]:
    """Every combination of the grid."""
    return [dict(zip(GRID, values, strict=True)) for values in itertools.product(*GRID.values())]


def tuning_runs(suite: Suite) -> list[Run]:
    """The runs of all configurations of all agents, configuration by configuration."""
    runs = []
    for configuration in configurations():
        tuned = {agent: {**suite.tuned.get(agent, {}), **configuration} for agent in suite.agents}
        variant = ",".join(f"{name}={value:g}" for name, value in configuration.items())
        runs += [dataclasses.replace(run, variant=variant) for run in plan(dataclasses.replace(suite, tuned=tuned))]
    return runs


def results_table(runs: list[Run], output: Path) -> pd.DataFrame:
    """One row a finished run, the settings of the grid in front; ``selected`` marks the best one of each agent."""
    rows: list[Mapping[str, Any]] = [
        {"agent": run.agent, **{name: run.settings[name] for name in GRID}, **run.load_results(output)}
        for run in runs
        if run.is_finished(output)
    ]
    frame = pd.DataFrame(rows)
    frame.insert(1 + len(GRID), "selected", frame.index.isin(frame.groupby("agent")[CRITERION].idxmax()))
    return frame.sort_values(["agent", *GRID], ignore_index=True)


def main(options: Options) -> int:
    """Run the grid, write the table, print what was selected."""
    if options.seed in make_suite(options.task, "full").seeds:
        raise InvalidArgumentError(f"seed {options.seed} is one that agents are compared on; tune on another one.")
    suite = make_suite(options.task, options.suite, agents=options.agents, seeds=(options.seed,))
    if options.budget is not None:
        suite = dataclasses.replace(suite, budget=options.budget)
    runs = tuning_runs(suite)
    for run in runs:
        run.claim(options.output)
    failures = run_all(runs, options.output, device=options.device, workers=options.workers)
    for failure in failures:
        print(f"{failure.run.name} FAILED: {failure.message} (error.txt in its folder)", file=sys.stderr)
    if len(failures) == len(runs):
        return 1
    table = results_table(runs, options.output)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.table, lambda path: table.to_csv(path, index=False))
    shown = table[["agent", *GRID, CRITERION, "selected"]].set_index("agent")
    print(markdown_table(shown.map(lambda cell: f"{cell:g}" if isinstance(cell, float) else str(cell))))
    print(f"\n{options.table}")
    return 1 if failures else 0


if __name__ == "__main__":
    arguments = tyro.cli(Options, description=__doc__)
    try:
        status = main(arguments)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        status = 130
    except SepoEnvError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
