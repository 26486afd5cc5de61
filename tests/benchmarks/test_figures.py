"""Pictures from synthetic tables: what is drawn is what the tables hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from benchmarks.comparison import figures
from benchmarks.comparison.tables import PRETRAINED


@pytest.fixture
def curves() -> pd.DataFrame:
    rows = [
        (agent, seed, iteration, 100 * iteration, 10 * iteration, level + seed if iteration % 2 == 0 else np.nan)
        for agent, level in (("sepo", 1.0), ("ddpo", 0.0))
        for seed in (0, 1)
        for iteration in (1, 2, 3, 4)
    ]
    columns = ["agent", "seed", "iteration", "nfe", "reward_calls", "held_out_reward"]
    return pd.DataFrame(rows, columns=columns).assign(eval_reward=lambda frame: 2 * frame["held_out_reward"])


def lines_by_label(figure: Figure, panel: int) -> dict[str, np.ndarray]:
    return {str(line.get_label()): line.get_xydata() for line in figure.axes[panel].get_lines()}


def test_learning_curves_draw_the_judged_steps_against_both_costs(curves: pd.DataFrame) -> None:
    figure = figures.learning_curves(curves, 0.25, "u")
    against_nfe, against_calls = lines_by_label(figure, 0), lines_by_label(figure, 1)
    assert against_nfe["sepo"].tolist() == [[200, 1.5], [400, 1.5]]
    assert against_calls["ddpo"].tolist() == [[20, 0.5], [40, 0.5]]
    assert against_nfe[PRETRAINED][:, 1].tolist() == [0.25, 0.25]
    assert "held-out reward\n(u)" in figure.axes[0].get_ylabel()
    assert PRETRAINED not in lines_by_label(figures.learning_curves(curves, None, "u"), 0)


def test_an_agent_looks_the_same_in_every_picture(curves: pd.DataFrame) -> None:
    look = figures.looks([PRETRAINED, "sepo", "ddpo"])
    assert look == figures.looks(["sepo", "ddpo"])
    assert len({(each.colour, each.marker) for each in look.values()}) == 3
    line = next(
        line for line in figures.learning_curves(curves, 0.0, "u").axes[0].get_lines() if line.get_label() == "ddpo"
    )
    assert line.get_color() == look["ddpo"].colour


def test_the_gap_spans_from_held_out_to_training(curves: pd.DataFrame) -> None:
    figure = figures.training_gap(curves, "u")
    assert [axes.get_title() for axes in figure.axes] == ["sepo", "ddpo"]
    band = figure.axes[0].collections[0].get_paths()[0].get_extents()
    assert (band.y0, band.y1) == (1.5, 3.0)
    assert (band.x0, band.x1) == (200, 400)


def test_violins_stand_in_order_with_the_real_sequences_last() -> None:
    samples = pd.DataFrame({"agent": [PRETRAINED] * 4 + ["sepo"] * 4, "held_out_reward": [0, 1, 2, 3, 5, 5, 5, 5]})
    figure = figures.violins(samples, "u", reference=[7.0, 8.0, 9.0])
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_xticklabels()] == [PRETRAINED, "sepo", "real"]
    assert [text.get_text() for text in axes.texts] == ["1.50", "5.00", "8.00"]


def test_pareto_has_a_mark_a_run_and_one_an_agent() -> None:
    runs = pd.DataFrame(
        {
            "agent": [PRETRAINED, "sepo", "sepo"],
            "held_out_median": [0.0, 1.0, 3.0],
            "log_likelihood_median": [-260.0, -250.0, -240.0],
        }
    )
    figure = figures.pareto(runs, "u", (-270.0, -245.0))
    offsets = [scatter.get_offsets().tolist() for scatter in figure.axes[0].collections if len(scatter.get_offsets())]
    assert [[-250.0, 1.0], [-240.0, 3.0]] in offsets
    assert [[-245.0, 2.0]] in offsets
    band = figure.axes[0].patches[0].get_extents().transformed(figure.axes[0].transData.inverted())
    assert (band.x0, band.x1) == pytest.approx((-270.0, -245.0))


def test_kmer_panels_show_shares_and_their_correlation() -> None:
    reference = np.array([1, 2, 3, 4])
    figure = figures.kmer_scatter({"sepo": 5 * reference, "ddpo": reference[::-1]}, reference, 1, "real ones")
    assert figure.axes[0].collections[0].get_offsets().tolist() == [[10, 10], [20, 20], [30, 30], [40, 40]]
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["r = 1.00", "r = -1.00"]


def test_the_same_figure_is_the_same_file(tmp_path: Path, curves: pd.DataFrame) -> None:
    contents = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        for end in figures.ENDINGS:
            figures.save(figures.learning_curves(curves, 0.0, "u"), folder / f"curves.{end}")
        contents.append([(folder / f"curves.{ending}").read_bytes() for ending in ("png", "pdf")])
    assert contents[0] == contents[1]
    assert contents[0][0].startswith(b"\x89PNG")
    assert contents[0][1].startswith(b"%PDF")
