"""A small bidirectional transformer denoiser for language, fit for a laptop."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Count, Size, check_fields, checked
from sepo_env.denoisers.base import Denoiser, Depth, Parameterisation, VisibleTokens
from sepo_env.errors import InvalidArgumentError
from sepo_env.precision import float32_default


@dataclass(frozen=True)
class TransformerDenoiserConfig:
    """The shape of a `TransformerDenoiser`.

    Attributes:
        num_tokens: ``V``, the number of visible tokens.
        vocab_size: the ids that the model reads: ``V + 1`` with a MASK (absorbing), ``V`` without (uniform).
        length: the trained ``L``; None for any.
        width: of the residual stream.
        depth: blocks.
        heads: of the attention; they share the width evenly.
        parameterisation: what the model returns.
    """

    num_tokens: VisibleTokens
    vocab_size: Count
    length: Size | None = None
    width: Size = 128
    depth: Depth = 4
    heads: Size = 4
    parameterisation: Parameterisation = "posterior"

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_fields(self)
        if self.vocab_size not in (self.num_tokens, self.num_tokens + 1):
            raise InvalidArgumentError(
                f"vocab_size is {self.vocab_size}, but a model of {self.num_tokens} visible tokens reads either "
                f"{self.num_tokens} ids (uniform noise) or {self.num_tokens + 1} (with a MASK); give one of these."
            )
        if self.width % (2 * self.heads):
            raise InvalidArgumentError(
                f"a width of {self.width} cannot be shared by {self.heads} heads in pairs of channels (rotary "
                "positions turn pairs); give a width that 2 * heads divides."
            )


class _Block(nn.Module):
    """Pre-norm attention with rotary positions, then a pre-norm two-layer perceptron, both residual."""

    def __init__(self, config: TransformerDenoiserConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width, bias=False)
        self.attention_out = nn.Linear(width, width, bias=False)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp_in = nn.Linear(width, 4 * width)
        self.mlp_out = nn.Linear(4 * width, width)
        for layer in (self.queries_keys_values, self.mlp_in):
            nn.init.normal_(layer.weight, std=width**-0.5)
        for layer in (self.attention_out, self.mlp_out):
            nn.init.normal_(layer.weight, std=0.5 * layer.in_features**-0.5 * config.depth**-0.5)

    def forward(self, hidden: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        projected = self.queries_keys_values(self.attention_norm(hidden)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = projected.movedim(-3, 0).transpose(-2, -3)  # each (B, heads, L, W / heads)
        attended = F.scaled_dot_product_attention(_rotate(queries, rotation), _rotate(keys, rotation), values)
        hidden = hidden + self.attention_out(attended.transpose(-2, -3).flatten(-2))
        return hidden + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(hidden))))


class TransformerDenoiser(Denoiser):
    r"""Pre-norm transformer blocks over embedded tokens; every position sees every other one.

    .. math:: h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad
              h \leftarrow h + \mathrm{mlp}(\mathrm{norm}(h))

    Positions enter as rotations of queries and keys (arXiv:2104.09864), so that only their distances count. The output
    layer is the transposed embedding. There is no dropout and no time: under absorbing noise the posterior does not
    depend on it given the tokens (arXiv:2406.03736).

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, vocab_size)``, time ``(B,)`` -> ``(B, L, V)`` float32.

    Raises:
        InvalidArgumentError: the tokens are not ``(B, L)``.

    Example:
        >>> model = TransformerDenoiser(TransformerDenoiserConfig(6, 7, width=8, depth=1, heads=2))
        >>> model(torch.full((2, 10), 6), torch.ones(2)).shape
        torch.Size([2, 10, 6])
    """

    @checked
    @float32_default()
    def __init__(self, config: TransformerDenoiserConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.vocab_size = config.vocab_size
        self.length = config.length
        self.parameterisation = config.parameterisation
        self.time_conditioned = False
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.bias = nn.Parameter(torch.zeros(config.num_tokens))
        nn.init.normal_(self.embedding.weight, std=config.width**-0.5)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-posteriors or log scores of ``tokens`` ``(B, L)``; ``time`` is not read."""
        if tokens.ndim != 2:
            raise InvalidArgumentError(
                f"The denoiser reads tokens of shape (B, L), but got {tuple(tokens.shape)}; "
                "add or flatten the batch dimensions first."
            )
        hidden = self.embedding(tokens) * self.config.width**0.5
        rotation = _rotation(tokens.shape[1], self.config.width // self.config.heads, hidden)
        for block in self.blocks:
            hidden = block(hidden, rotation)
        logits = F.linear(self.norm(hidden), self.embedding.weight[: self.num_tokens], self.bias)
        if self.parameterisation == "posterior":
            return logits.log_softmax(dim=-1)
        is_current = F.one_hot(tokens, self.config.vocab_size)[..., : self.num_tokens].bool()
        return logits.masked_fill(is_current, 0.0)


def _rotation(length: int, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(L, channels / 2)`` of the positions at wavelengths from 2 pi to 2 pi 10,000."""
    pairs = torch.arange(0, channels, 2, device=like.device, dtype=torch.float32)
    angles = torch.arange(length, device=like.device)[:, None] * 10_000.0 ** (-pairs / channels)
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + channels / 2) of ``vectors`` ``(..., L, channels)`` by its angle."""
    cosine, sine = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
