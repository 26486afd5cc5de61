r"""Guidance: two outputs of a network, with and without its condition, and the law that both together stand for.

What is tempered is the law of a step,

.. math:: q_w(x_s^i | x_t, c) \propto q(x_s^i | x_t, c)^{1 + w}\, q(x_s^i | x_t)^{-w} ,

position by position: D-CFG (arXiv 2412.10193, where :math:`\gamma = 1 + w`). The rest follows from it. Over an
infinitesimal step it tempers the rates, :math:`s_w = s(\cdot | c)^{1 + w} s^{-w}` (arXiv 2406.01572), and a step to
t = 0 has the tempered x0-posterior as its law. On an absorbing graph the schedule says when a mask is filled, with or
without the condition, and the law of what it is filled with is tempered: rates that are not normalised fill too early
(arXiv 2507.08965).
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class GuidedOutput:
    """What a guided network says in one state; `sepo_env.diffusion.process.DiffusionProcess` knows what it means.

    Attributes:
        conditional: the network's output given its condition, ``(B, L, V)``.
        unconditional: its output without, ``(B, L, V)``.
        scale: w > 0.
        rows: sequences that have a condition, bool ``(B,)``; the others stay as they are, bit for bit. None: all.
    """

    conditional: Tensor
    unconditional: Tensor
    scale: float
    rows: Tensor | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> GuidedOutput:
        """Both outputs, each changed alike."""
        return dataclasses.replace(self, conditional=change(self.conditional), unconditional=change(self.unconditional))

    def to(self, dtype: torch.dtype) -> GuidedOutput:
        """The same outputs in another dtype."""
        return self.map(lambda one: one.to(dtype))

    def double(self) -> GuidedOutput:
        """The same outputs in float64."""
        return self.to(torch.float64)

    def combine(self, read: Callable[[Tensor], Tensor], temper: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
        """Read a table ``(B, L, W)`` off each of the outputs, and temper the one by the other."""
        conditional = read(self.conditional)
        return self.select(temper(conditional, read(self.unconditional), self.scale), conditional)

    def select(self, guided: Tensor, conditional: Tensor) -> Tensor:
        """The guided rows where there is a condition, and the conditional ones elsewhere."""
        return guided if self.rows is None else torch.where(self.rows[:, None, None], guided, conditional)


Output = Tensor | GuidedOutput


class Guiding(ABC):
    """Marks a denoiser that gives its output twice, with its condition and without."""

    @property
    @abstractmethod
    def hides_prompt(self) -> bool:
        """Whether the condition is the prompt, so that it must be told which positions were given."""

    @abstractmethod
    def evaluate(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None, mask_token: int | None) -> Output:
        """Evaluate the network, once where there is nothing to guide.

        Args:
            tokens: int64 ``(B, L)``.
            time: ``(B,)``.
            prompt_mask: positions that were given, bool ``(B, L)``; None: none. The tokens alone do not say it, for a
                token that was given looks like one that was sampled.
            mask_token: the graph's MASK, or None.

        Raises:
            InvalidArgumentError: a prompt is to be hidden behind MASK, and there is none.
        """


def temper_law(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    r"""Log-laws ``(..., W)`` -> :math:`(1 + w) \log q_c - w \log q_u`, normalised over the last axis.

    What the condition rules out stays so. What only the condition allows takes all the mass, as it does in the limit
    of :math:`q_u \to 0`.

    >>> c, u = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.75, 0.0]).log()
    >>> temper_law(c, u, 1.0).exp(), temper_law(c[:2], u[:2], 1.0).exp()
    (tensor([0., 0., 1.]), tensor([0.9231, 0.0769]))
    """
    possible, alone, guided = _tempered(conditional, unconditional, scale)
    kept = torch.where(alone.any(-1, keepdim=True), alone, possible)
    return guided.masked_fill(~kept, -torch.inf).log_softmax(-1).to(conditional.dtype)


def temper_score(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    r"""Log-scores ``(..., V)`` -> :math:`(1 + w) \log s_c - w \log s_u`, bounded so that sums of scores are finite.

    A jump that only the condition allows has the bound: it is made for certain.
    """
    possible, alone, guided = _tempered(conditional, unconditional, scale)
    bound = 0.5 * math.log(torch.finfo(conditional.dtype).max)
    guided = guided.masked_fill(alone, bound).clamp(max=bound)
    return guided.masked_fill(~possible, -torch.inf).to(conditional.dtype)


def _tempered(conditional: Tensor, unconditional: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Where the condition allows something, where it alone does, and the tempered logarithms of what is finite."""
    # Half precision has no room for multiples of differences.
    dtype = torch.promote_types(conditional.dtype, torch.float32)
    possible, missing = conditional > -torch.inf, unconditional == -torch.inf
    kept = conditional.to(dtype).masked_fill(~possible, 0.0)
    guided = kept + scale * (kept - unconditional.to(dtype).masked_fill(missing, 0.0))
    return possible, possible & missing, guided
