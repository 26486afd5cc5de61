r"""The diffusion transformer of the published text models (MDLM, SEDD), with the names of their checkpoints.

Blocks of attention and perceptron are modulated by the noise (adaLN, arXiv:2212.09748): a norm's output becomes
:math:`x (1 + \mathrm{scale}) + \mathrm{shift}`, a residual branch is multiplied by its gate. Positions enter as
rotations of queries and keys (arXiv:2104.09864).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Size, check_fields, checked
from sepo_env.denoisers.base import Depth
from sepo_env.errors import InvalidArgumentError, InvalidShapeError
from sepo_env.precision import float32_default

ROTARY_BASE = 10_000.0
_TIME_FEATURES = 256
_MLP_RATIO = 4
_CHUNK_ENTRIES = 1 << 22
"""Logits that are normalised at a time where no gradient is kept."""


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a `DiT`; the defaults are those of the small published models.

    Attributes:
        vocab_size: the ids that it reads, and the columns of its output.
        width: of the residual stream.
        depth: blocks.
        heads: of the attention; they share the width evenly.
        cond_width: of the embedded noise.
    """

    vocab_size: Annotated[int, Ge(2), Le((1 << 24) + 1)]
    width: Size = 768
    depth: Depth = 12
    heads: Size = 12
    cond_width: Size = 128

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_fields(self)
        if self.width % (2 * self.heads):
            raise InvalidArgumentError(
                f"a width of {self.width} cannot be shared by {self.heads} heads in pairs of channels (rotary "
                "positions turn pairs); give a width that 2 * heads divides."
            )

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.heads


class _Norm(nn.Module):
    """Layer norm with a weight and no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        return F.layer_norm(hidden, self.weight.shape, self.weight)


class _NoiseEmbedding(nn.Module):
    """A two-layer perceptron of cosines, then sines, of the noise at geometric frequencies from 1 to 1 / 10,000."""

    def __init__(self, cond_width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_TIME_FEATURES, cond_width), nn.SiLU(), nn.Linear(cond_width, cond_width))

    def forward(self, sigma: Tensor) -> Tensor:
        half = _TIME_FEATURES // 2
        steps = torch.arange(half, dtype=torch.float32, device=sigma.device)
        angles = sigma[:, None] * torch.exp(-math.log(10_000.0) * steps / half).to(sigma.dtype)
        weight = cast(nn.Linear, self.mlp[0]).weight
        embedded: Tensor = self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))
        return embedded


class _TokenEmbedding(nn.Module):
    """A table of vectors; its parameter bears the published name."""

    def __init__(self, vocab_size: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, width))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.embedding)


def _modulation(cond_width: int, outputs: int) -> nn.Linear:
    """A linear map that starts from zero: no shift, no scale, closed gates."""
    layer = nn.Linear(cond_width, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _modulate(hidden: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return hidden * (1 + scale) + shift


class _Block(nn.Module):
    """Attention, then a perceptron, both modulated, gated and residual."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.norm1 = _Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = _Norm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, _MLP_RATIO * width), nn.GELU(approximate="tanh"), nn.Linear(_MLP_RATIO * width, width)
        )
        self.adaLN_modulation = _modulation(config.cond_width, 6 * width)

    def forward(self, hidden: Tensor, condition: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        modulation = self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = modulation
        projected = self.attn_qkv(_modulate(self.norm1(hidden), shift, scale)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = projected.movedim(-3, 0).transpose(-2, -3)  # each (B, heads, L, W / heads)
        attended = F.scaled_dot_product_attention(_rotate(queries, rotation), _rotate(keys, rotation), values)
        hidden = hidden + gate * self.attn_out(attended.transpose(-2, -3).flatten(-2))
        return hidden + gate_mlp * self.mlp(_modulate(self.norm2(hidden), shift_mlp, scale_mlp))


class _OutputLayer(nn.Module):
    """A modulated norm, and the map to the logits, which its caller applies to the columns that it needs."""

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.norm_final = _Norm(config.width)
        self.linear = _modulation(config.width, config.vocab_size)
        self.adaLN_modulation = _modulation(config.cond_width, 2 * config.width)

    def forward(self, hidden: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return _modulate(self.norm_final(hidden), shift, scale)


class DiT(nn.Module):
    """Tokens and noise in, logits out; without dropout, so that old and new policies are compared without noise.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, vocab_size)``, noise ``(B,)`` or ``(1,)`` -> features ``(B, L, width)``.
    """

    @checked
    @float32_default()
    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        self.config = config
        self.vocab_embed = _TokenEmbedding(config.vocab_size, config.width)
        self.sigma_map = _NoiseEmbedding(config.cond_width)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.depth))
        self.output_layer = _OutputLayer(config)

    def forward(self, tokens: Tensor, sigma: Tensor) -> Tensor:
        """Return the features ``(B, L, width)`` of which `logits` and `log_softmax` are linear maps."""
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise InvalidShapeError("tokens", tokens.shape, "(B, L) with L >= 1")
        hidden: Tensor = self.vocab_embed(tokens)
        condition = F.silu(self.sigma_map(sigma.to(torch.promote_types(hidden.dtype, torch.float32))))
        rotation = _rotation(tokens.shape[1], self.config.head_width, hidden)
        for block in self.blocks:
            hidden = block(hidden, condition, rotation)
        features: Tensor = self.output_layer(hidden, condition)
        return features

    def logits(self, features: Tensor, columns: int | None = None) -> Tensor:
        """Return the first ``columns`` logits, ``(B, L, columns)``; None is all of them."""
        linear = self.output_layer.linear
        if type(linear) is not nn.Linear:  # an adapter around it (LoRA), which computes more than these weights
            return cast(Tensor, linear(features))[..., :columns]
        return F.linear(features, linear.weight[:columns], linear.bias[:columns])

    def log_softmax(self, features: Tensor, columns: int) -> Tensor:
        """Return the log-probabilities over the first ``columns`` tokens, ``(B, L, columns)``.

        Where no gradient is kept, nothing else of that size is made, not even for a moment: with 50,257 tokens and
        1,024 positions one such tensor takes 206 MB a sequence. Under a gradient the logits live beside it until they
        are normalised.
        """
        rows = max(1, _CHUNK_ENTRIES // columns)
        if torch.is_grad_enabled() or features.shape[0] * features.shape[1] <= rows:
            return self.logits(features, columns).log_softmax(dim=-1)
        log_p = features.new_empty((*features.shape[:-1], columns))
        for part, out in zip(features.flatten(0, 1).split(rows), log_p.flatten(0, 1).split(rows), strict=True):
            out.copy_(self.logits(part, columns).log_softmax(dim=-1))
        return log_p


def rotary_frequencies(channels: int) -> Tensor:
    """The turns a position of each pair of channels, float32 ``(channels / 2,)``; published files hold this table."""
    return 1.0 / ROTARY_BASE ** (torch.arange(0, channels, 2, dtype=torch.float32) / channels)


def _rotation(length: int, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines ``(L, channels / 2)`` of the positions."""
    positions = torch.arange(length, dtype=torch.float32, device=like.device)
    angles = torch.outer(positions, rotary_frequencies(channels).to(like.device))
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)


def _rotate(vectors: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair (i, i + channels / 2) of ``vectors`` ``(..., L, channels)`` by its angle."""
    cosine, sine = rotation
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)
