"""Whether a comparison is one: every planned run finished, and at costs that agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from benchmarks.comparison.runs import Run
from benchmarks.comparison.scheduler import Failure
from benchmarks.comparison.tables import MAX_COST_SPREAD, PRETRAINED, cost_spread
from sepo_env.errors import CheckpointError


class Unfinished(NamedTuple):
    """A planned run without results.

    Attributes:
        name: of the run, such as ``sepo/seed-1``.
        reason: why, in one line.
    """

    name: str
    reason: str


def unfinished_runs(runs: Sequence[Run], output: Path, failures: Sequence[Failure]) -> list[Unfinished]:
    """Those of the planned runs that failed, whose results are gone, or whose results cannot be read.

    Args:
        runs: all planned ones.
        output: their folder.
        failures: those that failed just now.
    """
    reasons = {failure.run.name: f"{failure.message} (error.txt in its folder)" for failure in failures}
    for run in runs:
        if run.name in reasons:
            continue
        if not run.is_finished(output):
            reasons[run.name] = f"its results are not in {run.folder(output)} any more"
            continue
        try:
            run.check(output)
        except CheckpointError as error:
            reasons[run.name] = str(error)
    return [Unfinished(run.name, reasons[run.name]) for run in runs if run.name in reasons]


class Verdict(NamedTuple):
    """What a comparison is worth.

    Attributes:
        planned: the number of runs.
        unfinished: those without results.
        trained: whether anything was trained, so that there are costs.
        spread: largest over smallest cost of the finished trained runs, minus 1, by cost.
    """

    planned: int
    unfinished: tuple[Unfinished, ...]
    trained: bool
    spread: Mapping[str, float]

    @property
    def is_complete(self) -> bool:
        """Whether every agent finished with every seed."""
        return not self.unfinished

    @property
    def is_sound(self) -> bool:
        """Whether every agent finished with every seed, at costs that agree within the tolerance."""
        return self.is_complete and self._costs_agree

    @property
    def _costs_agree(self) -> bool:
        return all(value <= MAX_COST_SPREAD for value in self.spread.values())  # false for NaN

    def sentence(self) -> str:
        """The verdict in one sentence."""
        costs = ", ".join(f"{name} {100 * value:.1f} %" for name, value in self.spread.items())
        allowed = f"allowed {100 * MAX_COST_SPREAD:.0f} %"
        if not self.is_complete:
            finished = self.planned - len(self.unfinished)
            costs = f"Costs of the finished ones, largest over smallest: {costs}, {allowed}. " if self.trained else ""
            return (
                f"**THE COMPARISON IS INCOMPLETE**: {finished} of {self.planned} runs finished. {costs}The same "
                "command tries the others again."
            )
        if not self.trained:
            return "Nothing was trained, so there are no costs to match."
        if self._costs_agree:
            return f"Costs are matched: largest over smallest run, {costs}, {allowed}."
        return (
            f"**COSTS ARE NOT MATCHED**: largest over smallest run, {costs}, {allowed}; look at the agents' settings "
            "in benchmarks/comparison/suite.py."
        )

    def lines(self) -> list[str]:
        """One line for each run without results: its name, which holds agent and seed, and the reason."""
        return [f"{run.name} FAILED: {run.reason}" for run in self.unfinished]


def judge(runs: pd.DataFrame, unfinished: Sequence[Unfinished]) -> Verdict:
    """The verdict on a comparison.

    Args:
        runs: one row a finished run; empty where none finished.
        unfinished: the other planned ones.
    """
    trained = not runs.empty and bool((runs["agent"] != PRETRAINED).any())
    spread = cost_spread(runs) if trained else {}
    return Verdict(len(runs) + len(unfinished), tuple(unfinished), trained, spread)
