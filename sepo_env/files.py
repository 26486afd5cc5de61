"""Files and folders that appear whole or not at all, and folders that one run has for itself.

Whatever a disk, a share or a library says when it cannot write becomes one error, `FolderError`, with the path and
what to do. What a killed process leaves behind is recognised by its name, and swept by the next one that holds the
folder.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from safetensors import SafetensorError

from sepo_env.errors import FolderError, FolderInUseError

LOCK_FILE = "run.lock"
UNFINISHED = ".sepo-part-"
"""How the folders begin in which files are written before they are put in their place."""

# Network and FUSE shares cannot sync some or all of what they hold, and Windows opens no folder.
_NO_SYNC = frozenset(
    {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EBADF, errno.EISDIR}
)


_TORCH_CANNOT_WRITE = ("inline_container", "PytorchStreamWriter", "iostream error")


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Tell a failed write in the block as a `FolderError` of ``path``.

    torch and safetensors have errors of their own for a full disk; other errors of theirs pass through.
    """
    try:
        yield
    except FolderError:
        raise
    except OSError as error:
        raise FolderError.of(path, error) from error
    except ValueError as error:
        if "null" not in str(error):
            raise
        raise FolderError.of(path, OSError("no name has a null character in it")) from error
    except SafetensorError as error:
        raise FolderError.of(path, OSError(str(error))) from error
    except RuntimeError as error:
        if not any(hint in str(error) for hint in _TORCH_CANNOT_WRITE):
            raise
        raise FolderError.of(path, OSError("torch could not write all of it; is the disk full?")) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield where to write what then takes the place of ``path``: a reader, or a crash, sees the old or the new one.

    Args:
        path: a file or a folder; the folder that it stands in is made. A folder that is replaced is moved away first,
            so there is an instant without any.

    Raises:
        FolderError: it cannot be written; what stood there before stands there still.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder: a rename across file systems would not be atomic. In a folder of its own, so that whatever
        # a library puts beside the file goes with it, and the file keeps its name.
        room = Path(tempfile.mkdtemp(dir=path.parent, prefix=UNFINISHED))
        temporary, old = room / path.name, room / "old"
        try:
            yield temporary
            for part in [*temporary.rglob("*"), temporary]:
                flush_to_disk(part)
            if temporary.is_dir() and path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        finally:
            if old.exists() and not path.exists():
                os.replace(old, path)
            shutil.rmtree(room, ignore_errors=True)
        flush_to_disk(path.parent)


def write_atomically(path: Path, content: bytes | Callable[[Path], object]) -> None:
    """Replace a file so that a reader, or a crash, sees the old one or the new one, whole.

    Args:
        path: the file; the folder that it stands in is made.
        content: what it is to hold, or a function that writes it where it is told to.

    Raises:
        FolderError: it cannot be written.
    """
    with replacing(path) as temporary:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)


def flush_to_disk(path: Path) -> None:
    """Wait until a file's contents, or a folder's entries, would survive a power cut; where the file system can."""
    try:
        # Windows syncs only what is open for writing.
        handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    except OSError as error:
        if error.errno in _NO_SYNC:
            return
        raise
    try:
        sync(handle)
    finally:
        os.close(handle)


def sync(handle: int) -> None:
    """``os.fsync`` of an open file or folder, where the file system can."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def sweep(folder: Path) -> None:
    """Remove what killed writers have left in a folder; whoever calls holds it."""
    with suppress(OSError):
        for left in list(folder.glob(f"{UNFINISHED}*")):
            if not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)


class ClaimedFolder:
    """A folder that one run has for itself, as a context: made, locked, and swept of what killed runs have left.

    The lock is the system's own, on the file `LOCK_FILE`, so it ends with the process, however that ends. On a share
    that knows no locks there is a warning instead.

    Args:
        path: the folder.
        subfolders: names of folders in it that are the run's own, too.

    Raises:
        FolderError: when entered, it cannot be made or written to.
        FolderInUseError: when entered, another run holds it.
    """

    def __init__(self, path: Path, subfolders: Iterable[str] = ()) -> None:
        self.path = path
        self._subfolders = tuple(subfolders)
        self._handle: int | None = None

    def restore(self) -> None:
        """Make the folder, and the claim to it, again where somebody has removed them.

        Raises:
            FolderError: it cannot be made.
            FolderInUseError: another run has taken its place.
        """
        if not self._stands():
            self._release()
            self._claim()

    def _stands(self) -> bool:
        try:
            return self._handle is not None and os.path.samestat(os.fstat(self._handle), os.stat(self.path / LOCK_FILE))
        except OSError:
            return False

    def _claim(self) -> None:
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            held = _lock(handle)
        except OSError as error:
            held = True
            warnings.warn(
                f"{self.path}: its file system has no locks ({error.strerror}), so nothing keeps a second run out; see "
                "to it that there is none.",
                stacklevel=2,
            )
        if not held:
            holder = _read(handle)
            os.close(handle)
            raise FolderInUseError(
                f"{self.path}: another run{f' ({holder})' if holder else ''} writes there; wait until it has ended, or "
                "choose another folder."
            )
        self._handle = handle
        _HELD.add(handle)
        with suppress(OSError):  # for the message alone
            os.ftruncate(handle, 0)
            os.lseek(handle, 0, os.SEEK_SET)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())

    def _release(self) -> None:
        if self._handle is not None:
            handle, self._handle = self._handle, None
            if handle in _HELD:  # not so in a forked child
                _HELD.discard(handle)
                _unlock(handle)
                os.close(handle)

    def __enter__(self) -> Self:
        self._claim()
        for folder in (self.path, *(self.path / name for name in self._subfolders)):
            sweep(folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._release()


_HELD: set[int] = set()


def _let_go_in_child() -> None:
    """A forked child shares its parent's lock, and would hold it when the parent is gone."""
    while _HELD:
        with suppress(OSError):
            os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_child)


def _lock(handle: int) -> bool:
    """Lock an open file for this process; False where another one holds it, OSError where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(handle, 1 << 30, os.SEEK_SET)  # past the text, which others may read
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _unlock(handle: int) -> None:
    """Let go for all who share the open file: a child that is being forked just now holds it as well."""
    if sys.platform != "win32":
        import fcntl

        with suppress(OSError):  # a share without locks
            fcntl.flock(handle, fcntl.LOCK_UN)


def _read(handle: int) -> str:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return os.read(handle, 200).decode(errors="replace").strip()
    except OSError:
        return ""
