"""Comparisons on artefacts: runs carry what the files hold, not where they lie."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import compare, tune
from benchmarks.comparison.report import reference_of
from benchmarks.comparison.runs import plan
from benchmarks.comparison.suite import Evaluation, make_suite, task_options
from benchmarks.comparison.worker import execute
from sepo_env import tasks
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownOptionError
from sepo_env.tasks.artefact_files import ARTEFACTS


@pytest.fixture
def folder(tmp_path: Path, fake_grelu, monkeypatch: pytest.MonkeyPatch) -> Path:  # type: ignore[no-untyped-def]
    fake_grelu.install(monkeypatch)
    fake_grelu.write_folder(tmp_path / "data")
    return tmp_path / "data"


def test_a_run_on_other_artefacts_is_another_run(folder: Path, tmp_path: Path, fake_grelu) -> None:  # type: ignore[no-untyped-def]
    options = compare.Options(artefacts=folder, agents=("pretrained",), seeds=(0,))
    assert options.folder == Path("runs/DNAEnhancer-v0-artefacts-default")
    (run,) = plan(options.make_suite())
    run.claim(tmp_path / "out")
    moved = Path(shutil.move(folder, tmp_path / "moved"))
    (same,) = plan(compare.Options(**{**vars(options), "artefacts": moved}).make_suite())
    same.claim(tmp_path / "out")
    fake_grelu.write(moved / ARTEFACTS["held-out oracle"].path, 3, seed=9)
    (other,) = plan(compare.Options(**{**vars(options), "artefacts": moved}).make_suite())
    with pytest.raises(CheckpointError, match=r"other settings \(world.task.artefacts.held-out oracle \w+ -> \w+\)"):
        other.claim(tmp_path / "out")
    (shipped,) = plan(make_suite("DNAEnhancer-v0", "default", agents=("pretrained",), seeds=(0,)))
    assert "task_options" not in shipped.config()
    with pytest.raises(CheckpointError, match="world.task.artefacts.accessibility oracle [0-9a-f]+ -> None"):
        shipped.claim(tmp_path / "out")


def test_the_published_oracles_judge_the_run(folder: Path, tmp_path: Path) -> None:
    options = {"artefacts": str(folder)}
    suite = make_suite("DNAEnhancer-v0", "smoke", agents=("pretrained",), seeds=(0,), task_options=options)
    suite = dataclasses.replace(suite, evaluation=Evaluation(4, 2, {"num_likelihood_steps": 1}))
    (run,) = plan(suite)
    execute(run, tmp_path / "out", "cpu", lambda progress: None)
    samples = pd.read_csv(run.folder(tmp_path / "out") / "samples.csv")
    task = tasks.make("dna_enhancer", artefacts=folder)
    tokens = task.encode(list(samples["sequence"]))
    assert samples["held_out_reward"].tolist() == pytest.approx(task.judge()(tokens).tolist())
    assert reference_of(suite).kmers.tolist() == task.reference["three_mers_top_0_1_percent"].tolist()


def test_tuning_tables_of_the_shipped_world_are_kept(folder: Path, tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    folders = []

    def run_all(runs, output, **options):  # type: ignore[no-untyped-def]
        folders.append(output)
        raise KeyboardInterrupt

    monkeypatch.setattr(tune, "run_all", run_all)
    options = tune.Options(artefacts=folder, device="cpu", output=tmp_path / "runs", tables=tmp_path / "tables")
    with pytest.raises(KeyboardInterrupt):
        tune.main(options)
    assert folders == [tmp_path / "runs" / "DNAEnhancer-v0-artefacts" / "agents"]


def test_options_of_the_task_on_the_command_line() -> None:
    assert task_options('{"length": 3}', None) == {"length": 3}
    with pytest.raises(InvalidArgumentError, match="give one of them"):
        task_options('{"artefacts": "a"}', Path("b"))
    options = compare.Options(task="ToyCTMC-v0", task_options='{"length": 3}', agents=("pretrained",), seeds=(0,))
    (run,) = plan(options.make_suite())
    assert run.config()["task_options"] == {"length": 3}
    with pytest.raises(UnknownOptionError, match="the task 'toy' got .*'artefacts'"):
        plan(compare.Options(task="ToyCTMC-v0", artefacts=Path("b")).make_suite())
