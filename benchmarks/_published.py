"""The published table of enhancer design, and a measured row on top of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from comparison.tables import markdown_table

PUBLISHED = Path(__file__).with_name("published_dna.csv")

COLUMNS = {
    "pred_activity": ("held_out_median", "Pred-Activity", 1.0, 2),
    "atac_acc_percent": ("accessibility_rate", "ATAC-Acc %", 100.0, 1),
    "kmer_correlation": ("kmer_correlation", "3-mer Corr", 1.0, 3),
    "motif_correlation": ("motif_correlation", "JASPAR Corr", 1.0, 3),
    "log_likelihood": ("log_likelihood_median", "App-Log-Lik", 1.0, 0),
}
"""Column of the published table -> the task's metric, its published name, the factor between the two, decimals."""


def comparison(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """The published table with the measured row on top: mean over seeds, and the standard deviation over seeds.

    A metric that seeds of an older version lack stays empty.
    """
    row: dict[str, Any] = {"method": f"{name} (measured here)", "source": "this run", "arxiv": ""}
    for column, (metric, _, factor, _) in COLUMNS.items():
        values = measured.get(metric, pd.Series(math.nan, measured.index))
        row[column] = factor * values.mean(skipna=False)
        row[f"{column}_spread"] = factor * values.std(skipna=False) if len(measured) > 1 else math.nan
    published = pd.read_csv(PUBLISHED, dtype={"arxiv": str}, keep_default_na=True)
    return pd.concat([pd.DataFrame([row]), published], ignore_index=True)


def comparison_markdown(table: pd.DataFrame) -> str:
    """The table as Markdown: value (spread)."""
    rows = {
        str(record["method"]): [*(_cell(record, column) for column in COLUMNS), _source(record)]
        for record in table.to_dict("records")
    }
    titles = [title for _, title, _, _ in COLUMNS.values()]
    return markdown_table(pd.DataFrame.from_dict(rows, orient="index", columns=[*titles, "source"]))


def _cell(record: dict[str, Any], column: str) -> str:
    value, spread, digits = record[column], record.get(f"{column}_spread", math.nan), COLUMNS[column][3]
    if pd.isna(value):
        return "-"
    return f"{value:.{digits}f}" if pd.isna(spread) else f"{value:.{digits}f} ({spread:.{digits}f})"


def _source(record: dict[str, Any]) -> str:
    arxiv = record["arxiv"]
    return str(record["source"]) if pd.isna(arxiv) or not arxiv else f"{record['source']}, arXiv {arxiv}"
