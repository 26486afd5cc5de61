"""Transformers' Trainer on pairs of texts; importing this module needs the extra `hf`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from agents.reward_modelling.config import RewardModelConfig
from agents.reward_modelling.encoding import Example
from agents.training.health import WeightCheck
from sepo_env.errors import CheckpointError, DivergenceError, FolderError
from sepo_env.files import writing

HELD_OUT_ACCURACY = "eval_accuracy"
HELD_OUT_LOSS = "eval_loss"

_CURE = "start a new run with a smaller learning_rate"


class PairCollator:
    """Pairs to one padded batch: the B preferred texts, then the B others, ``(2 B, T)``."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Return ``input_ids`` and ``attention_mask``, int64 ``(2 B, T)``."""
        rows = [{"input_ids": example[side]} for side in ("chosen", "rejected") for example in examples]
        padded = self.tokenizer.pad(rows, padding=True, return_tensors="pt")
        return {name: padded[name] for name in ("input_ids", "attention_mask")}


class PairTrainer(Trainer):
    r"""Minimises the pairwise logistic loss of a reward model (arXiv 2203.02155).

    .. math:: -\log \sigma(r(x_{chosen}) - r(x_{rejected}))

    Args:
        model: token ids ``(2 B, T)`` -> an output with ``logits`` ``(2 B, 1)``.
        tokenizer: its own.
        config: the settings.
        folder: where checkpoints go.
        training: training pairs, as tokens.
        held_out: those that are judged after each epoch.
        progress: whether to show a bar.
        callbacks: Transformers' callbacks.
        restore: called before a checkpoint is written: makes the run's folder again where somebody has removed it.
    """

    control: Any

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        config: RewardModelConfig,
        folder: str,
        training: Sequence[Example],
        held_out: Sequence[Example],
        *,
        progress: bool,
        callbacks: Sequence[Any] = (),
        restore: Callable[[], object] = lambda: None,
    ) -> None:
        self._restore = restore
        steps = -(-len(training) // config.batch_size) * config.num_epochs
        super().__init__(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=config.batch_size,
                num_train_epochs=config.num_epochs,
                learning_rate=config.step_size,
                lr_scheduler_type="linear",
                warmup_steps=round(config.warmup_share * steps),
                weight_decay=config.weight_decay,
                max_grad_norm=config.max_grad_norm,
                eval_strategy="epoch",
                logging_strategy="epoch",
                logging_nan_inf_filter=False,
                save_strategy="steps",
                save_steps=config.save_every,
                save_total_limit=2,
                remove_unused_columns=False,
                dataloader_pin_memory=torch.cuda.is_available() and config.device != "cpu",
                use_cpu=config.device == "cpu",
                report_to="none",
                disable_tqdm=True,
                seed=config.seed,
                data_seed=config.seed,
            ),
            data_collator=PairCollator(tokenizer),
            train_dataset=training,
            eval_dataset=held_out,
            callbacks=[Health(), *callbacks, *([Bar()] if progress else [])],
        )
        self.remove_callback(PrinterCallback)  # it prints what the bar shows

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        """Return the mean loss of a batch, a scalar.

        Raises:
            DivergenceError: it is not finite.
        """
        loss = -F.logsigmoid(margins(model, inputs)).mean()
        if not bool(torch.isfinite(loss)):
            raise DivergenceError(f"the loss is {float(loss)} at step {self.state.global_step + 1}; {_CURE}.")
        return loss

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        self._restore()
        try:
            with writing(folder):
                super()._save_checkpoint(model, trial)
        except FolderError:
            shutil.rmtree(folder, ignore_errors=True)  # what there is of it only takes room
            raise

    @torch.no_grad()
    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Judge the held-out pairs: the share that is put in the right order, and the loss.

        Raises:
            DivergenceError: the loss is not finite.
        """
        self.model.eval()
        size = self.args.per_device_train_batch_size
        found = [
            margins(self.model, {k: v.to(self.model.device) for k, v in self.data_collator(part).items()}).float().cpu()
            for part in (self.eval_dataset[i : i + size] for i in range(0, len(self.eval_dataset), size))
        ]
        margin = torch.cat(found)
        figures = {
            HELD_OUT_ACCURACY: float((margin > 0).float().mean()),
            HELD_OUT_LOSS: float(-F.logsigmoid(margin).mean()),
        }
        if not math.isfinite(figures[HELD_OUT_LOSS]):
            raise DivergenceError(f"the loss of the held-out pairs is {figures[HELD_OUT_LOSS]}; {_CURE}.")
        self.log(dict(figures))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, figures)
        return figures


def margins(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """By how much the preferred text of each pair leads, ``(B,)``, of inputs ``(2 B, T)``."""
    chosen, rejected = model(**inputs).logits[:, 0].chunk(2)
    return chosen - rejected


class Health(TrainerCallback):
    """Stops a run whose weights have left the range of numbers, before anything is written of them."""

    def __init__(self) -> None:
        self._check: WeightCheck | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, optimizer: Any, **_: Any) -> None:
        """Look at what the run starts from.

        Raises:
            CheckpointError: the base, or the checkpoint, holds what is no number.
        """
        named = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self._check = WeightCheck(named, optimizer)
        if (fault := self._check.fault()) is not None:
            raise CheckpointError("the base or the checkpoint", fault, "give another base, or start a new run")

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at what a step has changed.

        Raises:
            DivergenceError: with the name of a parameter.
        """
        if self._check is not None:
            self._check()


class Bar(TrainerCallback):
    """A progress bar over the optimiser steps with the held-out accuracy."""

    def __init__(self) -> None:
        self._bar: tqdm[None] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Open the bar."""
        self._bar = tqdm(
            desc="reward model", total=state.max_steps, initial=state.global_step, unit="step", dynamic_ncols=True
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Move on."""
        if self._bar is not None:
            self._bar.update()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Show the figures."""
        if self._bar is not None:
            self._bar.set_postfix(accuracy=f"{metrics[HELD_OUT_ACCURACY]:.3f}", loss=f"{metrics[HELD_OUT_LOSS]:.3g}")

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Close the bar."""
        self.close()
