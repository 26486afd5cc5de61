"""One update: passes over a batch of samples in minibatches, each summed over micro-batches."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.config import LearnerConfig
from agents.training.health import CURE, WeightCheck, within_range
from agents.training.method import Method
from agents.training.optimiser import PreciseAdamW
from sepo_env.errors import DivergenceError


class Updater:
    """Improves what a loss trains on one batch after another.

    Args:
        method: the loss, whose parameters are trained, and how its figures are put together.
        config: passes, minibatches, micro-batches and the optimiser's settings.
    """

    def __init__(self, method: Method, config: LearnerConfig) -> None:
        self.method = method
        self.loss = loss = method.loss
        self.config = config
        self.optimiser = PreciseAdamW(
            (p for p in loss.parameters() if p.requires_grad), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimiser, self._warmup)
        named = ((_shown(name), p) for name, p in loss.named_parameters() if p.requires_grad)
        self.check_weights = WeightCheck(named, self.optimiser)

    def _warmup(self, iteration: int) -> float:
        return min(1.0, (iteration + 1) / max(1, self.config.warmup_iterations))

    @property
    def learning_rate(self) -> float:
        """The present step size."""
        return float(self.scheduler.get_last_lr()[0])

    def update(self, samples: TensorDict, generator: torch.Generator) -> dict[str, float]:
        """Make all optimiser steps of one batch.

        Args:
            samples: what the loss reads, ``[N]``; sums over them are divided by their entry ``num_trajectories``.
            generator: draws the minibatches, on the CPU.

        Returns:
            The loss's scalars and ``grad_norm``, averaged over the optimiser steps (the largest of those that are
            maxima), and ``learning_rate``.

        Raises:
            DivergenceError: a loss, gradient or weight out of range, or a figure above its limit.
        """
        num_trajectories = float(samples["num_trajectories"][0])
        steps: list[dict[str, float]] = []
        for _ in range(self.config.inner_epochs):
            order = torch.randperm(len(samples), generator=generator).to(samples.device)
            for rows in order.tensor_split(self.config.minibatches):
                # A part of the samples stands for the same part of the trajectories, so that every optimiser step
                # sees a gradient of the same size, whatever the number of minibatches.
                share = num_trajectories * len(rows) / len(samples)
                steps.append(self._step(samples[rows], share))
        figures = {name: self._over_steps(name, [step[name] for step in steps]) for name in steps[0]}
        figures["learning_rate"] = self.learning_rate
        self.scheduler.step()
        return figures

    def skip(self) -> dict[str, float | None]:
        """Pass over a batch that cannot be learnt from; of the figures of `update` only the step size is known."""
        names = [str(key).lower() for key in self.loss.out_keys]
        figures: dict[str, float | None] = dict.fromkeys([*names, "grad_norm"])
        figures["learning_rate"] = self.learning_rate
        # Without gradients no parameter moves; the scheduler wants to see a step before its own.
        self.optimiser.zero_grad(set_to_none=True)
        self.optimiser.step()
        self.scheduler.step()
        return figures

    def _over_steps(self, name: str, values: list[float]) -> float:
        return max(values) if self.method.reductions.get(name) == "max" else sum(values) / len(values)

    def _step(self, samples: TensorDict, num_trajectories: float) -> dict[str, float]:
        samples["num_trajectories"] = torch.full_like(samples["num_trajectories"], num_trajectories)
        self.optimiser.zero_grad(set_to_none=True)
        parts = samples.split(self.config.micro_batch_size)
        outputs = [self._backward(part) for part in parts]
        figures = self._combine(outputs, [len(part) / len(samples) for part in parts])
        figures["grad_norm"] = float(nn.utils.clip_grad_norm_(self.optimiser.parameters, self.config.max_grad_norm))
        self._check(figures)
        with within_range():
            self.optimiser.step()
        self.check_weights()
        if self.method.after_step is not None:
            self.method.after_step()
        return figures

    def _backward(self, samples: TensorDict) -> TensorDict:
        output = self.loss(samples)
        total = sum(value for name, value in output.items() if name.startswith("loss_"))
        total.backward()
        return output.detach()

    def _check(self, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            if not math.isfinite(value):
                raise DivergenceError(
                    f"{name} is {value}: the reward, the network's output or the step size has left the range of "
                    f"floating-point numbers; {CURE}"
                )
        for name, (setting, limit) in self.method.limits.items():
            if figures[name] > limit:
                raise DivergenceError(
                    f"{name} has reached {figures[name]:.3g} ({setting} is {limit:g}): the policy has moved far from "
                    "the one that sampled; lower learning_rate or inner_epochs, or raise kl_coeff"
                )

    def _combine(self, outputs: list[TensorDict], shares: list[float]) -> dict[str, float]:
        """Micro-batches as one, by `Method.reductions`."""
        figures: dict[str, float] = {}
        for name in outputs[0].keys():  # noqa: SIM118 - iterating over a tensordict walks its batch
            values: list[Tensor] = [output[name] for output in outputs]
            reduction = self.method.reductions.get(name, "sum" if name.startswith("loss_") else "mean")
            if reduction == "mean":
                figures[name.lower()] = float(sum(v * share for v, share in zip(values, shares, strict=True)))
            else:
                stacked = torch.stack(values)
                figures[name.lower()] = float(stacked.max() if reduction == "max" else stacked.sum())
        return figures


def _shown(name: str) -> str:
    """``policy_network_params.conv.weight``, as a loss calls it, in fewer words: ``policy.conv.weight``."""
    return name.replace("_network_params", "")
