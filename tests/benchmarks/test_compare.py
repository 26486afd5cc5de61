"""The command as it is called, on the toy: from nothing to a report, interrupted, called again, changed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tyro

from benchmarks import compare
from benchmarks.comparison import worker
from benchmarks.comparison.runs import plan
from benchmarks.comparison.suite import make_suite
from benchmarks.comparison.worker import Progress, execute
from sepo_env.errors import CheckpointError, SepoEnvError
from sepo_env.files import LOCK_FILE

ROOT = Path(__file__).parents[2]
TOY = {"task": "ToyCTMC-v0", "smoke": True}


@pytest.fixture
def smoke(tmp_path: Path) -> compare.Options:
    return compare.Options(**TOY, agents=("pretrained", "ddpo"), seeds=(0,), workers=1, output=tmp_path / "out")


def test_the_command_writes_its_report_from_any_folder(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "compare.py"), "--task", "ToyCTMC-v0", "--smoke"]
    command += ["--agents", "pretrained", "ddpo", "--seeds", "0", "1", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert "Costs are matched" in done.stdout
    assert "(4/4)" in done.stderr
    output = tmp_path / "runs" / "ToyCTMC-v0-smoke"
    written = {path.name for path in output.iterdir()}
    tables = {"curves.csv", "runs.csv", "summary.csv", "summary.md", "report.md"}
    pictures = {f"{name}.{end}" for name in ("learning_curves", "training_gap", "violins") for end in ("png", "pdf")}
    assert written == tables | pictures | {"runs", LOCK_FILE}
    runs, curves = pd.read_csv(output / "runs.csv"), pd.read_csv(output / "curves.csv")
    assert list(zip(runs["agent"], runs["seed"], strict=True)) == [
        (agent, seed) for seed in (0, 1) for agent in ("pretrained", "ddpo")
    ]
    assert curves.groupby(["agent", "seed"]).size().to_dict() == {("ddpo", 0): 3, ("ddpo", 1): 3}
    assert {"task", "iteration", "nfe", "reward_calls", "held_out_reward"} <= set(curves.columns)
    assert runs.set_index("agent").loc["ddpo", "nfe"].tolist() == [3 * 32 * 48] * 2
    report = (output / "report.md").read_text()
    assert "2 seeds; interquartile mean" in report
    assert "Probability of improvement" in report
    assert "python benchmarks/compare.py --task ToyCTMC-v0 --smoke" in report
    assert (output / "summary.md").read_text().strip() in report
    assert all(f"({name}.png)" in report for name in ("learning_curves", "training_gap", "violins"))


def test_called_again_it_runs_nothing_twice(smoke: compare.Options, monkeypatch: pytest.MonkeyPatch) -> None:
    assert compare.main(smoke, "first") == 0
    before = {path: path.stat().st_mtime_ns for path in smoke.folder.rglob("run.json")}
    table = (smoke.folder / "runs.csv").read_bytes()
    assert len(before) == 2
    report = (smoke.folder / "report.md").read_text()
    assert "One seed tells nothing" in report
    assert "Probability of improvement of" not in report
    assert compare.main(smoke, "second") == 0
    assert {path: path.stat().st_mtime_ns for path in smoke.folder.rglob("run.json")} == before
    assert (smoke.folder / "runs.csv").read_bytes() == table


def test_changed_settings_are_noticed_before_anything_runs(smoke: compare.Options) -> None:
    for run in plan(smoke.make_suite()):
        run.claim(smoke.folder)
    changed = compare.Options(**{**vars(smoke), "budget": 2 * 32 * 48})
    with pytest.raises(CheckpointError, match=r"settings.num_iterations 3 -> 2"):
        compare.main(changed, "command")


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    (run,) = plan(make_suite("ToyCTMC-v0", "smoke", agents=("ppo",), seeds=(0,)))

    def stop(progress: Progress) -> None:
        if "iteration 2" in progress.note:
            raise KeyboardInterrupt

    execute(run, tmp_path / "whole", "cpu", lambda progress: None)
    with pytest.raises(KeyboardInterrupt):
        execute(run, tmp_path / "parts", "cpu", stop)
    assert not run.is_finished(tmp_path / "parts")
    seen: list[Progress] = []
    execute(run, tmp_path / "parts", "cpu", seen.append)
    assert sum("iteration" in progress.note for progress in seen) == 1  # the third and last one
    whole, parts = (run.load_curve(tmp_path / name).drop(columns="wall_time") for name in ("whole", "parts"))
    pd.testing.assert_frame_equal(whole, parts, check_exact=True)
    pd.testing.assert_frame_equal(run.load_samples(tmp_path / "whole"), run.load_samples(tmp_path / "parts"))


def test_unequal_costs_are_said_loudly(smoke: compare.Options, capsys: pytest.CaptureFixture[str]) -> None:
    options = compare.Options(**{**vars(smoke), "agents": ("sepo", "ddpo")})
    curve = pd.DataFrame(
        {"iteration": [1, 2], "nfe": [50, 100], "reward_calls": [5, 10], "held_out_reward": [0.1, 0.2]}
    )
    rewards = {"training_reward": [0.2, 0.4], "held_out_reward": [0.1, 0.3]}
    samples = pd.DataFrame({"sequence": ["AAAA", "ABAB"], **rewards})
    for run, nfe in zip(plan(options.make_suite()), (100, 120), strict=True):
        run.claim(options.folder)
        cost = {"iteration": 2, "nfe": nfe, "reward_calls": 10, "wall_time": 1.0}
        run.finish(options.folder, curve.assign(eval_reward=0.5), samples, {**cost, "held_out_median": 0.2})
    assert compare.main(options, "command") == 1
    assert "COSTS ARE NOT MATCHED" in capsys.readouterr().out
    assert "nfe 20.0 %" in (options.folder / "report.md").read_text()


def test_samples_of_different_seeds_share_no_sequence_by_their_seeds() -> None:
    suite = make_suite("DNAEnhancer-v0", "full")
    assert suite.evaluation.num_samples < worker._SAMPLE_SEED


def test_prompts_options_and_guidance_from_the_command(tmp_path: Path) -> None:
    command = ["--task", "ToyCTMC-v0", "--smoke", "--agents", "pretrained", "ddpo", "--seeds", "0", "--workers", "1"]
    command += ["--prompt", "A???", "?BA?", "--task-options", '{"schedule": "cosine"}', "--guidance-scale", "1.5"]
    options = tyro.cli(compare.Options, args=[*command, "--output", str(tmp_path)])
    assert compare.main(options, "command") == 0
    for run in plan(options.make_suite()):
        assert (run.prompt, run.task_options, run.guidance_scale) == (("A???", "?BA?"), {"schedule": "cosine"}, 1.5)
        assert all(s[0] == "A" or s[1:3] == "BA" for s in run.load_samples(tmp_path)["sequence"])
    runs = pd.read_csv(tmp_path / "runs.csv").set_index("agent")
    assert runs.loc["ddpo", "nfe"] == 32 * 2 * 48  # one iteration at twice the cost
    assert "guidance_scale 1.5" in (tmp_path / "report.md").read_text()
    with pytest.raises(CheckpointError, match="guidance_scale 1.5 -> 1.0"):
        compare.main(dataclasses.replace(options, guidance_scale=1.0), "command")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance_scale": 1.0}, "draws no prompts to be guided by"),
        ({"guidance_scale": -1.0, "prompt": ("A???",)}, "guidance_scale is -1.0"),
        ({"task_options": "[]"}, "give an object"),
        ({"task_options": '{"colour": 1}'}, "unexpected keyword argument 'colour'"),
        ({"prompt": ("AXC?",)}, "the prompt does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_runs(
    smoke: compare.Options, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SepoEnvError, match=message):
        compare.main(dataclasses.replace(smoke, **changes), "command")
    assert not smoke.folder.exists()
