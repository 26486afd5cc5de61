"""The published score-entropy language models (SEDD): a diffusion transformer that gives concrete scores."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sepo_env.arguments import Size, check_fields, checked
from sepo_env.denoisers.base import Denoiser, Depth, VisibleTokens
from sepo_env.denoisers.dit import DiT, DiTConfig
from sepo_env.diffusion.process import ReadsNoise
from sepo_env.diffusion.schedule import LogLinear, Schedule

_EARLIEST = 1e-5
"""The published samplers end at this time; at 0 a log-linear schedule has no noise and infinite scores."""


@dataclass(frozen=True)
class SEDDConfig:
    r"""The shape of a `SEDDDenoiser`; the defaults are those of the small absorbing model.

    Attributes:
        num_tokens: ``V``, the number of visible tokens.
        graph: ``"absorbing"`` (MASK has the id ``V``) or ``"uniform"`` (no MASK).
        width: of the residual stream.
        depth: blocks.
        heads: of the attention.
        cond_width: of the embedded noise.
        scale_by_sigma: whether the network's output is divided by :math:`(e^\sigma - 1)(W - 1)`, with ``W`` the
            number of ids.
        schedule: gives the noise at a time.
    """

    num_tokens: VisibleTokens = 50257
    graph: Literal["absorbing", "uniform"] = "absorbing"
    width: Size = 768
    depth: Depth = 12
    heads: Size = 12
    cond_width: Size = 128
    scale_by_sigma: bool = True
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        """Check the graph and the sizes."""
        check_fields(self)
        _ = self.backbone

    @property
    def vocab_size(self) -> int:
        """The ids that the model reads, ``W``."""
        return self.num_tokens + (self.graph == "absorbing")

    @property
    def backbone(self) -> DiTConfig:
        """The shape of the network."""
        return DiTConfig(self.vocab_size, self.width, self.depth, self.heads, self.cond_width)


class SEDDDenoiser(Denoiser, ReadsNoise):
    r"""A diffusion transformer trained on score entropy (arXiv:2310.16834).

    .. math:: \log s_\theta(x_t, t)_{i,v} = \mathrm{out}_{i,v} - \log(e^\sigma - 1) - \log(W - 1), \qquad
              \log s_{i, x_t^i} = 0

    where the scaling may be left out. Any length will do. The column of MASK, the score of masking a token again, is
    dropped: no reverse step uses it. Times before 1e-5, where the published samplers end, are read as 1e-5.
    `load_sedd` reads the published checkpoints.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, W)``, time ``(B,)`` -> ``(B, L, V)`` float32.

    Raises:
        InvalidShapeError: the tokens are not ``(B, L)``, or L is 0.

    Example:
        >>> model = SEDDDenoiser(SEDDConfig(6, "uniform", width=8, depth=1, heads=2, cond_width=4))
        >>> model(torch.full((2, 10), 3), torch.ones(2))[0, 0, 3].item()
        0.0
    """

    @checked
    def __init__(self, config: SEDDConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.vocab_size = config.vocab_size
        self.length = None
        self.parameterisation = "score"
        self.time_conditioned = True
        self.backbone = DiT(config.backbone)

    @property
    def own_schedule(self) -> Schedule:
        """The schedule that it was trained on."""
        return self.config.schedule

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the ``(B, L, V)`` log scores of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        sigma = self.config.schedule.sigma(time.double().clamp(min=_EARLIEST))
        log_score = self.backbone.logits(self.backbone(tokens, sigma), self.num_tokens)
        # In place from here on: no backward pass reads the logits, and they are the largest tensor by far.
        if self.config.scale_by_sigma:
            offset = torch.expm1(sigma).log() + math.log(self.config.vocab_size - 1)
            log_score.sub_(offset.to(log_score.dtype)[:, None, None])
        # At a mask the last column is written over with itself.
        values = log_score[..., -1:].masked_fill((tokens < self.num_tokens)[..., None], 0.0)
        return log_score.scatter_(-1, tokens.clamp(max=self.num_tokens - 1)[..., None], values)
