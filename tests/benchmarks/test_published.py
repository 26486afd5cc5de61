"""The published table: numbers as they are printed, with their sources and notes, and the measured row on top."""

from __future__ import annotations

import re

import pandas as pd

from benchmarks import _published

PRINTED = """
| pretrained | 0.17 (.04) | 1.5 | -.061 | -261 | DRAKES, arXiv 2410.13643 |
| CG [1] | 3.30 | 0.0 | -.065 | -266 | DRAKES, arXiv 2410.13643 |
| GLID2E | 7.29 (.16) | 98.4 | .49 | -241 | GLID2E (NeurIPS 2025) |
| SEPO [3] | 7.55 | 99.5 | about .50 | about -244 | SEPO, arXiv 2502.01384 |
| DoMinO | 8.3 | 99.2 | - | - | DoMinO, arXiv 2604.06491 |
"""


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_published_numbers_are_shown_as_printed_with_their_notes() -> None:
    metrics = {metric: [0.5, 0.25] for metric, *_ in _published.COLUMNS.values()}
    table = _published.comparison(pd.DataFrame(metrics), "mine")
    lines = _published.comparison_markdown(table).splitlines()
    titles = cells(lines[0])
    assert {"Pred-Activity (median)", "ATAC-Acc %", "3-mer Corr", "App-Log-Lik (median)", "source"} <= set(titles)
    rows = {row[0]: dict(zip(titles, row, strict=True)) for row in map(cells, lines[2:]) if len(row) == len(titles)}
    assert rows["mine (measured here)"]["Pred-Activity (median)"] == "0.38 (0.18)"
    kept = [titles[0], "Pred-Activity (median)", "ATAC-Acc %", "3-mer Corr", "App-Log-Lik (median)", "source"]
    for line in PRINTED.strip().splitlines():
        assert [rows[cells(line)[0]][title] for title in kept] == cells(line)
    assert "[1] training-free guidance." in lines
    assert lines[-1].startswith("[3] the released script trains on the evaluation oracle")
    assert table.set_index("method").loc["SEPO", ["kmer_correlation", "log_likelihood"]].tolist() == [0.5, -244.0]


def test_the_published_numbers_have_their_sources() -> None:
    table = _published.published().set_index("method")
    columns = ["pred_activity", "atac_acc_percent", "kmer_correlation"]
    assert table.loc["DRAKES", columns].tolist() == ["5.61", "92.5", ".887"]
    assert table.loc["SEPO with gradient flow", columns].tolist() == ["7.64", "99.9", "about .64"]
    assert table.loc["pretrained", "log_likelihood"] == "-261"
    for method, row in table.iterrows():
        assert row["source"], method
        assert not row["arxiv"] or re.fullmatch(r"\d{4}\.\d{5}", row["arxiv"])
    assert (table["arxiv"] == "").sum() == 1  # GLID2E is a conference paper
    assert table["note"].str.contains("evaluation oracle").sum() == 2
