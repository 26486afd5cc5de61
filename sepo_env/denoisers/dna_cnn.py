"""The dilated convolutional network of the published DNA models (DRAKES, SEPO), with the names of its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Self, cast

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Size, check_fields, checked
from sepo_env.denoisers.base import ClassConditionalDenoiser, Denoiser, VisibleTokens
from sepo_env.diffusion.process import ReadsNoise
from sepo_env.diffusion.schedule import LogLinear, Schedule
from sepo_env.errors import InvalidArgumentError, InvalidShapeError
from sepo_env.precision import float32_default, is_half

WIDTH = 9
"""Positions that a convolution reads."""
DILATIONS = (1, 1, 4, 16, 64)
"""Of the five convolutions of a stack."""
_FOURIER_SCALE = 30.0


@dataclass(frozen=True)
class DNAConvConfig:
    """The shape of a `DNAConvDenoiser`; the defaults are the published model's.

    Attributes:
        num_tokens: ``V``, the number of visible tokens; MASK has the id ``V``.
        channels: the width of the residual stream; even.
        num_stacks: how many times each of the five convolutions stands in a row: 4 make 20 layers.
        time_conditioned: whether the noise enters the network; if not, it sees the noise 0 at every time.
        schedule: gives the noise at a time, where it enters.
    """

    num_tokens: VisibleTokens = 4
    channels: Size = 128
    num_stacks: Annotated[int, Ge(1), Le(1_000)] = 4
    time_conditioned: bool = False
    schedule: Schedule = field(default_factory=LogLinear)

    def __post_init__(self) -> None:
        """Check the sizes."""
        check_fields(self)
        if self.channels % 2:
            raise InvalidArgumentError(f"channels is {self.channels}, but a DNAConvDenoiser needs an even number.")


@dataclass(frozen=True)
class ClassDNAConvConfig(DNAConvConfig):
    """The shape of a `ClassDNAConvDenoiser`.

    Attributes:
        num_classes: classes that it can be told.
    """

    num_classes: Size = 2


class _FourierFeatures(nn.Module):
    """Sines, then cosines, of a number at random frequencies that are never trained.

    A network that is cast to half precision keeps them in float32: rounded, they would turn by several radians.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("W", torch.randn(channels // 2) * _FOURIER_SCALE)
        self.W: Tensor

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = self.W
        super()._apply(fn, recurse)
        if is_half(self.W.dtype) and not is_half(before.dtype):
            self.W = before.to(self.W.device)
        return self

    def forward(self, sigma: Tensor) -> Tensor:
        angles = sigma[:, None] * self.W * 2 * math.pi
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class DNAConvDenoiser(Denoiser, ReadsNoise):
    r"""Residual dilated convolutions with a time embedding; the posterior leaves MASK out (SUBS, arXiv:2406.07524).

    .. math:: h \leftarrow h + \mathrm{relu}(\mathrm{conv}_d(\mathrm{norm}(h + W_i\, e(\sigma)))), \qquad
              e(\sigma) = \mathrm{relu}(A\, [\sin(2 \pi w \sigma), \cos(2 \pi w \sigma)])

    Any length will do. The names of the parameters are those of the published checkpoints, which `load_drakes` reads
    (arXiv:2410.13643, arXiv:2502.01384). The published dropout (0) is left out: old and new policies are compared
    without noise.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, V]``, time ``(B,)`` -> ``(B, L, V)`` float32.

    Raises:
        InvalidShapeError: the tokens are not ``(B, L)``, or L is 0.

    Example:
        >>> import torch
        >>> model = DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=1))
        >>> model(torch.full((2, 10), 4), torch.ones(2)).exp().sum(-1).allclose(torch.ones(2, 10))
        True
    """

    @checked
    @float32_default()
    def __init__(self, config: DNAConvConfig) -> None:
        super().__init__()
        self.config = config
        self.num_tokens = config.num_tokens
        self.length = None
        self.parameterisation = "posterior"
        self.time_conditioned = config.time_conditioned
        channels, vocab_size = config.channels, config.num_tokens + 1
        # One layer after another in the order of the published parameter lists, to which the averaged weights refer.
        self.linear = nn.Conv1d(vocab_size, channels, WIDTH, padding=WIDTH // 2)
        self.time_embedder = nn.Sequential(_FourierFeatures(channels), nn.Linear(channels, channels))
        dilations = [dilation for dilation in DILATIONS for _ in range(config.num_stacks)]
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, WIDTH, dilation=dilation, padding=WIDTH // 2 * dilation)
            for dilation in dilations
        )
        self.time_layers = nn.ModuleList(nn.ModuleDict({"dense": nn.Linear(channels, channels)}) for _ in dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in dilations)
        self.final_conv = nn.Sequential(nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, vocab_size, 1))

    @property
    def own_schedule(self) -> Schedule | None:
        """The schedule that it was trained on; None where the noise does not enter."""
        return self.config.schedule if self.time_conditioned else None

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the ``(B, L, V)`` log-posteriors of ``tokens`` ``(B, L)`` at ``time`` ``(B,)``."""
        if tokens.ndim != 2 or tokens.shape[1] == 0:
            raise InvalidShapeError("tokens", tokens.shape, "(B, L) with L >= 1")
        return self.logits(tokens, time)[..., : self.num_tokens].log_softmax(dim=-1)

    def logits(self, inputs: Tensor, time: Tensor) -> Tensor:
        """Return the network's own output, ``(B, L, V + 1)``, the last column being that of MASK.

        Args:
            inputs: tokens ``(B, L)`` int64, or weights of the tokens ``(B, L, V + 1)``, through which gradients flow.
            time: ``(B,)``.
        """
        return self._logits(inputs, time, [None] * len(self.convs))

    def _logits(self, inputs: Tensor, time: Tensor, shifts: Sequence[Tensor | None]) -> Tensor:
        """The output, with one more shift ``(B, C)`` for each layer, besides that of the time, or none."""
        dtype = self.linear.weight.dtype
        weights = inputs.to(dtype) if inputs.ndim == 3 else F.one_hot(inputs, self.num_tokens + 1).to(dtype)
        sigma = self.config.schedule.sigma(time.double()) if self.time_conditioned else time.new_zeros(1)
        features, layer = self.time_embedder
        embedded = F.relu(layer(features(sigma.to(torch.promote_types(dtype, torch.float32))).to(dtype)))
        # Channels last: the norms need no transpose, and convolutions of height 1 run faster so on a CPU.
        hidden = F.relu(_convolve(self.linear, weights))
        for conv, time_layer, norm, more in zip(self.convs, self.time_layers, self.norms, shifts, strict=True):
            shift = cast(nn.ModuleDict, time_layer)["dense"](embedded)
            shift = shift if more is None else shift + more
            hidden = hidden + F.relu(_convolve(cast(nn.Conv1d, conv), norm(hidden + shift[:, None])))
        first, last = cast(nn.Conv1d, self.final_conv[0]), cast(nn.Conv1d, self.final_conv[2])
        return _convolve(last, F.relu(_convolve(first, hidden)))


class ClassDNAConvDenoiser(DNAConvDenoiser, ClassConditionalDenoiser):
    r"""A `DNAConvDenoiser` that can be told a class: :math:`W'_i\, e_c` is added beside :math:`W_i\, e(\sigma)`.

    The embedding :math:`e_c` of a class enters as it is, and the last one is that of no class. The names are those of
    the published class-conditional DNA model (arXiv:2410.13643, its baseline of classifier-free guidance: two classes,
    low and high activity, scale 10), which `load_drakes` reads; guide it with ``ClassifierFreeGuidance(model, scale,
    label=1)``. No released weights were at hand to compare with: its tests compute it by hand.

    Shapes:
        tokens ``(B, L)`` int64 in ``[0, V]``, time ``(B,)``, labels ``(B,)`` int64 or None -> ``(B, L, V)`` float32.

    Example:
        >>> import torch
        >>> model = ClassDNAConvDenoiser(ClassDNAConvConfig(channels=8, num_stacks=1))
        >>> tokens, time = torch.full((2, 10), 4), torch.ones(2)
        >>> model(tokens, time).allclose(model(tokens, time, torch.tensor([0, 1])))
        False
    """

    @checked
    @float32_default()
    def __init__(self, config: ClassDNAConvConfig) -> None:
        super().__init__(config)
        self.num_classes = config.num_classes
        channels = config.channels
        self.cls_embedder = nn.Embedding(config.num_classes + 1, channels)
        self.cls_layers = nn.ModuleList(nn.ModuleDict({"dense": nn.Linear(channels, channels)}) for _ in self.convs)

    def forward(self, tokens: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the ``(B, L, V)`` log-posteriors of ``tokens`` ``(B, L)``, given classes ``(B,)``; None: no class."""
        if tokens.ndim != 2:
            raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
        return self.logits(tokens, time, labels)[..., : self.num_tokens].log_softmax(dim=-1)

    def logits(self, inputs: Tensor, time: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return ``(B, L, V + 1)`` as `DNAConvDenoiser.logits`, given classes int64 ``(B,)``; None: no class."""
        if labels is None:
            labels = torch.full(inputs.shape[:1], self.num_classes, device=inputs.device)
        embedded = self.cls_embedder(labels)
        return self._logits(inputs, time, [cast(nn.ModuleDict, layer)["dense"](embedded) for layer in self.cls_layers])


def _convolve(conv: nn.Conv1d, hidden: Tensor) -> Tensor:
    """Apply a convolution over positions to ``(B, L, C)`` with the channels last: ``(B, L, C')``."""
    if type(conv) is not nn.Conv1d:  # an adapter around it (LoRA), which computes more than these weights
        return cast(Tensor, conv(hidden.mT)).mT
    if conv.kernel_size == (1,):
        return F.linear(hidden, conv.weight[..., 0], conv.bias)
    image = hidden.mT.unsqueeze(2)  # (B, C, 1, L), channels last in memory
    weight = conv.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
    padding, dilation = (0, cast(int, conv.padding[0])), (1, conv.dilation[0])
    return F.conv2d(image, weight, conv.bias, padding=padding, dilation=dilation).squeeze(2).mT
