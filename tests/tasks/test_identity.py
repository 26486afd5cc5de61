"""Every task says what its world is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sepo_env import tasks
from sepo_env.denoisers import load_denoiser, load_masked_lm, save_denoiser
from sepo_env.diffusion import Cosine
from sepo_env.identity import describe
from sepo_env.tasks import Task
from tests.hf_models import save_masked_lm


def text(task: Task) -> str:
    return json.dumps(task.identity(), sort_keys=True, allow_nan=False)


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_is_told_whole(name: str) -> None:
    """Twice the same, without a doubt, and whatever was loaded before."""
    task = tasks.make(name)
    told = text(task)
    assert "cannot be told" not in told
    assert task.denoiser
    assert text(task) == told == text(tasks.make(name))
    assert json.loads(told)["name"] == name
    assert task.identity(describe(task.denoiser.core)) == task.identity()


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_world_of_every_task_has_its_schedule(name: str) -> None:
    assert text(tasks.make(name, schedule=Cosine())) != text(tasks.make(name))
    assert text(tasks.make(name, num_steps=3)) == text(tasks.make(name))


@pytest.mark.parametrize("name", tasks.TASKS)
def test_the_world_of_every_task_has_its_denoiser(name: str, tmp_path: Path) -> None:
    """By its weights: a copy of the shipped one is the shipped one."""
    task = tasks.make(name)
    denoiser = task.load_denoiser()
    save_denoiser(denoiser, tmp_path / "same.safetensors")
    with torch.no_grad():
        next(denoiser.parameters()).mul_(1.5)
    save_denoiser(denoiser, tmp_path / "other.safetensors")
    same, other = (describe(load_denoiser(tmp_path / f"{which}.safetensors")) for which in ("same", "other"))
    assert same == task.identity()["denoiser"] != other
    if name != "text_rlhf":  # there, whoever brings a denoiser brings a tokenizer
        assert text(tasks.make(name, denoiser=tmp_path / "same.safetensors")) == text(task)
        assert text(tasks.make(name, denoiser=load_denoiser(tmp_path / "same.safetensors"))) == text(task)
        assert text(tasks.make(name, denoiser=tmp_path / "other.safetensors")) != text(task)


@pytest.mark.parametrize("option", [{"seed": 1}, {"parameterisation": "score"}, {"graph": "uniform"}, {"length": 3}])
def test_options_of_the_toy_are_told(option: dict[str, Any]) -> None:
    assert text(tasks.make("toy", **option)) != text(tasks.make("toy"))


def test_where_a_text_ends_is_told() -> None:
    """It decides over what rewards read."""
    assert tasks.make("text_rlhf").settings == {"end_token": None}


def test_a_masked_language_model_is_known_by_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_masked_lm(tmp_path / "one")
    save_masked_lm(tmp_path / "two")
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one, copy, two = (json.dumps(describe(load_masked_lm(tmp_path / name))) for name in ("one", "copy", "two"))
    assert one == copy != two
    assert "cannot be told" not in one
    assert str(tmp_path) not in one
    forbidding = json.dumps(describe(load_masked_lm(tmp_path / "one", forbid=["a"])))
    assert one != forbidding
