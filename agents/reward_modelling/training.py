"""One training of a reward model: from pairs to a folder that a reward is made of, with checkpoints and resumption."""

from __future__ import annotations

import csv
import io
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.reward_modelling.config import RewardModelConfig
from agents.reward_modelling.encoding import encode_pairs
from agents.reward_modelling.models import base_digest, make_model
from agents.reward_modelling.pairs import digest
from agents.reward_modelling.run_folder import (
    CHECKPOINT_FOLDER,
    check_new,
    check_resumed,
    claim,
    describe_checkpoint,
    find_checkpoint,
)
from agents.reward_modelling.splitting import read_or_split
from agents.training.health import within_range
from agents.training.recovery import own_randomness
from sepo_env.errors import FolderError
from sepo_env.files import ClaimedFolder, write_atomically
from sepo_env.loading.hugging_face import import_transformers, quiet, save_folder
from sepo_env.precision import float32_default

MODEL_FOLDER = "reward_model"
METRICS_FILE = "metrics.csv"

_COLUMNS = {"epoch": "epoch", "step": "step", "eval_loss": "held_out_loss", "eval_accuracy": "held_out_accuracy"}


@dataclass(frozen=True)
class Outcome:
    """What a training came to.

    Attributes:
        folder: the model: `sepo_env.rewards.SequenceClassifierReward` takes it.
        accuracy: share of the held-out pairs whose preferred text gets the higher reward.
        loss: the pairwise logistic loss of the held-out pairs, nats.
        num_training: training pairs.
        num_held_out: held-out pairs.
        num_steps: optimiser steps.
        num_truncated: texts, of all pairs, that were longer than the model reads, and were cut.
        num_dropped: pairs that were left out because their texts were the same after the cut.
    """

    folder: Path
    accuracy: float
    loss: float
    num_training: int
    num_held_out: int
    num_steps: int
    num_truncated: int
    num_dropped: int


@float32_default()
def train_reward_model(
    config: RewardModelConfig,
    *,
    resume: bool = False,
    progress: bool = True,
    callbacks: Sequence[Any] = (),
    say: Callable[[str], None] = warnings.warn,
) -> Outcome:
    """Train a reward model on preferences, and write it to ``log_dir/reward_model``.

    Args:
        config: the settings.
        resume: go on from the last whole checkpoint in ``log_dir``, bit for bit on a CPU.
        progress: whether to show a bar.
        callbacks: Transformers' own, such as ``transformers.TrainerCallback``.
        say: told of each newer checkpoint that is damaged, and passed over.

    Raises:
        InvalidArgumentError: pairs that are none, with the number of the line; or none that differ within the length.
        CheckpointError: no pairs, no base, nothing to resume from, or a run that would be overwritten.
        DivergenceError: a loss that is not finite, or weights out of range.
        FolderError: ``log_dir`` cannot be written to, or another run writes there.
        MissingExtraError: transformers or accelerate is not installed.
        KeyboardInterrupt: Ctrl-C; the last checkpoint stays.
    """
    import_transformers()
    from agents.reward_modelling.pair_trainer import HELD_OUT_ACCURACY, HELD_OUT_LOSS, Bar, PairTrainer

    path = Path(config.log_dir).absolute()  # the run stays there when somebody changes the present folder
    training, held_out = read_or_split(config.pairs, config.eval_pairs, config.eval_share, config.seed)
    base = None if config.base is None else base_digest(config.base)
    identity = {"training": digest(training), "held_out": digest(held_out), "base_files": base}
    if resume:
        check_resumed(path, config, identity)
    else:
        check_new(path)
    folder = ClaimedFolder(path)

    def restore() -> None:
        folder.restore()
        claim(path, config, identity)

    # The caller's own random numbers are not touched, and a no_grad() of his does not reach in here.
    with own_randomness(config.seed), torch.enable_grad():
        model, tokenizer = make_model(config, training)
        room = min(config.max_length, tokenizer.model_max_length)
        encoded = [
            encode_pairs(pairs, tokenizer, room, kind)
            for pairs, kind in ((training, "training"), (held_out, "held-out"))
        ]
        with folder:  # not before all that a mistake in the settings can make fail
            trainer = PairTrainer(
                model,
                tokenizer,
                config,
                str(path / CHECKPOINT_FOLDER),
                *(part.examples for part in encoded),
                progress=progress,
                callbacks=callbacks,
                restore=restore,
            )
            checkpoint = None
            if resume:
                checkpoint, faults = find_checkpoint(path)
                for fault in faults:
                    say(f"{fault}; going on from {checkpoint or 'the beginning'}.")
            else:
                check_new(path)  # somebody may have been quicker
            restore()
            try:
                with quiet(), within_range():
                    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
                    figures = trainer.evaluate()
            except BaseException as error:
                _rescue(error, path, restore, trainer.state.log_history)
                raise
            finally:
                for callback in trainer.callback_handler.callbacks:
                    if isinstance(callback, Bar):
                        callback.close()
            restore()
            _write_metrics(path / METRICS_FILE, trainer.state.log_history)
            outcome = Outcome(
                folder=path / MODEL_FOLDER,
                accuracy=figures[HELD_OUT_ACCURACY],
                loss=figures[HELD_OUT_LOSS],
                num_training=len(encoded[0].examples),
                num_held_out=len(encoded[1].examples),
                num_steps=trainer.state.global_step,
                num_truncated=sum(part.num_truncated for part in encoded),
                num_dropped=sum(part.num_dropped for part in encoded),
            )
            card = json.dumps(_card(outcome) | {"settings": config.to_dict(), **identity}, indent=2)
            save_folder(outcome.folder, model, tokenizer, replace=resume, reward_model=card)
    return outcome


def _card(outcome: Outcome) -> dict[str, Any]:
    return {
        "held_out_accuracy": outcome.accuracy,
        "held_out_loss": outcome.loss,
        "num_training": outcome.num_training,
        "num_held_out": outcome.num_held_out,
        "num_truncated_texts": outcome.num_truncated,
        "num_dropped_pairs": outcome.num_dropped,
    }


def _rescue(
    error: BaseException, folder: Path, restore: Callable[[], object], history: Sequence[dict[str, Any]]
) -> None:
    """Write the figures that there are, and say where the run can go on."""
    try:
        restore()
        _write_metrics(folder / METRICS_FILE, history)
    except FolderError as trouble:
        if not isinstance(error, FolderError):  # which says the same
            error.add_note(f"The figures could not be written: {trouble}")
    error.add_note(describe_checkpoint(folder))


def _write_metrics(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The held-out figures after each epoch, as a table."""
    rows = {entry["step"]: entry for entry in history if "eval_accuracy" in entry}
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(_COLUMNS.values())
    for step in sorted(rows):
        writer.writerow([rows[step].get(name) for name in _COLUMNS])
    write_atomically(path, table.getvalue().encode())
