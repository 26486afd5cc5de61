"""A trained agent on disk: a folder with config.json and the denoiser's weights in safetensors."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from agents.sealed import read_sealed, seal
from agents.training.checkpoint import load_checkpoint
from sepo_env import tasks
from sepo_env.arguments import shown
from sepo_env.errors import CheckpointError
from sepo_env.files import write_atomically, writing
from sepo_env.loading.paths import check_file, is_folder
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import PromptSet, prompts_fingerprint

FORMAT = "agents.agent/2"
CONFIG_FILE = "config.json"
ARTEFACTS = "artefacts"
"""Entry of a task's description with the fingerprints of the files that it ran on; none on the shipped assets."""
# Its config.json has no seal, and does not say which denoiser was fine-tuned.
_UNSEALED_FORMAT = "agents.agent/1"
FORMATS = (FORMAT, _UNSEALED_FORMAT)
"""Those that are read."""
_FRAME = ("name", "alphabet", "length", "process")
_CURE = "save the agent again"
_WEIGHTS = re.compile(r"denoiser-[0-9a-f]{16}\.safetensors")
# No parameter of a module has a slash in its name.
_PROMPTS = "prompts/tokens"


def find_task(description: Mapping[str, Any], path: Path, given: Task | None) -> Task:
    """The task that fits a description: the given one, or the registered one of that name.

    Raises:
        CheckpointError: neither fits.
    """
    if given is None and description["name"] not in tasks.TASKS:
        raise CheckpointError(
            path, f"no task is registered as {description['name']!r}", "give the task itself: load(..., task=...)"
        )
    task = tasks.make(description["name"]) if given is None else given
    found = task.world
    if differing := [name for name in _FRAME if found[name] != description.get(name)]:
        fields = "; ".join(f"{name}: {description.get(name)!r} there, {found[name]!r} here" for name in differing)
        raise CheckpointError(path, f"it belongs to another task ({fields})", "give its own: load(..., task=...)")
    _check_artefacts(path, description.get(ARTEFACTS) or {}, found.get(ARTEFACTS) or {})
    return task


def _check_artefacts(path: Path, theirs: Mapping[str, str], ours: Mapping[str, str]) -> None:
    """Raise unless the files that an agent was trained on are those of the task here."""
    if theirs == ours:
        return
    if not ours:
        cause = "it was trained on published artefacts, and the task here runs on the shipped assets"
    elif not theirs:
        raise CheckpointError(
            path,
            "it was trained on the shipped assets, and the task here runs on published artefacts",
            "load it without artefacts",
        )
    else:
        others = [role for role in {**theirs, **ours} if theirs.get(role) != ours.get(role)]
        cause = f"it was trained on other artefacts; different here: {', '.join(others)}"
    raise CheckpointError(
        path, cause, "give those that it was trained on: load(..., task=sepo_env.tasks.make(..., artefacts=...))"
    )


def draw_saved_prompts(task: Task, path: Path, prompts: Tensor | None, fingerprint: str | None) -> None:
    """Let a registered task draw the prompts that an agent was saved with.

    Args:
        task: as it is registered.
        path: for the message.
        prompts: integers ``(P, L)``; None leaves the task as it is.
        fingerprint: of what the agent's own task drew; None: nothing.

    Raises:
        CheckpointError: they do not fit the task, or the agent's task drew them in a way of its own.
    """
    if prompts is not None:
        if prompts.ndim != 2 or prompts.shape[1] != task.length or prompts.is_floating_point():
            raise CheckpointError(path, "its prompts are no tokens of the task", "save the agent again")
        task.prompt_set = PromptSet(prompts.long())
        task.conditional = True
    if fingerprint is not None and prompts_fingerprint(task) != fingerprint:
        raise CheckpointError(
            path, "the registered task does not draw the prompts that it was trained on", "give load(..., task=...)"
        )


def prompts_state(task: Task) -> dict[str, Tensor]:
    """The prompts of a task's set, as a part of a checkpoint; empty where it has none."""
    # Half of int64, and more than any vocabulary needs.
    return {} if task.prompt_set is None else {_PROMPTS: task.prompt_set.tokens.to("cpu", torch.int32)}


def save_agent(folder: Path, description: Mapping[str, Any], weights: Mapping[str, Tensor], task: Task) -> None:
    """Write an agent; a reader, or a crash, finds the old agent or the new one.

    The weights' file is named by its content and config.json, which names it, is replaced last.

    Args:
        folder: made where it does not exist.
        description: agent, task and config, for JSON.
        weights: the denoiser's tensors.
        task: its prompts are kept beside them.

    Raises:
        FolderError: it cannot be written; an agent that stood there before stands there still.
    """
    tensors = {**weights, **prompts_state(task)}
    content = safetensors.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})
    name = f"denoiser-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
    write_atomically(folder / name, content)
    write_atomically(folder / CONFIG_FILE, seal({"format": FORMAT, **description, "weights": name}))
    with writing(folder):
        for old in folder.glob("denoiser-*.safetensors"):
            if old.name != name:
                old.unlink(missing_ok=True)


def load_agent(path: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor | None]:
    """Read what `save_agent` wrote, or the policy of a training checkpoint.

    Args:
        path: a saved agent's folder, or a checkpoint's file.

    Returns:
        The description, with the entries agent, task, prompts (a fingerprint) and config; the denoiser's tensors; and
        the prompts ``(P, L)`` of the task's set, None where it had none. All on the CPU.

    Raises:
        CheckpointError: neither of the two, or not whole.
    """
    if not is_folder(path):
        parts, description = load_checkpoint(check_file(path), ["denoiser", "prompts"])
        _check_description(path, description)
        return description, dict(parts["denoiser"]), parts["prompts"].get(_PROMPTS)
    file = path / CONFIG_FILE
    if not file.exists():
        raise CheckpointError(
            path, f"no saved agent (no {CONFIG_FILE} is there)", "give a folder that agent.save wrote"
        )
    description = read_sealed(file, _CURE, unsealed=_UNSEALED_FORMAT)
    if description.get("format") not in FORMATS:
        raise CheckpointError(file, f"its format is not {FORMAT!r}", "give a folder of agent.save")
    _check_description(file, description)
    weights = _read_weights(path, description.get("weights"))
    return description, weights, weights.pop(_PROMPTS, None)


def _check_description(path: Path, description: Mapping[str, Any]) -> None:
    """Refuse a description that lacks an entry, or has one of another kind."""
    kinds = {"agent": str, "task": dict, "config": dict, "prompts": str | None, "guidance": dict | None}
    wrong = [name for name, kind in kinds.items() if not isinstance(description.get(name), kind)]
    if not wrong and not isinstance(description["task"].get("name"), str):
        wrong = ["the name of its task"]
    if wrong:
        raise CheckpointError(path, f"it lacks {', '.join(wrong)}", _CURE)


def _read_weights(folder: Path, name: Any) -> dict[str, Tensor]:
    """The tensors of a saved agent, from a file of the folder and of a name that `save_agent` gives."""
    if not isinstance(name, str) or not _WEIGHTS.fullmatch(name):
        raise CheckpointError(
            folder / CONFIG_FILE, f"its weights are {shown(name)}, which is no file of a saved agent", _CURE
        )
    if not (folder / name).exists():
        raise CheckpointError(folder, f"no saved agent ({name} is missing)", _CURE)
    file = check_file(folder / name)
    if file.resolve().parent != folder.resolve():
        raise CheckpointError(file, "it is a link that leads out of the agent's folder", _CURE)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(file, f"it cannot be read ({error})", "check its permissions") from error
    if hashlib.sha256(content).hexdigest()[:16] not in name:
        raise CheckpointError(file, "its content has changed", _CURE)
    try:
        return safetensors.load(content)
    except (ValueError, KeyError, SafetensorError) as error:  # also of dtypes that torch does not have
        raise CheckpointError(file, f"not a whole safetensors file ({error})", _CURE) from error
