"""The folder of a training: whose it is, and the checkpoint to go on from."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from agents.reward_modelling.config import FREE_ON_RESUME, RewardModelConfig
from agents.sealed import read_sealed, seal
from sepo_env.errors import CheckpointError
from sepo_env.files import write_atomically
from sepo_env.loading.paths import check_file
from sepo_env.textfile import read_json

CHECKPOINT_FOLDER = "checkpoints"
RUN_FILE = "run.json"
FORMAT = "agents.reward_model/2"
# Its file has no seal.
_UNSEALED_FORMAT = "agents.reward_model/1"

_CURE = "check log_dir, or start without resume"
_STATE_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth")
_INDEX = "model.safetensors.index.json"


def check_new(folder: Path) -> None:
    """Raise a CheckpointError if the folder is another run's."""
    if os.path.lexists(folder / RUN_FILE):
        raise CheckpointError(
            folder / RUN_FILE, "a run stands there already", "continue it with resume, or choose another log_dir"
        )


def claim(folder: Path, config: RewardModelConfig, identity: Mapping[str, str | None]) -> None:
    """Say in a folder whose it is, where it does not say so yet or any more."""
    if not os.path.isfile(folder / RUN_FILE):
        description = {"format": FORMAT, "settings": config.to_dict(), **identity}
        write_atomically(folder / RUN_FILE, seal(description))


def check_resumed(folder: Path, config: RewardModelConfig, identity: Mapping[str, str | None]) -> None:
    """Raise a CheckpointError unless the folder is that of this run."""
    path = folder / RUN_FILE
    if not os.path.isfile(path):
        raise CheckpointError(path, "no run to resume", _CURE)
    found = read_sealed(path, _CURE, unsealed=_UNSEALED_FORMAT)
    if found.get("format") not in (FORMAT, _UNSEALED_FORMAT):
        raise CheckpointError(path, f"its format is not {FORMAT!r}", _CURE)
    settings = found.get("settings")
    if not isinstance(settings, dict):
        raise CheckpointError(path, "it lacks the settings of the run", _CURE)
    # Files from before there were seals do not say which base it was.
    sealed = found["format"] == FORMAT
    pairs = [(name, found.get(name), value) for name, value in identity.items() if sealed or name in found]
    pairs += [(n, settings.get(n), v) for n, v in config.to_dict().items() if n not in FREE_ON_RESUME]
    differing = [f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new]
    if differing:
        raise CheckpointError(
            path, f"it belongs to a run with other settings ({'; '.join(differing)})", "resume with those of the run"
        )


def find_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, if any, and what is wrong with each newer one."""
    found = sorted((folder / CHECKPOINT_FOLDER).glob("checkpoint-*"), key=_step, reverse=True)
    faults: list[str] = []
    for path in found:
        fault = _fault(path)
        if fault is None:
            return path, faults
        faults.append(f"{path} is not whole ({fault})")
    return None, faults


def _step(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _fault(path: Path) -> str | None:
    """What a checkpoint lacks; None if it is whole."""
    try:
        int(read_json(path / "trainer_state.json")["global_step"])
        weights = ["model.safetensors"]
        if (path / _INDEX).exists():
            weights = sorted(set(read_json(path / _INDEX)["weight_map"].values()))
        for name in weights:
            if Path(name).name != name:
                raise ValueError(f"its weights are in {name!r}, which is no file of the checkpoint")
            # Reads the header, and compares it with the file's length.
            with safe_open(check_file(path / name), framework="pt"):
                pass
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    # torch's archives have their table at the end.
    return next((f"{name} is missing or cut off" for name in _STATE_FILES if not zipfile.is_zipfile(path / name)), None)


def describe_checkpoint(folder: Path) -> str:
    """Where an interrupted run can go on, in words."""
    last: Any = find_checkpoint(folder)[0]
    if last is None:
        return "No checkpoint has been written yet."
    return f"The last checkpoint is that of step {_step(last)}, in {last}."
