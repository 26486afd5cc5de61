"""What a run writes down."""

import importlib.util
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.logs import METRICS_FILE, TENSORBOARD_FOLDER, RunLog, read_metrics
from sepo_env.errors import MissingExtraError

ROWS = [{"iteration": 1, "reward": 1 / 3, "held_out": None}, {"iteration": 2, "reward": -1e-30, "held_out": 2.5}]


def test_table_keeps_every_digit(tmp_path: Path) -> None:
    with RunLog(tmp_path / "run", "off") as log:
        for row in ROWS:
            log.append(row)
            assert read_metrics(tmp_path / "run")[-1] == row, "a run can be watched"
    assert read_metrics(tmp_path / "run") == ROWS
    assert (tmp_path / "run" / METRICS_FILE).read_text().splitlines()[0] == "iteration,reward,held_out"
    assert not (tmp_path / "run" / TENSORBOARD_FOLDER).exists()


def test_continued_table_holds_no_row_twice(tmp_path: Path) -> None:
    with RunLog(tmp_path, "off") as log:
        for row in ROWS:
            log.append(row)
    with RunLog(tmp_path, "off", ROWS[:1]) as log:
        log.append({**ROWS[1], "reward": 7.0})
    assert [row["reward"] for row in read_metrics(tmp_path)] == [1 / 3, 7.0]


def test_tensorboard_gets_the_same_figures(tmp_path: Path) -> None:
    with RunLog(tmp_path, "on") as log:
        for row in ROWS:
            log.append(row)
    events = EventAccumulator(str(tmp_path / TENSORBOARD_FOLDER)).Reload()
    assert [(e.step, round(e.value, 6)) for e in events.Scalars("reward")] == [(1, 0.333333), (2, 0.0)]
    assert [(e.step, e.value) for e in events.Scalars("held_out")] == [(2, 2.5)]


def test_missing_tensorboard_is_an_error_only_where_it_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find_spec(name))
    with RunLog(tmp_path, "auto") as log:
        log.append(ROWS[0])
    assert read_metrics(tmp_path) == ROWS[:1]
    with pytest.raises(MissingExtraError, match="tensorboard is not installed"):
        RunLog(tmp_path, "on")


def test_without_a_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with RunLog(None, "auto") as log:
        log.append(ROWS[0])
    assert list(tmp_path.iterdir()) == []
