"""What becomes of the evaluation of language models: tables, a picture, a report, each file whole or not at all."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from benchmarks.comparison.figures import STYLE, looks
from benchmarks.comparison.statistics import Estimate
from benchmarks.comparison.tables import format_estimate, markdown_table
from sepo_env.files import replacing, write_atomically, writing

LABELS = {
    "perplexity": "perplexity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "held_out_mean": "held-out reward (mean)",
    "win_rate": "win rate",
    "win_rate_length_controlled": "win rate, length-controlled",
}


def draw_figure(table: pd.DataFrame) -> Figure:
    """Each metric against the number of steps, a panel each; bars are the intervals of the win rates."""
    names = [name for name in LABELS if name in table]
    look = looks(list(dict.fromkeys(table["side"])))
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure = Figure(figsize=(2.5 * columns, 2.1 * lines + 0.3))
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for axes, name in zip(panels, names, strict=False):
            for side, group in table.groupby("side", sort=False):
                style = look[str(side)]
                marks = {"color": style.colour, "marker": style.marker, "markersize": 4, "capsize": 2}
                points = group[["steps", name]].to_numpy().T
                axes.errorbar(*points, yerr=_whiskers(group, name), label=side, **marks)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(table["steps"])), [str(step) for step in sorted(set(table["steps"]))])
            axes.set_xlabel("sampling steps")
            axes.set_ylabel(LABELS[name])
        for axes in list(figure.axes)[len(names) :]:
            axes.set_visible(False)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def _whiskers(group: pd.DataFrame, name: str) -> npt.NDArray[np.float64] | None:
    """From each value down and up to the ends of its interval; None where the metric has no intervals."""
    if f"{name}_low" not in group:
        return None
    low, high = group[f"{name}_low"], group[f"{name}_high"]
    # The ends of a bootstrap interval may lie beyond the value by rounding.
    ends = [(group[name] - low).clip(lower=0).fillna(0), (high - group[name]).clip(lower=0).fillna(0)]
    return np.array(ends)


def keep_tables(table: pd.DataFrame, texts: pd.DataFrame, folder: Path) -> None:
    """Write what has been measured so far, and take away the report and the picture of an earlier run.

    Raises:
        FolderError: it cannot be written.
    """
    earlier = ["language.md", "language.png"]
    if table.empty:  # as long as no set is measured
        earlier.append("language.csv")
    for name in earlier:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)
    write_atomically(folder / "samples.csv", texts.to_csv(index=False).encode(errors="replace"))
    if not table.empty:
        write_atomically(folder / "language.csv", table.to_csv(index=False).encode())


def write_results(table: pd.DataFrame, texts: pd.DataFrame, folder: Path, command: str, warning: str = "") -> str:
    """Write table, picture and texts; returns the report, which ``warning`` is a paragraph of."""
    keep_tables(table, texts, folder)
    formatted = table[["side", "steps", "texts"]].astype({"steps": str, "texts": str}).set_index("side")
    for name, label in LABELS.items():
        if name in table:
            formatted[label] = [_cell(row, name) for row in table.to_dict("records")]
    report = "\n\n".join(
        [
            "# Language: metrics over the number of sampling steps",
            f"`{command}`",
            *([f"**{warning}**"] if warning else []),
            markdown_table(formatted),
            "Perplexity is that of the response, given the prompt as context, and distinct-n is of the positions that "
            "were written. Texts with given tokens behind free ones have no such prompt: the perplexity is that of "
            "the whole text, and the judge sees the whole text as the response, without a prompt.",
            "Win rates are against the pretrained denoiser at the same number of steps, each pair shown to the judge "
            "in both orders; the length-controlled one is that at equal lengths (arXiv 2404.04475). In brackets and "
            "as bars: bootstrap 95 % intervals over the prompts. A low perplexity with low distinct-n is repetition, "
            "not quality.",
        ]
    )
    with matplotlib.rc_context(STYLE):
        picture = draw_figure(table)
        with replacing(folder / "language.png") as path:
            picture.savefig(path, metadata={"Software": None})
    write_atomically(folder / "language.md", f"{report}\n".encode())
    return report


def _cell(row: dict[str, float], name: str) -> str:
    """A value of four figures; with its interval where it has one."""
    value = row[name]
    if f"{name}_low" in row:
        return format_estimate(Estimate(value, row[f"{name}_low"], row[f"{name}_high"]), 3)
    return "-" if math.isnan(value) else f"{value:.4g}"
