"""The checkpoint of one run: what identifies the run, and the last state that was whole and healthy."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import GlobalRNGState

from agents.checkpoint import State, load_checkpoint, save_checkpoint
from agents.config import AgentConfig, differing_fields
from agents.identity import check_same_run
from agents.logs import Row
from sepo_env.errors import CheckpointError

CHECKPOINT_FILE = "checkpoint.pt"


def checkpoint_path(log_dir: str | Path) -> Path:
    """Where a run with this log_dir keeps its checkpoint."""
    return Path(log_dir) / CHECKPOINT_FILE


class RunCheckpoint:
    """Keeps the state of the last finished iteration in memory, and writes it when told.

    What stops a run in the middle of an iteration, Ctrl-C, a failing reward or a NaN, leaves weights that no whole
    number of iterations would have given. The copy in memory is what is written then. It costs the memory of the
    model and the optimiser once more, and nothing where no folder is given.

    Args:
        label: what the run is, for JSON: agent, task, reward, judge (`agents.agent.Agent`).
        config: the settings, of which log_dir says where the file is.
        names: the parts of a state.
        prompts: those of the task, `agents.storage.prompts_state`: whoever takes over the policy samples from them.
    """

    def __init__(
        self, label: Mapping[str, Any], config: AgentConfig, names: tuple[str, ...], prompts: State | None = None
    ) -> None:
        self.path = None if config.log_dir is None else checkpoint_path(config.log_dir)
        self._label = json.loads(json.dumps(label))  # as it is read back
        self._metadata = {**label, "config": config.to_dict()}
        self._defaults = type(config)().to_dict()
        self._names = (*names, "rows", "random")
        self._prompts: State = {} if prompts is None else prompts
        self._held: dict[str, State] | None = None

    def refuse_to_overwrite(self) -> None:
        """Raise a CheckpointError if the folder holds another run's checkpoint."""
        if self.path is not None and self.path.exists():
            raise CheckpointError(
                self.path, "a run stands there already", "continue it with resume=True, or choose another log_dir"
            )

    def hold(self, parts: Mapping[str, State], rows: Sequence[Row]) -> None:
        """Remember a copy of a state, and of the global random numbers, which networks and rewards may draw from.

        Args:
            parts: state dictionaries by name.
            rows: the log so far; rows are never changed, so the list alone is copied.
        """
        if self.path is not None:
            held = copy.deepcopy({**parts, "random": GlobalRNGState().state_dict()})
            self._held = {**held, "rows": {"rows": list(rows)}}

    def write(self) -> None:
        """Write what is held, atomically; nothing where nothing is held."""
        if self.path is not None and self._held is not None:
            save_checkpoint(self.path, {**self._held, "prompts": self._prompts}, self._metadata)

    def read(self) -> tuple[dict[str, State], list[Row]]:
        """Read the state and the rows back, and set the global random numbers.

        Raises:
            CheckpointError: no folder to read from, no whole checkpoint, or that of another run; the message lists
                what differs. What cannot be told is a warning.
        """
        if self.path is None:
            raise CheckpointError("resume=True", "the run has no log_dir", "give the log_dir of the run to continue")
        parts, found = load_checkpoint(self.path, self._names)
        # A field that is younger than the checkpoint changes nothing at its default.
        settings = differing_fields(self._defaults | found["config"], self._metadata["config"])
        check_same_run(self.path, found, self._label, settings)
        random = dict(parts.pop("random"))
        if not torch.cuda.is_available():
            random.pop("torch_cuda", None)
        GlobalRNGState().load_state_dict(random)
        return parts, list(parts.pop("rows")["rows"])


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Give the block global random numbers of its own, and the caller his back afterwards."""
    outer = GlobalRNGState().state_dict()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        GlobalRNGState().load_state_dict(outer)
