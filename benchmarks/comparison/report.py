"""Everything that a comparison writes: tables, pictures, and the page that holds them together."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.comparison import figures, tables
from benchmarks.comparison.runs import Run
from benchmarks.comparison.scheduler import Failure
from benchmarks.comparison.suite import Suite
from benchmarks.comparison.verdict import Verdict, judge, unfinished_runs
from benchmarks.comparison.world import make_task
from sepo_env.files import replacing, write_atomically
from sepo_env.tasks.metrics import kmer_counts

LABELS = {
    "held_out_mean": "held-out reward, mean",
    "held_out_median": "held-out reward, median",
    "held_out_q05": "held-out reward, 5 %",
    "held_out_q25": "held-out reward, 25 %",
    "held_out_q75": "held-out reward, 75 %",
    "held_out_q95": "held-out reward, 95 %",
    "training_median": "training reward, median",
    "oracle_gap": "gap, training less held-out",
    "accessibility_rate": "accessible (share)",
    "kmer_correlation": "3-mer correlation (Pearson r)",
    "motif_correlation": "motif correlation (Spearman rho)",
    "log_likelihood_median": "log-likelihood bound, median (nats)",
    "likely_as_real": "as likely as real ones (share)",
    "varied_as_real": "as varied in words as real ones (share)",
    "distinct_1": "distinct-1 (share)",
    "distinct_2": "distinct-2 (share)",
    "distinct_3": "distinct-3 (share)",
    "uniqueness": "uniqueness (share)",
    "mean_hamming": "mean Hamming distance",
    "nearest_hamming": "nearest Hamming distance, mean",
    "position_entropy": "position entropy, mean (bits)",
    "nfe": "NFE",
    "reward_calls": "reward calls",
    "wall_time": "training time (s)",
}
"""Rows of the table in their order; a metric that a task adds follows under its own name."""
WRITTEN = (
    *(f"{name}.csv" for name in ("curves", "runs", "summary")),
    "summary.md",
    *(
        f"{name}.{end}"
        for name in ("learning_curves", "training_gap", "violins", "pareto", "kmers")
        for end in figures.ENDINGS
    ),
)
"""Every file of a report beside ``report.md``."""
_SHOWN_SAMPLES = 5


class Reference(NamedTuple):
    """Real sequences to compare with; None where a task has none.

    Attributes:
        unit: what the rewards measure, with their unit.
        held_out: held-out reward of real sequences, as quantiles at equal steps.
        likelihood_band: central 90 % of their log-likelihood bounds.
        kmers: (V^3,) 3-mer counts of the most active ones.
        kmers_name: what those sequences are.
        readable: whether a person can read the sequences, so that the report shows some.
    """

    unit: str
    held_out: NDArray[np.float64] | None = None
    likelihood_band: tuple[float, float] | None = None
    kmers: NDArray[np.int64] | None = None
    kmers_name: str = ""
    readable: bool = False


class Results(NamedTuple):
    """Finished runs as three tidy tables: one row a run, a logged step, a sequence; and what is to be thought of them.

    Attributes:
        runs: empty where no run finished.
        curves: empty where no agent was trained.
        samples: empty where no run finished.
        verdict: which runs are missing, and whether the costs agree.
    """

    runs: pd.DataFrame
    curves: pd.DataFrame
    samples: pd.DataFrame
    verdict: Verdict


def load_results(runs: Sequence[Run], output: Path, failures: Sequence[Failure] = ()) -> Results:
    """Read the results of all runs; those that failed, are not there or cannot be read are named in the verdict.

    Args:
        runs: all planned ones.
        output: the comparison's folder.
        failures: runs that failed, with the reason.
    """
    unfinished = unfinished_runs(runs, output, failures)
    without = {name for name, _ in unfinished}
    finished = [run for run in runs if run.name not in without]
    curves = [curve for run in finished if not (curve := run.load_curve(output)).empty]
    samples = [run.load_samples(output) for run in finished]
    table = pd.DataFrame([run.load_results(output) for run in finished])
    return Results(
        table,
        pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(),
        pd.concat(samples, ignore_index=True) if samples else pd.DataFrame(),
        judge(table, unfinished),
    )


def write_report(results: Results, suite: Suite, reference: Reference, output: Path, command: str) -> None:
    """Write ``curves.csv``, ``runs.csv``, ``summary.csv``, ``summary.md``, the pictures and ``report.md``.

    Where no run finished, ``report.md`` alone says so, and no table or picture of an earlier report is left.

    Raises:
        FolderError: they cannot be written.
    """
    if results.runs.empty:
        for name in WRITTEN:
            with suppress(OSError):
                (output / name).unlink(missing_ok=True)
        page = "\n\n".join([_title(suite), f"`{command}`", results.verdict.sentence(), _missing(results.verdict)])
        write_atomically(output / "report.md", f"{page}\n".encode())
        return
    planned = Counter(agent for _ in suite.seeds for agent in suite.agents)
    summary = tables.summarise(results.runs, planned)
    names = [name for name in results.runs.columns if name not in tables.RUN_KEYS]
    labels = {**LABELS, **{name: name for name in names if name not in LABELS and name != "iteration"}}
    table = tables.summary_markdown(summary, labels)
    for name, frame in [("curves", results.curves), ("runs", results.runs), ("summary", summary.reset_index())]:
        write_atomically(output / f"{name}.csv", frame.to_csv(index=False).encode())
    if not results.verdict.is_complete:
        table = f"{table}\n\n{results.verdict.sentence()}\n\n{_missing(results.verdict)}"
    write_atomically(output / "summary.md", f"{table}\n".encode())
    pictures = draw_figures(results, reference, output)
    page = _page(results, suite, reference, table, pictures, command)
    write_atomically(output / "report.md", page.encode())


def draw_figures(results: Results, reference: Reference, output: Path) -> dict[str, str]:
    """Draw what the results allow; returns file name -> caption."""
    runs, curves, samples, _ = results
    drawn: dict[str, str] = {}

    def keep(name: str, figure: Figure, caption: str) -> None:
        for end in figures.ENDINGS:
            with replacing(output / f"{name}.{end}") as path:
                figures.save(figure, path)
        drawn[name] = caption

    if not curves.empty and curves["held_out_reward"].notna().any():
        baseline = runs.loc[runs["agent"] == tables.PRETRAINED, "held_out_median"]
        level = float(baseline.mean()) if len(baseline) else None
        keep(
            "learning_curves",
            figures.learning_curves(curves, level, reference.unit),
            "Held-out reward against cost; interquartile mean and bootstrap 95 % interval over seeds.",
        )
        keep(
            "training_gap",
            figures.training_gap(curves, reference.unit),
            "Training and held-out oracle along the training: where they part, the reward is being fooled.",
        )
    keep(
        "violins",
        figures.violins(samples, reference.unit, reference.held_out),
        "Held-out reward of the final sequences of all seeds: median, quartiles, density.",
    )
    if "log_likelihood_median" in runs:
        keep(
            "pareto",
            figures.pareto(runs, reference.unit, reference.likelihood_band),
            "Reward against naturalness; right of the band samples are easier to predict than real ones: collapse.",
        )
    if reference.kmers is not None:
        counts = {
            agent: _three_mers(group["sequence"], runs["task"].iloc[0])
            for agent, group in samples.groupby("agent", sort=False)
        }
        keep(
            "kmers",
            figures.kmer_scatter(counts, reference.kmers, 3, reference.kmers_name),
            f"3-mer shares of the final sequences against those of {reference.kmers_name}.",
        )
    return drawn


def reference_of(suite: Suite) -> Reference:
    """What the task's tables hold of real sequences."""
    return _REFERENCES[suite.task](suite)


def _title(suite: Suite) -> str:
    return f"# {suite.task}: {', '.join(suite.agents)}"


def _missing(verdict: Verdict) -> str:
    return "\n".join(f"- {line}" for line in verdict.lines())


def _page(
    results: Results, suite: Suite, reference: Reference, table: str, pictures: dict[str, str], command: str
) -> str:
    several = len(suite.seeds) > 1
    comparison = (
        "Probability of improvement of the median held-out reward, with bootstrap 95 % interval:\n\n"
        + tables.markdown_table(tables.improvement_table(results.runs, "held_out_median"))
        if several
        else "One seed tells nothing of the differences between runs: no interval, no probability of improvement."
    )
    seeds = (
        f"{len(suite.seeds)} seeds; interquartile mean over seeds with bootstrap 95 % interval" if several else "1 seed"
    )
    real = reference.likelihood_band
    band = (
        f" Real sequences: central 90 % of the log-likelihood bound {real[0]:.0f} to {real[1]:.0f} nats."
        if real
        else ""
    )
    judged = suite.evaluation
    texts = f"{_shown_samples(results.samples)}\n\n" if reference.readable else ""
    settings = "\n".join(
        f"- {agent}: " + ", ".join(f"{name} {value}" for name, value in suite.settings(agent).items())
        for agent in suite.agents
        if agent != tables.PRETRAINED
    )
    shown = "\n\n".join(f"![{name}]({name}.png)\n*{caption}*" for name, caption in pictures.items())
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "torchrl", "tensordict"))
    return f"""{_title(suite)}

`{command}`

{seeds}. Rewards: {reference.unit}.
Every run ends with {judged.num_samples} sequences from {judged.num_steps} steps. {results.verdict.sentence()}{band}

{table}

{comparison}

{shown}

{texts}Settings; all others are the defaults of the agents' configurations. How those that differ between agents were
chosen stands in `benchmarks/comparison/suite.py`.

{settings}

{packages}, Python {platform.python_version()}, {torch.get_num_threads()} threads, {platform.machine()}.
"""


def _shown_samples(samples: pd.DataFrame) -> str:
    """A table of the first sequences of each agent's first seed, best ones not sought out, with their scores."""
    first = samples[samples["seed"] == samples["seed"].min()]
    shown = first.groupby("agent", sort=False).head(_SHOWN_SAMPLES)
    cells = pd.DataFrame(
        {
            "held-out": shown["held_out_reward"].map("{:+.2f}".format),
            "training": shown["training_reward"].map("{:+.2f}".format),
            "sequence": shown["sequence"],
        }
    ).set_index(pd.Index(shown["agent"], name="agent"))
    title = f"The first {_SHOWN_SAMPLES} sequences of each agent's first seed, not selected:"
    return f"{title}\n\n{tables.markdown_table(cells)}"


def _three_mers(sequences: pd.Series, env_id: str) -> NDArray[np.int64]:
    task = make_task(env_id)
    return kmer_counts(task.encode(list(sequences)), 3, task.num_tokens).numpy()


def _toy_reference(suite: Suite) -> Reference:
    return Reference(unit="share of the best reward")


def _tables(suite: Suite) -> Any:
    task: Any = make_task(suite.task, options=suite.task_options)
    return task.reference


def _dna_reference(suite: Suite) -> Reference:
    tables_ = _tables(suite)
    if "artefacts" in suite.task_options:
        return Reference(
            unit="predicted HepG2 MPRA activity, log2 RNA/DNA, of the published oracles",
            kmers=tables_["three_mers_top_0_1_percent"],
            kmers_name="the most active real sequences",
        )
    likelihood = tables_["log_likelihood_percentiles_dhs_test"]
    return Reference(
        unit="predicted HepG2 lentiMPRA activity, log2 RNA/DNA",
        held_out=tables_["activity_held_out_percentiles_dhs_test"],
        likelihood_band=(float(likelihood[5]), float(likelihood[95])),
        kmers=tables_["three_mers_top_0_1_percent"],
        kmers_name="the most active real sequences",
    )


def _text_reference(suite: Suite) -> Reference:
    tables_ = _tables(suite)
    likelihood = tables_["log_likelihood_percentiles_test"]
    return Reference(
        unit="sentiment, -1 to 1; held out: VADER",
        held_out=tables_["vader_percentiles_test"],
        likelihood_band=(float(likelihood[5]), float(likelihood[95])),
        readable=True,
    )


def _rlhf_reference(suite: Suite) -> Reference:
    return Reference(unit="sentiment, -1 to 1; held out: VADER", readable=True)


_REFERENCES = {
    "DNAEnhancer-v0": _dna_reference,
    "TextRLHF-v0": _rlhf_reference,
    "TextSentiment-v0": _text_reference,
    "ToyCTMC-v0": _toy_reference,
}
