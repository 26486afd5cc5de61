"""The pictures of a comparison, fit for print: one function a figure, from the tables to a matplotlib Figure.

Colours are those of Okabe and Ito, which the colour-blind can tell apart; each agent keeps its colour and its marker in
every picture, so that they can also be told apart in grey.
"""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
import scipy.stats
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter
from numpy.typing import ArrayLike, NDArray

from benchmarks.comparison.statistics import interquartile_estimate
from benchmarks.comparison.tables import PRETRAINED

STYLE: dict[Any, Any] = {
    "figure.dpi": 120,
    "savefig.dpi": 300,
    "figure.constrained_layout.use": True,
    "font.size": 9.0,
    "axes.titlesize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.92",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
GREY = "0.45"
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_SMALL_MARKS: dict[str, Any] = {"markersize": 3.5, "markeredgewidth": 0}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")


class Look(NamedTuple):
    """How an agent is drawn."""

    colour: str
    marker: str


def looks(agents: Sequence[str]) -> dict[str, Look]:
    """A colour and a marker for each agent, in order; the pretrained denoiser is grey."""
    trained = [agent for agent in agents if agent != PRETRAINED]
    assigned = {
        agent: Look(_COLOURS[i % len(_COLOURS)], _MARKERS[i % len(_MARKERS)]) for i, agent in enumerate(trained)
    }
    return {PRETRAINED: Look(GREY, "*"), **assigned}


def _styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    @functools.wraps(draw)
    def styled(*args: object, **kwargs: object) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


ENDINGS = ("png", "pdf")
_NO_DATES = {"png": {"Software": None}, "pdf": {"CreationDate": None}}


def save(figure: Figure, path: Path) -> None:
    """Write a picture, in one of the formats `ENDINGS`; without a date in it: the same figure is the same file."""
    with matplotlib.rc_context(STYLE):
        figure.savefig(path, metadata=_NO_DATES[path.suffix.removeprefix(".")])


@_styled
def learning_curves(curves: pd.DataFrame, baseline: float | None, unit: str) -> Figure:
    """Held-out reward against network evaluations and against reward calls, with 95 % bands over seeds.

    Args:
        curves: logged steps with agent, seed, iteration, nfe, reward_calls, held_out_reward (NaN where not judged).
        baseline: held-out reward of the pretrained denoiser; None draws no line.
        unit: of the reward.
    """
    figure = Figure(figsize=(7.0, 2.9))
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, cost, label in [(left, "nfe", "network evaluations (NFE)"), (right, "reward_calls", "reward calls")]:
        if baseline is not None:
            axes.axhline(baseline, color=GREY, linestyle="--", linewidth=1.0, label=PRETRAINED)
        draw_learning_curve(axes, curves, cost)
        axes.set_xlabel(label)
    left.set_ylabel(_label("held-out reward", unit))
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=5)
    return figure


def draw_learning_curve(axes: Axes, curves: pd.DataFrame, cost: str) -> None:
    """Draw each agent's held-out reward against a cost: interquartile mean over seeds with its 95 % band.

    Args:
        axes: where to.
        curves: as for :func:`learning_curves`.
        cost: column of the horizontal axis.
    """
    look = looks(list(dict.fromkeys(curves["agent"])))
    for agent, group in curves.groupby("agent", sort=False):
        x, middle, low, high = _aligned(group, cost, "held_out_reward")
        axes.plot(x, middle, color=look[agent].colour, marker=look[agent].marker, label=agent, **_SMALL_MARKS)
        axes.fill_between(x, low, high, color=look[agent].colour, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


@_styled
def training_gap(curves: pd.DataFrame, unit: str) -> Figure:
    """Training against held-out oracle along each agent's training: where the two part, the reward is being fooled.

    Thick lines are interquartile means over seeds, thin ones the runs; only steps that were judged are drawn.

    Args:
        curves: as for :func:`learning_curves`, with ``eval_reward`` (the training oracle) as well.
        unit: of both oracles.
    """
    agents = list(dict.fromkeys(curves["agent"]))
    look = looks(agents)
    figure = Figure(figsize=(1.9 * len(agents) + 0.6, 2.5))
    panels = figure.subplots(1, len(agents), sharey=True, squeeze=False)[0]
    for axes, (agent, group) in zip(panels, curves.groupby("agent", sort=False), strict=True):
        judged = group.dropna(subset=["held_out_reward"])
        x, top, _, _ = _aligned(judged, "nfe", "eval_reward")
        _, bottom, _, _ = _aligned(judged, "nfe", "held_out_reward")
        axes.fill_between(x, bottom, top, color="0.88", linewidth=0, zorder=0)
        for _, run in judged.groupby("seed"):
            axes.plot(run["nfe"], run["eval_reward"], color=look[agent].colour, alpha=0.3, linewidth=0.7)
            axes.plot(
                run["nfe"], run["held_out_reward"], color=look[agent].colour, alpha=0.3, linewidth=0.7, linestyle="--"
            )
        axes.plot(x, top, color=look[agent].colour)
        axes.plot(x, bottom, color=look[agent].colour, linestyle="--", marker=look[agent].marker, **_SMALL_MARKS)
        axes.set_title(agent, color=look[agent].colour)
        axes.set_xlabel("NFE")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel(_label("median reward", unit))
    handles = [
        Line2D([], [], color="0.2", label="training oracle"),
        Line2D([], [], color="0.2", linestyle="--", marker=".", label="held-out oracle"),
        Patch(color="0.85", label="gap"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


@_styled
def violins(samples: pd.DataFrame, unit: str, reference: ArrayLike | None = None) -> Figure:
    """Distribution of the held-out reward over the samples of all seeds, one violin an agent.

    Args:
        samples: one row per sample: agent, held_out_reward.
        unit: of the reward.
        reference: held-out reward of real sequences, drawn last; None where the task has none.
    """
    groups = {agent: group["held_out_reward"].to_numpy() for agent, group in samples.groupby("agent", sort=False)}
    look = looks(list(groups))
    colours = [look[agent].colour for agent in groups]
    if reference is not None:
        groups["real"] = np.asarray(reference, dtype=float)
        colours.append("0.75")
    figure = Figure(figsize=(1.0 * len(groups) + 1.0, 3.0))
    axes = figure.subplots()
    places = np.arange(len(groups))
    for place, values, colour in zip(places, groups.values(), colours, strict=True):
        _violin(axes, float(place), values, colour)
    axes.axhline(np.median(next(iter(groups.values()))), color=GREY, linestyle="--", linewidth=0.8, zorder=0)
    axes.set_xticks(places, list(groups))
    axes.grid(visible=False, axis="x")
    axes.set_ylabel(_label("held-out reward", unit))
    return figure


@_styled
def pareto(runs: pd.DataFrame, unit: str, real_band: tuple[float, float] | None = None) -> Figure:
    """Held-out reward against naturalness: a small mark a run, a large one the interquartile mean of an agent.

    Args:
        runs: one row per run: agent, held_out_median, log_likelihood_median.
        unit: of the reward.
        real_band: central 90 % of the log-likelihoods of real sequences, shaded; beyond its right edge samples are
            easier to predict than real ones, which is collapse.
    """
    figure = Figure(figsize=(5.4, 3.3))
    axes = figure.subplots()
    if real_band is not None:
        axes.axvspan(*real_band, color="0.93", linewidth=0, zorder=0, label="real sequences (90 %)")
    look = looks(list(dict.fromkeys(runs["agent"])))
    for agent, group in runs.groupby("agent", sort=False):
        x, y = group["log_likelihood_median"].to_numpy(), group["held_out_median"].to_numpy()
        style: dict[str, Any] = {"color": look[agent].colour, "marker": look[agent].marker, "linewidths": 0}
        axes.scatter(x, y, s=16, alpha=0.45, **style)
        mid_x, mid_y = interquartile_estimate(x), interquartile_estimate(y)
        if len(group) > 1:
            bars: dict[str, Any] = {"ecolor": look[agent].colour, "elinewidth": 1.0, "fmt": "none", "alpha": 0.8}
            axes.errorbar(mid_x.value, mid_y.value, _whiskers(mid_y), _whiskers(mid_x), **bars)
        axes.scatter(mid_x.value, mid_y.value, s=70, label=agent, edgecolors="white", **style | {"linewidths": 0.8})
    axes.set_xlabel("log-likelihood bound, pretrained denoiser\n(median, nats per sequence)")
    axes.set_ylabel(_label("median held-out reward", unit))
    figure.legend(loc="outside right upper")
    return figure


@_styled
def kmer_scatter(
    counts: Mapping[str, NDArray[np.int64]], reference: NDArray[np.int64], k: int, reference_name: str
) -> Figure:
    """Share of each k-mer in the samples against its share in the reference sequences, one panel an agent.

    Args:
        counts: (V^k,) counts by agent.
        reference: (V^k,) counts of the reference set.
        k: length of the words.
        reference_name: what the reference set is.
    """
    look = looks(list(counts))
    figure = Figure(figsize=(1.75 * len(counts) + 0.6, 2.5))
    panels = figure.subplots(1, len(counts), sharex=True, sharey=True, squeeze=False)[0]
    real = 100 * reference / reference.sum()
    shares = {agent: 100 * count / count.sum() for agent, count in counts.items()}
    top = 1.05 * max(real.max(), *(share.max() for share in shares.values()))
    for axes, (agent, share) in zip(panels, shares.items(), strict=True):
        axes.plot([0, top], [0, top], color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        axes.scatter(real, share, s=9, color=look[agent].colour, alpha=0.75, linewidths=0)
        r = np.corrcoef(real, share)[0, 1] if np.ptp(real) and np.ptp(share) else np.nan
        axes.set_title(agent, color=look[agent].colour)
        axes.text(0.05, 0.93, f"r = {r:.2f}", transform=axes.transAxes, va="top")
        axes.set(xlim=(0, top), ylim=(0, top), aspect="equal")
    panels[0].set_ylabel(f"{k}-mers in samples (%)")
    figure.supxlabel(f"{k}-mers in {reference_name} (%)", fontsize=STYLE["font.size"])
    return figure


def _aligned(group: pd.DataFrame, cost: str, column: str) -> NDArray[np.float64]:
    """Rows cost, interquartile mean, low, high over the runs, one column for each iteration that has the value."""
    logged = group.dropna(subset=[column])
    points = [(steps[cost].mean(), *interquartile_estimate(steps[column])) for _, steps in logged.groupby("iteration")]
    return np.array(points).reshape(-1, 4).T


def _label(name: str, unit: str) -> str:
    """An axis label with its unit, broken so that it fits the height of a panel."""
    return "\n".join([name, *textwrap.wrap(f"({unit})", 32)])


def _violin(axes: Axes, place: float, values: NDArray[np.float64], colour: str) -> None:
    """A kernel-density violin within the range of the data, its quartile box and its median."""
    low, lower, middle, upper, high = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    if high > low:
        grid = np.linspace(low, high, 200)
        width = scipy.stats.gaussian_kde(values)(grid)
        width *= 0.42 / width.max()
        axes.fill_betweenx(grid, place - width, place + width, color=colour, alpha=0.55, linewidth=0)
    axes.vlines(place, lower, upper, color="0.15", linewidth=3.0)
    axes.scatter([place], [middle], s=14, color="white", edgecolors="0.15", linewidths=0.8, zorder=3)
    shown = f"{middle:.2f}".replace("-", "\N{MINUS SIGN}")
    text = axes.annotate(shown, (place, middle), xytext=(6, 0), textcoords="offset points", va="center")
    text.set(size=8, path_effects=[patheffects.withStroke(linewidth=2, foreground="white", alpha=0.7)])


def _whiskers(estimate: tuple[float, float, float]) -> list[list[float]]:
    """Distances from the value to the ends of its interval, as ``errorbar`` wants them."""
    value, low, high = estimate
    return [[max(0.0, value - low)], [max(0.0, high - value)]]
