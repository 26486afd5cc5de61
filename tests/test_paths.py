"""Paths are checked before anything is read, and everything that is none has a named error."""

import os
from pathlib import Path

import pytest

from sepo_env.denoisers import load_denoiser, load_drakes, load_masked_lm, load_mdlm, load_sedd
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.foreign import read_foreign
from sepo_env.paths import as_path, check_file, is_folder
from sepo_env.tensorfile import read_tensors

READERS = [load_denoiser, load_drakes, load_mdlm, load_sedd, load_masked_lm, read_foreign, read_tensors]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", [None, 5, b"model.ckpt", ["model.ckpt"]])
def test_what_is_no_path_is_refused(read, path):
    with pytest.raises(InvalidArgumentError, match=f"a path is a str or a pathlib.Path, but got {type(path).__name__}"):
        read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", ""])
def test_paths_that_no_system_has_are_refused(read, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError):
        read(path)


@pytest.mark.parametrize("read", [load_drakes, read_foreign, read_tensors])
def test_a_folder_is_no_file(read, tmp_path):
    with pytest.raises(CheckpointError, match="expected a file, found a folder"):
        read(tmp_path)


def test_a_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="found a device or a pipe"):
        load_denoiser(tmp_path / "pipe")


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
