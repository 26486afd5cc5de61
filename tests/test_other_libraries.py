"""docs/other_libraries.md: each block runs as it stands, where its library is installed."""

import re
import sys
import tomllib
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

import sepo_env  # noqa: F401 - registers the ids

PAGE = Path(__file__).resolve().parents[1] / "docs" / "other_libraries.md"
BLOCK = re.compile(r"^## (?P<title>.+)$|^```python *(?P<options>.*)\n(?P<code>(?:.*\n)*?)^```$", re.MULTILINE)

# What the page writes, and what runs in its place: the same call with a smaller budget.
SMALLER = {"total_timesteps=20_000": "total_timesteps=512", "range(16)": "range(1)"}


def read_blocks() -> dict[str, tuple[str, str]]:
    """The one block of each section: what stands on its fence, and its text."""
    blocks: dict[str, tuple[str, str]] = {}
    title = ""
    for match in BLOCK.finditer(PAGE.read_text()):
        if match["title"]:
            title = match["title"]
        else:
            assert title not in blocks, f"two blocks under {title!r}"
            blocks[title] = (match["options"], match["code"])
    return blocks


BLOCKS = read_blocks()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run a section's block in a folder that holds the files of the page; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for options, code in BLOCKS.values():
        if file := re.search(r"file=(\S+)", options):
            (tmp_path / file[1]).write_text(code)
            monkeypatch.delitem(sys.modules, Path(file[1]).stem, raising=False)
    known = set(gym.registry)

    def run_block(title):
        options, code = BLOCKS[title]
        if package := re.search(r"requires=(\S+)", options):
            pytest.importorskip(package[1])
        for call, smaller in SMALLER.items():
            code = code.replace(call, smaller)
        names = {"__name__": "__main__"}
        exec(compile(code, f"{PAGE.name}, {title}", "exec"), names)
        return names

    yield run_block
    for env_id in set(gym.registry) - known:
        del gym.registry[env_id]


def test_every_library_has_its_block():
    assert list(BLOCKS) == ["Stable-Baselines3", "Flat spaces", "CleanRL", "RLlib", "TorchRL"]
    assert all(any(call in code for _, code in BLOCKS.values()) for call in SMALLER)


def test_the_extra_that_is_named_exists(project_root):
    extras = tomllib.loads((project_root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r'pip install -e "\.\[(\w+)\]"', PAGE.read_text())
    assert named
    assert set(named) <= set(extras)
    assert (project_root / "examples" / "stable_baselines.py").is_file()


def test_stable_baselines_learns_on_it(run):
    assert run("Stable-Baselines3")["model"].num_timesteps >= 512


def test_flat_spaces_are_rows_of_numbers(run):
    env = run("Flat spaces")["make"](num_steps=4)
    assert env.observation_space.shape == (4 * 4 + 1,)  # one-hot of three tokens and MASK, and the time
    assert env.action_space.shape == (4 * 3,)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation.sum() == 4 + 1  # four masks at time 1
    observation, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)


def test_cleanrl_gets_vectors_that_reset_within_the_step(run):
    envs = run("CleanRL")["envs"]
    assert isinstance(envs.single_action_space, gym.spaces.Box)
    observation, _ = envs.reset(seed=0)
    for episode in range(2):
        for _ in range(8):
            action = np.random.default_rng(episode).normal(size=(8, 12)).astype(np.float32)
            observation, rewards, terminated, _, infos = envs.step(action)
        assert terminated.all()
        np.testing.assert_allclose(infos["episode"]["r"], rewards, rtol=1e-6)
        assert (observation[:, -1] == 1).all()  # the next episodes have begun


@pytest.mark.filterwarnings("default")  # RLlib's own
def test_rllib_learns_on_it(run):
    assert run("RLlib")["iteration"] == 0


def test_torchrl_learns_the_toy(run, capsys):
    run("TorchRL")
    returns = [float(line) for line in capsys.readouterr().out.splitlines()]
    assert len(returns) == 60
    assert np.mean(returns[-5:]) > np.mean(returns[:5]) + 0.2
