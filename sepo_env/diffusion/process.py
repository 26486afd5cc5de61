r"""The diffusion process: a token graph with a schedule, and what a denoiser's output means on it.

Both graphs and both parameterisations of a network go through :class:`DiffusionProcess`; nothing above it needs to
know whether a network gives x0-posteriors or concrete scores.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from sepo_env.arguments import Size, check_argument, check_fields, shown
from sepo_env.diffusion import kernel as kernels
from sepo_env.diffusion.graph import Absorbing, Graph
from sepo_env.diffusion.guided import GuidedOutput, Guiding, Output, temper_law, temper_score
from sepo_env.diffusion.kernel import StepLaw
from sepo_env.diffusion.schedule import Schedule
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.errors import InvalidDenoiserError, UnknownNameError
from sepo_env.precision import is_half

Parameterisation = Literal["posterior", "score"]
Kernel = Literal["ancestral", "tau-leaping", "analytic"]
_SAME_NOISE = 1e-6
KERNELS: tuple[Kernel, ...] = get_args(Kernel)


class DenoiserLike(Protocol):
    """What the process needs of a denoiser: a call and the meaning of its output."""

    parameterisation: Parameterisation

    def __call__(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Tokens ``(B, L)``, time ``(B,)`` -> ``(B, L, V)``: log x0-posterior or log concrete score."""
        ...


class ReadsNoise(ABC):
    """Marks a denoiser that reads how much noise there is, and computes it from the time by a schedule of its own."""

    @property
    @abstractmethod
    def own_schedule(self) -> Schedule | None:
        """The schedule that turns its time into noise; None where it reads none."""


@dataclass(frozen=True)
class DiffusionProcess:
    r"""A CTMC over sequences: time t = 1 is noise, t = 0 is data, and t = 0 counts as exactly free of noise.

    Schedules such as log-linear or geometric keep a trace of noise at t = 0; a sampler that ends there must still
    return clean sequences, so :math:`\alpha(0) = 1` and :math:`\sigma(0) = 0` here by definition.

    Attributes:
        graph: which jumps noise makes.
        schedule: how fast.
    """

    graph: Graph
    schedule: Schedule

    def __post_init__(self) -> None:
        check_fields(self)

    def time_grid(self, num_steps: Size, device: torch.device | str | None = None) -> Tensor:
        """The K + 1 times from 1 to 0 of a K-step sampler, float64 ``(K + 1,)``.

        >>> from sepo_env.diffusion import Absorbing, LogLinear
        >>> DiffusionProcess(Absorbing(4), LogLinear()).time_grid(4)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
        """
        num_steps = check_argument("num_steps", num_steps, Size)
        return 1.0 - torch.arange(num_steps + 1, dtype=torch.float64, device=device) / num_steps

    def sigma(self, t: Tensor) -> Tensor:
        r"""Total noise :math:`\sigma(t)` with :math:`\sigma(0) = 0`."""
        return torch.where(t > 0, self.schedule.sigma(t), torch.zeros_like(t))

    def alpha(self, t: Tensor) -> Tensor:
        r"""Signal left :math:`\alpha(t)` with :math:`\alpha(0) = 1`."""
        return torch.exp(-self.sigma(t))

    def clock_step(self, t: Tensor, s: Tensor) -> Tensor:
        r"""Advance of the action clock from t to s < t, :math:`\Lambda(t) - \Lambda(s) \ge 0`.

        Infinite on the last step (s = 0) of an absorbing chain, where every mask must go.
        """
        end = torch.full_like(s, -torch.inf) if isinstance(self.graph, Absorbing) else torch.zeros_like(s)
        return self.graph.clock(self.schedule, t) - torch.where(s > 0, self.graph.clock(self.schedule, s), end)

    def unmask_prob(self, t: Tensor, s: Tensor) -> Tensor:
        r"""Probability :math:`(\alpha_s - \alpha_t)/(1 - \alpha_t)` that a masked position is filled from t to s."""
        alpha_t, alpha_s = self.alpha(t), self.alpha(s)
        return (alpha_s - alpha_t) / (1.0 - alpha_t)

    def evaluate(self, denoiser: DenoiserLike, tokens: Tensor, t: Tensor, prompt_mask: Tensor | None = None) -> Output:
        r"""A network's output, ``(B, L, V)``, or the two of one that is `Guiding`, which is told what was given.

        In float32, or in float64 where the network computes in it. Networks in half precision, and those under
        `torch.autocast`, are read as float32, and their posteriors normalised anew.

        One that `ReadsNoise` was trained on a schedule of its own, and is given the time :math:`t'` at which that one
        has the noise of this process, :math:`\sigma_{own}(t') = \sigma(t)`, or the nearest it has.

        Args:
            denoiser: the network.
            tokens: int64 ``(B, L)``.
            t: time, ``(B,)``.
            prompt_mask: positions that were given, bool ``(B, L)``; None: none.

        Raises:
            InvalidArgumentError: the network would hide a prompt behind MASK, and the graph has none.
            InvalidDenoiserError: no denoiser, or one that returned something else.
        """
        marked = unwrapped(denoiser)
        if not callable(marked) or getattr(marked, "parameterisation", None) not in get_args(Parameterisation):
            raise InvalidDenoiserError(
                f"the denoiser is {shown(denoiser)}; give a sepo_env.denoisers.Denoiser, or a function of tokens and "
                "time with a parameterisation, 'posterior' or 'score'."
            )
        own = marked.own_schedule if isinstance(marked, ReadsNoise) else None
        if own is None or own == self.schedule:
            return self._call(denoiser, tokens, t, prompt_mask)
        # In float64: where almost all is noise, float32 cannot tell one time from another.
        sigma = self.sigma(t.double())
        time = own.inverse_sigma(sigma).clamp(0.0, 1.0)
        output = self._call(denoiser, tokens, time, prompt_mask)
        if denoiser.parameterisation == "posterior" or not isinstance(self.graph, Absorbing):
            return output
        # Noise stronger than any of its own changes the scores of a mask by a factor that is known.
        latest = own.sigma(time)
        factor = torch.logit(torch.exp(-sigma)) - torch.logit(torch.exp(-latest))
        factor = torch.where(sigma > latest + _SAME_NOISE, factor, 0.0)[:, None, None]
        if isinstance(output, GuidedOutput):
            return output.map(lambda one: one + factor.to(one.dtype))
        return output + factor.to(output.dtype)

    def _call(self, denoiser: DenoiserLike, tokens: Tensor, t: Tensor, prompt_mask: Tensor | None) -> Output:
        marked = unwrapped(denoiser)
        if isinstance(marked, Guiding):
            output = marked.evaluate(tokens, t, prompt_mask, self.graph.mask_token)
        else:
            output = denoiser(tokens, t)

        def check(one: Tensor) -> Tensor:
            return self._checked(one, tokens, denoiser)

        return output.map(check) if isinstance(output, GuidedOutput) else check(output)

    def _checked(self, output: Tensor, tokens: Tensor, denoiser: DenoiserLike) -> Tensor:
        """An output that is one, in float32 where it came in half precision, as that of a cast network or autocast."""
        expected = (*tokens.shape, self.graph.num_tokens)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = output.dtype if isinstance(output, Tensor) else type(output).__name__
            raise InvalidDenoiserError(f"{_name(denoiser)} returned {kind}; return floats of shape {expected}.")
        if output.shape != expected:
            raise InvalidDenoiserError(
                f"{_name(denoiser)} returned the shape {tuple(output.shape)}, expected {expected}: one number for each "
                "sequence, position and visible token."
            )
        if not is_half(output.dtype):
            return output
        output = output.float()
        # Rounded to 8 or 11 bits, probabilities add up to 1 within a percent only.
        return output.log_softmax(-1) if denoiser.parameterisation == "posterior" else output

    def log_posterior(self, output: Output, tokens: Tensor, t: Tensor, parameterisation: Parameterisation) -> Tensor:
        """A network's output as log x0-posterior, ``(B, L, V)``; rows of visible absorbing positions mean nothing."""
        if isinstance(output, GuidedOutput):
            return output.combine(lambda one: self.log_posterior(one, tokens, t, parameterisation), temper_law)
        if parameterisation == "posterior":
            return output
        return self.graph.log_posterior_from_score(output, tokens, self.alpha(t))

    def log_score(self, output: Output, tokens: Tensor, t: Tensor, parameterisation: Parameterisation) -> Tensor:
        """A network's output as log concrete score, ``(B, L, V)``; rows of visible absorbing positions mean nothing."""
        if isinstance(output, GuidedOutput):
            if not isinstance(self.graph, Absorbing):
                return output.combine(lambda one: self.log_score(one, tokens, t, parameterisation), temper_score)
            # The schedule alone says how fast masks are filled, so the guided score is that of a posterior.
            log_posterior = self.log_posterior(output, tokens, t, parameterisation)
            guided = self.graph.log_score_from_posterior(log_posterior, tokens, self.alpha(t))
            return output.select(guided, self.log_score(output.conditional, tokens, t, parameterisation))
        if parameterisation == "score":
            return output
        return self.graph.log_score_from_posterior(output, tokens, self.alpha(t))

    def step_law(
        self,
        output: Output,
        tokens: Tensor,
        t: Tensor,
        s: Tensor,
        parameterisation: Parameterisation,
        kernel: Kernel = "ancestral",
        prompt_mask: Tensor | None = None,
    ) -> StepLaw:
        """The law of one reverse step from t to s under a network's output.

        Args:
            output: the network's output, ``(B, L, V)``, or that of a guided one (`sepo_env.diffusion.guided`).
            tokens: int64 ``(B, L)``.
            t: present time, float64 ``(B,)``.
            s: next time, s < t, float64 ``(B,)``; all rows are 0 or none is.
            parameterisation: what the output is.
            kernel: how the step is discretised. Tau-leaping ends with an analytic step, which removes what noise
                is left.
            prompt_mask: given positions, bool ``(B, L)``, which hold visible tokens and keep them; None: none.

        Raises:
            UnknownNameError: no kernel has that name.
        """
        if kernel not in KERNELS:
            raise UnknownNameError("kernel", kernel, KERNELS)
        law = self._free_law(output, tokens, t, s, parameterisation, kernel)
        # No kernel above moves a visible token of a masked chain, and a copy of (B, L, W) numbers is not for nothing.
        if prompt_mask is None or self.graph.mask_token is not None:
            return law
        return law.clamped(tokens, prompt_mask)

    def _free_law(
        self,
        output: Output,
        tokens: Tensor,
        t: Tensor,
        s: Tensor,
        parameterisation: Parameterisation,
        kernel: Kernel,
    ) -> StepLaw:
        if isinstance(output, GuidedOutput) and not isinstance(self.graph, Absorbing):
            return StepLaw(
                output.combine(
                    lambda one: self._free_law(one, tokens, t, s, parameterisation, kernel).log_probs, temper_law
                )
            )
        if kernel == "ancestral":
            log_posterior = self.log_posterior(output, tokens, t, parameterisation)
            return kernels.ancestral(self.graph, tokens, log_posterior, self.alpha(t), self.alpha(s))
        log_score = self.log_score(output, tokens, t, parameterisation)
        sigma_step = self.sigma(t) - self.sigma(s)
        last = bool((s <= 0).all())
        if kernel == "tau-leaping" and not last:
            return kernels.tau_leaping(self.graph, tokens, log_score, sigma_step)
        return kernels.analytic(self.graph, tokens, log_score, sigma_step, denoise=last)

    def rates(
        self,
        denoiser: DenoiserLike,
        tokens: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        prompt_mask: Tensor | None = None,
    ) -> Tensor:
        r"""A denoiser's action: the jump rates per unit of the action clock that make it sample as it was trained to.

        Absorbing: :math:`r_{i,v} = p_\theta(v | x_t)_i` at masked positions, 0 elsewhere; held over any step this is
        the ancestral kernel. Uniform: with s given, the rates that held from t to s give the ancestral kernel;
        without, the instantaneous ones :math:`s_{i,v} / V`.

        Args:
            denoiser: the network.
            tokens: int64 ``(B, L)``.
            t: present time, ``(B,)``.
            s: next time, ``(B,)``.
            prompt_mask: positions that were given, bool ``(B, L)``; None: none. The environment clamps them; here
                they are told to a network that reads them.

        Returns:
            ``(B, L, V)``, dtype of the network's output as `evaluate` gives it.
        """
        output = self.evaluate(denoiser, tokens, t, prompt_mask)
        if isinstance(self.graph, Absorbing):
            rates = self.log_posterior(output, tokens, t, denoiser.parameterisation).exp()
            rest = ~self.graph.can_jump(tokens)[..., None]
            # In place where autograd does not ask for the old values: rates are the largest tensor there is.
            return rates.masked_fill(rest, 0.0) if rates.requires_grad else rates.masked_fill_(rest, 0.0)
        if s is None:
            log_score = self.log_score(output, tokens, t, denoiser.parameterisation)
            return self.graph.reverse_rates(log_score, tokens)
        law = self.step_law(output, tokens, t, s, denoiser.parameterisation)
        return kernels.equivalent_rates(self.graph, tokens, law, self.clock_step(t, s))


def _name(denoiser: object) -> str:
    return f"the denoiser ({type(denoiser).__name__})"
