"""Files that appear whole or not at all, folders that one run has for itself, and what a disk may say to it."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sepo_env.errors import FolderError, FolderInUseError, SepoEnvError
from sepo_env.files import LOCK_FILE, UNFINISHED, ClaimedFolder, flush_to_disk, replacing, sweep, write_atomically


def no_power(*_: object) -> None:
    raise OSError("no power")


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "file.txt"
    write_atomically(path, b"old")
    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, no_power)
            with pytest.raises(FolderError, match=r"file.txt: cannot be written \(no power\)"):
                write_atomically(path, b"new")
        assert path.read_bytes() == b"old"
        assert list(path.parent.iterdir()) == [path]
    write_atomically(path, lambda temporary: temporary.write_text(f"new, as {temporary.suffix}"))
    assert path.read_text() == "new, as .txt"
    assert list(path.parent.iterdir()) == [path]


def test_a_file_has_the_rights_that_the_user_gives_to_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


@pytest.mark.parametrize("stop", [KeyboardInterrupt, None])
def test_a_folder_is_the_old_one_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException] | None
) -> None:
    target = tmp_path / "folder"
    target.mkdir()
    (target / "old").touch()
    replace = os.replace

    def stopped(source: Path, destination: Path) -> None:
        if stop is not None and Path(source).name == "folder" and destination == target:
            raise stop
        replace(source, destination)

    monkeypatch.setattr(os, "replace", stopped)
    try:
        with replacing(target) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
    except KeyboardInterrupt:
        pass
    assert [path.name for path in target.iterdir()] == ["new" if stop is None else "old"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EPERM, errno.EACCES])
def test_shares_that_cannot_sync_a_folder_are_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync, opened = os.fsync, os.open

    def refusing_fsync(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(handle)

    def refusing_open(path: str | Path, flags: int, *rest: int) -> int:
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied")  # Windows
        return opened(path, flags, *rest)

    for name, replacement in (("fsync", refusing_fsync), ("open", refusing_open)):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, replacement)
            write_atomically(tmp_path / name, b"whole")
        assert (tmp_path / name).read_bytes() == b"whole"


def test_a_disk_that_fails_is_not_survived_in_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        flush_to_disk(tmp_path)
    with pytest.raises(FolderError, match="Input/output error"):
        write_atomically(tmp_path / "file", b"")


@pytest.mark.parametrize("where", ["file/in it", "file/in/it"])
def test_a_file_where_a_folder_is_wanted(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="a file stands where a folder is wanted"):
        write_atomically(tmp_path / where, b"")
    with pytest.raises(FolderError, match="a file stands where a folder is wanted"), ClaimedFolder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"


WRITERS = {
    "bytes": lambda path: path.write_bytes(bytes(10**6)),
    "torch": lambda path: torch.save(torch.zeros(10**6), path),
    "safetensors": lambda path: save_file({"a": torch.zeros(10**6)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_has_a_name(tmp_path: Path, writer: str) -> None:
    """Each library has an error of its own for it; here a limit on the size of files plays the disk."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(FolderError) as caught:
            write_atomically(path, WRITERS[writer])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_errors_of_other_kinds_pass_through(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        write_atomically(tmp_path / "file", fail)


WRITE_FOR_EVER = """
import sys, time
from pathlib import Path
from sepo_env.files import ClaimedFolder, replacing
with ClaimedFolder(Path(sys.argv[1])), replacing(Path(sys.argv[1]) / "file") as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A folder in which a process was killed in the middle of a write."""
    process = subprocess.Popen([sys.executable, "-c", WRITE_FOR_EVER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        with pytest.raises(FolderInUseError, match=rf"another run \(process {process.pid} on"), ClaimedFolder(tmp_path):
            pass
        assert len(list(tmp_path.glob(f"{UNFINISHED}*"))) == 1, "whoever is refused sweeps nothing"
    finally:
        process.kill()
        process.communicate()
    return tmp_path


def test_the_lock_and_the_leftovers_end_with_the_process(killed: Path) -> None:
    theirs = [".file.abcd1234", ".file.swp", "file.tmp", ".sepo-parting", "notes"]
    for name in theirs:
        (killed / name).write_text("mine")
    with ClaimedFolder(killed):
        assert sorted(path.name for path in killed.iterdir()) == sorted([*theirs, LOCK_FILE])


def test_subfolders_are_swept_where_they_are_the_runs_own(tmp_path: Path) -> None:
    for name in ("agent", "another's"):
        (tmp_path / name / f"{UNFINISHED}abcdefgh").mkdir(parents=True)
    with ClaimedFolder(tmp_path, ["agent", "absent"]):
        pass
    assert [len(list((tmp_path / name).iterdir())) for name in ("agent", "another's")] == [0, 1]


def test_a_folder_is_held_once_and_let_go(tmp_path: Path) -> None:
    with ClaimedFolder(tmp_path):
        with pytest.raises(FolderInUseError, match="choose another folder") as caught, ClaimedFolder(tmp_path):
            pass
        assert isinstance(caught.value, SepoEnvError)
        with ClaimedFolder(tmp_path / "another"):
            pass
    with pytest.raises(KeyError), ClaimedFolder(tmp_path):
        raise KeyError
    with ClaimedFolder(tmp_path):
        pass


FORK = """
import os, sys, time
from pathlib import Path
from sepo_env.files import ClaimedFolder
with ClaimedFolder(Path(sys.argv[1])):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""


def test_a_forked_child_does_not_keep_its_dead_parents_folder(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", FORK, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        with pytest.raises(FolderInUseError, match=f"process {process.pid} "), ClaimedFolder(tmp_path):
            pass
        process.kill()
        process.wait()
        os.kill(child, 0)
        with ClaimedFolder(tmp_path):
            pass
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)
        process.communicate()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_share_without_locks_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    import fcntl

    def refuse(handle: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(UserWarning, match="has no locks"), ClaimedFolder(tmp_path):
        write_atomically(tmp_path / "file", b"")


def test_a_removed_folder_is_made_and_claimed_again(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with ClaimedFolder(path) as folder:
        inode = (path / LOCK_FILE).stat().st_ino
        folder.restore()
        assert (path / LOCK_FILE).stat().st_ino == inode
        path.rename(tmp_path / "moved")
        folder.restore()
        with pytest.raises(FolderInUseError), ClaimedFolder(path):
            pass
        path.rename(tmp_path / "moved too")
        with ClaimedFolder(path), pytest.raises(FolderInUseError):
            folder.restore()


def test_sweeping_leaves_links_and_what_is_not_there_alone(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / f"{UNFINISHED}link").symlink_to(tmp_path / "kept")
    sweep(tmp_path)
    sweep(tmp_path / "absent")
    assert (tmp_path / "kept").is_dir()
