"""A comparison of which anything is missing says so everywhere, and its costs are never called matched."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks import compare
from benchmarks.comparison import scheduler
from benchmarks.comparison.runs import Run, plan
from benchmarks.comparison.verdict import Unfinished, judge
from sepo_env.errors import DivergenceError

OPTIONS = compare.Options(
    task="ToyCTMC-v0", smoke=True, agents=("pretrained", "sepo", "ddpo"), seeds=(0, 1), workers=1, device="cpu"
)


@pytest.fixture
def options(tmp_path: Path) -> compare.Options:
    return dataclasses.replace(OPTIONS, output=tmp_path / "out")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Replaces the work of a run by made-up results; gives the names of those that are to fail instead."""
    names: set[str] = set()

    def execute(run: Run, output: Path, device: str, report: object) -> None:
        if run.name in names:
            raise DivergenceError(f"{run.name} is\ntoo hot")
        trained = run.agent != "pretrained"
        costs = {"iteration": [1, 2], "nfe": [50, 100], "reward_calls": [5, 10]}
        curve = {**costs, "held_out_reward": [0.1, 0.2], "eval_reward": [0.1, 0.3]}
        cost = {"iteration": 2, "nfe": 100, "reward_calls": 10, "wall_time": 1.0} if trained else {"nfe": 0}
        samples = {"sequence": ["AAAA", "ABAB"], "training_reward": [0.2, 0.2], "held_out_reward": [0.1, 0.3]}
        run.finish(
            output,
            pd.DataFrame(curve if trained else {"iteration": []}),
            pd.DataFrame(samples),
            {"reward_calls": 0, **cost, "held_out_median": 0.2},
        )

    monkeypatch.setattr(scheduler, "execute", execute)
    return names


def test_a_whole_comparison_has_matched_costs(
    options: compare.Options, failing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(options, "command") == 0
    assert "Costs are matched: largest over smallest run, nfe 0.0 %, reward_calls 0.0 %, allowed 5 %" in (
        capsys.readouterr().out
    )
    assert "2 of 2" in (options.folder / "summary.md").read_text()


@pytest.mark.parametrize("missing", [{"sepo/seed-1"}, {"sepo/seed-0", "sepo/seed-1"}, {"pretrained/seed-0"}])
def test_a_failed_run_is_told_in_every_place(
    options: compare.Options, failing: set[str], missing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    failing |= missing
    assert compare.main(options, "command") == 1
    said = capsys.readouterr()
    written = [(options.folder / name).read_text() for name in ("report.md", "summary.md")]
    for text in (said.out, *written):
        assert "THE COMPARISON IS INCOMPLETE" in text
        assert f"{6 - len(missing)} of 6 runs finished" in text
        assert "matched" not in text
        for name in missing:
            assert f"{name} FAILED: DivergenceError: {name} is too hot" in text
    for name in missing:
        (line,) = [line for line in said.err.splitlines() if line.startswith(f"{name} FAILED")]
        assert "DivergenceError" in line
    summary = pd.read_csv(options.folder / "summary.csv").set_index("agent")
    assert summary["planned_seeds"].tolist() == [2, 2, 2]
    assert summary["seeds"].to_dict() == {
        agent: 2 - sum(name.startswith(agent) for name in missing) for agent in options.agents
    }
    agent = next(iter(missing)).partition("/")[0]
    assert f"**{2 - len(missing)} of 2**" in written[1]
    assert agent in written[1].splitlines()[0]


def test_where_all_fail_the_reasons_are_shown(
    options: compare.Options, failing: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(options, "command") == 0
    assert (options.folder / "runs.csv").exists()
    shutil.rmtree(options.folder / "runs")
    failing |= {run.name for run in plan(options.make_suite())}
    assert compare.main(options, "command") == 1
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if " FAILED: DivergenceError" in line and "(error.txt" in line]
    assert sorted(line.split()[0] for line in lines) == sorted(failing)
    report = (options.folder / "report.md").read_text()
    assert "0 of 6 runs finished" in report
    assert all(name in report for name in failing)
    # Nothing is left that the earlier comparison said.
    assert {path.name for path in options.folder.iterdir()} == {"report.md", "runs", "run.lock"}


def test_results_that_vanish_while_others_run_are_missed(
    options: compare.Options, failing: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all = compare.run_all

    def and_delete(runs: list[Run], output: Path, **rest: Any) -> list[scheduler.Failure]:
        failures = run_all(runs, output, **rest)
        shutil.rmtree(output / "runs" / "ddpo")
        (output / "runs" / "sepo" / "seed-1" / "samples.csv").write_text("sequence\n")
        return failures

    monkeypatch.setattr(compare, "run_all", and_delete)
    assert compare.main(options, "command") == 1
    said = capsys.readouterr()
    assert "3 of 6 runs finished" in said.out
    assert "ddpo/seed-1 FAILED: its results are not in" in said.err
    assert "samples.csv: it is damaged" in said.err
    monkeypatch.undo()


def test_the_whole_folder_may_vanish(
    options: compare.Options, failing: set[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_all = compare.run_all

    def and_delete(runs: list[Run], output: Path, **rest: Any) -> list[scheduler.Failure]:
        failures = run_all(runs, output, **rest)
        shutil.rmtree(output)
        return failures

    monkeypatch.setattr(compare, "run_all", and_delete)
    assert compare.main(options, "command") == 1
    assert "0 of 6 runs finished" in (options.folder / "report.md").read_text()
    monkeypatch.setattr(compare, "run_all", run_all)
    assert compare.main(options, "command") == 0


RUNS = pd.DataFrame(
    [("pretrained", 0, 0, 0), ("sepo", 0, 1000, 320), ("ddpo", 0, 1040, 320)],
    columns=["agent", "seed", "nfe", "reward_calls"],
)


@pytest.mark.parametrize(
    ("nfe", "sound"),
    [([0, 1000, 1049], True), ([0, 1000, 1051], False), ([0, 0, 1000], False), ([0, math.nan, 1000], False)],
)
def test_costs_agree_within_the_tolerance_or_not_at_all(nfe: list[float], sound: bool) -> None:
    verdict = judge(RUNS.assign(nfe=nfe), [])
    assert verdict.is_sound is sound
    assert verdict.sentence().startswith("Costs are matched" if sound else "**COSTS ARE NOT MATCHED**")


def test_the_missing_run_outweighs_agreeing_costs() -> None:
    verdict = judge(RUNS, [Unfinished("ppo/seed-0", "too hot")])
    assert not verdict.is_sound
    assert "3 of 4 runs finished" in verdict.sentence()
    assert "nfe 4.0 %" in verdict.sentence()


def test_without_training_there_are_no_costs() -> None:
    verdict = judge(RUNS.iloc[:1], [])
    assert verdict.is_sound
    assert "matched" not in verdict.sentence()
    assert not judge(pd.DataFrame(), [Unfinished("pretrained/seed-0", "gone")]).is_sound
