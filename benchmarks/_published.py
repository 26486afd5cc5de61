"""The published table of enhancer design, and a measured row on top of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.comparison.tables import markdown_table

PUBLISHED = Path(__file__).with_name("published_dna.csv")
_ABOUT = "about "

COLUMNS = {
    "pred_activity": ("held_out_median", "Pred-Activity (median)", 1.0, 2),
    "atac_acc_percent": ("accessibility_rate", "ATAC-Acc %", 100.0, 1),
    "kmer_correlation": ("kmer_correlation", "3-mer Corr", 1.0, 3),
    "motif_correlation": ("motif_correlation", "JASPAR Corr", 1.0, 3),
    "log_likelihood": ("log_likelihood_median", "App-Log-Lik (median)", 1.0, 0),
}
"""Column of the published table -> the task's metric, its published name, the factor between the two, decimals."""


def published() -> pd.DataFrame:
    """The published table as it is printed, all of it text: ``.49`` has two decimals, ``about .50`` is read off."""
    return pd.read_csv(PUBLISHED, dtype=str, keep_default_na=False)


def comparison(measured: pd.DataFrame, name: str) -> pd.DataFrame:
    """The published table as numbers with the measured row on top: mean and standard deviation over seeds.

    A metric that seeds of an older version lack stays empty.
    """
    row: dict[str, Any] = {"method": f"{name} (measured here)", "source": "this run", "arxiv": ""}
    for column, (metric, _, factor, _) in COLUMNS.items():
        values = measured.get(metric, pd.Series(math.nan, measured.index))
        row[column] = factor * values.mean(skipna=False)
        row[f"{column}_spread"] = factor * values.std(skipna=False) if len(measured) > 1 else math.nan
    table = published()
    for heading in [f"{column}{end}" for column in COLUMNS for end in ("", "_spread")]:
        if heading in table:
            table[heading] = [float(text.removeprefix(_ABOUT) or "nan") for text in table[heading]]
    return pd.concat([pd.DataFrame([row]), table], ignore_index=True)


def comparison_markdown(table: pd.DataFrame) -> str:
    """The table of `comparison` as Markdown: value (spread), the published ones as printed, and notes below."""
    measured, texts = table.iloc[0].to_dict(), published().to_dict("records")
    notes = list(dict.fromkeys(text["note"] for text in texts if text["note"]))
    rows = {str(measured["method"]): [*(_measured_cell(measured, column) for column in COLUMNS), measured["source"]]}
    for text in texts:
        mark = f" [{notes.index(text['note']) + 1}]" if text["note"] else ""
        rows[f"{text['method']}{mark}"] = [*(_printed_cell(text, column) for column in COLUMNS), _source(text)]
    titles = [title for _, title, _, _ in COLUMNS.values()]
    page = markdown_table(pd.DataFrame.from_dict(rows, orient="index", columns=[*titles, "source"]))
    return "\n\n".join([page, *(f"[{number}] {note}." for number, note in enumerate(notes, start=1))])


def _measured_cell(record: dict[str, Any], column: str) -> str:
    value, spread, digits = record[column], record[f"{column}_spread"], COLUMNS[column][3]
    if pd.isna(value):
        return "-"
    return f"{value:.{digits}f}" if pd.isna(spread) else f"{value:.{digits}f} ({spread:.{digits}f})"


def _printed_cell(text: dict[str, str], column: str) -> str:
    value, spread = text.get(column, ""), text.get(f"{column}_spread", "")
    return f"{value} ({spread})" if value and spread else value or "-"


def _source(text: dict[str, str]) -> str:
    return f"{text['source']}, arXiv {text['arxiv']}" if text["arxiv"] else text["source"]
