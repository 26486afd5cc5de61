"""The speed command: its yardstick samples the right law, its verdicts follow the intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks import _measurements, speed
from sepo_env import tasks
from sepo_env.diffusion.enumeration import state_index


def test_the_plain_loop_samples_the_same_law_as_the_library() -> None:
    task = tasks.make("toy", num_tokens=2, length=3, num_steps=4)
    torch.manual_seed(0)
    tokens = _measurements.plain_loop(task.process, task.denoiser, 20_000, 3, 4, "cpu")
    counts = np.bincount(state_index(tokens, 2).numpy(), minlength=8)
    law = task.exact_law(task.denoiser).detach().numpy()
    assert scipy.stats.chisquare(counts, 20_000 * law / law.sum()).pvalue > 1e-3


def test_a_goal_is_missed_where_the_whole_interval_misses_it() -> None:
    def reached(low: float, high: float, at_most: bool) -> bool:
        return speed.Figure("x", 0.1, low, high, goal=0.1, at_most=at_most).reached

    intervals = ((0.05, 0.09), (0.08, 0.2), (0.11, 0.2))
    assert [reached(*interval, at_most=True) for interval in intervals] == [True, True, False]
    assert [reached(*interval, at_most=False) for interval in intervals] == [False, True, True]


def test_a_ratio_is_of_the_timings_of_one_turn() -> None:
    calls: list[str] = []

    def timing(name: str, values: list[float]) -> float:
        calls.append(name)
        return values[calls.count(name) - 1]

    bench = _measurements.Bench(_measurements.Options(repeats=2))
    above, below = [9.0, 2.0, 3.0], [9.0, 1.0, 2.0]  # the first of each warms up
    ratios = list(_measurements.in_turns(bench, lambda: timing("above", above), lambda: timing("below", below)))
    assert ratios == [2.0, 1.5]
    assert calls == ["above", "below", "above", "below", "below", "above"]


def test_the_command_measures_and_says_what_was_missed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "speed.json"
    options = _measurements.Options(repeats=2, num_envs=2, num_steps=2, json=path)
    status = speed.main(options)
    records = json.loads(path.read_text())
    assert [record["name"] for record in records] == [title for _, title, _, _ in speed.MEASUREMENTS.values()]
    assert status == (0 if all(record["reached"] for record in records) else 1)
    assert all(record["low"] <= record["value"] <= record["high"] for record in records)
    shown = capsys.readouterr().out
    assert shown.count("pass") + shown.count("FAIL") == len(records)
