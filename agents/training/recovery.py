"""The checkpoint of one run: what identifies the run, and the last state that was whole and healthy."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torchrl.checkpoint import GlobalRNGState

from agents.config import LearnerConfig, differing_fields
from agents.identity import check_same_run
from agents.training.checkpoint import State, load_checkpoint, save_checkpoint
from agents.training.logs import Row
from sepo_env.errors import CheckpointError, FolderError
from sepo_env.files import ClaimedFolder

CHECKPOINT_FILE = "checkpoint.pt"
AGENT_FOLDER = "agent"
"""Where the command line saves the agent, in log_dir."""


def checkpoint_path(log_dir: str | Path) -> Path:
    """Where a run with this log_dir keeps its checkpoint."""
    # In full, so that a run stays in its folder when somebody changes the present one.
    return Path(log_dir).absolute() / CHECKPOINT_FILE


class RunCheckpoint:
    """Keeps the state of the last finished iteration in memory, and writes it when it is due.

    What stops a run in the middle of an iteration, Ctrl-C, a failing reward or a NaN, leaves weights that no whole
    number of iterations would have given. The copy in memory is what is written then. It costs the memory of the
    model and the optimiser once more, and nothing where no folder is given.

    A state with finite weights may still be one that no trajectory can be sampled from. Until that is proven the state
    before is kept as well, to fall back to (that is at a time when no gradients are), and nothing is due.

    Args:
        label: what the run is, for JSON: agent, task, reward, judge (`agents.agent.Agent`).
        config: the settings, of which log_dir says where the file is.
        names: the parts of a state.
        prompts: those of the task, `agents.storage.prompts_state`: whoever takes over the policy samples from them.

    Attributes:
        path: the file; None where no log_dir is given.
        folder: the one that it stands in, to be entered before anything is written.
        is_unproven: whether nobody has sampled from the policy of the last row yet.
    """

    def __init__(
        self, label: Mapping[str, Any], config: LearnerConfig, names: tuple[str, ...], prompts: State | None = None
    ) -> None:
        self.path = None if config.log_dir is None else checkpoint_path(config.log_dir)
        self._label = json.loads(json.dumps(label))  # as it is read back
        self._metadata = {**label, "config": config.to_dict()}
        self._defaults = type(config)().to_dict()
        self._names = (*names, "rows", "random")
        self._prompts: State = {} if prompts is None else prompts
        self.folder = None if self.path is None else ClaimedFolder(self.path.parent, [AGENT_FOLDER])
        self.is_unproven = False
        self._every = config.checkpoint_every
        self._held: dict[str, State] | None = None
        self._proven: dict[str, State] | None = None
        self._num_rows = 0

    def refuse_to_overwrite(self) -> None:
        """Raise a CheckpointError if the folder holds another run's checkpoint."""
        if self.path is not None and os.path.lexists(self.path):
            raise CheckpointError(
                self.path, "a run stands there already", "continue it with resume=True, or choose another log_dir"
            )

    def refuse_to_resume(self) -> None:
        """Raise a CheckpointError if there is nothing to resume from."""
        if self.path is None:
            raise CheckpointError("resume=True", "the run has no log_dir", "give the log_dir of the run to continue")
        if not os.path.isfile(self.path):
            raise CheckpointError(
                self.path, "there is no such file", "check the path, or start a new run without resume"
            )

    def hold(self, parts: Mapping[str, State], rows: Sequence[Row]) -> None:
        """Remember a copy of a state, and of the global random numbers, which networks and rewards may draw from.

        Args:
            parts: state dictionaries by name.
            rows: the log so far; rows are never changed, so the list alone is copied.
        """
        if self.path is not None:
            held = copy.deepcopy({**parts, "random": GlobalRNGState().state_dict()})
            self._proven, self._held = self._held, {**held, "rows": {"rows": list(rows)}}
        self.is_unproven = len(rows) > self._num_rows
        self._num_rows = len(rows)

    def prove(self) -> None:
        """Take note that the last policy has been sampled from; write its state if that is due.

        Raises:
            FolderError: it cannot be written.
        """
        self._proven = None
        if self.is_unproven:
            self.is_unproven = False
            if self._num_rows % self._every == 0:
                self.write()

    def fall_back(self) -> None:
        """Forget what is held, which cannot be sampled from, for the state before; for nothing where there is none."""
        self._held, self._proven = self._proven, None
        self.is_unproven = False

    @property
    def held(self) -> dict[str, State] | None:
        """The parts of the state that is held; None where nothing is."""
        return self._held

    def write(self) -> None:
        """Write what is held, atomically, into a folder that is this run's own; nothing where nothing is held.

        Raises:
            FolderError: it cannot be written; what stood there before stands there still.
        """
        if self.path is not None and self.folder is not None and self._held is not None:
            self.folder.restore()
            save_checkpoint(self.path, {**self._held, "prompts": self._prompts}, self._metadata)

    def rescue(self) -> str:
        """Write what is held when a run has been stopped, and say what is kept where."""
        if self.path is None:
            return "no log_dir was given, so nothing is kept."
        if self._held is None:
            return "nothing is written, because not even its policy can be sampled from."
        try:
            self.write()
        except FolderError as error:
            older = f" An older state is in {self.path}." if os.path.isfile(self.path) else ""
            return f"its state could not be written ({str(error).rstrip('.')}).{older}"
        return f"its state is in {self.path}."

    def read(self) -> tuple[dict[str, State], list[Row]]:
        """Read the state and the rows back, and set the global random numbers.

        Raises:
            CheckpointError: no folder to read from, no whole checkpoint, or that of another run; the message lists
                what differs. What cannot be told is a warning.
        """
        self.refuse_to_resume()
        assert self.path is not None
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
