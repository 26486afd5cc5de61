"""The wheel holds the two packages, whole, and nothing else."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

PACKAGES = ("sepo_env", "agents")
DATA = {".safetensors", ".npz", ".json", ".jsonl", ".md"}


@pytest.fixture(scope="module")
def wheel(project_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy, so that no build folder stays in the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(project_root / name, source)
    unneeded = shutil.ignore_patterns("__pycache__", "results", "runs")
    for name in (*PACKAGES, "benchmarks", "tests"):
        shutil.copytree(project_root / name, source / name, ignore=unneeded)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(target), str(source)], check=True, capture_output=True, text=True)
    (built,) = target.glob("*.whl")
    return built


def expected_files(project_root: Path) -> set[str]:
    return {
        path.relative_to(project_root).as_posix()
        for package in PACKAGES
        for path in (project_root / package).rglob("*")
        if path.suffix in {".py", *DATA} or path.name == "py.typed"
    }


def test_the_wheel_holds_every_module_and_asset_and_nothing_else(wheel, project_root):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == expected_files(project_root)
    assert {"sepo_env/py.typed", "agents/py.typed"} <= names
    assert {name.partition("/")[0] for name in names} == {"sepo_env", "agents"}


def test_how_the_assets_were_made_is_not_in_the_wheel(wheel, project_root):
    made_by = {path.name for path in (project_root / "benchmarks" / "build_assets").glob("*.py")} - {"__init__.py"}
    assert "denoiser_training.py" in made_by
    with zipfile.ZipFile(wheel) as archive:
        assert not [name for name in archive.namelist() if "build" in name or "denoiser_training" in name]


def test_the_licence_travels_along(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        assert "MIT License" in archive.read(licence).decode()
        (metadata,) = [name for name in archive.namelist() if name.endswith("/METADATA")]
        assert "License-Expression: MIT" in archive.read(metadata).decode()


def test_every_package_has_its_init_file(project_root):
    folders = {path.parent for package in PACKAGES for path in (project_root / package).rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_assets_are_small(project_root):
    size = sum(path.stat().st_size for path in (project_root / "sepo_env" / "assets").rglob("*") if path.suffix in DATA)
    assert size < 8 * 2**20


def test_the_changelog_knows_the_version(project_root):
    version = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (project_root / "CHANGELOG.md").read_text()
