"""Checkpoints of training runs: TorchRL's container, written whole or not at all, read without unpickling.

`torchrl.checkpoint.Checkpoint` gathers the parts (model, optimiser, random numbers, environment ...) with a manifest
in one archive. Two things are added. It replaces an existing checkpoint by moving the old one away first, which
leaves an instant without any, and does not flush to the disk: here the archive is written beside its target, flushed,
and renamed over it. And its reader unpickles what a hostile archive may hold; here only parts that
`torch.load(weights_only=True)` reads are accepted.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter

from sepo_env.errors import CheckpointError
from sepo_env.files import replacing

FORMAT = "agents.training.checkpoint/1"

State = Mapping[str, Any]


class _Part:
    """A state on its way out; the container wants something that has a `state_dict`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state_dict(self) -> State:
        return self._state

    def load_state_dict(self, state: State) -> None:
        """Asked for by the container, and never called."""
        raise NotImplementedError


def _container(parts: Mapping[str, _Part]) -> Checkpoint:
    container = Checkpoint(format="archive")
    adapter = StateDictCheckpointAdapter(payload_format="torch")
    for name, part in parts.items():
        container.register(name, part, adapter=adapter)
    return container


def save_checkpoint(path: Path, parts: Mapping[str, State], metadata: Mapping[str, Any]) -> None:
    """Write state dictionaries and JSON metadata to one file, atomically and durably.

    Args:
        path: the file; a folder that does not exist is made.
        parts: state dictionaries by name: tensors, numbers, strings, and lists, tuples and dictionaries of them.
        metadata: whatever JSON can hold.

    Raises:
        FolderError: it cannot be written; what stood there before stands there still.
    """
    container = _container({name: _Part(state) for name, state in parts.items()})
    with replacing(path) as temporary:
        container.save(temporary, metadata={"format": FORMAT, **metadata})


def load_checkpoint(path: Path, names: Collection[str]) -> tuple[dict[str, State], dict[str, Any]]:
    """Read back what `save_checkpoint` wrote; tensors come on the CPU.

    Args:
        path: the file.
        names: the parts that are wanted; others may be there as well.

    Returns:
        The state dictionaries by name, and the metadata.

    Raises:
        CheckpointError: no such file, truncated, damaged, not a checkpoint of this library, or a part missing.
    """
    if not path.is_file():
        raise CheckpointError(path, "there is no such file", "check the path, or start a new run without resume")
    parts: dict[str, State] = {}
    try:
        manifest = Checkpoint.manifest(path)
        metadata = dict(manifest["metadata"])
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                path,
                f"its format is {metadata.get('format')!r}, expected {FORMAT!r}",
                "give a checkpoint that agent.train wrote with this version",
            )
        with zipfile.ZipFile(path) as archive:
            for name in names:
                component = manifest["components"].get(name, {})
                if component.get("files") != [StateDictCheckpointAdapter.state_torch]:
                    raise CheckpointError(
                        path,
                        f"the part {name!r} is missing or of another kind",
                        "give a whole checkpoint of such a run",
                    )
                parts[name] = _read_part(archive, f"{component['path']}/{StateDictCheckpointAdapter.state_torch}")
    except (CheckpointError, MemoryError):
        raise
    except Exception as error:  # whatever damage makes of it
        raise CheckpointError(
            path,
            f"not a whole checkpoint ({error})",
            "restore it from a copy, or start a new run in another folder",
        ) from error
    return parts, metadata


def _read_part(archive: zipfile.ZipFile, name: str) -> State:
    """A state of an archive; the container would unpack it to the system's temporary folder, which may be full."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # as it is written; another one may hold anything
        raise ValueError(f"{name} is compressed")
    state = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
    if not isinstance(state, dict):
        raise TypeError(f"{name} is no dictionary")
    return state
