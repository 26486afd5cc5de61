"""Runs one after the other: failures are kept apart, finished ones skipped, Ctrl-C passed on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.comparison import scheduler
from benchmarks.comparison.runs import Run
from benchmarks.comparison.suite import Evaluation
from benchmarks.comparison.worker import Progress
from sepo_env.errors import DivergenceError

RUNS = [Run("Toy-v0", "ddpo", seed, {"max_nfe": 100}, Evaluation(2, 5, {}), None, {}) for seed in range(3)]


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the work of a run; gives the seeds of the runs that were carried out."""
    seeds: list[int] = []

    def execute(run: Run, output: Path, device: str, report: Callable[[Progress], None]) -> None:
        run.claim(output)
        seeds.append(run.seed)
        report(Progress(run.name, 50.0, "half way"))
        if run.seed == 1 and not (output / "healed").exists():
            raise DivergenceError("too hot")
        run.finish(output, pd.DataFrame({"iteration": []}), pd.DataFrame(), {"nfe": 100})

    monkeypatch.setattr(scheduler, "execute", execute)
    return seeds


def test_a_failure_does_not_stop_the_others_and_is_tried_again(
    tmp_path: Path, done: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    (failure,) = scheduler.run_all(RUNS, tmp_path, device="cpu", workers=1)
    assert failure.run is RUNS[1]
    assert failure.message == "DivergenceError: too hot"
    assert done == [0, 1, 2]
    assert "ddpo/seed-1: FAILED: DivergenceError: too hot (1/3)" in capsys.readouterr().err
    report = RUNS[1].folder(tmp_path) / "error.txt"
    assert "Traceback" in report.read_text()
    (tmp_path / "healed").touch()
    assert scheduler.run_all(RUNS, tmp_path, device="cpu", workers=1) == []
    assert done == [0, 1, 2, 1]
    assert not report.exists()


def test_nothing_is_left_to_do_where_all_is_finished(tmp_path: Path, done: list[int]) -> None:
    (tmp_path / "healed").touch()
    scheduler.run_all(RUNS, tmp_path, device="cpu", workers=1)
    done.clear()
    assert scheduler.run_all(RUNS, tmp_path, device="cpu", workers=4) == []
    assert done == []


def test_ctrl_c_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def execute(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        scheduler.run_all(RUNS, tmp_path, device="cpu", workers=1)


def test_the_whole_moves_on_by_the_work_of_each_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler.sys.stderr, "isatty", lambda: True, raising=False)
    with scheduler.Board(RUNS, RUNS, lines=2) as board:
        board.show(Progress(RUNS[0].name, 40.0, ""))
        board.show(Progress(RUNS[1].name, 10.0, ""))
        board.show(Progress(RUNS[0].name, 60.0, ""))
        assert board._whole.n == 70.0
        board.close(RUNS[0], None)
        assert board._whole.n == 110.0 + 10.0  # 100 of training and 10 of sampling
        board.show(Progress(RUNS[2].name, 5.0, ""))
        assert board._whole.n == 125.0
        assert board._whole.total == 3 * 110.0


def test_an_error_in_another_process_is_told_whatever_its_class(tmp_path: Path) -> None:
    evaluation = Evaluation(4, 2, {})
    good = Run("ToyCTMC-v0", "pretrained", 0, {}, evaluation, None, {})
    # The error names what is known besides its message: such an exception cannot be sent to another process.
    bad = Run("ToyCTMC-v0", "ddpo", 0, {"learning_rat": 0.1}, evaluation, None, {})
    (failure,) = scheduler.run_all([bad, good], tmp_path, device="cpu", workers=2)
    assert failure.run == bad
    assert "UnknownNameError" in failure.message
    assert "did you mean 'learning_rate'" in (bad.folder(tmp_path) / "error.txt").read_text()
    assert good.is_finished(tmp_path)
