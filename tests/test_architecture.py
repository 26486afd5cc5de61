"""Imports follow the arrows of the design, and files stay short enough to read in one sitting."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("sepo_env", "agents", "benchmarks")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 350

# Who may import whom, the longest prefix of a module's name decides. A layer may always import itself.
ALLOWED = {
    "sepo_env.errors": set(),
    "sepo_env.arguments": {"sepo_env.errors"},
    "sepo_env.device": {"sepo_env.errors"},
    "sepo_env.identity": {"sepo_env.metering"},
    "sepo_env.precision": set(),
    "sepo_env.metering": set(),
    "sepo_env.diffusion": {"sepo_env.device", "sepo_env.errors"},
    "sepo_env.files": {"sepo_env.errors"},
    "sepo_env.loading.foreign": {
        "sepo_env.errors",
        "sepo_env.loading.inert",
        "sepo_env.loading.paths",
        "sepo_env.pickles",
        "sepo_env.loading.tensorfile",
    },
    "sepo_env.loading.hub": {"sepo_env.errors", "sepo_env.loading.paths"},
    "sepo_env.loading.hugging_face": {
        "sepo_env.errors",
        "sepo_env.files",
        "sepo_env.loading.hub",
        "sepo_env.loading.paths",
        "sepo_env.loading.tensorfile",
        "sepo_env.textfile",
    },
    "sepo_env.loading.inert": set(),
    "sepo_env.loading.paths": {"sepo_env.errors"},
    "sepo_env.pickles": {"sepo_env.loading.inert"},
    "sepo_env.loading.tensorfile": {"sepo_env.errors", "sepo_env.loading.paths"},
    "sepo_env.textfile": {"sepo_env.errors", "sepo_env.loading.paths"},
    "sepo_env.rewards": {
        "sepo_env.errors",
        "sepo_env.loading.foreign",
        "sepo_env.loading.hugging_face",
        "sepo_env.identity",
        "sepo_env.loading.inert",
        "sepo_env.metering",
        "sepo_env.loading.tensorfile",
        "sepo_env.textfile",
    },
    "sepo_env.denoisers": {
        "sepo_env.diffusion",
        "sepo_env.errors",
        "sepo_env.files",
        "sepo_env.loading.foreign",
        "sepo_env.loading.hub",
        "sepo_env.loading.hugging_face",
        "sepo_env.identity",
        "sepo_env.loading.inert",
        "sepo_env.metering",
        "sepo_env.loading.paths",
        "sepo_env.loading.tensorfile",
        "sepo_env.textfile",
    },
    "sepo_env.assets": {"sepo_env.errors", "sepo_env.files", "sepo_env.textfile"},
    "sepo_env.tasks": {
        "sepo_env.assets",
        "sepo_env.denoisers",
        "sepo_env.device",
        "sepo_env.diffusion",
        "sepo_env.errors",
        "sepo_env.files",
        "sepo_env.loading.hugging_face",
        "sepo_env.identity",
        "sepo_env.loading.paths",
        "sepo_env.rewards",
        "sepo_env.textfile",
    },
    "sepo_env.envs": {
        "sepo_env.denoisers",
        "sepo_env.device",
        "sepo_env.diffusion",
        "sepo_env.errors",
        "sepo_env.registration",
        "sepo_env.rewards",
        "sepo_env.tasks",
    },
    # Names the environments' entry points as strings, and imports none of them.
    "sepo_env.registration": {"sepo_env.errors"},
    # The facade opens every layer.
    "sepo_env": {
        "sepo_env.assets",
        "sepo_env.denoisers",
        "sepo_env.diffusion",
        "sepo_env.envs",
        "sepo_env.registration",
        "sepo_env.rewards",
        "sepo_env.tasks",
    },
    "agents": {"sepo_env"},
    "benchmarks": {"agents", "sepo_env"},
    # How the shipped assets were made: training scripts that no other module imports.
    "benchmarks.build_assets": {"sepo_env"},
}

# Which of our modules may import a third-party package that others shall not need.
KEEPERS = {
    "gymnasium": ("sepo_env.registration", "sepo_env.envs", "benchmarks"),
    "torchrl": ("sepo_env.envs.torchrl_env", "sepo_env.envs.rate_spec", "agents", "benchmarks"),
    "tensordict": ("sepo_env.envs.torchrl_env", "agents", "benchmarks"),
    "pandas": ("benchmarks",),
    "matplotlib": ("benchmarks", "sepo_env.envs.rendering"),
    "tyro": ("agents", "benchmarks"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Every module that a file imports, at the top or within functions, with its line."""
    name = module_name(path)
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join([*parents[: len(parents) - node.level + 1], *filter(None, [node.module])])
            # `from package import name` imports a module, or something of the package itself.
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield node.lineno, full if is_module(full) else base


def is_within(name: str, layer: str) -> bool:
    return name == layer or name.startswith(f"{layer}.")


def layer_of(name: str) -> str:
    return max((layer for layer in ALLOWED if is_within(name, layer)), key=len)


def is_allowed(name: str, target: str) -> bool:
    layer, other = layer_of(name), layer_of(target)
    # How arguments are refused is every layer's business, as is the precision of what it makes.
    allowed = ALLOWED[layer] | ({"sepo_env.arguments", "sepo_env.precision"} if layer != "sepo_env.errors" else set())
    # Agents and benchmarks see all of the packages below them; within sepo_env each layer is named.
    return other == layer or other in allowed or other.partition(".")[0] in allowed


def faults(paths: list[Path]) -> list[str]:
    found = []
    for path in paths:
        name = module_name(path)
        for line, target in imported(path):
            top = target.partition(".")[0]
            if top in PACKAGES and not is_allowed(name, target):
                found.append(f"{path.relative_to(ROOT)}:{line}: {name} must not import {target}")
            if top in KEEPERS and not any(is_within(name, keeper) for keeper in KEEPERS[top]):
                found.append(f"{path.relative_to(ROOT)}:{line}: {name} must do without {top}")
    return found


def test_there_is_something_to_check():
    assert {"sepo_env.errors", "sepo_env.diffusion.kernel"} <= {module_name(path) for path in MODULES}


def test_no_import_runs_back():
    assert faults(MODULES) == []


@pytest.mark.parametrize(
    ("name", "target", "allowed"),
    [
        ("sepo_env.diffusion.kernel", "sepo_env.diffusion.graph", True),
        ("sepo_env.diffusion.kernel", "sepo_env.rewards", False),
        ("sepo_env.rewards.base", "sepo_env.errors", True),
        ("sepo_env.rewards.base", "sepo_env.denoisers.base", False),
        ("sepo_env.tasks.toy", "sepo_env.envs.dynamics", False),
        ("sepo_env.envs.gym_env", "agents.policies.rates", False),
        ("sepo_env.envs.gym_env", "sepo_env.tasks", True),
        ("sepo_env.tasks.toy", "benchmarks.build_assets.data", False),
        ("benchmarks.compare", "benchmarks.build_assets.data", False),
        ("benchmarks.build_assets.data", "sepo_env.errors", True),
        ("agents.training.trainer", "sepo_env.envs.torchrl_env", True),
        ("agents.training.trainer", "benchmarks.compare", False),
        ("benchmarks.compare", "agents.training.trainer", True),
    ],
)
def test_the_arrows(name, target, allowed):
    assert is_allowed(name, target) is allowed


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_files_are_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{path.relative_to(ROOT)} has {lines} lines; split it by concept"
