"""Foreign torch checkpoints, read without running code of theirs.

A ``.ckpt`` is a pickle, and a pickle may call any function. ``torch.load(weights_only=True)`` is safe, but refuses a
file that holds anything besides tensors and plain containers, as Lightning's do (their configuration objects). Here
such objects become inert: tensors, numbers, strings and containers are built; of everything else the name and the
state are kept, unread.
"""

from __future__ import annotations

import collections
import os
import pickle
import types
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from sepo_env.errors import CheckpointError

_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *args: {},
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # its name in the pickle protocol that torch writes
    ("torch", "Size"): torch.Size,
    ("torch", "device"): torch.device,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("torch.serialization", "_get_layout"): torch.serialization._get_layout,
    # Lightning keeps a model's arguments in a dict of its own.
    ("lightning_fabric.utilities.data", "AttributeDict"): dict,
    ("lightning.fabric.utilities.data", "AttributeDict"): dict,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): dict,
}


class Inert:
    """What stands in the place of an object whose class is not known to be harmless; it swallows all that it is given.

    Attributes:
        described: ``module.name`` of that class.
        state: what the object would have been restored from, itself plain or inert; None where there was nothing.
    """

    described: str = "?"
    state: Any = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        """Take any arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Ignore them."""

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        """A function that the pickle calls returns another inert object."""
        return type(self)()

    def __setstate__(self, state: Any) -> None:
        """Keep it, unread."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Ignore it."""

    def append(self, value: Any) -> None:
        """Ignore it."""

    def extend(self, values: Any) -> None:
        """Ignore them."""

    def add(self, value: Any) -> None:
        """Ignore it."""

    def __hash__(self) -> int:
        """Let it be a key."""
        return id(self)

    def __repr__(self) -> str:
        return f"<{self.described}, not loaded>"


class _Unpickler(pickle.Unpickler):
    """Finds harmless classes only."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            allowed = _ALLOWED[module, name]
            # A pickle may set attributes of what it is given, so that functions are handed out as throw-away copies.
            return (lambda *args: allowed(*args)) if isinstance(allowed, types.FunctionType) else allowed
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        return type("Inert", (Inert,), {"described": f"{module}.{name}"})


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


# What torch.load takes as a pickle module; it wraps the Unpickler to read the storages of tensors itself.
_READER: Any = types.SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="sepo_env.foreign")


def read_foreign(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint that ``torch.save`` wrote, on the CPU, running none of its code.

    Returns:
        Its dictionary; objects of unknown classes are `Inert`.

    Raises:
        CheckpointError: no such file, not a whole checkpoint of torch, or one that holds no dictionary.
    """
    if not Path(path).is_file():
        raise CheckpointError(path, "there is no such file", "check the path")
    # The format of before torch 1.6 is no archive, and would go through another reader.
    if not zipfile.is_zipfile(path):
        raise CheckpointError(path, "not a whole checkpoint of torch (no zip archive)", "copy or download it again")
    with zipfile.ZipFile(path) as archive:
        # torch.load would hand such an archive, which holds programs, to torch.jit.
        if any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist()):
            raise CheckpointError(path, "a TorchScript program, no checkpoint", "give a file that torch.save wrote")
    try:
        found = torch.load(path, map_location="cpu", pickle_module=_READER, weights_only=False)
    except Exception as error:  # a damaged pickle may fail in any way
        raise CheckpointError(
            path, f"not a whole checkpoint of torch ({type(error).__name__}: {error})", "copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(path, f"expected a dictionary, found {type(found).__name__}", "give another file")
    return found
