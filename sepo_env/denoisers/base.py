"""What every denoiser is: tokens and time in, per-position log-probabilities or log scores out."""

from abc import ABC, abstractmethod
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from torch import Tensor, nn

from sepo_env.arguments import PathArgument
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.errors import InvalidDenoiserError
from sepo_env.metering import evaluates, methods, unmarked

Parameterisation = Literal["posterior", "score"]
DenoiserArgument = nn.Module | PathArgument
"""A denoiser, as callers give it: a live one, within wrappers of torch or not (`as_denoiser`), or a path."""
VisibleTokens = Annotated[int, Ge(2), Le(1 << 24)]
"""V: fewer are no language, and more belong to no model."""
Depth = Annotated[int, Ge(1), Le(1 << 12)]
"""Blocks of a transformer."""


class Denoiser(nn.Module, ABC):
    r"""A network that reads a noisy sequence and scores the tokens of the clean one.

    With ``parameterisation == "posterior"`` the output is :math:`\log p_\theta(x_0^i = v \mid x_t)`, normalised
    over the ``V`` visible tokens; with ``"score"`` it is the log concrete score
    :math:`\log s_\theta(x_t, t)_{i, v} = \log p_t(x_t^{i \to v}) / p_t(x_t)`, whose entry at ``v = x_t^i`` is 0.

    Every public method of a subclass that makes floating-point numbers of its argument's rows is an evaluation, which
    meters learn of (`sepo_env.metering`).

    Shapes:
        tokens ``(B, L)`` int64 and time ``(B,)`` float -> ``(B, L, V)`` float32.

    Attributes:
        num_tokens: ``V``, the number of visible tokens. An absorbing model also reads the id ``V`` as MASK.
        vocab_size: the ids that it reads, ``V + 1`` with MASK and ``V`` without; None where it does not say.
        length: the ``L`` that the model was trained for, or None where any length will do.
        parameterisation: what ``forward`` returns, ``"posterior"`` or ``"score"``.
        time_conditioned: whether ``time`` changes the output. The posterior of an absorbing process does not
            depend on time given the tokens (arXiv:2406.03736), so such a model may ignore it. One that turns the time
            into noise by a schedule says which (`sepo_env.diffusion.process.ReadsNoise`), so that it can be evaluated
            on another.
    """

    num_tokens: int
    vocab_size: int | None = None
    length: int | None
    parameterisation: Parameterisation
    time_conditioned: bool

    def __init_subclass__(cls, **options: Any) -> None:
        """Mark what evaluates: `forward` and whatever else is public and not every module's."""
        super().__init_subclass__(**options)
        for name, method in methods(cls, above=nn.Module).items():
            public = not name.startswith("_") and not hasattr(nn.Module, name)
            if (public or name == "forward") and unmarked(method) is method:
                setattr(cls, name, evaluates(method))

    @abstractmethod
    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-probabilities or log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""

    @property
    def core(self) -> "Denoiser":
        """The network itself, without the guidance around it: whose class, configuration and weights it has."""
        return self


class ClassConditionalDenoiser(Denoiser):
    r"""A denoiser that can be told a class, :math:`p_\theta(x_0 | x_t, c)`, and was trained without it as well.

    Attributes:
        num_classes: classes are 0 .. ``num_classes`` - 1.
    """

    num_classes: int

    @abstractmethod
    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``(B, L, V)`` as `Denoiser.forward`, given classes int64 ``(B,)``; None: the null label, no class."""


def as_denoiser(network: object) -> Denoiser:
    """The denoiser that somebody gave, without the wrappers of torch around it (`unwrapped`).

    Raises:
        InvalidDenoiserError: another object; names its kind.
    """
    inner = unwrapped(network)
    if not isinstance(inner, Denoiser):
        kind = type(network).__name__
        raise InvalidDenoiserError(
            f"the denoiser is a {kind}, but must be a sepo_env.denoisers.Denoiser; derive your network's class from "
            "it, or give the Denoiser that is within."
        )
    return inner
