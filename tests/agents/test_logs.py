"""What a run writes down."""

import importlib.util
from pathlib import Path

import pytest

from agents.training.logs import METRICS_FILE, TENSORBOARD_FOLDER, Row, RunLog, read_metrics
from sepo_env.errors import MissingExtraError
from tests.agents.events import read_events

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
    events = read_events(tmp_path / TENSORBOARD_FOLDER)
    assert [(step, round(value, 6)) for step, value in events["reward"]] == [(1, 0.333333), (2, 0.0)]
    assert events["held_out"] == [(2, 2.5)]


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


def test_what_is_missing_or_surplus_in_the_events_is_mended(tmp_path: Path) -> None:
    rows = [{"iteration": n, "reward": float(n), "held_out": None if n % 2 else n / 2} for n in range(1, 6)]
    with RunLog(tmp_path, "on", rows[:2]) as log:  # none of which has been written yet
        log.append(rows[2])
        log.append(rows[3] | {"reward": 99.0})  # later than the checkpoint
    newest = max((tmp_path / TENSORBOARD_FOLDER).iterdir())
    for _ in range(2):
        with RunLog(tmp_path, "on", rows[:3]) as log:
            log.append(rows[3])
            log.append(rows[4])
        events = read_events(tmp_path / TENSORBOARD_FOLDER)
        assert events["reward"] == [(n, float(n)) for n in range(1, 6)]
        assert events["held_out"] == [(2, 1.0), (4, 2.0)]
        newest.write_bytes(newest.read_bytes()[:-3])  # as a killed process leaves it
    assert read_metrics(tmp_path) == rows


def test_rows_may_name_their_figures_in_another_order(tmp_path: Path) -> None:
    with RunLog(tmp_path, "off") as log:
        log.append({"iteration": 1, "reward": 0.5, "loss": 2.0})
        log.append({"loss": 3.0, "iteration": 2, "reward": 0.25})
    assert read_metrics(tmp_path)[1] == {"iteration": 2, "reward": 0.25, "loss": 3.0}


def test_an_error_leaves_the_log_in_line_with_the_rows(tmp_path: Path) -> None:
    def stopped(rows: list[Row]) -> None:
        with RunLog(tmp_path, "on", rows):
            rows.pop()  # taken back
            raise KeyError

    with pytest.raises(KeyError):
        stopped(list(ROWS))
    assert read_metrics(tmp_path) == ROWS[:1]
    events = read_events(tmp_path / TENSORBOARD_FOLDER)
    assert (len(events["reward"]), len(events["held_out"])) == (1, 0)
