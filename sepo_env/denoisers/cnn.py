"""A dilated residual convolutional denoiser, small enough to fine-tune on a laptop."""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Count, Size, check_fields, checked
from sepo_env.denoisers.base import Denoiser, Parameterisation, VisibleTokens
from sepo_env.errors import InvalidArgumentError
from sepo_env.precision import float32_default

_TIME_FREQUENCIES = 16


@dataclass(frozen=True)
class ConvDenoiserConfig:
    """The shape of a `ConvDenoiser`.

    Attributes:
        num_tokens: ``V``, the number of visible tokens.
        vocab_size: the ids that the model reads: ``V + 1`` with a MASK (absorbing), ``V`` without (uniform).
        length: the trained ``L``; None for any.
        channels: the width of the residual stream.
        stem_size: the width of the first convolution, in positions; odd.
        kernel_size: the width of the residual convolutions, in positions; odd.
        dilations: one residual block for each entry.
        parameterisation: what the model returns.
        time_conditioned: whether the time enters the network: that of the process, whose schedule must be the one that
            it was trained on.
    """

    num_tokens: VisibleTokens = 4
    vocab_size: Count = 5
    length: Size | None = 200
    channels: Size = 64
    stem_size: Size = 13
    kernel_size: Size = 9
    dilations: tuple[Size, ...] = (1, 3, 9, 2)
    parameterisation: Parameterisation = "posterior"
    time_conditioned: bool = False

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_fields(self)
        if self.vocab_size not in (self.num_tokens, self.num_tokens + 1):
            raise InvalidArgumentError(
                f"vocab_size is {self.vocab_size}, but a model of {self.num_tokens} visible tokens reads either "
                f"{self.num_tokens} ids (uniform noise) or {self.num_tokens + 1} (with a MASK); give one of these."
            )
        for name in ("stem_size", "kernel_size"):
            if getattr(self, name) % 2 == 0:
                raise InvalidArgumentError(
                    f"{name} is {getattr(self, name)}, but a centred convolution needs an odd width."
                )


class _Block(nn.Module):
    """``h + conv(gelu(norm(h) + context))``, the context being the mean over positions (and the time)."""

    def __init__(self, config: ConvDenoiserConfig, dilation: int) -> None:
        super().__init__()
        channels, width = config.channels, config.kernel_size
        self.norm = nn.LayerNorm(channels)
        self.context = nn.Linear(channels, channels)
        self.conv = nn.Conv2d(
            channels, channels, (1, width), padding=(0, width // 2 * dilation), dilation=(1, dilation)
        )
        nn.init.normal_(self.context.weight, std=0.3 * channels**-0.5)
        nn.init.zeros_(self.context.bias)
        nn.init.normal_(self.conv.weight, std=0.5 * (channels * width) ** -0.5)
        nn.init.zeros_(cast(Tensor, self.conv.bias))

    def forward(self, hidden: Tensor, condition: Tensor | None) -> Tensor:
        normed = self.norm(hidden.movedim(1, -1))  # (B, 1, L, C)
        context = self.context(normed.mean(dim=(1, 2)))
        if condition is not None:
            context = context + condition
        return hidden + self.conv(F.gelu(normed + context[:, None, None]).movedim(-1, 1))


class ConvDenoiser(Denoiser):
    r"""A residual stack of dilated convolutions with a global context.

    .. math:: h \leftarrow h + \mathrm{conv}_d(\mathrm{gelu}(\mathrm{norm}(h) + W \overline{\mathrm{norm}(h)}))

    The bar is the mean over the positions: base composition (CpG islands against AT-rich sequence) is a property of
    the whole sequence, and the mean carries it to every position at no cost. The convolutions are two-dimensional
    with height 1 so that the channels come last in memory, about twice as fast as one-dimensional ones on a CPU.
    There is no dropout and no batch statistic: training and evaluation mode give the same output, hence old and new
    policies are compared without noise.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, vocab_size)``, time ``(B,)`` -> ``(B, L, V)`` float32.

    Raises:
        InvalidArgumentError: the tokens are not ``(B, L)``.

    Example:
        >>> import torch
        >>> model = ConvDenoiser(ConvDenoiserConfig(channels=8, dilations=(1, 2), length=None))
        >>> log_p = model(torch.full((2, 10), 4), torch.ones(2))
        >>> log_p.shape
        torch.Size([2, 10, 4])
        >>> torch.allclose(log_p.exp().sum(-1), torch.ones(2, 10))
        True
    """

    @checked
    @float32_default()
    def __init__(self, config: ConvDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.parameterisation = config.parameterisation
        self.time_conditioned = config.time_conditioned
        self.stem = nn.Conv2d(
            config.vocab_size, config.channels, (1, config.stem_size), padding=(0, config.stem_size // 2)
        )
        self.blocks = nn.ModuleList(_Block(config, dilation) for dilation in config.dilations)
        self.norm = nn.LayerNorm(config.channels)
        self.head = nn.Linear(config.channels, config.num_tokens)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.time_embedding = (
            nn.Sequential(
                nn.Linear(2 * _TIME_FREQUENCIES, config.channels),
                nn.GELU(),
                nn.Linear(config.channels, config.channels),
            )
            if config.time_conditioned
            else None
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-posteriors or log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        if tokens.ndim != 2:
            raise InvalidArgumentError(
                f"The denoiser reads tokens of shape (B, L), but got {tuple(tokens.shape)}; "
                "add or flatten the batch dimensions first."
            )
        condition = None
        if self.time_embedding is not None:
            dtype = self.head.weight.dtype
            # Half precision tells no more than a few hundred times apart.
            features = _fourier_features(time.to(torch.promote_types(dtype, torch.float32)))
            condition = self.time_embedding(features.to(dtype))
        # (B, L, vocab) seen as (B, vocab, 1, L): channels last without a copy.
        one_hot = F.one_hot(tokens, self.config.vocab_size).to(self.head.weight.dtype)
        hidden = cast(Tensor, self.stem(one_hot.movedim(-1, 1).unsqueeze(2)))
        for block in self.blocks:
            hidden = block(hidden, condition)
        logits = cast(Tensor, self.head(F.gelu(self.norm(hidden.squeeze(2).movedim(1, -1)))))
        if self.parameterisation == "posterior":
            return logits.log_softmax(dim=-1)
        is_current = F.one_hot(tokens, self.config.vocab_size)[..., : self.num_tokens].bool()
        return logits.masked_fill(is_current, 0.0)


def _fourier_features(time: Tensor) -> Tensor:
    """Return ``(B, 2 F)`` sines and cosines of ``time`` ``(B,)`` at frequencies from 1 to 1000 per unit."""
    frequencies = torch.logspace(0, 3, _TIME_FREQUENCIES, device=time.device, dtype=time.dtype)
    angles = 2 * math.pi * time[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
