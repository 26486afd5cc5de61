"""From finished runs to tables: the tidy log of every step, one row per run, one row per agent."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.comparison.statistics import Estimate, interquartile_estimate, probability_of_improvement

PRETRAINED = "pretrained"
"""Name under which the denoiser as it was shipped enters the comparison; it has no training cost."""

MAX_COST_SPREAD = 0.05
"""Largest relative difference in cost between agents at which they may be called matched."""

RUN_KEYS = ["task", "agent", "seed"]
COST_COLUMNS = ["iteration", "nfe", "reward_calls", "wall_time"]


def summarise(runs: pd.DataFrame) -> pd.DataFrame:
    """Interquartile mean and 95 % bootstrap interval over seeds of every column of the runs.

    Args:
        runs: one row per run: task, agent, seed, and numeric columns (cost and metrics).

    Returns:
        One row per agent, in order of appearance: ``seeds`` (their number), then for every numeric column ``name``
        the columns ``name`` (interquartile mean), ``name_low`` and ``name_high``; then ``nfe_deviation`` and
        ``reward_calls_deviation``, the relative distance to the median cost of the trained agents.
    """
    names = [column for column in runs.columns if column not in RUN_KEYS]
    rows = []
    for agent, group in runs.groupby("agent", sort=False):
        row: dict[str, object] = {"agent": agent, "seeds": len(group)}
        for name in names:
            row[name], row[f"{name}_low"], row[f"{name}_high"] = interquartile_estimate(group[name])
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
    return {cost: float(trained[cost].max() / trained[cost].min() - 1.0) for cost in ("nfe", "reward_calls")}


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
    rows = {"seeds": [str(count) for count in summary["seeds"]]}
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


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:+.1f} %"


def _digits(values: pd.Series) -> int:
    """Decimals that show three figures of the largest value: 3 below 1, 0 from 100 on."""
    largest = np.nanmax(np.abs(values.to_numpy(dtype=float)), initial=0.0)
    return int(np.clip(2 - np.floor(np.log10(largest)), 0, 3)) if largest > 0 else 0
