"""Compare agents on one task at equal network evaluations and equal reward calls.

Without arguments: pretrained, SEPO, PPO, DDPO and REINFORCE on DNAEnhancer-v0, two seeds, in about a quarter of an
hour on two cores. Interrupted, the same command goes on where it stopped. The results are in the output folder:
``report.md`` and beside it the tables (CSV, Markdown) and the pictures (PNG, PDF)::

    python benchmarks/compare.py --smoke                              # a few iterations, to see that all parts work
    python benchmarks/compare.py --task ToyCTMC-v0 --agents sepo ppo --seeds 0 1 2
    python benchmarks/compare.py --suite full --output results/full   # five seeds, half an hour
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

from agents.command_line import DONE
from benchmarks._program import AMISS, PathOption, run_program
from benchmarks.comparison.report import load_results, reference_of, write_report
from benchmarks.comparison.runs import claim_all, plan
from benchmarks.comparison.scheduler import available_cores, run_all
from benchmarks.comparison.suite import Suite, SuiteName, make_suite, task_options
from benchmarks.comparison.worker import check
from sepo_env.arguments import Count, NonNegative, WholeNumber, check_fields
from sepo_env.device import find_device
from sepo_env.files import ClaimedFolder


@dataclass(frozen=True)
class Options:
    """Compare agents on one task at equal network evaluations and equal reward calls."""

    task: str = "DNAEnhancer-v0"
    """Gymnasium id of the world; it needs a suite in benchmarks/comparison/suite.py."""
    suite: SuiteName = "default"
    """default: two seeds, minutes; full: five seeds and more samples to judge, half an hour."""
    agents: tuple[str, ...] = ()
    """Names in the registry of agents, and "pretrained"; all of them if none is given."""
    seeds: tuple[WholeNumber, ...] = ()
    """One run of each agent for each; the suite's own if none is given."""
    budget: Count | None = None
    """Network evaluations of a run (1 a sequence forward, 3 with its backward); the suite's own if not given."""
    prompt: tuple[str, ...] = ()
    """One or several texts of which every sequence keeps one, with the task's mask letter where free (? for DNA, _ for
    text); give a folder of its own with it (--output), as with the three options below."""
    task_options: str = "{}"
    """Options of the task as a JSON object, such as {"schedule": "cosine"}."""
    artefacts: PathOption | None = None
    """Folder of published artefacts to run on, for DNAEnhancer-v0: the same as --task-options '{"artefacts": DIR}'.
    Settings were tuned on the shipped assets. Each process loads the oracles (3 GB): --workers 1 may be best."""
    guidance_scale: NonNegative = 0.0
    """Classifier-free guidance by the prompts, of agents and pretrained denoiser alike; it doubles the cost, so the
    budget pays for half as many iterations."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    workers: Count | None = None
    """Runs at a time, each in a process of its own; as many as there are cores on a cpu, else one."""
    output: PathOption | None = None
    """Folder of the results; runs/<task>-<suite> in the present folder if not given (with -artefacts or -options behind
    the task where there are such)."""
    smoke: bool = False
    """A few iterations a run, to see in seconds that all parts work: the same as --suite smoke."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)

    @property
    def suite_name(self) -> SuiteName:
        """The suite that is meant."""
        return "smoke" if self.smoke else self.suite

    @property
    def folder(self) -> Path:
        """The output folder that is meant."""
        return Path(self.output or Path("runs") / f"{self.make_suite().world}-{self.suite_name}")

    def make_suite(self) -> Suite:
        """The suite with what was given in place of its own."""
        given = {name: getattr(self, name) for name in ("agents", "seeds", "budget", "prompt", "guidance_scale")}
        given["task_options"] = task_options(self.task_options, self.artefacts)
        return make_suite(self.task, self.suite_name, **{name: value for name, value in given.items() if value})

    def num_workers(self) -> int:
        """The number of processes that is meant."""
        return self.workers or (available_cores() if find_device(self.device).type == "cpu" else 1)


def main(options: Options, command: str) -> int:
    """Run what is not finished yet, and write the report; the exit status is 1 if anything is amiss.

    Raises:
        CheckpointError: the folder holds runs with other settings, or damaged results.
        FolderError: the folder cannot be written; what is finished is kept.
        FolderInUseError: another comparison writes there.
    """
    suite, device = options.make_suite(), str(find_device(options.device))
    check(suite)
    runs, folder = plan(suite), options.folder
    with ClaimedFolder(folder) as claimed:
        claim_all(runs, folder)
        failures = run_all(runs, folder, device=device, workers=options.num_workers())
        claimed.restore()
        results = load_results(runs, folder, failures)
        write_report(results, suite, reference_of(suite), folder, command)
    if not results.runs.empty:
        print((folder / "summary.md").read_text(encoding="utf-8"))
    print(results.verdict.sentence())
    print(f"\nreport: {folder / 'report.md'}")
    for line in results.verdict.lines():
        print(line, file=sys.stderr)
    return DONE if results.verdict.is_sound else AMISS


if __name__ == "__main__":
    sys.exit(
        run_program(
            Options,
            main,
            file="compare.py",
            description=__doc__,
            how_to_go_on="The same command goes on from here.",
        )
    )
