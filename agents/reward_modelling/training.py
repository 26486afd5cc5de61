"""One training of a reward model: from pairs to a folder that a reward is made of, with checkpoints and resumption."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from agents.checkpoint import write_atomically
from agents.recovery import own_randomness
from agents.reward_modelling.config import FREE_ON_RESUME, RewardModelConfig
from agents.reward_modelling.models import make_model
from agents.reward_modelling.pairs import digest
from agents.reward_modelling.splitting import read_or_split
from sepo_env.errors import CheckpointError
from sepo_env.hugging_face import import_transformers, quiet, save_folder

MODEL_FOLDER = "reward_model"
CHECKPOINT_FOLDER = "checkpoints"
RUN_FILE = "run.json"
METRICS_FILE = "metrics.csv"
FORMAT = "agents.reward_model/1"

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
    """

    folder: Path
    accuracy: float
    loss: float
    num_training: int
    num_held_out: int
    num_steps: int


def train_reward_model(
    config: RewardModelConfig, *, resume: bool = False, progress: bool = True, callbacks: Sequence[Any] = ()
) -> Outcome:
    """Train a reward model on preferences, and write it to ``log_dir/reward_model``.

    Args:
        config: the settings.
        resume: go on from the last checkpoint in ``log_dir``, bit for bit on a CPU.
        progress: whether to show a bar.
        callbacks: Transformers' own, such as ``transformers.TrainerCallback``.

    Raises:
        InvalidArgumentError: pairs that are none; the message names the line.
        CheckpointError: no pairs, no base, nothing to resume from, or a run that would be overwritten.
        DivergenceError: a loss that is not finite.
        MissingExtraError: transformers or accelerate is not installed.
        KeyboardInterrupt: Ctrl-C; the last checkpoint stays.
    """
    import_transformers()
    from agents.reward_modelling.pair_trainer import HELD_OUT_ACCURACY, HELD_OUT_LOSS, Bar, PairTrainer

    folder = Path(config.log_dir)
    training, held_out = read_or_split(config.pairs, config.eval_pairs, config.eval_share, config.seed)
    identity = {"training": digest(training), "held_out": digest(held_out)}
    checkpoint = _claim(folder, config, identity, resume)
    # The caller's own random numbers are not touched, and a no_grad() of his does not reach in here.
    with own_randomness(config.seed), torch.enable_grad():
        model, tokenizer = make_model(config, training)
        trainer = PairTrainer(
            model,
            tokenizer,
            config,
            str(folder / CHECKPOINT_FOLDER),
            training,
            held_out,
            progress=progress,
            callbacks=callbacks,
        )
        try:
            with quiet():
                trainer.train(resume_from_checkpoint=checkpoint)
                figures = trainer.evaluate()
        except BaseException as error:
            last = _last_checkpoint(folder / CHECKPOINT_FOLDER)
            error.add_note(
                "No checkpoint has been written yet."
                if last is None
                else f"The last checkpoint is that of step {Path(last).name.rpartition('-')[2]}, in {last}."
            )
            raise
        finally:
            for callback in trainer.callback_handler.callbacks:
                if isinstance(callback, Bar):
                    callback.close()
            _write_metrics(folder / METRICS_FILE, trainer.state.log_history)
    outcome = Outcome(
        folder=folder / MODEL_FOLDER,
        accuracy=figures[HELD_OUT_ACCURACY],
        loss=figures[HELD_OUT_LOSS],
        num_training=len(training),
        num_held_out=len(held_out),
        num_steps=trainer.state.global_step,
    )
    card = {
        "held_out_accuracy": outcome.accuracy,
        "held_out_loss": outcome.loss,
        "num_training": outcome.num_training,
        "num_held_out": outcome.num_held_out,
        "settings": config.to_dict(),
        **identity,
    }
    save_folder(outcome.folder, model, tokenizer, replace=resume, reward_model=json.dumps(card, indent=2))
    return outcome


def _claim(folder: Path, config: RewardModelConfig, identity: dict[str, str], resume: bool) -> str | None:
    """Make the folder this run's own; the checkpoint to go on from, if any."""
    path = folder / RUN_FILE
    description = {"format": FORMAT, "settings": config.to_dict(), **identity}
    if not resume:
        if path.exists():
            raise CheckpointError(
                path, "a run stands there already", "continue it with resume, or choose another log_dir"
            )
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(description, indent=2).encode())
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = found["settings"]
        if found["format"] != FORMAT:
            raise ValueError(f"its format is {found['format']!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            path, f"no run to resume ({error!r})", "check log_dir, or start without resume"
        ) from error
    pairs = [(name, found.get(name), value) for name, value in identity.items()]
    pairs += [(n, settings.get(n), v) for n, v in config.to_dict().items() if n not in FREE_ON_RESUME]
    differing = [f"{name} was {old!r}, is {new!r}" for name, old, new in pairs if old != new]
    if differing:
        raise CheckpointError(
            path, f"it belongs to a run with other settings ({'; '.join(differing)})", "resume with those of the run"
        )
    return _last_checkpoint(folder / CHECKPOINT_FOLDER)


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: its state is what is written last."""
    found: dict[int, Path] = {}
    for path in folder.glob("checkpoint-*"):
        try:
            found[int(json.loads((path / "trainer_state.json").read_text())["global_step"])] = path
        except (OSError, ValueError, KeyError):
            continue  # a crash while it was written
    return str(found[max(found)]) if found else None


def _write_metrics(path: Path, history: Sequence[dict[str, Any]]) -> None:
    """The held-out figures after each epoch, as a table."""
    rows = {entry["step"]: entry for entry in history if "eval_accuracy" in entry}
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(_COLUMNS.values())
    for step in sorted(rows):
        writer.writerow([rows[step].get(name) for name in _COLUMNS])
    write_atomically(path, table.getvalue().encode())
