r"""Classifier-free guidance: a conditional denoiser, sharpened against itself without its condition."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sepo_env.arguments import NonNegative, WholeNumber, checked
from sepo_env.denoisers.base import ClassConditionalDenoiser, Denoiser, as_denoiser
from sepo_env.diffusion.guided import GuidedOutput, Guiding, Output, temper_law, temper_score
from sepo_env.diffusion.process import ReadsNoise
from sepo_env.diffusion.schedule import Schedule
from sepo_env.errors import InvalidArgumentError


class ClassifierFreeGuidance(Denoiser, Guiding, ReadsNoise):
    r"""Guidance of scale w, in the convention in which w = 0 is the conditional model.

    .. math::
        \log q_w(x_s^i | x_t, c) = (1 + w) \log q(x_s^i | x_t, c) - w \log q(x_s^i | x_t) + \mathrm{const} .

    The law of a reverse step is tempered, position by position (D-CFG, arXiv 2412.10193, where
    :math:`\gamma = 1 + w`), and rates accordingly (arXiv 2406.01572). A network's parameterisation makes no difference;
    the graph does, and the process has it: on an absorbing one the law of what a mask is filled with is tempered, and
    the schedule says when (:mod:`sepo_env.diffusion.guided`).

    The condition c is

    - without ``label``, the prompt: any denoiser of an absorbing graph is conditional on the tokens that it reads, and
      without the condition it reads MASK in the place of given ones (arXiv 2410.18514). The samplers, the environments
      and the losses tell which those are; where nobody does, or nothing is given, there is nothing to guide, and one
      evaluation is made (whether a mask has any True in it is read on the host, once an evaluation);
    - with ``label``, the class: without the condition the network gets its null label, and the prompt stays.

    A guided output takes two evaluations of the network, and `agents.cost.CostMeter` counts both. The gradient flows
    through both. Steps and rates take the two outputs from `DiffusionProcess.evaluate`; called by itself, without a
    process, it can only return the tempered posterior, or the tempered scores, which on a uniform graph or of a score
    network are not those of the step.

    Args:
        denoiser: the network; its parameters are those of this one.
        scale: w, at least 0; 0 returns the conditional network's output itself, at its cost.
        label: the class to generate, of a `ClassConditionalDenoiser`.

    Shapes:
        tokens ``(B, L)`` int64, time ``(B,)``, prompt_mask bool ``(B, L)`` or None -> ``(B, L, V)``.

    Raises:
        InvalidArgumentError: a scale out of range, a denoiser that is guided already or has no classes, or a class that
            it does not have.

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

    @checked
    def __init__(self, denoiser: nn.Module, scale: NonNegative, label: WholeNumber | None = None) -> None:
        super().__init__()
        denoiser = as_denoiser(denoiser)
        if denoiser.core is not denoiser:
            raise InvalidArgumentError("the denoiser is guided already; guide its core, denoiser.core.")
        if label is not None:
            if not isinstance(denoiser, ClassConditionalDenoiser):
                raise InvalidArgumentError(
                    f"label={label} needs a ClassConditionalDenoiser, and {type(denoiser).__name__} knows no classes; "
                    "leave it out to guide by the prompt."
                )
            if label >= denoiser.num_classes:
                raise InvalidArgumentError(f"label is {label}, but the classes are 0 to {denoiser.num_classes - 1}.")
        self.denoiser = denoiser
        self.scale = scale
        self.label = label
        self.num_tokens = denoiser.num_tokens
        self.length = denoiser.length
        self.parameterisation = denoiser.parameterisation
        self.time_conditioned = denoiser.time_conditioned

    @property
    def core(self) -> Denoiser:
        """The network that is guided."""
        return self.denoiser

    @property
    def hides_prompt(self) -> bool:
        """Whether MASK is put in the place of given tokens."""
        return self.label is None and self.scale > 0

    @property
    def own_schedule(self) -> Schedule | None:
        """That of the guided network."""
        return self.denoiser.own_schedule if isinstance(self.denoiser, ReadsNoise) else None

    def forward(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
        """Return ``(B, L, V)`` tempered log-posteriors or log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        output = self.evaluate(tokens, time, prompt_mask, self.num_tokens)
        if isinstance(output, Tensor):
            return output
        return output.combine(lambda one: one, temper_law if self.parameterisation == "posterior" else temper_score)

    def evaluate(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None, mask_token: int | None) -> Output:
        """Return the network's outputs with and without the condition; the one output where there is nothing to guide.

        Raises:
            InvalidArgumentError: a prompt is to be hidden behind MASK, and there is none.
        """
        if self.label is not None:
            return self._with_class(tokens, time, self.label)
        if self.scale == 0 or prompt_mask is None or not bool(prompt_mask.any()):
            return self._call(tokens, time)
        if mask_token is None:
            raise InvalidArgumentError(
                "guidance hides the prompt behind MASK, and the graph has no MASK; guide a denoiser of an absorbing "
                "graph, or one that is conditional on a class (label=)."
            )
        hidden = tokens.masked_fill(prompt_mask, mask_token)
        conditional, unconditional = self._call(torch.cat([tokens, hidden]), time.repeat(2)).chunk(2)
        return GuidedOutput(conditional, unconditional, self.scale, rows=prompt_mask.any(-1))

    def _with_class(self, tokens: Tensor, time: Tensor, label: int) -> Output:
        labels = torch.full(tokens.shape[:1], label, dtype=torch.int64, device=tokens.device)
        conditional = self._call(tokens, time, labels)
        return conditional if self.scale == 0 else GuidedOutput(conditional, self._call(tokens, time), self.scale)

    def _call(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        output: Tensor = self.denoiser(tokens, time) if labels is None else self.denoiser(tokens, time, labels)
        return output
