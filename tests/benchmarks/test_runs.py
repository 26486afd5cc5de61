"""Run folders: claimed by one configuration, finished in one piece."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from benchmarks.comparison.runs import Run, plan
from benchmarks.comparison.suite import Evaluation, make_suite
from benchmarks.comparison.worker import _pretrained_sampler
from benchmarks.comparison.world import make_task, world_of
from sepo_env import tasks
from sepo_env.denoisers import ClassifierFreeGuidance, ConvDenoiser, ConvDenoiserConfig, save_denoiser
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import CheckpointError

WORLD = {"task": {"name": "toy"}, "judge": {"name": "table", "weights": "abc"}}
RUN = Run("Toy-v0", "ddpo", 3, {"learning_rate": 0.1}, Evaluation(8, 4, {}), None, WORLD)


def test_a_plan_has_every_agent_for_each_seed_in_a_folder_of_its_own(tmp_path: Path) -> None:
    suite = make_suite("ToyCTMC-v0", "default", agents=("pretrained", "ddpo"), seeds=(0, 4))
    runs = plan(suite)
    assert [(run.agent, run.seed) for run in runs] == [("pretrained", 0), ("ddpo", 0), ("pretrained", 4), ("ddpo", 4)]
    assert len({run.folder(tmp_path) for run in runs}) == 4
    assert runs[0].settings == {}
    assert runs[1].settings == suite.settings("ddpo")


def test_results_come_back_as_written(tmp_path: Path) -> None:
    RUN.claim(tmp_path)
    assert not RUN.is_finished(tmp_path)
    figures = {"nfe": [10, 20], "reward_calls": [4, 8], "eval_reward": [None, 0.5], "held_out_reward": [None, 0.5]}
    curve = pd.DataFrame({"iteration": [1, 2], **figures})
    # Texts that pandas takes for missing numbers elsewhere.
    samples = pd.DataFrame({"sequence": ["NA", ""], "training_reward": [0.0, 1.0], "held_out_reward": [0.25, 1.0]})
    RUN.finish(tmp_path, curve, samples, {"nfe": 20, "held_out_median": 0.625})
    assert RUN.is_finished(tmp_path)
    assert RUN.load_results(tmp_path) == {
        "task": "Toy-v0", "agent": "ddpo", "seed": 3, "nfe": 20, "held_out_median": 0.625,
    }  # fmt: skip
    labels = {"task": "Toy-v0", "agent": "ddpo", "seed": 3}
    read = RUN.load_curve(tmp_path)
    assert read.columns.tolist() == [*labels, "iteration", *figures]
    assert read["held_out_reward"].isna().tolist() == [True, False]
    pd.testing.assert_frame_equal(RUN.load_samples(tmp_path).drop(columns=list(labels)), samples)


def test_the_same_run_may_claim_its_folder_again_and_another_may_not(tmp_path: Path) -> None:
    assert RUN.claim(tmp_path) == RUN.claim(tmp_path)
    changed = dataclasses.replace(RUN, settings={"learning_rate": 0.2}, evaluation=Evaluation(9, 4, {}))
    with pytest.raises(CheckpointError) as refusal:
        changed.claim(tmp_path)
    assert "evaluation.num_samples 8 -> 9, settings.learning_rate 0.1 -> 0.2" in str(refusal.value)
    assert "choose another --output" in str(refusal.value)


def test_another_judge_makes_another_run(tmp_path: Path) -> None:
    RUN.claim(tmp_path)
    with pytest.raises(CheckpointError, match=r"world.judge.weights abc -> def\)"):
        dataclasses.replace(RUN, world={**WORLD, "judge": {"name": "table", "weights": "def"}}).claim(tmp_path)


def test_what_is_behind_a_path_decides_not_the_path(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "denoiser.safetensors"
    runs = []
    for channels in (4, 5):
        save_denoiser(ConvDenoiser(ConvDenoiserConfig(length=200, channels=channels, dilations=(1,))), file)
        suite = make_suite("DNAEnhancer-v0", "smoke", agents=("pretrained",), task_options={"denoiser": str(file)})
        runs.append(plan(suite)[0])
    runs[0].claim(tmp_path / "out")
    with pytest.raises(CheckpointError, match="world.task.denoiser"):
        runs[1].claim(tmp_path / "out")


def test_another_reward_or_judge_of_the_task_makes_another_world(monkeypatch: pytest.MonkeyPatch) -> None:
    suite = make_suite("ToyCTMC-v0", "smoke")
    world = world_of(suite)
    assert {"task", "reward", "judge"} == world.keys()
    assert world == world_of(suite)
    assert world["reward"] != world["judge"]
    for option in ({"seed": 3}, {"parameterisation": "score"}):
        assert world_of(dataclasses.replace(suite, task_options=option)) != world
    assert world_of(dataclasses.replace(suite, task_options={"prompted": True}))["prompts"]
    assert world_of(dataclasses.replace(suite, prompt=("A???",)))["prompts"]


def test_a_folder_of_an_older_version_is_not_reused(tmp_path: Path) -> None:
    path = RUN.claim(tmp_path) / "config.json"
    config = {name: value for name, value in RUN.config().items() if name != "world"}
    path.write_text(json.dumps(config | {"weights": "abc"}))
    with pytest.raises(CheckpointError, match="an older version.*choose another --output"):
        RUN.claim(tmp_path)


def test_a_prompt_is_part_of_a_run_and_kept_by_the_pretrained_denoiser_too() -> None:
    suite = make_suite("ToyCTMC-v0", "smoke", prompt=("?BA?",))
    run = plan(suite)[0]
    assert run.config()["prompt"] == ["?BA?"]
    task = make_task(run.task, run.prompt)
    tokens = _pretrained_sampler(task, "cpu")(20, num_steps=2, seed=0)
    assert tokens[:, 1:3].tolist() == [[1, 0]] * 20
    prompted = tasks.make("toy", prompted=True)
    own = prompted.prompt(keys_from_seed(torch.arange(5, 9)))
    drawn = _pretrained_sampler(prompted, "cpu")(4, num_steps=2, seed=5)
    assert torch.equal(drawn[own < 3], own[own < 3])


def test_the_pretrained_denoiser_is_guided_as_the_agents_are() -> None:
    task = make_task("ToyCTMC-v0", ("A???", "?B??"), {"num_tokens": 2})
    assert task.num_tokens == 2
    plain, guided = (_pretrained_sampler(task, "cpu", scale)(50, num_steps=3, seed=5) for scale in (0.0, 2.0))
    by_hand = ClassifierFreeGuidance(task.load_denoiser(), 2.0)
    prompt = task.prompt(keys_from_seed(torch.arange(5, 55)))
    assert torch.equal(guided, sample(task.process, by_hand, 50, 4, num_steps=3, seed=5, prompt=prompt))
    assert not torch.equal(guided, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ("A???", "?B??")}, r"prompt \['A\?\?\?'\] -> \['A\?\?\?', '\?B\?\?'\]"),
        ({"task_options": {"num_tokens": 2}}, "task_options.num_tokens None -> 2"),
        ({"guidance_scale": 1.0}, "guidance_scale 0.0 -> 1.0"),
    ],
)
def test_other_prompts_options_and_guidance_are_other_runs(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    suite = make_suite("ToyCTMC-v0", "smoke", agents=("pretrained",), prompt=("A???",))
    plan(suite)[0].claim(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        plan(dataclasses.replace(suite, **changes))[0].claim(tmp_path)


def test_a_folder_from_before_there_were_such_options_is_entered(tmp_path: Path) -> None:
    path = RUN.claim(tmp_path) / "config.json"
    config = {name: value for name, value in RUN.config().items() if name not in ("task_options", "guidance_scale")}
    path.write_text(json.dumps(config | {"prompt": None}))
    RUN.claim(tmp_path)
    with pytest.raises(CheckpointError, match="guidance_scale None -> 1.0"):
        dataclasses.replace(RUN, guidance_scale=1.0).claim(tmp_path)
