"""Compare agents on one task at equal network evaluations and equal reward calls.

Without arguments: pretrained, SEPO, PPO, DDPO and REINFORCE on DNAEnhancer-v0, two seeds, in about a quarter of an
hour on two cores. Interrupted, the same command goes on where it stopped. The results are in the output folder:
``report.md`` and beside it the tables (CSV, Markdown) and the pictures (PNG, PDF).
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import tyro

from benchmarks.comparison.report import cost_verdict, load_results, reference_of, write_report
from benchmarks.comparison.runs import plan
from benchmarks.comparison.scheduler import available_cores, run_all
from benchmarks.comparison.suite import Suite, SuiteName, make_suite, task_options
from benchmarks.comparison.tables import MAX_COST_SPREAD, cost_spread
from benchmarks.comparison.worker import check
from sepo_env.device import find_device
from sepo_env.errors import SepoEnvError


@dataclass(frozen=True)
class Options:
    """Compare agents on one task at equal network evaluations and equal reward calls."""

    task: str = "DNAEnhancer-v0"
    """Gymnasium id of the world; it needs a suite in benchmarks/comparison/suite.py."""
    suite: SuiteName = "default"
    """default: two seeds, minutes; full: five seeds and more samples to judge, half an hour."""
    agents: tuple[str, ...] = ()
    """Names in the registry of agents, and "pretrained"; all of them if none is given."""
    seeds: tuple[int, ...] = ()
    """One run of each agent for each; the suite's own if none is given."""
    budget: int | None = None
    """Network evaluations of a run (1 a sequence forward, 3 with its backward); the suite's own if not given."""
    prompt: tuple[str, ...] = ()
    """One or several texts of which every sequence keeps one, with the task's mask letter where free (? for DNA, _ for
    text); give a folder of its own with it (--output), as with the three options below."""
    task_options: str = "{}"
    """Options of the task as a JSON object, such as {"schedule": "cosine"}."""
    artefacts: Path | None = None
    """Folder of published artefacts to run on, for DNAEnhancer-v0: the same as --task-options '{"artefacts": DIR}'.
    Settings were tuned on the shipped assets. Each process loads the oracles (3 GB): --workers 1 may be best."""
    guidance_scale: float = 0.0
    """Classifier-free guidance by the prompts, of agents and pretrained denoiser alike; it doubles the cost, so the
    budget pays for half as many iterations."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    workers: int | None = None
    """Runs at a time, each in a process of its own; as many as there are cores on a cpu, else one."""
    output: Path | None = None
    """Folder of the results; runs/<task>-<suite> in the present folder if not given (with -artefacts or -options behind
    the task where there are such)."""
    smoke: bool = False
    """A few iterations a run, to see in seconds that all parts work: the same as --suite smoke."""

    @property
    def suite_name(self) -> SuiteName:
        """The suite that is meant."""
        return "smoke" if self.smoke else self.suite

    @property
    def folder(self) -> Path:
        """The output folder that is meant."""
        return self.output or Path("runs") / f"{self.make_suite().world}-{self.suite_name}"

    def make_suite(self) -> Suite:
        """The suite with what was given in place of its own."""
        given = {name: getattr(self, name) for name in ("agents", "seeds", "budget", "prompt", "guidance_scale")}
        given["task_options"] = task_options(self.task_options, self.artefacts)
        return make_suite(self.task, self.suite_name, **{name: value for name, value in given.items() if value})

    def num_workers(self) -> int:
        """The number of processes that is meant."""
        return self.workers or (available_cores() if find_device(self.device).type == "cpu" else 1)


def main(options: Options, command: str) -> int:
    """Run what is not finished yet, and write the report; the exit status is 1 if anything is amiss."""
    suite, device = options.make_suite(), str(find_device(options.device))
    check(suite)
    runs = plan(suite)
    options.folder.mkdir(parents=True, exist_ok=True)
    for run in runs:
        run.claim(options.folder)
    failures = run_all(runs, options.folder, device=device, workers=options.num_workers())
    results = load_results(runs, options.folder)
    if not results.runs.empty:
        write_report(results, suite, reference_of(suite), options.folder, command)
        print((options.folder / "summary.md").read_text())
        print(cost_verdict(results.runs))
        print(f"\nreport: {options.folder / 'report.md'}")
    for failure in failures:
        print(f"{failure.run.name} FAILED: {failure.message} (error.txt in its folder)", file=sys.stderr)
    matched = max(cost_spread(results.runs).values()) <= MAX_COST_SPREAD
    return 0 if matched and not failures else 1


if __name__ == "__main__":
    arguments = tyro.cli(Options, description=__doc__)
    try:
        status = main(arguments, f"python benchmarks/compare.py {shlex.join(sys.argv[1:])}".strip())
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        status = 130
    except SepoEnvError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
