"""The published masked-diffusion language models (MDLM): a diffusion transformer that gives x0-posteriors."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from sepo_env.arguments import Size, check_fields, checked
from sepo_env.denoisers.base import Denoiser, Depth, VisibleTokens
from sepo_env.denoisers.dit import DiT, DiTConfig
from sepo_env.diffusion.process import ReadsNoise
from sepo_env.diffusion.schedule import LogLinear, Schedule


@dataclass(frozen=True)
class MDLMConfig:
    """The shape of an `MDLMDenoiser`; the defaults are those of the model on OpenWebText.

    Attributes:
        num_tokens: ``V``, the number of visible tokens; MASK has the id ``V``.
        width: of the residual stream.
        depth: blocks.
        heads: of the attention.
        cond_width: of the embedded noise.
        time_conditioned: whether the noise enters the network; if not, it sees the noise 0 at every time.
        schedule: gives the noise at a time, where it enters.
    """

    num_tokens: VisibleTokens = 50257
    width: Size = 768
    depth: Depth = 12
    heads: Size = 12
    cond_width: Size = 128
    time_conditioned: bool = False
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_fields(self)
        _ = self.backbone

    @property
    def backbone(self) -> DiTConfig:
        """The shape of the network."""
        return DiTConfig(self.num_tokens + 1, self.width, self.depth, self.heads, self.cond_width)


class MDLMDenoiser(Denoiser, ReadsNoise):
    r"""A diffusion transformer whose logits, without that of MASK, are the x0-posterior (SUBS, arXiv:2406.07524).

    .. math:: \log p_\theta(x_0^i = v | x_t) = \mathrm{logits}_{i,v} - \log \sum_{u \ne MASK} e^{\mathrm{logits}_{i,u}}

    Any length will do. `load_mdlm` reads the published checkpoints, whose tensors have the names of these.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, V]``, time ``(B,)`` -> ``(B, L, V)`` float32.

    Raises:
        InvalidShapeError: the tokens are not ``(B, L)``, or L is 0.

    Example:
        >>> import torch
        >>> model = MDLMDenoiser(MDLMConfig(num_tokens=6, width=8, depth=1, heads=2, cond_width=4))
        >>> model(torch.full((2, 10), 6), torch.ones(2)).shape
        torch.Size([2, 10, 6])
    """

    @checked
    def __init__(self, config: MDLMConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.length = None
        self.parameterisation = "posterior"
        self.time_conditioned = config.time_conditioned
        self.backbone = DiT(config.backbone)

    @property
    def own_schedule(self) -> Schedule | None:
        """The schedule that it was trained on; None where the noise does not enter."""
        return self.config.schedule if self.time_conditioned else None

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the ``(B, L, V)`` log-posteriors of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        return self.backbone.log_softmax(self._features(tokens, time), self.num_tokens)

    def logits(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the network's own output, ``(B, L, V + 1)``, the last column being that of MASK."""
        return self.backbone.logits(self._features(tokens, time))

    def _features(self, tokens: Tensor, time: Tensor) -> Tensor:
        sigma = self.config.schedule.sigma(time.double()) if self.time_conditioned else time.new_zeros(1)
        features: Tensor = self.backbone(tokens, sigma)
        return features
