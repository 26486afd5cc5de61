"""What the published protocol judges: an agent with its own sampler, or a denoiser."""

from __future__ import annotations

import copy
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from agents.agent import Agent
from agents.storage import ARTEFACTS, CONFIG_FILE, FORMATS
from agents.training.checkpoint import load_checkpoint
from agents.training.recovery import AGENT_FOLDER, CHECKPOINT_FILE
from sepo_env.denoisers import Denoiser, load_denoiser
from sepo_env.diffusion import DiffusionProcess, make_schedule
from sepo_env.diffusion.sampler import sample
from sepo_env.diffusion.schedule import SCHEDULES
from sepo_env.errors import CheckpointError
from sepo_env.loading.hub import PREFIX, local_path
from sepo_env.tasks.dna_enhancer import DNAEnhancerTask
from sepo_env.textfile import read_json


@dataclass(frozen=True)
class Candidate:
    """What is judged.

    Attributes:
        draw: sequences from their number and a seed, int64 ``(N, L)``.
        denoiser: the network that it evaluates.
        evaluations: how often it does so for one sequence.
    """

    draw: Callable[[int, int], Tensor]
    denoiser: Denoiser
    evaluations: int


def name_of(checkpoint: str | None) -> str:
    """What is judged, in short: the folder of the run, where an agent or a checkpoint has the name that all have."""
    if checkpoint is None:
        return "pretrained"
    if str(checkpoint).startswith(PREFIX):
        return re.sub(r"[^\w.-]+", "-", str(checkpoint).removeprefix(PREFIX))
    path = Path(checkpoint).absolute()
    if path.name in (AGENT_FOLDER, CHECKPOINT_FILE) and path.parent.name:
        return path.parent.name
    return path.name if path.is_dir() else path.stem


def fingerprint(checkpoint: str) -> str:
    """A short hash of a file's or folder's content; of a model on the hub its id and the revision that is meant.

    Raises:
        CheckpointError: it is not there.
    """
    path = local_path(checkpoint)
    if str(checkpoint).startswith(PREFIX):
        return f"{checkpoint} ({path.name})"  # a snapshot's folder has the name of its commit
    if not path.exists():
        raise CheckpointError(path, "there is no such file or folder", "check the path")
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def agent_description(checkpoint: str | None) -> Mapping[str, Any] | None:
    """What an agent says of itself that `Agent.save` or a training wrote; None for a denoiser, or nothing."""
    if checkpoint is None or str(checkpoint).startswith(PREFIX):
        return None
    path = Path(checkpoint)
    try:
        if path.is_file():
            return load_checkpoint(path, [])[1]
        found = read_json(path / CONFIG_FILE)
    except (CheckpointError, OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") in FORMATS else None


def departures(task: DNAEnhancerTask, description: Mapping[str, Any] | None) -> list[str]:
    """In what an agent's sampling is not that of the published protocol."""
    if description is None:
        return []
    found = []
    if steps := _entry(description, "config", "corrector_steps"):
        found.append(
            f"its sampler makes {steps} corrector step(s) after each reverse step, at a network evaluation each"
        )
    if description.get("prompt_tokens") or description.get("prompts"):
        found.append("it was trained on prompts (given bases, flanks or motifs), which are left out here")
    process = _entry(description, "task", "process")
    if process is not None and process != repr(task.process):
        found.append(f"it denoises with the noise of its training, {process}, instead of {task.process}")
    return found


def load_candidate(task: DNAEnhancerTask, checkpoint: str | None, num_steps: int, device: str) -> Candidate:
    """The sampler of the checkpoint: an agent's own, or the ancestral one for a denoiser.

    Raises:
        CheckpointError: neither an agent nor a denoiser of this task, or an agent of another world.
    """
    description = agent_description(checkpoint)
    if checkpoint is not None and description is not None:
        return _load_agent(task, Path(checkpoint), description, num_steps, device)
    denoiser = task.load_denoiser() if checkpoint is None else load_denoiser(checkpoint).eval()
    if denoiser.num_tokens != task.num_tokens or denoiser.length not in (None, task.length):
        raise CheckpointError(
            checkpoint or "",
            f"it reads {denoiser.num_tokens} tokens at length {denoiser.length}, expected {task.num_tokens} at "
            f"{task.length}",
            "give a denoiser of this task",
        )
    denoiser = denoiser.to(device)

    def draw(count: int, seed: int) -> Tensor:
        return sample(task.process, denoiser, count, task.length, num_steps=num_steps, seed=seed, device=device)

    return Candidate(draw, denoiser, num_steps)


def _load_agent(
    task: DNAEnhancerTask, path: Path, description: Mapping[str, Any], num_steps: int, device: str
) -> Candidate:
    if _entry(description, "task", ARTEFACTS) and task.artefacts is None:
        raise CheckpointError(path, "this agent was trained on published artefacts", "give their folder: --artefacts")
    process = _entry(description, "task", "process")
    agent: Agent = Agent.load(path, task=_with_process(task, path, process), device=device)
    corrections = agent.config.corrector_steps * (num_steps - 1)  # one network evaluation each
    return Candidate(
        lambda count, seed: agent.sample_tokens(count, num_steps=num_steps, seed=seed),
        agent.denoiser,
        num_steps + corrections,
    )


def _with_process(task: DNAEnhancerTask, path: Path, process: Any) -> DNAEnhancerTask:
    """The same world with the noise that an agent was trained with; its files and oracles stay the same objects."""
    if process is None or process == repr(task.process):
        return task
    for name in SCHEDULES:
        own = DiffusionProcess(task.process.graph, make_schedule(name))
        if repr(own) == process:
            changed = copy.copy(task)
            changed.process = own
            return changed
    raise CheckpointError(
        path,
        f"it was trained with the noise {process}, and known here are the schedules {', '.join(SCHEDULES)} at their "
        f"default settings on {task.process.graph}",
        "judge an agent of one of these",
    )


def _entry(description: Mapping[str, Any], part: str, name: str) -> Any:
    section = description.get(part)
    return section.get(name) if isinstance(section, Mapping) else None
