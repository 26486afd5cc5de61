"""tests/oldest.txt pins what pyproject.toml declares as the oldest version of each dependency."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Installed once, and tools that no test imports; the file says why.
LEFT_OUT = {"torch", "mypy", "ruff", "setuptools"}


def requirements(project: dict, lines: list[str]) -> Iterator[Requirement]:
    """What the lines ask for; this project's own extras stand for what they ask for."""
    for line in lines:
        requirement = Requirement(line)
        if requirement.name != project["name"]:
            yield requirement
        for extra in requirement.extras if requirement.name == project["name"] else ():
            yield from requirements(project, project["optional-dependencies"][extra])


def oldest(requirement: Requirement) -> str:
    (bound,) = [part.version for part in requirement.specifier if part.operator == ">="]
    return bound


def declared(project_root: Path) -> dict[str, str]:
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {canonicalize_name(found.name): oldest(found) for found in requirements(project, lines)}


def test_the_pins_are_the_lower_bounds(project_root):
    lines = (project_root / "tests" / "oldest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert sorted(pins, key=str.lower) == list(pins)
    bounds = declared(project_root)
    assert bounds.keys() >= LEFT_OUT
    wanted = {name: bound for name, bound in bounds.items() if name not in LEFT_OUT}
    assert {canonicalize_name(name): version for name, version in pins.items()} == wanted


def test_extras_are_followed():
    project = {"name": "own", "optional-dependencies": {"a": ["own[b]", "x>=1,<2"], "b": ["y>=2.5"]}}
    found = {one.name: oldest(one) for one in requirements(project, ["own[a]", "z>=3"])}
    assert found == {"x": "1", "y": "2.5", "z": "3"}


def test_every_dependency_has_a_lower_bound(project_root):
    project = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert all(oldest(found) for found in requirements(project, lines))
