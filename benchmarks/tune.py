"""Choose each agent's settings with equal effort: the same grid for every agent, at the comparison's own cost.

The criterion is the median held-out reward at the end of the run, among the configurations whose samples the
pretrained denoiser still finds about as likely as real sequences, and, for texts, whose words are as varied: without
that condition every winner is a collapse that both oracles overrate. So the judge of the comparison has a say in the
settings, on one seed that no comparison uses; what it selects is one of a handful of configurations an agent, the same
handful for all. The winners are entered by hand under ``tuned`` in benchmarks/comparison/suite.py. Interrupted, the
same command goes on where it stopped.

Besides ``--study agents`` there are studies of SEPO's own choices, on the same grid: ``forms`` and ``rewards``::

    python benchmarks/tune.py --task ToyCTMC-v0 --output runs/tuning --tables runs/tuning
    python benchmarks/tune.py --study forms
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import pandas as pd

from agents.command_line import DONE
from benchmarks._program import AMISS, PathOption, run_program
from benchmarks.comparison.runs import Run, claim_all, plan
from benchmarks.comparison.scheduler import available_cores, run_all
from benchmarks.comparison.suite import COMPARED, Suite, SuiteName, make_suite, task_options
from benchmarks.comparison.tables import PRETRAINED, markdown_table
from benchmarks.comparison.verdict import unfinished_runs
from benchmarks.comparison.worker import check
from benchmarks.comparison.world import world_of
from sepo_env.arguments import Count, WholeNumber, check_fields
from sepo_env.device import find_device
from sepo_env.errors import InvalidArgumentError
from sepo_env.files import ClaimedFolder, write_atomically

StudyName = Literal["agents", "forms", "rewards"]


@dataclass(frozen=True)
class Study:
    """Which agents try the suite's grid, and with what besides.

    Attributes:
        fixed: settings that all runs of the study have.
        agents: names in the registry.
        reward: what all are trained on; None is the task's training reward.
    """

    fixed: Mapping[str, Any] = field(default_factory=dict)
    agents: tuple[str, ...] = COMPARED
    reward: str | None = None

    def configurations(self, suite: Suite) -> list[dict[str, Any]]:
        """Every combination of the suite's grid, the same number for each agent."""
        return [
            {**self.fixed, **dict(zip(suite.grid, values, strict=True))}
            for values in itertools.product(*suite.grid.values())
        ]


STUDIES: dict[StudyName, Study] = {
    "agents": Study(),
    # The form that is not SEPO's default, and the lower confidence bound as the reward, each with SEPO's own effort.
    "forms": Study({"form": "path"}, agents=("sepo",)),
    "rewards": Study(agents=("sepo",), reward="activity_lcb"),
}

CRITERION = "held_out_median"
NATURALNESS = ("likely_as_real", "varied_as_real")
LEAST_NATURAL = 7 / 8
"""A configuration is eligible if, of all those shares that the task measures, it keeps this part of the pretrained
denoiser's own."""


@dataclass(frozen=True)
class Options:
    """Choose each agent's settings with equal effort."""

    study: StudyName = "agents"
    """What is tried: agents (learning rate and KL weight of every agent), forms (SEPO's path form), rewards (SEPO on
    the lower confidence bound)."""
    task: str = "DNAEnhancer-v0"
    """Gymnasium id of the world."""
    suite: SuiteName = "default"
    """The suite whose cost a run has."""
    budget: Count | None = None
    """Network evaluations a run; None is the suite's."""
    seed: WholeNumber = 1000
    """Seed of the runs; no suite may compare on it."""
    task_options: str = "{}"
    """Options of the task as a JSON object."""
    artefacts: PathOption | None = None
    """Folder of published artefacts to run on, for DNAEnhancer-v0: the same as --task-options '{"artefacts": DIR}'.
    Settings were tuned on the shipped assets. Each process loads the oracles (3 GB): --workers 1 may be best."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    workers: Count | None = None
    """Runs at a time, each in a process of its own; as many as there are cores on a cpu, else one."""
    output: PathOption = Path("runs/tuning")
    """Folder of the runs; each study of each task has a folder of its own in it."""
    tables: PathOption = Path(__file__).parent / "results" / "tuning"
    """Folder for the results of all configurations, in it a folder for each task, in that a CSV file for each study."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)


def tuning_runs(suite: Suite, study: Study) -> list[Run]:
    """The pretrained denoiser, then the runs of all configurations of all agents, configuration by configuration."""
    world = world_of(suite)
    runs = plan(dataclasses.replace(suite, agents=(PRETRAINED,)), world)
    for configuration in study.configurations(suite):
        tuned = {agent: {**suite.tuned.get(agent, {}), **configuration} for agent in suite.agents}
        variant = ",".join(f"{name}={value}" for name, value in configuration.items())
        runs += [
            dataclasses.replace(run, variant=variant) for run in plan(dataclasses.replace(suite, tuned=tuned), world)
        ]
    return runs


def select(results: pd.DataFrame) -> pd.Series:
    """Mark the best configuration of each agent.

    The highest criterion among those that are natural enough; where none is, the most natural one.

    Args:
        results: one row a run, with columns agent, the criterion and, where the task has it, the naturalness; one of
            them is the pretrained denoiser.

    Returns:
        True for one row an agent.
    """
    trained = results[results["agent"] != PRETRAINED]
    measured = [name for name in NATURALNESS if name in results]
    own = results.loc[results["agent"] == PRETRAINED, measured].iloc[0]
    natural = (trained[measured] / own).min(axis=1).clip(upper=LEAST_NATURAL)
    ranked = trained.assign(natural=natural).sort_values(["natural", CRITERION], ascending=False)
    best = ranked.groupby("agent").head(1).index
    return pd.Series(results.index.isin(best), index=results.index)


def results_table(runs: Sequence[Run], names: Sequence[str], output: Path) -> pd.DataFrame:
    """One row a finished run, the settings with those names in front; ``selected`` marks the best of each agent."""
    rows: list[Mapping[str, Any]] = [
        {"agent": run.agent, **{name: run.settings.get(name) for name in names}, **run.load_results(output)}
        for run in runs
    ]
    frame = pd.DataFrame(rows)
    frame.insert(1 + len(names), "selected", select(frame))
    return frame.sort_values(["agent", *names], ignore_index=True)


def main(options: Options, command: str = "") -> int:
    """Run the study, write the table, print what was selected; the exit status is 1 if a run is missing.

    Raises:
        CheckpointError: the folder holds runs with other settings, or damaged results.
        FolderError: a folder cannot be written; what is finished is kept.
        FolderInUseError: another study writes there.
    """
    if options.seed in make_suite(options.task, "full").seeds:
        raise InvalidArgumentError(f"seed {options.seed} is one that agents are compared on; tune on another one.")
    device, study = find_device(options.device), STUDIES[options.study]
    suite = make_suite(options.task, options.suite, agents=study.agents, seeds=(options.seed,), reward=study.reward)
    suite = dataclasses.replace(suite, task_options=task_options(options.task_options, options.artefacts))
    if options.budget is not None:
        suite = dataclasses.replace(suite, budget=options.budget)
    check(suite)
    output = Path(options.output) / suite.world / options.study
    runs = tuning_runs(suite, study)
    with ClaimedFolder(output) as claimed:
        claim_all(runs, output)
        workers = options.workers or (available_cores() if device.type == "cpu" else 1)
        failures = run_all(runs, output, device=str(device), workers=workers)
        claimed.restore()
    missing = unfinished_runs(runs, output, failures)
    for name, reason in missing:
        print(f"{name} FAILED: {reason}", file=sys.stderr)
    without = {name for name, _ in missing}
    finished = [run for run in runs if run.name not in without]
    if PRETRAINED not in {run.agent for run in finished} or len(finished) == 1:
        print("nothing can be selected; the same command tries these runs again", file=sys.stderr)
        return AMISS
    settings = (*study.fixed, *suite.grid)
    table = results_table(finished, settings, output)
    path = Path(options.tables) / suite.world / f"{options.study}.csv"
    write_atomically(path, table.to_csv(index=False).encode())
    columns = [name for name in (CRITERION, *NATURALNESS) if name in table]
    shown = table[["agent", *settings, *columns, "selected"]].set_index("agent")
    print(markdown_table(shown.map(lambda cell: f"{cell:g}" if isinstance(cell, float) else str(cell))))
    if missing:
        print(f"\n**THE STUDY IS INCOMPLETE**: {len(finished)} of {len(runs)} runs finished.")
    print(f"\n{path}")
    return AMISS if missing else DONE


if __name__ == "__main__":
    sys.exit(
        run_program(
            Options,
            main,
            file="tune.py",
            description=__doc__,
            how_to_go_on="The same command goes on from here.",
        )
    )
