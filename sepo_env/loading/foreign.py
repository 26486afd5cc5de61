"""Foreign torch checkpoints, read without running code of theirs.

A ``.ckpt`` is a zip archive of a pickle and of the bytes of its tensors. ``torch.load(weights_only=True)`` is safe, but
refuses a file that holds anything besides tensors and plain containers, as Lightning's do (their configuration
objects); ``torch.load`` without it decides by the file between readers, one of which runs programs. So it is not
called: one reader of archives, Python's own, finds the records, and `sepo_env.pickles` follows the pickle.
"""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from sepo_env.arguments import PathArgument, checked
from sepo_env.errors import CheckpointError
from sepo_env.loading.inert import Inert, shown
from sepo_env.loading.paths import check_file
from sepo_env.loading.tensorfile import MOST_TENSORS
from sepo_env.pickles import LimitError, PickleReader

__all__ = ["Inert", "read_foreign"]

MOST_USES = 16
"""How often the tensors of a file may use each of its bytes, on average; views of one storage cost it no bytes."""
FREE_USES = 1 << 20
"""Bytes of tensors that any file may have."""
LARGEST_DIRECTORY = 1 << 23
"""Bytes of an archive's directory, some seventy a record."""
_MOST_DIMENSIONS = 64
_ZIP = b"PK\x03\x04"

_KINDS = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
_DTYPE_OF = {f"{module}.{name}": dtype for name, dtype in _KINDS.items() for module in ("torch", "torch.storage")}
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}


@dataclass(frozen=True)
class _Storage:
    """The bytes of tensors, and how a pickle says they are to be read."""

    content: torch.UntypedStorage
    dtype: torch.dtype
    num_bytes: int


class _File(io.FileIO):
    """A file of which nothing larger than `largest` is read at a time; None: no limit."""

    largest: int | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        """Read, as `io.FileIO` does."""
        if self.largest is not None and size is not None and size > self.largest:
            raise LimitError(f"the archive has a directory of more than {self.largest:,} bytes")
        return super().read(-1 if size is None else size) or b""


class _Reader:
    """The records of an archive, and the tensors that its pickle makes of them.

    Args:
        archive: of torch.
        path: of its file.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path) -> None:
        self._archive, self._path = archive, path
        self._storages: dict[str, torch.UntypedStorage] = {}
        records = archive.infolist()
        names = [record.filename for record in records]
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("it has compressed records")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise ValueError("its records are larger than the file")
        if len(set(names)) != len(names):
            raise ValueError("it has several records of one name")
        pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise ValueError(f"expected one record */data.pkl, found {len(pickles)}")
        self._root = pickles[0].removesuffix("data.pkl")
        order = f"{self._root}byteorder"
        if order in names and (found := archive.read(order)) != b"little":
            raise ValueError(f"expected the byte order little, found {found[:20]!r}")
        prefix = f"{self._root}data/"
        held = sum(record.file_size for record in records if record.filename.startswith(prefix))
        self._uses_left, self._tensors_left = FREE_USES + MOST_USES * held, MOST_TENSORS

    def load(self) -> Any:
        """What the pickle holds."""
        program = self._archive.read(f"{self._root}data.pkl")
        functions: dict[str, Callable[..., Any]] = {
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._tensor_of_dtype,
            "torch._utils._rebuild_parameter": _parameter,
            "torch._utils._rebuild_parameter_with_state": _parameter,
        }
        return PickleReader(program, functions=functions, values=_DTYPES, persistent=self._storage).load()

    def _storage(self, pid: Any) -> _Storage:
        """Read a storage; where a pickle refers to one, it says its kind, its record and the number of its entries."""
        word, kind, key, _, length = pid
        dtype = _DTYPE_OF.get(kind.described) if isinstance(kind, Inert) else None
        if dtype is None:
            name = f"{kind!r}".strip("<>").removesuffix(", not loaded") if isinstance(kind, Inert) else shown(kind)
            raise CheckpointError(self._path, f"tensors of the kind {name} cannot be read", "convert them to float32")
        if word != "storage" or not isinstance(key, str) or not _is_size(length):
            raise ValueError("a storage without a name or a size")
        if key not in self._storages:
            content = bytearray(self._archive.read(f"{self._root}data/{key}"))  # the checksum is compared
            self._storages[key] = (
                torch.frombuffer(content, dtype=torch.uint8).untyped_storage() if content else torch.UntypedStorage(0)
            )
        storage, num_bytes = self._storages[key], length * dtype.itemsize
        if num_bytes > storage.nbytes():
            raise ValueError(f"a storage of {num_bytes} bytes, of which the file holds {storage.nbytes()}")
        return _Storage(storage, dtype, num_bytes)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, hooks: Any, flags: Any = None
    ) -> Tensor:
        return self._build(storage, storage.dtype, offset, size, stride, requires_grad, flags)

    def _tensor_of_dtype(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        requires_grad: Any,
        hooks: Any,
        dtype: Any,
        flags: Any = None,
    ) -> Tensor:
        """Newer dtypes have storages of bytes, and are named apart."""
        return self._build(storage, dtype, offset, size, stride, requires_grad, flags)

    def _build(
        self, storage: Any, dtype: Any, offset: Any, size: Any, stride: Any, requires_grad: Any, flags: Any
    ) -> Tensor:
        """A tensor that reaches no further than its storage, and no entry of which stands in it twice."""
        if not isinstance(storage, _Storage) or not isinstance(dtype, torch.dtype) or flags:
            raise ValueError("a tensor with a storage or flags that no file of weights has")
        if not _are_sizes(size) or not _are_sizes(stride) or len(size) != len(stride) or not _is_size(offset):
            raise ValueError("a tensor with sizes that no file of weights has")
        count = math.prod(size)
        last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True)) if count else offset
        if max(last + 1 if count else last, count) * dtype.itemsize > storage.num_bytes:
            raise ValueError(f"a tensor of shape {size[:8]} reaches beyond its storage of {storage.num_bytes} bytes")
        if count and _overlaps(size, stride):
            raise ValueError(f"a tensor of shape {size[:8]} with strides {stride[:8]} has one number in several places")
        self._uses_left -= count * dtype.itemsize
        self._tensors_left -= 1
        if self._uses_left < 0:
            raise LimitError(f"its tensors share their storages too often, {MOST_USES} times on average")
        if self._tensors_left < 0:
            raise LimitError(f"it has more than {MOST_TENSORS:,} tensors")
        tensor = torch.empty(0, dtype=dtype).set_(storage.content, offset, size, stride)
        return tensor.requires_grad_(requires_grad is True)


def _parameter(data: Any, requires_grad: Any, hooks: Any, state: Any = None) -> torch.nn.Parameter:
    if not isinstance(data, Tensor):
        raise TypeError("a parameter without a tensor")
    return torch.nn.Parameter(data, requires_grad is True)


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _are_sizes(values: Any) -> bool:
    return isinstance(values, tuple) and len(values) <= _MOST_DIMENSIONS and all(map(_is_size, values))


def _overlaps(size: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether several indices may lead to one entry: unless each step leaves all that smaller ones reach."""
    reach = 0
    for step, length in sorted((step, length) for length, step in zip(size, stride, strict=True) if length > 1):
        if step <= reach:
            return True
        reach += (length - 1) * step
    return False


@checked
def read_foreign(path: PathArgument) -> dict[str, Any]:
    """Read a checkpoint that ``torch.save`` wrote, on the CPU, running none of its code.

    Returns:
        Its dictionary; objects of unknown classes are `Inert`.

    Raises:
        CheckpointError: no such file, not a whole checkpoint of torch, one that holds no dictionary, or one that would
            take more time or memory than any checkpoint does.
    """
    path = check_file(path)
    try:
        with _File(path) as file:
            # What was appended to another kind of file is an archive, too, but no checkpoint.
            if file.read(len(_ZIP)) != _ZIP:
                raise CheckpointError(
                    path,
                    "not a whole checkpoint of torch (no zip archive)",
                    "copy or download it again, or if it is from before torch 1.6, re-save with torch.save of torch "
                    "1.6 or newer",
                )
            file.largest = LARGEST_DIRECTORY  # which is read as one
            with zipfile.ZipFile(file) as archive:
                file.largest = None
                if any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist()):
                    raise CheckpointError(
                        path, "a TorchScript program, no checkpoint", "give a file that torch.save wrote"
                    )
                found = _Reader(archive, path).load()
    except CheckpointError:
        raise
    except LimitError as error:
        raise CheckpointError(
            path,
            f"it would take more than a checkpoint does ({error})",
            "if it is one, save its tensors alone: torch.save(model.state_dict(), path)",
        ) from error
    except Exception as error:  # a damaged archive or pickle may fail in any way
        raise CheckpointError(
            path, f"not a whole checkpoint of torch ({_reason(error)})", "copy or download it again"
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(path, f"expected a dictionary, found {type(found).__name__}", "give another file")
    return found


def _reason(error: Exception) -> str:
    try:
        text = str(error)[:300]
    except Exception:  # a key that cannot be written down
        text = ""
    return f"{type(error).__name__}: {text}"
