"""Paths are checked before anything is read, and everything that is none has a named error."""

import os
import shutil
from pathlib import Path

import pytest

from sepo_env.denoisers import load_denoiser, load_drakes, load_masked_lm, load_mdlm, load_sedd
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.paths import as_path, check_file, is_folder
from sepo_env.loading.tensorfile import read_tensors

FIXTURES = Path(__file__).parent / "fixtures"
READERS = [load_denoiser, load_drakes, load_mdlm, load_sedd, load_masked_lm, read_foreign, read_tensors]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", [None, 5, b"model.ckpt", ["model.ckpt"]])
def test_what_is_no_path_is_refused(read, path):
    with pytest.raises(InvalidArgumentError, match="path is .*, but must be text, or a path") as refused:
        read(path)
    assert repr(path) in str(refused.value)


class BytesPath:
    """An os.PathLike, but not of text."""

    def __fspath__(self):
        return b"model.ckpt"


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", ["", BytesPath()])
def test_paths_that_name_nothing_are_refused(read, path, tmp_path, monkeypatch):
    # The empty path would be the folder that the program runs in, whatever lies there.
    monkeypatch.chdir(tmp_path)
    shutil.copytree(FIXTURES / "mdlm", tmp_path, dirs_exist_ok=True)
    with pytest.raises(InvalidArgumentError, match=r"path is b?'.*', but must be text that names a file or a folder"):
        read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "absent", " "])
def test_paths_that_no_system_has_are_refused(read, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize("read", [load_drakes, read_foreign, read_tensors])
def test_a_folder_is_no_file(read, tmp_path):
    with pytest.raises(CheckpointError, match="expected a file, found a folder"):
        read(tmp_path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "dangling", "unreadable"])
def test_what_is_no_file_is_not_read(read, kind, tmp_path):
    path = tmp_path / "a.ckpt"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "absent")
    else:
        path.write_bytes(b"x")
        path.chmod(0)  # which the superuser may read all the same, and finds no model
    with pytest.raises(CheckpointError, match=r"a\.ckpt: ") as refused:
        read(path)
    assert str(refused.value).count("\n") == 0


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "model.safetensors.index.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "folder"])
def test_what_is_no_file_in_a_folder_is_not_read(name, kind, tmp_path):
    shutil.copytree(FIXTURES / "mdlm", tmp_path / "model")
    path = tmp_path / "model" / name
    path.unlink(missing_ok=True)
    (tmp_path / "model" / "model.safetensors").unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path.mkdir()
    for read in (load_denoiser, load_mdlm):
        with pytest.raises(CheckpointError):
            read(tmp_path / "model")


def test_files_and_folders_are_told_apart(tmp_path):
    (tmp_path / "a").write_text("x")
    assert check_file(str(tmp_path / "a")) == as_path(tmp_path / "a")
    assert is_folder(tmp_path)
    assert not is_folder(tmp_path / "a")
    assert not is_folder(as_path("x" * 5000))
    with pytest.raises(CheckpointError, match="there is no such file"):
        check_file(tmp_path / "a" / "b")


def test_a_home_is_filled_in(monkeypatch):
    monkeypatch.setenv("HOME", "/home of mine")
    monkeypatch.setenv("USERPROFILE", "/home of mine")
    assert as_path("~/a") == as_path(Path("~") / "a") == Path("/home of mine/a")
    assert as_path("a/~") == Path("a/~")
    with pytest.raises(InvalidArgumentError, match="a home that this machine does not know"):
        as_path("~nobody of that name/a")
