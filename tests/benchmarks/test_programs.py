"""Every program of the benchmarks runs as a file and as a module."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted(path for path in (ROOT / "benchmarks").rglob("*.py") if '__name__ == "__main__"' in path.read_text())
FRONT = [path for path in PROGRAMS if path.parent.name == "benchmarks"]


def program_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def run(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """As a user without an installed checkout does: nothing but the folder and the file say where things are."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


def test_the_programs_are_found():
    names = {program_name(path) for path in PROGRAMS}
    assert {"benchmarks.compare", "benchmarks.tune", "benchmarks.speed", "benchmarks.build_assets.oracles"} <= names


@pytest.mark.parametrize("path", PROGRAMS, ids=program_name)
def test_a_program_runs_as_a_module_from_the_checkout(path):
    done = run(["-m", program_name(path), "--help"], ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize("path", FRONT, ids=program_name)
def test_a_program_runs_as_a_file_from_any_folder(path, tmp_path):
    done = run([str(path), "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_only_the_bootstrap_touches_the_path():
    files = [*(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "tests" / "benchmarks").rglob("*.py")]
    touching = {path.name for path in files if "sys." + "path" in path.read_text()}
    assert touching == {"_checkout.py", "_judges.py"}  # the latter for the file of a user's judge, as Python does


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").rglob("*.py")), ids=program_name)
def test_modules_are_imported_by_their_whole_names(path):
    """A bare ``import comparison`` works in a file that is run, and in no module."""
    here = {entry.stem for entry in (ROOT / "benchmarks").iterdir()} - {"_checkout"}
    bare = []
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        bare += [name for name in names if name.partition(".")[0] in here]
    assert bare == []
