"""An agent knows the artefacts that it was trained on: others are another world."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from agents import REINFORCE, Agent
from agents.sealed import seal
from agents.storage import CONFIG_FILE
from agents.train import main
from sepo_env import tasks
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig
from sepo_env.errors import CheckpointError
from sepo_env.tasks.artefact_files import ARTEFACTS

SMALL = {"batch_size": 2, "num_steps": 2, "states_per_trajectory": 1, "eval_samples": 2, "num_iterations": 1}
SMALL |= {"device": "cpu", "tensorboard": "off"}


@pytest.fixture
def folder(tmp_path, fake_grelu, monkeypatch):
    fake_grelu.install(monkeypatch)
    fake_grelu.write_folder(tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def other(folder, tmp_path, fake_grelu):
    """The same but for one oracle of the same size."""
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    fake_grelu.write(other / ARTEFACTS["held-out oracle"].path, 3, seed=9)
    return other


def world(folder: Path | None):
    torch.manual_seed(0)  # a small denoiser, the same each time
    denoiser = ConvDenoiser(ConvDenoiserConfig(length=200, channels=8, dilations=(1,)))
    return tasks.make("dna_enhancer", artefacts=folder, denoiser=denoiser)


def test_a_saved_agent_is_loaded_for_its_own_artefacts_only(folder, other, tmp_path):
    REINFORCE(world(folder), **SMALL).save(tmp_path / "agent")
    moved = shutil.move(folder, tmp_path / "moved")
    assert Agent.load(tmp_path / "agent", task=world(moved), device="cpu").sample(1, seed=0)
    with pytest.raises(CheckpointError, match="other artefacts; different here: held-out oracle; give those"):
        Agent.load(tmp_path / "agent", task=world(other))
    with pytest.raises(CheckpointError, match="trained on published artefacts, and the task here runs on the shipped"):
        Agent.load(tmp_path / "agent")
    REINFORCE(world(None), **SMALL).save(tmp_path / "shipped")
    with pytest.raises(CheckpointError, match="trained on the shipped assets.*load it without artefacts"):
        Agent.load(tmp_path / "shipped", task=world(moved))
    assert "artefacts" not in json.loads((tmp_path / "shipped" / CONFIG_FILE).read_text())["task"]


def test_a_run_is_resumed_on_its_own_artefacts_only(folder, other, tmp_path):
    settings = SMALL | {"log_dir": str(tmp_path / "run")}
    REINFORCE(world(folder), **settings).train(progress=False)
    more = settings | {"num_iterations": 2}
    with pytest.raises(
        CheckpointError, match=r"other settings \(task.artefacts.held-out oracle was '\w+', is '\w+'; judge."
    ):
        REINFORCE(world(other), **more).train(resume=True, progress=False)
    with pytest.raises(CheckpointError, match=r"task.artefacts was {.*}, is None"):
        REINFORCE(world(None), **more).train(resume=True, progress=False)
    assert len(REINFORCE(world(folder), **more).train(resume=True, progress=False)) == 2


def test_the_command_line_trains_on_artefacts(folder, tmp_path, capsys):
    options = ["--task-options", json.dumps({"artefacts": str(folder)}), "--log-dir", str(tmp_path / "run"), "--quiet"]
    for name, value in SMALL.items():
        options += [f"--{name.replace('_', '-')}", str(value)]
    assert main(["reinforce", *options]) == 0, capsys.readouterr().err
    description = json.loads((tmp_path / "run" / "agent" / CONFIG_FILE).read_text())
    assert description["task"]["artefacts"] == tasks.make("dna_enhancer", artefacts=folder).fingerprints


@pytest.mark.parametrize("name", ["agent", "task", "config"])
def test_an_agent_without_a_part_of_its_description_is_refused(tmp_path, name):
    REINFORCE("toy", **SMALL).save(tmp_path)
    description = json.loads((tmp_path / CONFIG_FILE).read_text())
    del description[name]
    (tmp_path / CONFIG_FILE).write_bytes(seal(description))
    with pytest.raises(CheckpointError, match=f"it lacks .*{name}"):
        Agent.load(tmp_path)
