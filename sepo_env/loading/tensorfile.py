"""Files of named tensors: safetensors read whole, and tensors compared with what an architecture expects."""

from __future__ import annotations

import math
import os
import threading
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sepo_env.arguments import PathArgument, checked
from sepo_env.errors import CheckpointError
from sepo_env.loading.paths import check_file

BUILD_ERRORS = (ArithmeticError, AttributeError, LookupError, MemoryError, RuntimeError, TypeError, ValueError)
"""What settings of the wrong types or sizes raise in a constructor; RuntimeError stands for RecursionError, too."""
MOST_TENSORS = 1 << 16
"""Tensors in a file."""
OWN_CURE = "use the version that wrote the file"
_SHOWN, _LONGEST = 8, 300
SPARE_TENSORS, SPARE_ENTRIES = 200, 1 << 24
"""What a network may have beyond a file, to be told what is missing."""
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
"""What torch.compile, FSDP and activation checkpointing put into the names of the tensors of what they wrap."""
_DEEPEST_PREFIX = 16


@checked
def read_tensors(path: PathArgument) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file on the CPU.

    Returns:
        The tensors by name, in the dtype of the file, and the file's metadata.

    Raises:
        CheckpointError: no such file, not a whole safetensors file, or one of more tensors than any network has.
        InvalidArgumentError: no path.
    """
    path = check_file(path)
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata, names = dict(file.metadata() or {}), list(file.keys())
            if len(names) > MOST_TENSORS:
                raise CheckpointError(path, f"it has more than {MOST_TENSORS:,} tensors", "give a file of one network")
            return {name: file.get_tensor(name) for name in names}, metadata
    except CheckpointError:
        raise
    except Exception as error:  # a damaged header may fail in any way
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "copy or download it again") from error


def count_tensors(folder: Path) -> tuple[int, int]:
    """How many tensors the files of weights in a folder have, and how many entries these have; from their headers.

    Of checkpoints of torch it is how many storages and bytes, and of those from before torch 1.6 the bytes alone.

    Raises:
        CheckpointError: not a whole safetensors file.
    """
    tensors = entries = 0
    for path in folder.glob("*.safetensors"):
        shapes = _shapes(check_file(path))
        tensors, entries = tensors + len(shapes), entries + sum(map(math.prod, shapes))
    for path in folder.glob("*.bin"):
        try:
            with zipfile.ZipFile(check_file(path)) as archive:
                tensors += sum("/data/" in name for name in archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError, OSError):
            tensors += MOST_TENSORS
        entries += path.stat().st_size
    return tensors, entries


def _shapes(path: Path) -> list[list[int]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            return [file.get_slice(name).get_shape() for name in list(file.keys())[: MOST_TENSORS + 1]]
    except Exception as error:  # a damaged header may fail in any way
        raise CheckpointError(path, f"not a whole safetensors file ({error})", "copy or download it again") from error


def check_tensors(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    cure: str = OWN_CURE,
) -> None:
    """Refuse tensors whose names, shapes or kinds of numbers are not the expected ones.

    Weights may have any floating dtype of 16 bits or more.

    Args:
        path: the file, for the message.
        expected: what the architecture holds (``state_dict``).
        found: what the file holds.
        cure: what the reader may do about it.

    Raises:
        CheckpointError: names the tensors that are missing, not expected, or of another shape or dtype.
    """
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise CheckpointError(path, f"tensors missing: {_listed(missing)}, not expected: {_listed(extra)}", cure)
    shapes = {key: (tuple(value.shape), tuple(found[key].shape[:_SHOWN])) for key, value in expected.items()}
    differing = [f"{key} expected {one}, found {other}" for key, (one, other) in shapes.items() if one != other]
    if differing:
        raise CheckpointError(path, "; ".join(differing[:_SHOWN]), cure)
    kinds = [
        f"{key} expected floats of 16 bits or more, found {found[key].dtype}"
        for key, value in expected.items()
        if value.is_floating_point() and not is_weight(found[key].dtype)
    ]
    if kinds:
        raise CheckpointError(path, "; ".join(kinds[:_SHOWN]), cure)


def check_finite(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors with entries that are not finite: every output that they reach would be NaN.

    Raises:
        CheckpointError: names them.
    """
    broken = sorted(key for key, value in tensors.items() if not bool(value.isfinite().all()))
    if broken:
        raise CheckpointError(path, f"tensors with NaN or infinity: {_listed(broken)}", "give a file of a sound model")


def is_weight(dtype: torch.dtype) -> bool:
    """Whether weights may be of this dtype: floats in which they are a number each, not codes of a quantisation."""
    return dtype.is_floating_point and dtype.itemsize >= 2


_Module = TypeVar("_Module", bound=nn.Module)


def build_from(
    path: str | os.PathLike[str], build: Callable[[], _Module], tensors: Mapping[str, Tensor], cure: str = OWN_CURE
) -> _Module:
    """Return ``build()`` with the tensors of a file, after a look at one that takes no memory.

    Args:
        path: the file, for the message.
        build: makes the network, from what the file says.
        tensors: of the file.
        cure: what the reader may do about it.

    Raises:
        CheckpointError: there is no such network, its tensors are others, or they are not finite.
    """
    try:
        with torch.device("meta"), held_to(path, len(tensors), cure):
            expected = build().state_dict()
        check_tensors(path, expected, tensors, cure)
        module = build()
    except CheckpointError:
        raise
    except BUILD_ERRORS as error:
        raise CheckpointError(path, f"its configuration does not build ({_one_line(error)})", cure) from error
    module.load_state_dict(dict(tensors))
    check_finite(path, module.state_dict())
    return module


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_LONGEST].removesuffix(".")


@contextmanager
def held_to(
    path: str | os.PathLike[str], num_tensors: int, cure: str = OWN_CURE, num_entries: int | None = None
) -> Iterator[None]:
    """Stop making a network that is far larger than its file, as a small file may ask for a large one.

    Args:
        path: the file, for the message.
        num_tensors: that it has; four times as many (libraries make some twice) and `SPARE_TENSORS` more may be made.
        cure: what the reader may do about it.
        num_entries: that its tensors have; sixteen times as many (for weights that are packed) and `SPARE_ENTRIES` more
            may be made. None: any number, where they take no memory.

    Raises:
        CheckpointError: names the file.
    """
    thread, tensors, entries = threading.get_ident(), 0, 0
    most = SPARE_TENSORS + 4 * num_tensors
    most_entries = None if num_entries is None else SPARE_ENTRIES + 16 * num_entries

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal tensors, entries
        if threading.get_ident() != thread:
            return
        tensors, entries = tensors + 1, entries + parameter.numel()
        for made, limit, what, found in (
            (tensors, most, "tensors", num_tensors),
            (entries, most_entries, "numbers", num_entries),
        ):
            if limit is not None and made > limit:
                asked = f"its settings ask for a network of more than {limit:,} {what}"
                raise CheckpointError(path, f"{asked}, and it has {found:,}", cure)

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


def bare_name(name: str) -> str:
    """A tensor's name without what wrappers of torch have put into it, wherever they stand.

    >>> bare_name("_orig_mod.blocks.0._checkpoint_wrapped_module.weight")
    'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def find_prefixes(names: Iterable[str], known: Collection[str]) -> list[str]:
    """Under what prefix the tensors of a network stand: ``module.`` (DDP), ``model.``, or several words of the kind.

    Args:
        names: of the tensors of a file.
        known: some that the network has.

    Returns:
        The prefix under which most of the known names are found, perhaps the empty one; several where as many are found
        under each, and none where none are found.

    >>> find_prefixes(["module.model.a", "module.model.b.c", "x.a"], {"a", "b.c"})
    ['module.model.']
    """
    found: Counter[str] = Counter()
    for name in names:
        parts = name.split(".", _DEEPEST_PREFIX)
        for depth in range(len(parts)):
            if (rest := ".".join(parts[depth:])) in known:
                found[name.removesuffix(rest)] += 1
    most = max(found.values(), default=0)
    return sorted(prefix for prefix, count in found.items() if count == most)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{more}"
