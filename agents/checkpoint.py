"""Checkpoints of training runs: TorchRL's container, written whole or not at all, read without unpickling.

`torchrl.checkpoint.Checkpoint` gathers the parts (model, optimiser, random numbers, environment ...) with a manifest
in one archive. Two things are added. It replaces an existing checkpoint by moving the old one away first, which
leaves an instant without any, and does not flush to the disk: here the archive is written beside its target, flushed,
and renamed over it. And its reader unpickles what a hostile archive may hold; here only parts that
`torch.load(weights_only=True)` reads are accepted.
"""

from __future__ import annotations

import os
import tempfile
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter
from torchrl.checkpoint import CheckpointError as ContainerError

from sepo_env.errors import CheckpointError

FORMAT = "agents.checkpoint/1"

State = Mapping[str, Any]


class _Part:
    """A state on its way in or out; the container wants something that has a `state_dict`."""

    def __init__(self, state: State) -> None:
        self._state = state

    def state_dict(self) -> State:
        return self._state

    def load_state_dict(self, state: State) -> None:
        self._state = state


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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder: a rename across file systems would not be atomic.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        container = _container({name: _Part(state) for name, state in parts.items()})
        container.save(temporary, metadata={"format": FORMAT, **metadata})
        flush_to_disk(temporary)
        os.replace(temporary, path)
    flush_to_disk(path.parent)


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
    parts = {name: _Part({}) for name in names}
    try:
        manifest = Checkpoint.manifest(path)
        metadata = dict(manifest["metadata"])
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                path,
                f"its format is {metadata.get('format')!r}, expected {FORMAT!r}",
                "give a checkpoint that agent.train wrote with this version",
            )
        for name in names:
            files = manifest["components"].get(name, {}).get("files")
            if files != [StateDictCheckpointAdapter.state_torch]:
                raise CheckpointError(
                    path, f"the part {name!r} is missing or of another kind", "give a whole checkpoint of such a run"
                )
        _container(parts).load(path, map_location="cpu")
    except (ContainerError, zipfile.BadZipFile, OSError, KeyError, TypeError) as error:
        raise CheckpointError(
            path,
            f"not a whole checkpoint ({error})",
            "restore it from a copy, or start a new run in another folder",
        ) from error
    return {name: part.state_dict() for name, part in parts.items()}, metadata


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file's content so that a reader, or a crash, sees the old one or the new one, whole."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's own are the owner's alone
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    flush_to_disk(path.parent)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, would survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
