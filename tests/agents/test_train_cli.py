"""The command line: flags, exit codes, resumption."""

import csv
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents import Agent, agent_class
from agents.registry import learners
from agents.train import AGENT_FOLDER, main
from agents.training.logs import read_metrics
from agents.training.recovery import checkpoint_path

NO_MEMORY = "[enforce fail at alloc_cpu.cpp:128] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
TOY = ["--task", "ToyCTMC-v0", "--device", "cpu", "--batch-size", "8", "--num-steps", "4", "--tensorboard", "off"]


def flags(iterations: int, folder: Path | None = None, *more: str) -> list[str]:
    where = [] if folder is None else ["--log-dir", str(folder)]
    return ["sepo", *TOY, "--num-iterations", str(iterations), *where, *more]


def test_help_in_a_process_of_its_own(project_root: Path) -> None:
    command = [sys.executable, "-m", "agents.train", "--help"]
    done = subprocess.run(command, cwd=project_root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0
    assert all(name in done.stdout for name in learners())
    assert "Exit codes" in done.stdout


@pytest.mark.parametrize("name", learners())
def test_every_setting_is_a_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(agent_class(name).config_class)]
    for field in [*fields, "task", "resume", "device"]:
        assert f"--{field.replace('_', '-')}" in shown
    assert "Step size of AdamW" in shown


def test_training_and_what_it_leaves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(3, tmp_path, "--learning-rate", "0.25")) == 0
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "iteration 3, nfe " in shown
    assert len(read_metrics(tmp_path)) == 3
    agent = Agent.load(tmp_path / AGENT_FOLDER, device="cpu")
    assert agent.config.learning_rate == 0.25
    with (tmp_path / "samples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["when"] for row in rows] == ["before"] * 4 + ["after"] * 4
    untrained = agent_class("sepo")("ToyCTMC-v0", device="cpu", num_steps=4)
    task = agent.task
    for rows_then, then in ((rows[:4], untrained), (rows[4:], agent)):
        tokens = then.sample_tokens(4, seed=0)
        assert [row["sequence"] for row in rows_then] == task.decode(tokens)
        assert [float(row["reward"]) for row in rows_then] == pytest.approx(task.make_reward()(tokens).tolist())
        assert [float(row["held_out_reward"]) for row in rows_then] == pytest.approx(task.judge()(tokens).tolist())
    assert all(f"{float(row['reward']):+8.3f}" in shown and row["sequence"] in shown for row in rows)


def test_resume_is_exact(tmp_path: Path) -> None:
    assert main(flags(4, tmp_path / "whole", "--quiet")) == 0
    assert main(flags(2, tmp_path / "parted", "--quiet")) == 0
    assert main(flags(4, tmp_path / "parted", "--quiet", "--resume")) == 0
    whole, parted = (Agent.load(tmp_path / name / AGENT_FOLDER, device="cpu") for name in ("whole", "parted"))
    for parameter, value in whole.denoiser.state_dict().items():
        assert torch.equal(parted.denoiser.state_dict()[parameter], value)


def test_refusals_exit_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(1, tmp_path, "--quiet")) == 0
    assert main(flags(1, tmp_path, "--quiet")) == 1
    assert "CheckpointError" in capsys.readouterr().err
    assert main([*flags(2, tmp_path, "--quiet", "--resume", "--seed", "3")]) == 1
    assert "seed was 0, is 3" in capsys.readouterr().err
    assert main(["sepo", "--task", "toys", "--quiet"]) == 1
    assert "did you mean 'toy'" in capsys.readouterr().err
    assert main(flags(1, None, "--quiet", "--reward", "tabel")) == 1
    assert "did you mean 'table'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "wrong", [["sepoo"], ["sepo", "--no-such-flag"], ["sepo", "--form", "paths"], ["sepo", "--seed", "1.5"], []]
)
def test_wrong_usage_exits_with_two(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(wrong)
    assert caught.value.code == 2
    assert capsys.readouterr().err


@pytest.mark.parametrize("name", learners())
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--batch-size", "1"], "batch_size is 1, but must be a whole number from 2"),
        (["--batch-size", "10000000000"], "batch_size is 10000000000, but must be"),
        (["--seed", "-1"], "seed is -1, but must be a whole number from 0"),
        (["--learning-rate", "nan"], "learning_rate is nan (float), but must be a finite number"),
        (["--learning-rate", "inf"], "learning_rate is inf (float), but must be a finite number"),
        (["--samples", "-1"], "samples is -1, but must be a whole number from 0"),
        (["--minibatches", "99999"], "minibatches is 99999, but must be at most"),
        (["--log-dir", "~nobody of that name/a"], "a home that this machine does not know"),
    ],
)
def test_values_that_cannot_be_exit_with_two_and_one_line(
    name: str, wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, *wrong])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("InvalidArgumentError: ")
    assert message in line


@pytest.mark.parametrize(
    "wrong",
    [
        ["--task-options", "{"],
        ["--task-options", "[1]"],
        ["--task-options", '{"length": NaN}'],
        ["--task-options", "[" * 100_000],
        ["--task-options", '{"nothing of that name": 1}'],
        ["--prompt", "ZZZZ"],
        ["--prompt", "ABCABC"],
        ["--device", "bogus"],
        ["--reward", "bogus"],
        ["--guidance-label", "3"],
        ["--resume"],
    ],
    ids=lambda wrong: " ".join(wrong)[:40],
)
def test_what_does_not_fit_exits_with_one_and_one_line(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags(1, None, "--quiet", *wrong)) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match("[A-Za-z]+Error: .+", line)


@pytest.mark.parametrize("memory", [MemoryError(), torch.OutOfMemoryError("no room"), RuntimeError(NO_MEMORY)])
def test_a_lack_of_memory_is_told_with_a_way_out(
    memory: Exception, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise memory

    with monkeypatch.context() as patch:
        patch.setattr("agents.training.update.Updater.update", fail)
        assert main(flags(1, tmp_path, "--quiet")) == 1
    shown = capsys.readouterr().err
    assert "Give a smaller --micro-batch-size" in shown
    assert "--resume" in shown
    assert main(flags(1, tmp_path, "--quiet", "--resume", "--micro-batch-size", "2")) == 0
    monkeypatch.setattr("agents.training.update.Updater.update", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # a fault of the program keeps its traceback
        main(flags(1, None, "--quiet"))


def test_divergence_exits_with_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--learning-rate", "2", "--inner-epochs", "8", "--max-ratio", "1.5", "--quiet"]
    assert main(flags(20, tmp_path, *wild)) == 3
    shown = capsys.readouterr().err
    assert "max_ratio is 1.5" in shown
    assert str(checkpoint_path(tmp_path)) in shown


def test_interruption_exits_with_130_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("agents.training.evaluation.Evaluator.evaluate", interrupt)
        assert main(flags(4, tmp_path, "--quiet", "--eval-every", "3")) == 130
    shown = capsys.readouterr().err
    assert "last whole iteration is 2" in shown
    assert "--resume" in shown
    assert main(flags(4, tmp_path, "--quiet", "--eval-every", "3", "--resume")) == 0
    assert [row["iteration"] for row in read_metrics(tmp_path)] == [1, 2, 3, 4]


def test_options_of_the_reward_are_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    floored = ["--on-error", "floor", "--floor", "-1", "--quiet"]
    assert main(flags(1, tmp_path, *floored)) == 0
    assert main(flags(2, tmp_path, "--resume", "--quiet")) == 1
    assert "reward.floor was -1.0, is None" in capsys.readouterr().err
    assert main(flags(2, tmp_path, *floored, "--resume", "--cache", "5")) == 0
    for wrong, message in (
        (["--workers", "2"], "workers=2 spreads functions of strings"),
        (["--timeout", "3"], "a timeout needs worker processes"),
        (["--floor", "-1"], "a floor is used with on_error='floor' only"),
    ):
        assert main(flags(1, None, *wrong)) == 1
        assert message in capsys.readouterr().err
