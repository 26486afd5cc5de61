"""One run is one folder: what it is, whether it is finished, and how its results get there in one piece.

::

    output/runs/<agent>/[<variant>/]seed-<n>/
        config.json     what the run is; written first, and never run over by another configuration
        log/            the agent's own log and checkpoint: an interrupted run goes on from here
        curve.csv       the agent's log, one row a step
        samples.csv     the sequences it ends with, and their scores
        run.json        cost and metrics, and the digests of all results; written last: a run that has it is finished
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks._files import digest, read_bytes, read_json, read_sealed, read_table, sealed
from benchmarks.comparison.suite import Evaluation, Suite
from benchmarks.comparison.tables import PRETRAINED
from benchmarks.comparison.world import world_of
from sepo_env.arguments import NonNegative, WholeNumber, check_fields
from sepo_env.errors import CheckpointError
from sepo_env.files import write_atomically, writing

_CURVE_COLUMNS = ("iteration", "nfe", "reward_calls", "eval_reward", "held_out_reward")
_REWARDS = ("training_reward", "held_out_reward")
_SHOWN_REFUSALS = 5
_OPTIONAL = frozenset({"prompt", "task_options", "guidance_scale"})


@dataclass(frozen=True)
class Run:
    """One agent with one seed on one task.

    Attributes:
        task: Gymnasium id of the world.
        agent: name in the registry of agents, or ``"pretrained"``.
        seed: of the agent and of the samples it is judged on.
        settings: the fields of the agent's configuration that the suite sets.
        evaluation: how the result is judged.
        reward: what the agent is trained on; None is the task's training reward.
        world: what task, pretrained denoiser, reward and judge are, as `world.world_of` tells it.
        variant: tells runs of one agent with other settings apart, where there are such.
        prompt: texts of which every sequence keeps one, with the task's mask letter where free; none: what the
            task draws, if anything.
        task_options: options of the task, for JSON.
        guidance_scale: of classifier-free guidance by the prompts; 0: none.
    """

    task: str
    agent: str
    seed: WholeNumber
    settings: Mapping[str, Any]
    evaluation: Evaluation
    reward: str | None
    world: Mapping[str, Any]
    variant: str = ""
    prompt: tuple[str, ...] = ()
    task_options: Mapping[str, Any] = field(default_factory=dict)
    guidance_scale: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Check the types of all fields."""
        check_fields(self)

    @property
    def name(self) -> str:
        """``sepo/seed-0``: unique within a comparison, and the run's folder."""
        return "/".join(part for part in (self.agent, self.variant, f"seed-{self.seed}") if part)

    def folder(self, output: Path) -> Path:
        """The run's folder in a comparison's output folder."""
        return output / "runs" / self.name

    def config(self) -> dict[str, Any]:
        """Everything that decides the result, as JSON gives it back.

        A folder of artefacts is known by its contents, wherever it lies.
        """
        record = json.loads(json.dumps(asdict(self)))
        options = {name: value for name, value in record.pop("task_options").items() if name != "artefacts"}
        return record | ({"task_options": options} if options else {})

    def claim(self, output: Path) -> Path:
        """Make the folder, or enter one that holds this very run, whole.

        Raises:
            CheckpointError: the folder holds a run with another configuration, or damaged results.
            FolderError: it cannot be written.
        """
        folder = self.folder(output)
        path = folder / "config.json"
        with writing(folder):
            if path.exists():
                found, cure = read_json(path, self._cure(output)), f"choose another --output, or delete {output}"
                if "weights" in found:
                    cause = "it holds a run of an older version, which did not write down all that decides its results"
                    raise CheckpointError(folder, cause, cure)
                if changed := ", ".join(_differences(found, self.config())):
                    raise CheckpointError(folder, f"it holds a run with other settings ({changed})", cure)
            else:
                write_atomically(path, json.dumps(self.config(), indent=1).encode())
            if self.is_finished(output):
                self.check(output)
        return folder

    def is_finished(self, output: Path) -> bool:
        """Whether the results are all there."""
        return (self.folder(output) / "run.json").exists()

    def finish(self, output: Path, curve: pd.DataFrame, samples: pd.DataFrame, results: Mapping[str, float]) -> None:
        """Write the results, the mark of completion last.

        Raises:
            FolderError: they cannot be written.
        """
        folder = self.folder(output)
        files = {"curve.csv": curve, "samples.csv": samples}
        contents = {name: frame.to_csv(index=False).encode() for name, frame in files.items()}
        for name, content in contents.items():
            write_atomically(folder / name, content)
        with writing(folder):
            (folder / "error.txt").unlink(missing_ok=True)
        digests = {name: digest(content) for name, content in contents.items()}
        write_atomically(folder / "run.json", sealed({"figures": dict(results), "files": digests}))

    def check(self, output: Path) -> None:
        """Raise a CheckpointError that names the file where a finished run's results are not as they were written."""
        record = self._record(output)
        for name, written in record["files"].items():
            path = self.folder(output) / name
            if digest(read_bytes(path, self._cure(output))) != written:
                raise CheckpointError(path, "it is damaged, and not as it was written", self._cure(output))
        self.load_curve(output)
        self.load_samples(output)

    def load_curve(self, output: Path) -> pd.DataFrame:
        """The logged steps with task, agent and seed in front; empty for the pretrained denoiser.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self.folder(output) / "curve.csv"
        numbers = ["iteration"] if self.agent == PRETRAINED else _CURVE_COLUMNS
        return self._labelled(read_table(path, self._cure(output), numbers=numbers))

    def load_samples(self, output: Path) -> pd.DataFrame:
        """The scored sequences with task, agent and seed in front.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        path = self.folder(output) / "samples.csv"
        table = read_table(path, self._cure(output), numbers=_REWARDS, texts=["sequence"])
        return self._labelled(table)

    def load_results(self, output: Path) -> dict[str, Any]:
        """Cost and metrics with task, agent and seed in front.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        record = self._record(output)
        return {"task": self.task, "agent": self.agent, "seed": self.seed, **record["figures"]}

    def _record(self, output: Path) -> dict[str, Any]:
        """What stands in ``run.json``: the figures, and the digests of the other files."""
        path = self.folder(output) / "run.json"
        found = read_sealed(path, self._cure(output))
        if "figures" not in found:  # from before there were digests: the figures alone
            found = {"figures": found, "files": {}}
        figures, files = found["figures"], found.get("files")
        if not isinstance(files, dict) or not isinstance(figures, dict) or "nfe" not in figures:
            raise CheckpointError(path, "it holds something else than the figures of a run", self._cure(output))
        if not all(isinstance(value, (int, float)) for value in figures.values()):
            raise CheckpointError(path, "its figures are no numbers", self._cure(output))
        return found

    def _cure(self, output: Path) -> str:
        return f"delete the folder {self.folder(output)}, and the same command does this run again"

    def _labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        labels = {"task": self.task, "agent": self.agent, "seed": self.seed}
        kept = frame.drop(columns=[name for name in labels if name in frame])
        for place, (name, value) in enumerate(labels.items()):
            kept.insert(place, name, value)
        return kept


def plan(suite: Suite, world: Mapping[str, Any] | None = None) -> list[Run]:
    """All runs of a suite, seed by seed, so that an interrupted comparison has every agent.

    Args:
        suite: what is compared.
        world: what `world.world_of` tells of it, where that is at hand already.
    """
    known = world_of(suite) if world is None else world
    return [
        Run(
            suite.task,
            agent,
            seed,
            suite.settings(agent),
            suite.evaluation,
            suite.reward,
            known,
            prompt=suite.prompt,
            task_options=suite.task_options,
            guidance_scale=suite.guidance_scale,
        )
        for seed in suite.seeds
        for agent in suite.agents
    ]


def claim_all(runs: Sequence[Run], output: Path) -> None:
    """Claim the folders of all runs, so that what does not fit, or is damaged, is known before anything runs.

    Raises:
        CheckpointError: a folder holds another run, or damaged results; the first one, with the others as notes.
        FolderError: a folder cannot be written.
    """
    refused: list[CheckpointError] = []
    for run in runs:
        try:
            run.claim(output)
        except CheckpointError as error:
            refused.append(error)
    if refused:
        first, *others = refused
        for other in others[:_SHOWN_REFUSALS]:
            first.add_note(str(other))
        if others[_SHOWN_REFUSALS:]:
            first.add_note(f"And {len(others) - _SHOWN_REFUSALS} more.")
        raise first


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """``settings.learning_rate 0.001 -> 0.01`` for every entry in which the two differ."""
    changes = []
    for key in sorted(found.keys() | wanted.keys()):
        before, after = found.get(key), wanted.get(key)
        # A folder from before there were such options holds a run without them.
        if not prefix and key in _OPTIONAL and not before and not after:
            continue
        if isinstance(before or after, Mapping) and isinstance(after or before, Mapping):
            changes += _differences(before or {}, after or {}, f"{prefix}{key}.")
        elif before != after:
            changes.append(f"{prefix}{key} {before} -> {after}")
    return changes
