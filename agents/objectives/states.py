"""What a loss works on: visited states read from a tensordict, and a denoiser's view of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from agents.functional import path_entropy, path_kl
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess, StepLaw
from sepo_env.diffusion.graph import per_position
from sepo_env.diffusion.guided import Output


@dataclass(frozen=True)
class VisitedStates:
    """A flat batch of N states that stored trajectories went through; no network output is among them.

    Attributes:
        tokens: x at time ``t``, int64 ``(N, L)``.
        next_tokens: x at time ``s``, int64 ``(N, L)``.
        final_tokens: the end x_0 of the state's trajectory, int64 ``(N, L)``.
        t: present time, float64 ``(N,)``.
        s: next time, float64 ``(N,)``.
        advantage: ``(N,)``.
        share: what one state contributes to a mean over trajectories: inclusion weight over the number of
            trajectories, ``(N,)``.
        prompt_mask: positions that are given and never change, bool ``(N, L)``.
        trajectory: ids, int64 ``(N,)``, or None.
        old_log_prob: the form's log-probabilities under the policy that sampled, or None if it is the present
            one.
    """

    tokens: Tensor
    next_tokens: Tensor
    final_tokens: Tensor
    t: Tensor
    s: Tensor
    advantage: Tensor
    share: Tensor
    prompt_mask: Tensor
    trajectory: Tensor | None
    old_log_prob: Tensor | None

    def per_trajectory(self, values: Tensor) -> Tensor:
        """Sum over states, mean over trajectories: ``(N,)`` -> scalar. Micro-batches add up exactly."""
        return (values * self.share.to(values.dtype)).sum()


@dataclass(frozen=True)
class StateEvaluation:
    """A denoiser at visited states; it is called once, when something of it is first asked for.

    Attributes:
        denoiser: the network, its parameters in place.
        process: what its output means.
        states: where it is evaluated.
    """

    denoiser: Denoiser
    process: DiffusionProcess
    states: VisitedStates

    @cached_property
    def free(self) -> Tensor:
        """Positions that the step may change, bool ``(N, L)``."""
        return self.process.graph.can_jump(self.states.tokens) & ~self.states.prompt_mask

    @cached_property
    def _output(self) -> Output:
        return self.process.evaluate(self.denoiser, self.states.tokens, self.states.t, self.states.prompt_mask)

    @cached_property
    def log_posterior(self) -> Tensor:
        """Log x0-posterior, ``(N, L, V)``; rows of visible absorbing positions mean nothing."""
        states = self.states
        return self.process.log_posterior(self._output, states.tokens, states.t, self.denoiser.parameterisation)

    @cached_property
    def law(self) -> StepLaw:
        """The ancestral law of the step from t to s."""
        states = self.states
        return self.process.step_law(self._output, states.tokens, states.t, states.s, self.denoiser.parameterisation)

    @cached_property
    def fill_prob(self) -> Tensor:
        r"""Probability that a mask is filled in the step, float64 ``(N,)``; 0 where there is none.

        :math:`(\alpha_s - \alpha_t)/(1 - \alpha_t)`. A trajectory that has no mask left may stand still at
        t = s = 0, where the formula is 0/0.
        """
        filled = self.process.unmask_prob(self.states.t, self.states.s)
        return torch.where(self.free.any(dim=-1), filled, torch.zeros_like(filled))

    @cached_property
    def decision(self) -> StepLaw:
        """The law of what the policy decides in the step: on an absorbing graph, what a mask becomes.

        When it is filled is the schedule's decision; `decision_prob` says how likely that is.
        """
        return self.law if self.process.graph.mask_token is None else StepLaw(self.log_posterior)

    @property
    def decision_prob(self) -> Tensor:
        """How likely the decision takes effect, float64 ``(N,)``."""
        return torch.ones_like(self.states.t) if self.process.graph.mask_token is None else self.fill_prob

    def entropy(self) -> Tensor:
        """Entropy of what the policy decides in the step, nats, ``(N,)``.

        Summed over the steps of a trajectory it is comparable to the negative log-likelihood of a sequence.
        """
        entropy = path_entropy(self.decision, self.free)
        return self.decision_prob.to(entropy.dtype) * entropy

    def kl(self, reference: StepLaw) -> Tensor:
        """Path KL of the step to another denoiser, given that one's `decision`, nats, ``(N,)``.

        The divergence from what the reference rules out is infinite, and has no gradient to leave it by. On a graph
        without mask, a score network rules out a token at the last step wherever its scores belong to no posterior:
        they imply a negative probability, of which 0 is made. Only exact ones never do so. There it counts with the
        least positive probability instead: large, and finite.
        """
        if self.process.graph.mask_token is None:
            log_probs = reference.log_probs
            least = math.log(torch.finfo(torch.float32).tiny)  # in float64, too, or the figure would be another
            reference = StepLaw(log_probs.masked_fill(log_probs == -torch.inf, least))
        kl = path_kl(self.decision, reference, self.free)
        return self.decision_prob.to(kl.dtype) * kl

    def log_prob(self, next_tokens: Tensor) -> Tensor:
        """Log-probability of each position's move in the step, ``(N, L)``; read it where `free` positions jump."""
        if self.process.graph.mask_token is None:
            return self.law.log_prob(next_tokens)
        # Without the table of all moves, of which one a position is asked for.
        last = self.process.graph.num_tokens - 1
        log_posterior = self.log_posterior.gather(-1, next_tokens.clamp(max=last)[..., None])[..., 0]
        return log_posterior + per_position(self.fill_prob.log(), log_posterior)
