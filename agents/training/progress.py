"""The progress bar of a run: reward, held-out reward, KL and the time that is left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from tqdm import tqdm

from agents.training.logs import Row

_SHOWN = {"reward_mean": "reward", "held_out_reward": "held-out", "kl": "KL"}


class ProgressBar:
    """One tqdm bar over the iterations of a run; nothing is shown where it is disabled.

    Args:
        label: what stands before the bar.
        total: iterations of the run.
        initial: those already done.
        enabled: whether to show the bar.
    """

    def __init__(self, label: str, total: int, initial: int, enabled: bool) -> None:
        self._bar: tqdm[None] = tqdm(
            desc=label, total=total, initial=initial, unit="it", dynamic_ncols=True, disable=not enabled
        )
        self._figures: dict[str, str] = {}

    def update(self, row: Row, total: int) -> None:
        """Show an iteration's row; ``total`` is the number of iterations that the budgets will now allow."""
        for key, label in _SHOWN.items():
            value = row.get(key)
            if value is not None:
                self._figures[label] = f"{value:.3g}"
        self._bar.total = total
        self._bar.set_postfix(self._figures, refresh=False)
        self._bar.update()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()
