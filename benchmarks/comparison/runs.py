"""One run is one folder: what it is, whether it is finished, and how its results get there in one piece.

::

    output/runs/<agent>/[<variant>/]seed-<n>/
        config.json     what the run is; written first, and never run over by another configuration
        log/            the agent's own log and checkpoint: an interrupted run goes on from here
        curve.csv       the agent's log, one row a step
        samples.csv     the sequences it ends with, and their scores
        run.json        cost and metrics; written last: a run that has it is finished
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

import sepo_env
from benchmarks.comparison.suite import Evaluation, Suite
from sepo_env import tasks
from sepo_env.errors import CheckpointError
from sepo_env.registration import ENVIRONMENTS

_OPTIONAL = frozenset({"prompt", "task_options", "artefacts", "guidance_scale"})


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
        weights: fingerprint of the shipped denoiser and oracles.
        variant: tells runs of one agent with other settings apart, where there are such.
        prompt: texts of which every sequence keeps one, with the task's mask letter where free; none: what the
            task draws, if anything.
        task_options: options of the task, for JSON.
        artefacts: fingerprints of the user's files that the task runs on, by role.
        guidance_scale: of classifier-free guidance by the prompts; 0: none.
    """

    task: str
    agent: str
    seed: int
    settings: Mapping[str, Any]
    evaluation: Evaluation
    reward: str | None
    weights: str
    variant: str = ""
    prompt: tuple[str, ...] = ()
    task_options: Mapping[str, Any] = field(default_factory=dict)
    artefacts: Mapping[str, str] = field(default_factory=dict)
    guidance_scale: float = 0.0

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
        options, artefacts = record.pop("task_options"), record.pop("artefacts")
        options = {name: value for name, value in options.items() if name != "artefacts"}
        return record | ({"task_options": options} if options else {}) | ({"artefacts": artefacts} if artefacts else {})

    def claim(self, output: Path) -> Path:
        """Make the folder, or enter one that holds this very run.

        Raises:
            CheckpointError: the folder holds a run with another configuration.
        """
        folder = self.folder(output)
        path = folder / "config.json"
        if path.exists():
            found = json.loads(path.read_text())
            changed = ", ".join(_differences(found, self.config()))
            if changed:
                cure = f"choose another --output, or delete {output} to start afresh"
                raise CheckpointError(folder, f"it holds a run with other settings ({changed})", cure)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(path, lambda temporary: temporary.write_text(json.dumps(self.config(), indent=1)))
        return folder

    def is_finished(self, output: Path) -> bool:
        """Whether the results are all there."""
        return (self.folder(output) / "run.json").exists()

    def finish(self, output: Path, curve: pd.DataFrame, samples: pd.DataFrame, results: Mapping[str, float]) -> None:
        """Write the results, the mark of completion last."""
        folder = self.folder(output)
        write_atomically(folder / "curve.csv", lambda path: curve.to_csv(path, index=False))
        write_atomically(folder / "samples.csv", lambda path: samples.to_csv(path, index=False))
        (folder / "error.txt").unlink(missing_ok=True)
        write_atomically(folder / "run.json", lambda path: path.write_text(json.dumps(dict(results), indent=1)))

    def load_curve(self, output: Path) -> pd.DataFrame:
        """The logged steps with task, agent and seed in front; empty for the pretrained denoiser."""
        return self._labelled(pd.read_csv(self.folder(output) / "curve.csv"))

    def load_samples(self, output: Path) -> pd.DataFrame:
        """The scored sequences with task, agent and seed in front."""
        return self._labelled(pd.read_csv(self.folder(output) / "samples.csv"))

    def load_results(self, output: Path) -> dict[str, Any]:
        """Cost and metrics with task, agent and seed in front."""
        record = json.loads((self.folder(output) / "run.json").read_text())
        return {"task": self.task, "agent": self.agent, "seed": self.seed, **record}

    def _labelled(self, frame: pd.DataFrame) -> pd.DataFrame:
        labels = {"task": self.task, "agent": self.agent, "seed": self.seed}
        kept = frame.drop(columns=[name for name in labels if name in frame])
        for place, (name, value) in enumerate(labels.items()):
            kept.insert(place, name, value)
        return kept


def plan(suite: Suite) -> list[Run]:
    """All runs of a suite, seed by seed, so that an interrupted comparison has every agent."""
    weights = weights_fingerprint()
    artefacts = tasks.make(ENVIRONMENTS[suite.task], **suite.task_options).fingerprints
    return [
        Run(
            suite.task,
            agent,
            seed,
            suite.settings(agent),
            suite.evaluation,
            suite.reward,
            weights,
            prompt=suite.prompt,
            task_options=suite.task_options,
            artefacts=artefacts,
            guidance_scale=suite.guidance_scale,
        )
        for seed in suite.seeds
        for agent in suite.agents
    ]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then put it in place: a reader sees all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    write(temporary)
    os.replace(temporary, path)


def weights_fingerprint() -> str:
    """A short hash of the shipped weights, so that results of rebuilt ones are not mixed with old results."""
    digest = hashlib.sha256()
    for path in sorted((Path(sepo_env.__file__).parent / "assets").glob("*.safetensors")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


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
