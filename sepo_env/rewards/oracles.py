"""Sequence-to-function networks, shipped as ensembles: they read DNA and predict one measured quantity."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Count, PathArgument, Share, Size, WholeNumber, check_fields, checked
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidTokensError
from sepo_env.loading.tensorfile import build_from, read_tensors
from sepo_env.metering import evaluates
from sepo_env.precision import float32_default
from sepo_env.textfile import parse_json

Role = Literal["training", "held_out"]
Architecture = Literal["residual", "pyramid"]
FORMAT = "sepo_env.oracle/1"
NUM_NUCLEOTIDES = 4


@dataclass(frozen=True)
class OracleConfig:
    """The shape of one member of an ensemble.

    Attributes:
        architecture: ``"residual"`` (dilated residual blocks, attention pooling) or ``"pyramid"``
            (a tower of max-pooled convolutions, mean pooling).
        channels: the width of the convolutions.
        num_outputs: the number of logits of the head.
        dropout: the share of features dropped in training.
    """

    architecture: Architecture
    channels: Size = 64
    num_outputs: Count = 1
    dropout: Share = 0.2

    def __post_init__(self) -> None:
        check_fields(self)


class _Conv(nn.Conv2d):
    """A convolution over positions that keeps the length; height 1, because channels last is faster on a CPU."""

    def __init__(self, inputs: int, outputs: int, size: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, (1, size), padding=(0, size // 2 * dilation), dilation=(1, dilation))


class _ResidualBlock(nn.Module):
    """``h + conv(gelu(norm(h)))``."""

    def __init__(self, channels: int, size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = _Conv(channels, channels, size, dilation)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor) -> Tensor:
        out: Tensor = hidden + self.conv(self.dropout(F.gelu(self.norm(hidden))))
        return out


class ResidualOracle(nn.Module):
    """Residual convolutions at half, then dilated at quarter resolution, pooled by learned attention.

    Shapes:
        nucleotide weights ``(B, L, 4)`` -> ``(B, num_outputs)``.
    """

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.stem = _Conv(NUM_NUCLEOTIDES, channels, 15)
        drop = config.dropout / 2
        self.fine = _ResidualBlock(channels, 5, 1, drop)
        self.coarse = nn.Sequential(*(_ResidualBlock(channels, 5, dilation, drop) for dilation in (1, 2, 4)))
        self.norm = nn.BatchNorm2d(channels)
        self.attention = nn.Linear(channels, 4)
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(4 * channels, 64), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.output = nn.Linear(64, config.num_outputs)

    def forward(self, weights: Tensor) -> Tensor:
        """Return ``(B, num_outputs)`` logits of the nucleotide weights ``(B, L, 4)``."""
        hidden = self.fine(F.max_pool2d(self.stem(weights.movedim(-1, 1).unsqueeze(2)), (1, 2)))
        hidden = self.coarse(F.max_pool2d(hidden, (1, 2)))
        features = F.gelu(self.norm(hidden)).squeeze(2).mT  # (B, L/4, C)
        attention = self.attention(features).softmax(dim=1)
        logits: Tensor = self.output(self.head((attention.mT @ features).flatten(1)))
        return logits


class _Stage(nn.Sequential):
    """``max_pool(gelu(batch_norm(conv)))``: half the positions."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(_Conv(inputs, outputs, size), nn.BatchNorm2d(outputs), nn.GELU(), nn.MaxPool2d((1, 2)))


class PyramidOracle(nn.Module):
    """Max-pooled convolutions, each at half the resolution and with more channels than the last; mean pooling.

    Shapes:
        nucleotide weights ``(B, L, 4)`` -> ``(B, num_outputs)``.
    """

    def __init__(self, config: OracleConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.stages = nn.Sequential(
            _Stage(NUM_NUCLEOTIDES, channels, 11),
            _Stage(channels, channels, 7),
            _Stage(channels, channels * 3 // 2, 5),
            nn.Dropout(config.dropout / 2),
            _Conv(channels * 3 // 2, 2 * channels, 5),
            nn.BatchNorm2d(2 * channels),
            nn.GELU(),
        )
        self.head = nn.Sequential(
            nn.Dropout(config.dropout), nn.Linear(2 * channels, 64), nn.GELU(), nn.Dropout(config.dropout)
        )
        self.output = nn.Linear(64, config.num_outputs)

    def forward(self, weights: Tensor) -> Tensor:
        """Return ``(B, num_outputs)`` logits of the nucleotide weights ``(B, L, 4)``."""
        hidden = self.stages(weights.movedim(-1, 1).unsqueeze(2))
        logits: Tensor = self.output(self.head(hidden.mean(dim=(2, 3))))
        return logits


OracleMember = ResidualOracle | PyramidOracle
_MEMBERS: dict[str, type[OracleMember]] = {
    "residual": ResidualOracle,
    "pyramid": PyramidOracle,
}


@float32_default()
def build_member(config: OracleConfig) -> OracleMember:
    """Return an untrained network of the configured architecture."""
    return _MEMBERS[config.architecture](config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class OracleEnsemble(nn.Module):
    r"""Networks of one architecture trained from different seeds on different folds of one data set.

    A member predicts :math:`\mu + \sigma f_m(x)` (a regression) or :math:`\mathrm{softmax}(f_m(x))_c` (a class
    probability). Where ``both_strands`` holds, it is the mean of the predictions for the sequence and its reverse
    complement, so that the two get exactly the same value.

    Shapes:
        tokens ``(B, L)`` int64, A C G T = 0..3 -> ``(M, B)`` float32, one row a member.

    Attributes:
        config: the shape of a member; None where it is another network than those of this module.
        role: ``"training"`` (agents may optimise it) or ``"held_out"`` (it only judges).
        quantity: what is predicted, in words.
        units: of the prediction.

    Raises:
        InvalidArgumentError: no members, or an argument of another type or out of its range.
        InvalidTokensError: tokens that are not nucleotides.
    """

    @checked
    def __init__(
        self,
        members: Sequence[nn.Module],
        config: OracleConfig | None,
        *,
        role: Role,
        quantity: str,
        units: str,
        mean: float = 0.0,
        scale: float = 1.0,
        output_class: WholeNumber | None = None,
        both_strands: bool = True,
    ) -> None:
        super().__init__()
        if not members:
            raise InvalidArgumentError("an ensemble has at least one member.")
        self.members = nn.ModuleList(members)
        self.config = config
        self.role: Role = role
        self.quantity = quantity
        self.units = units
        self.mean = mean
        self.scale = scale
        self.output_class = output_class
        self.both_strands = both_strands

    @evaluates
    def forward(self, tokens: Tensor) -> Tensor:
        """Return the members' predictions ``(M, B)`` for ``tokens`` ``(B, L)``."""
        if tokens.ndim != 2 or tokens.dtype != torch.int64:
            raise InvalidTokensError(
                f"an oracle reads int64 tokens of shape (B, L), but got {tokens.dtype} {tuple(tokens.shape)}"
            )
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < NUM_NUCLEOTIDES):
            raise InvalidTokensError(
                f"an oracle reads A, C, G, T as 0..3, but got tokens in {int(tokens.min())}..{int(tokens.max())}; "
                "finish denoising before scoring (MASK is no nucleotide)"
            )
        dtype = next((parameter.dtype for parameter in self.parameters()), torch.float32)
        return self.predict_weights(F.one_hot(tokens, NUM_NUCLEOTIDES).to(dtype))

    @evaluates
    def predict_weights(self, weights: Tensor) -> Tensor:
        """Return ``(M, B)`` for nucleotide weights ``(B, L, 4)``, differentiably; one-hot rows are a sequence."""
        predictions = self._predict(weights)
        if self.both_strands:
            # Complementing A C G T = 0..3 reverses the channels, as the other strand reverses the positions.
            predictions = (predictions + self._predict(weights.flip(1, 2))) / 2
        return predictions

    def _predict(self, weights: Tensor) -> Tensor:
        logits = torch.stack([member(weights) for member in self.members])  # (M, B, outputs)
        if self.output_class is None:
            return self.mean + self.scale * logits.squeeze(-1)
        return logits.softmax(dim=-1)[..., self.output_class]

    def description(self) -> dict[str, Any]:
        """Return everything but the weights, as JSON can hold it."""
        return {
            "config": None if self.config is None else asdict(self.config),
            "num_members": len(self.members),
            "role": self.role,
            "quantity": self.quantity,
            "units": self.units,
            "mean": self.mean,
            "scale": self.scale,
            "output_class": self.output_class,
            "both_strands": self.both_strands,
        }


@checked
def load_oracle(path: PathArgument) -> OracleEnsemble:
    """Read an ensemble from safetensors, on the CPU, in float32, in evaluation mode and frozen.

    Raises:
        CheckpointError: no such file, not an oracle, or tensors that differ from what its description asks for, or are
            not finite.
    """
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            path,
            f"expected the format {FORMAT!r}, found {metadata.get('format')!r}",
            "give a file that benchmarks/build_assets/oracles.py wrote",
        )

    def build() -> OracleEnsemble:
        description = dict(parse_json(metadata["description"]))
        config = OracleConfig(**description.pop("config"))
        members = [build_member(config) for _ in range(description.pop("num_members"))]
        return OracleEnsemble(members, config, **description)

    return build_from(path, build, tensors).eval().requires_grad_(False)
