"""From finished runs to tables: the tidy log of every step, one row per run, one row per agent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from benchmarks.comparison.statistics import Estimate, interquartile_estimate, probability_of_improvement

PRETRAINED = "pretrained"
"""Name under which the denoiser as it was shipped enters the comparison; it has no training cost."""

MAX_COST_SPREAD = 0.05
"""Largest relative difference in cost between agents at which they may be called matched."""

RUN_KEYS = ["task", "agent", "seed"]
COST_COLUMNS = ["iteration", "nfe", "reward_calls", "wall_time"]


def summarise(runs: pd.DataFrame, planned: Mapping[str, int]) -> pd.DataFrame:
    """Interquartile mean and 95 % bootstrap interval over seeds of every column of the runs.

    Args:
        runs: one row per finished run: task, agent, seed, and numeric columns (cost and metrics).
        planned: the number of seeds of each agent, those that did not finish as well.

    Returns:
        One row per planned agent: ``seeds`` (of how many there is a run), ``planned_seeds``, then for every numeric
        column ``name`` the columns ``name`` (interquartile mean), ``name_low`` and ``name_high``, NaN where no run
        finished; then ``nfe_deviation`` and ``reward_calls_deviation``, the relative distance to the median cost of
        the trained agents.
    """
    names = [column for column in runs.columns if column not in RUN_KEYS]
    rows = []
    for agent, number in planned.items():
        group = runs[runs["agent"] == agent]
        row: dict[str, object] = {"agent": agent, "seeds": len(group), "planned_seeds": number}
        for name in names:
            estimate = interquartile_estimate(group[name]) if len(group) else Estimate(np.nan, np.nan, np.nan)
            row[name], row[f"{name}_low"], row[f"{name}_high"] = estimate
        rows.append(row)
    summary = pd.DataFrame(rows).set_index("agent")
    trained = summary.index != PRETRAINED
    for cost in ("nfe", "reward_calls"):
        middle = summary.loc[trained, cost].median() if trained.any() else np.nan
        summary[f"{cost}_deviation"] = (summary[cost] / middle - 1.0).where(trained)
    return summary


def cost_spread(runs: pd.DataFrame) -> dict[str, float]:
    """Largest over smallest cost of all trained runs, minus 1, for ``nfe`` and ``reward_calls``; 0 for one run.

    The comparison is between equals only while both stay below :data:`MAX_COST_SPREAD`.
    """
    trained = runs[runs["agent"] != PRETRAINED]
    if trained.empty:
        return {"nfe": 0.0, "reward_calls": 0.0}
    return {cost: _spread(trained[cost]) for cost in ("nfe", "reward_calls")}


def _spread(costs: pd.Series) -> float:
    low, high = float(costs.min(skipna=False)), float(costs.max(skipna=False))
    if low == high:
        return 0.0
    return high / low - 1.0 if low > 0 else math.inf if low == 0 else math.nan


def improvement_table(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Probability of improvement in ``metric`` of the row's agent over the column's, as text with its interval."""
    agents = list(dict.fromkeys(runs["agent"]))
    values = {agent: runs.loc[runs["agent"] == agent, metric].to_numpy() for agent in agents}
    cells = {
        column: [
            "" if row == column else format_estimate(probability_of_improvement(values[row], values[column]), 2)
            for row in agents
        ]
        for column in agents
    }
    return pd.DataFrame(cells, index=pd.Index(agents, name="P(row > column)"))


def summary_markdown(summary: pd.DataFrame, labels: dict[str, str]) -> str:
    """The summary as a Markdown table: one row per metric, one column per agent, interval in brackets.

    Args:
        summary: what :func:`summarise` gives.
        labels: column -> label with its unit, in the order of the rows; columns that the summary lacks are left out.
    """
    finished = zip(summary["seeds"], summary["planned_seeds"], strict=True)
    rows = {"finished seeds": [_share(*numbers) for numbers in finished]}
    for name, label in labels.items():
        if name not in summary:
            continue
        digits = _digits(summary[name])
        rows[label] = [
            format_estimate(Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"]), digits)
            for _, row in summary.iterrows()
        ]
    for cost in ("nfe", "reward_calls"):
        label = f"{labels.get(cost, cost)}, deviation from the median agent"
        rows[label] = [_percent(value) for value in summary[f"{cost}_deviation"]]
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index", columns=list(summary.index)))


def markdown_table(frame: pd.DataFrame) -> str:
    """A frame of text cells as a GitHub Markdown table, index first.

    >>> print(markdown_table(pd.DataFrame({"a": ["1"]}, index=["x"])))
    |   | a |
    |---|---|
    | x | 1 |
    """
    header = [str(frame.index.name or ""), *map(str, frame.columns)]
    body = [[str(name), *map(str, cells)] for name, cells in zip(frame.index, frame.to_numpy(), strict=True)]
    widths = [max(1, *(len(row[i]) for row in [header, *body])) for i in range(len(header))]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in [header, *body]
    ]
    return "\n".join([lines[0], rule, *lines[1:]])


def format_estimate(estimate: Estimate, digits: int) -> str:
    """A value with its interval, ``1.20 [1.10, 1.30]``; no interval where there is none or it is the value itself.

    >>> format_estimate(Estimate(1.2, 1.1, 1.3), 2), format_estimate(Estimate(7.0, 7.0, 7.0), 0)
    ('1.20 [1.10, 1.30]', '7')
    """
    if np.isnan(estimate.value):
        return "-"
    value, low, high = (f"{part:,.{digits}f}" for part in estimate)
    return value if np.isnan(estimate.low) or low == high else f"{value} [{low}, {high}]"


def _share(finished: int, planned: int) -> str:
    text = f"{finished} of {planned}"
    return text if finished == planned else f"**{text}**"


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:+.1f} %"


def _digits(values: pd.Series) -> int:
    """Decimals that show three figures of the largest value: 3 below 1, 0 from 100 on."""
    largest = np.nanmax(np.abs(values.to_numpy(dtype=float)), initial=0.0)
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 3)) if largest > 0 else 0
