"""One update: passes over a batch of visited states in minibatches, each summed over micro-batches."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from agents.config import AgentConfig
from agents.objectives import DiffusionLoss
from agents.training.health import CURE, WeightCheck, step_within_range
from agents.training.optimiser import PreciseAdamW
from sepo_env.errors import DivergenceError


class Updater:
    """Improves what a loss trains on one batch after another.

    Args:
        loss: the objective; its parameters are trained.
        config: passes, minibatches, micro-batches and the optimiser's settings.
    """

    def __init__(self, loss: DiffusionLoss, config: AgentConfig) -> None:
        self.loss = loss
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

    def update(self, states: TensorDict, num_trajectories: int, generator: torch.Generator) -> dict[str, float]:
        """Make all optimiser steps of one batch.

        Args:
            states: visited states ``[N]``.
            num_trajectories: how many trajectories they come from.
            generator: draws the minibatches, on the CPU.

        Returns:
            The loss's scalars and ``grad_norm``, averaged over the optimiser steps (``ratio_max``: the largest), and
            ``learning_rate``.

        Raises:
            DivergenceError: a loss, gradient or weight out of range, or a ratio above ``max_ratio``.
        """
        if self.config.optimiser_steps > 1:
            # From the second step on the policy is no longer the one that sampled; remember what that one said.
            parts = states.split(self.config.micro_batch_size)
            states["old_log_prob"] = torch.cat([self.loss.log_probs(part) for part in parts])
        steps: list[dict[str, float]] = []
        for _ in range(self.config.inner_epochs):
            order = torch.randperm(len(states), generator=generator).to(states["tokens"].device)
            for rows in order.tensor_split(self.config.minibatches):
                # A part of the states stands for the same part of the trajectories, so that every optimiser step
                # sees a gradient of the same size, whatever the number of minibatches.
                share = num_trajectories * len(rows) / len(states)
                steps.append(self._step(states[rows], share))
        figures = {name: sum(step[name] for step in steps) / len(steps) for name in steps[0]}
        figures["ratio_max"] = max(step["ratio_max"] for step in steps)
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

    def _step(self, states: TensorDict, num_trajectories: float) -> dict[str, float]:
        states["num_trajectories"] = torch.full_like(states["inclusion_weight"], num_trajectories)
        self.optimiser.zero_grad(set_to_none=True)
        parts = states.split(self.config.micro_batch_size)
        outputs = [self._backward(part) for part in parts]
        figures = _combine(outputs, [len(part) / len(states) for part in parts])
        figures["grad_norm"] = float(nn.utils.clip_grad_norm_(self.optimiser.parameters, self.config.max_grad_norm))
        self._check(figures)
        step_within_range(self.optimiser.step)
        self.check_weights()
        return figures

    def _backward(self, states: TensorDict) -> TensorDict:
        output = self.loss(states)
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
        if figures["ratio_max"] > self.config.max_ratio:
            raise DivergenceError(
                f"an importance ratio has reached {figures['ratio_max']:.3g} (max_ratio is {self.config.max_ratio:g}): "
                "the policy has moved far from the one that sampled; lower learning_rate or inner_epochs, or raise "
                "kl_coeff"
            )


def _shown(name: str) -> str:
    """``policy_network_params.conv.weight``, as a loss calls it, in fewer words: ``policy.conv.weight``."""
    return name.replace("_network_params", "")


def _combine(outputs: list[TensorDict], shares: list[float]) -> dict[str, float]:
    """Micro-batches as one: what is per trajectory adds up, ratios have a largest, all else is averaged over states."""
    figures: dict[str, float] = {}
    for name in outputs[0].keys():  # noqa: SIM118 - iterating over a tensordict walks its batch
        values: list[Tensor] = [output[name] for output in outputs]
        if name == "ratio_max":
            figures[name] = float(torch.stack(values).max())
        elif name.startswith("loss_") or name in ("kl_reference", "entropy"):
            figures[name] = float(torch.stack(values).sum())
        else:
            figures[name.lower()] = float(sum(v * share for v, share in zip(values, shares, strict=True)))
    return figures
