r"""Noise schedules: how much of the data is left at time t.

Time runs from t = 0 (data) to t = 1 (noise). A schedule is given by the total noise :math:`\sigma(t)`,
increasing in t; the share of positions not yet touched by noise is :math:`\alpha(t) = e^{-\sigma(t)}`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from sepo_env.arguments import NonNegative, Positive, check_fields, checked
from sepo_env.errors import InvalidArgumentError, UnknownNameError

Trace = Annotated[float, Gt(0), Lt(1)]
"""The share of the data that noise leaves at t = 1; 1e-3 is usual."""


class Schedule(ABC):
    r"""Total noise :math:`\sigma(t)` with derivative and inverse; all functions are element-wise on float tensors.

    Subclasses are frozen dataclasses, so that schedules compare by value and survive pickling. Compute in float64
    where the result feeds a sampler: near t = 1 log-linear noise loses all digits in float32.
    """

    def __repr__(self) -> str:
        """The class and its settings, for one that is no dataclass: nothing of where it lies in memory."""
        return shown_settings(self)

    @abstractmethod
    def sigma(self, t: Tensor) -> Tensor:
        r"""Total noise :math:`\sigma(t)`, shape and dtype of ``t``."""

    @abstractmethod
    def sigma_prime(self, t: Tensor) -> Tensor:
        r"""Noise rate :math:`\sigma'(t)`, shape and dtype of ``t``."""

    @abstractmethod
    def inverse_sigma(self, sigma: Tensor) -> Tensor:
        r"""The time at which the total noise is ``sigma``."""

    def alpha(self, t: Tensor) -> Tensor:
        r"""Signal left, :math:`\alpha(t) = e^{-\sigma(t)}`."""
        return torch.exp(-self.sigma(t))

    def inverse_alpha(self, alpha: Tensor) -> Tensor:
        r"""The time at which the signal left is ``alpha``."""
        return self.inverse_sigma(-torch.log(alpha))

    def log_one_minus_alpha(self, t: Tensor) -> Tensor:
        r"""Action clock of the absorbing graph, :math:`\Lambda(t) = \log(1 - \alpha(t))`."""
        return torch.log(-torch.expm1(-self.sigma(t)))

    def inverse_log_one_minus_alpha(self, clock: Tensor) -> Tensor:
        r"""The time at which the absorbing action clock shows ``clock``."""
        return self.inverse_sigma(-torch.log1p(-torch.exp(clock)))


def shown_settings(instance: object) -> str:
    """What the representation of a dataclass would be, for any object.

    >>> shown_settings(LogLinear(eps=0.5))
    'LogLinear(eps=0.5)'
    """
    settings = ", ".join(f"{name}={value!r}" for name, value in sorted(vars(instance).items()))
    return f"{type(instance).__name__}({settings})"


def _check_order(schedule: Geometric | Linear) -> None:
    check_fields(schedule)
    if not schedule.sigma_min < schedule.sigma_max:
        raise InvalidArgumentError(f"{schedule}: the noise grows from sigma_min to sigma_max; give a larger sigma_max.")


@dataclass(frozen=True)
class LogLinear(Schedule):
    r"""Log-linear noise: :math:`1 - \alpha(t) = (1 - \varepsilon)\,t` (arXiv 2310.16834).

    The share of masked positions grows linearly, and ``eps`` keeps :math:`\sigma(1)` finite.

    >>> LogLinear(eps=0.5).alpha(torch.tensor([0.0, 1.0]))
    tensor([1.0000, 0.5000])
    """

    eps: Trace = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1.0 - self.eps) * t)

    def sigma_prime(self, t: Tensor) -> Tensor:
        return (1.0 - self.eps) / (1.0 - (1.0 - self.eps) * t)

    def inverse_sigma(self, sigma: Tensor) -> Tensor:
        return -torch.expm1(-sigma) / (1.0 - self.eps)


@dataclass(frozen=True)
class Cosine(Schedule):
    r"""Cosine noise: :math:`\alpha(t) = \varepsilon + (1 - \varepsilon)(1 - \sin(\pi t / 2))`.

    Few masks are removed in the first reverse steps, where the denoiser knows least (arXiv 2406.07524).
    """

    eps: Trace = 1e-3

    def __post_init__(self) -> None:
        check_fields(self)

    def sigma(self, t: Tensor) -> Tensor:
        return -torch.log1p(-(1.0 - self.eps) * torch.sin(math.pi / 2 * t))

    def sigma_prime(self, t: Tensor) -> Tensor:
        scale = 1.0 - self.eps
        return scale * math.pi / 2 * torch.cos(math.pi / 2 * t) / (1.0 - scale * torch.sin(math.pi / 2 * t))

    def inverse_sigma(self, sigma: Tensor) -> Tensor:
        return 2 / math.pi * torch.asin((-torch.expm1(-sigma) / (1.0 - self.eps)).clamp(max=1.0))


@dataclass(frozen=True)
class Geometric(Schedule):
    r"""Geometric noise: :math:`\sigma(t) = \sigma_{min}^{1-t}\,\sigma_{max}^{t}` (arXiv 2310.16834)."""

    sigma_min: Positive = 1e-4
    sigma_max: Positive = 20.0

    def __post_init__(self) -> None:
        _check_order(self)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min * torch.exp(t * math.log(self.sigma_max / self.sigma_min))

    def sigma_prime(self, t: Tensor) -> Tensor:
        return self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def inverse_sigma(self, sigma: Tensor) -> Tensor:
        return torch.log(sigma / self.sigma_min) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class Linear(Schedule):
    r"""Linear noise: :math:`\sigma(t) = \sigma_{min} + (\sigma_{max} - \sigma_{min})\,t` (arXiv 2406.07524)."""

    sigma_min: NonNegative = 0.0
    sigma_max: Positive = 10.0

    def __post_init__(self) -> None:
        _check_order(self)

    def sigma(self, t: Tensor) -> Tensor:
        return self.sigma_min + (self.sigma_max - self.sigma_min) * t

    def sigma_prime(self, t: Tensor) -> Tensor:
        return torch.full_like(t, self.sigma_max - self.sigma_min)

    def inverse_sigma(self, sigma: Tensor) -> Tensor:
        return (sigma - self.sigma_min) / (self.sigma_max - self.sigma_min)


SCHEDULES: dict[str, type[Schedule]] = {
    "log-linear": LogLinear,
    "cosine": Cosine,
    "geometric": Geometric,
    "linear": Linear,
}


@checked
def make_schedule(schedule: str | Schedule) -> Schedule:
    """The schedule of that name at its default settings; a ready schedule is passed through.

    Raises:
        UnknownNameError: no schedule has that name.

    >>> make_schedule("cosine")
    Cosine(eps=0.001)
    """
    if isinstance(schedule, Schedule):
        return schedule
    if schedule not in SCHEDULES:
        raise UnknownNameError("schedule", schedule, SCHEDULES)
    return SCHEDULES[schedule]()
