"""Tables from synthetic runs, by hand."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from benchmarks.comparison.statistics import Estimate
from benchmarks.comparison.tables import (
    PRETRAINED,
    cost_spread,
    format_estimate,
    improvement_table,
    markdown_table,
    summarise,
    summary_markdown,
)

PLANNED = {PRETRAINED: 2, "sepo": 2, "ddpo": 2}


@pytest.fixture
def runs() -> pd.DataFrame:
    return pd.DataFrame(
        [
            (PRETRAINED, 0, 0, 0, 0.5),
            (PRETRAINED, 1, 0, 0, 0.7),
            ("sepo", 0, 1000, 320, 2.0),
            ("sepo", 1, 1000, 320, 4.0),
            ("ddpo", 0, 1040, 320, 1.0),
            ("ddpo", 1, 1040, 320, 2.0),
        ],
        columns=["agent", "seed", "nfe", "reward_calls", "held_out_median"],
    ).assign(task="Toy-v0")


def test_summary_by_hand(runs: pd.DataFrame) -> None:
    summary = summarise(runs, PLANNED)
    assert list(summary.index) == [PRETRAINED, "sepo", "ddpo"]
    assert summary.loc["sepo", "held_out_median"] == 3.0
    # Two seeds: the resamples are (2, 2), (2, 4), (4, 2), (4, 4), so that the interval is the range of the runs.
    assert tuple(summary.loc["sepo", ["held_out_median_low", "held_out_median_high"]]) == (2.0, 4.0)
    assert summary.loc["ddpo", "nfe_deviation"] == pytest.approx(1040 / 1020 - 1)
    assert summary.loc["sepo", "reward_calls_deviation"] == 0.0
    assert np.isnan(summary.loc[PRETRAINED, "nfe_deviation"])


def test_cost_spread_is_of_the_trained_runs_only(runs: pd.DataFrame) -> None:
    assert cost_spread(runs) == {"nfe": pytest.approx(0.04), "reward_calls": 0.0}
    assert cost_spread(runs[runs["agent"] == PRETRAINED]) == {"nfe": 0.0, "reward_calls": 0.0}


@pytest.mark.parametrize(
    ("costs", "expected"),
    [([0, 100], math.inf), ([0, 0], 0.0), ([math.nan, 100], math.nan), ([-1, 100], math.nan), ([100, 100], 0.0)],
)
def test_costs_that_are_none_do_not_agree_with_others(costs: list[float], expected: float) -> None:
    runs = pd.DataFrame({"agent": ["sepo", "ppo"], "nfe": costs, "reward_calls": [5, 5]})
    assert cost_spread(runs) == {"nfe": pytest.approx(expected, nan_ok=True), "reward_calls": 0.0}


def test_an_agent_without_a_run_is_in_the_table(runs: pd.DataFrame) -> None:
    some = runs[(runs["agent"] != "ddpo") & ~((runs["agent"] == "sepo") & (runs["seed"] == 1))]
    summary = summarise(some, PLANNED)
    assert summary["seeds"].to_dict() == {PRETRAINED: 2, "sepo": 1, "ddpo": 0}
    assert summary["planned_seeds"].to_dict() == PLANNED
    header, _, seeds, reward = summary_markdown(summary, {"held_out_median": "reward"}).splitlines()[:4]
    assert "ddpo" in header
    assert [cell.strip() for cell in seeds.strip("|").split("|")[1:]] == ["2 of 2", "**1 of 2**", "**0 of 2**"]
    assert reward.strip("|").split("|")[-1].strip() == "-"


def test_improvement_table_by_hand(runs: pd.DataFrame) -> None:
    table = improvement_table(runs, "held_out_median")
    assert table.loc["sepo", PRETRAINED].startswith("1.00")
    assert table.loc["ddpo", "sepo"].startswith("0.12")  # of four pairs three lost, one tied
    assert table.loc["sepo", "ddpo"].startswith("0.88")
    assert table.loc["sepo", "sepo"] == ""


def test_markdown_has_a_row_a_metric_and_a_column_an_agent(runs: pd.DataFrame) -> None:
    labels = {"held_out_median": "reward (u)", "absent": "never shown", "nfe": "NFE"}
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in summary_markdown(summarise(runs, PLANNED), labels).splitlines()
    ]
    assert rows[0] == ["", PRETRAINED, "sepo", "ddpo"]
    assert rows[2] == ["finished seeds", "2 of 2", "2 of 2", "2 of 2"]
    assert rows[3] == ["reward (u)", "0.60 [0.50, 0.70]", "3.00 [2.00, 4.00]", "1.50 [1.00, 2.00]"]
    assert rows[4] == ["NFE", "0", "1,000", "1,040"]
    assert rows[5] == ["NFE, deviation from the median agent", "-", "-2.0 %", "+2.0 %"]
    assert len({len(row) for row in rows}) == 1


def test_cells() -> None:
    assert format_estimate(Estimate(1.234, 1.0, 2.0), 1) == "1.2 [1.0, 2.0]"
    assert format_estimate(Estimate(1.234, np.nan, np.nan), 1) == "1.2"
    assert format_estimate(Estimate(np.nan, np.nan, np.nan), 1) == "-"
    assert markdown_table(pd.DataFrame({"a": ["1"], "bb": ["22"]}, index=["x"])).splitlines() == [
        "|   | a | bb |",
        "|---|---|----|",
        "| x | 1 | 22 |",
    ]
