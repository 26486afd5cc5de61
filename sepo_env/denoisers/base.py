"""What every denoiser is: tokens and time in, per-position log-probabilities or log scores out."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

Parameterisation = Literal["posterior", "score"]


class Denoiser(nn.Module, ABC):
    r"""A network that reads a noisy sequence and scores the tokens of the clean one.

    With ``parameterisation == "posterior"`` the output is :math:`\log p_\theta(x_0^i = v \mid x_t)`, normalised
    over the ``V`` visible tokens; with ``"score"`` it is the log concrete score
    :math:`\log s_\theta(x_t, t)_{i, v} = \log p_t(x_t^{i \to v}) / p_t(x_t)`, whose entry at ``v = x_t^i`` is 0.

    Shapes:
        tokens ``(B, L)`` int64 and time ``(B,)`` float -> ``(B, L, V)`` float32.

    Attributes:
        num_tokens: ``V``, the number of visible tokens. An absorbing model also reads the id ``V`` as MASK.
        length: the ``L`` that the model was trained for, or None where any length will do.
        parameterisation: what ``forward`` returns, ``"posterior"`` or ``"score"``.
        time_conditioned: whether ``time`` changes the output. The posterior of an absorbing process does not
            depend on time given the tokens (arXiv:2406.03736), so such a model may ignore it. One that turns the time
            into noise by a schedule says which (`sepo_env.diffusion.process.ReadsNoise`), so that it can be evaluated
            on another.
    """

    num_tokens: int
    length: int | None
    parameterisation: Parameterisation
    time_conditioned: bool

    @abstractmethod
    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-probabilities or log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
