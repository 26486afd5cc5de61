r"""Classifier-free guidance: a conditional denoiser, sharpened against itself without its condition."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion.process import ReadsNoise, ReadsPrompt
from sepo_env.diffusion.schedule import Schedule
from sepo_env.errors import InvalidArgumentError

# As good as -inf to a softmax, and its differences are numbers.
_IMPOSSIBLE = -1e4


class ClassConditionalDenoiser(Denoiser):
    r"""A denoiser that can be told a class, :math:`p_\theta(x_0 | x_t, c)`, and was trained without it as well.

    Attributes:
        num_classes: classes are 0 .. ``num_classes`` - 1.
    """

    num_classes: int

    @abstractmethod
    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``(B, L, V)`` as `Denoiser.forward`, given classes int64 ``(B,)``; None: the null label, no class."""


class ClassifierFreeGuidance(Denoiser, ReadsPrompt, ReadsNoise):
    r"""Guidance of scale w, in the convention in which w = 0 is the conditional model.

    .. math::
        \log p_w(x_0^i | x_t, c) = (1 + w) \log p(x_0^i | x_t, c) - w \log p(x_0^i | x_t) + \mathrm{const} ,

    normalised over the V tokens of each position. In the notation of arXiv 2412.10193 (D-CFG, there applied to the
    step's posterior) :math:`\gamma = 1 + w`. Normalising the x0-posterior keeps the rate at which a mask is filled
    that of the schedule, whatever the scale; guided rates that are not normalised fill too early (arXiv 2507.08965).
    A score network is guided likewise, :math:`\log s_w = (1 + w) \log s(\cdot | c) - w \log s` (arXiv 2406.01572);
    on an absorbing graph the process normalises it.

    The condition c is

    - without ``label``, the prompt: any denoiser of an absorbing graph is conditional on the tokens that it reads, and
      without the condition it reads MASK in the place of given ones (arXiv 2410.18514). The samplers, the environments
      and the losses tell which those are; where nobody does, or nothing is given, there is nothing to guide;
    - with ``label``, the class: without the condition the network gets its null label, and the prompt stays.

    A guided output takes two evaluations of the network, and `agents.cost.CostMeter` counts both. The gradient flows
    through both.

    Args:
        denoiser: the network; its parameters are those of this one.
        scale: w, at least 0; 0 returns the conditional network's output itself, at its cost.
        label: the class to generate, of a `ClassConditionalDenoiser`.

    Shapes:
        tokens ``(B, L)`` int64, time ``(B,)``, prompt_mask bool ``(B, L)`` or None -> ``(B, L, V)``.

    Raises:
        InvalidArgumentError: a scale out of range, a denoiser without classes, or a class that it does not have.

    Example:
        >>> import torch
        >>> from sepo_env.denoisers import TabularDenoiser
        >>> table = TabularDenoiser(2, 2, vocab_size=3)
        >>> with torch.no_grad():
        ...     table.logits[2, 1] = torch.log(torch.tensor([0.8, 0.2]))  # the second letter after a first 0
        >>> guided = ClassifierFreeGuidance(table, scale=1.0)
        >>> prompt = torch.tensor([[True, False]])
        >>> guided(torch.tensor([[0, 2]]), torch.ones(1), prompt)[0, 1].exp()  # 0.8^2 / 0.5 : 0.2^2 / 0.5
        tensor([0.9412, 0.0588], grad_fn=<ExpBackward0>)
    """

    def __init__(self, denoiser: Denoiser, scale: float, label: int | None = None) -> None:
        super().__init__()
        if not (math.isfinite(scale) and scale >= 0):
            raise InvalidArgumentError(f"the guidance scale is {scale}, but must be finite and at least 0.")
        if label is not None:
            if not isinstance(denoiser, ClassConditionalDenoiser):
                raise InvalidArgumentError(
                    f"label={label} needs a ClassConditionalDenoiser, and {type(denoiser).__name__} knows no classes; "
                    "leave it out to guide by the prompt."
                )
            if not 0 <= label < denoiser.num_classes:
                raise InvalidArgumentError(f"label is {label}, but the classes are 0 to {denoiser.num_classes - 1}.")
        self.denoiser = denoiser
        self.scale = scale
        self.label = label
        self.num_tokens = denoiser.num_tokens
        self.length = denoiser.length
        self.parameterisation = denoiser.parameterisation
        self.time_conditioned = denoiser.time_conditioned

    @property
    def hides_prompt(self) -> bool:
        """Whether MASK is put in the place of given tokens."""
        return self.label is None and self.scale > 0

    @property
    def own_schedule(self) -> Schedule | None:
        """That of the guided network."""
        return self.denoiser.own_schedule if isinstance(self.denoiser, ReadsNoise) else None

    def forward(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
        """Return ``(B, L, V)`` guided log-posteriors or log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        if self.label is not None:
            return self._class_guided(tokens, time, self.label)
        if self.scale == 0 or prompt_mask is None:
            return self._call(tokens, time)
        hidden = tokens.masked_fill(prompt_mask, self.num_tokens)
        conditional, unconditional = self._call(torch.cat([tokens, hidden]), time.repeat(2)).chunk(2)
        # A row without a prompt is its own unconditional one; selected, it is that bit for bit.
        prompted = prompt_mask.any(-1)[:, None, None]
        return torch.where(prompted, self._guide(conditional, unconditional), conditional)

    def _class_guided(self, tokens: Tensor, time: Tensor, label: int) -> Tensor:
        labels = torch.full(tokens.shape[:1], label, dtype=torch.int64, device=tokens.device)
        conditional = self._call(tokens, time, labels)
        return conditional if self.scale == 0 else self._guide(conditional, self._call(tokens, time))

    def _call(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        output: Tensor = self.denoiser(tokens, time) if labels is None else self.denoiser(tokens, time, labels)
        return output

    def _guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        # What the condition rules out stays ruled out; what only the condition allows takes all the mass.
        ruled_out = conditional == -torch.inf
        kept = conditional.masked_fill(ruled_out, 0.0)
        guided = kept + self.scale * (kept - unconditional.clamp(min=_IMPOSSIBLE))
        guided = guided.masked_fill(ruled_out, -torch.inf)
        return guided.log_softmax(-1) if self.parameterisation == "posterior" else guided
