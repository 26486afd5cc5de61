r"""SEPO as published: neighbours y weighted by self-normalised importance sampling estimates of :math:`\pi(y)`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agents.functional import snis_log_estimate, snis_log_weights
from agents.objectives.forms import Form, Terms
from agents.objectives.states import StateEvaluation
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.random import keys_from_seed, uniforms
from sepo_env.errors import InvalidArgumentError


@dataclass(frozen=True)
class SiteConditionals:
    r"""One-site conditionals :math:`\log \pi(x_i = v | x_{-i})` of a denoiser near the end of the chain.

    The ratio of two of them is the concrete score of a visible neighbour,
    :math:`s(x)_{i,v} = \pi(v | x_{-i}) / \pi(x_i | x_{-i})`. A denoiser on an absorbing graph says it with
    position i masked, one evaluation a position; on other graphs the scores of all positions come from one
    evaluation, and are normalised.

    Attributes:
        denoiser: the network.
        process: what its output means.
        time: the small time at which it is evaluated, T - T0 in the paper's reversed clock.
    """

    denoiser: Denoiser
    process: DiffusionProcess
    time: float

    def _log_conditionals(self, tokens: Tensor, prompt_mask: Tensor) -> Tensor:
        t = torch.full(tokens.shape[:1], self.time, dtype=torch.float64, device=tokens.device)
        output = self.process.evaluate(self.denoiser, tokens, t, prompt_mask)
        if self.process.graph.mask_token is not None:
            return self.process.log_posterior(output, tokens, t, self.denoiser.parameterisation)
        log_score = self.process.log_score(output, tokens, t, self.denoiser.parameterisation)
        return torch.log_softmax(log_score.scatter(-1, tokens[..., None], 0.0), dim=-1)

    def at(self, tokens: Tensor, site: Tensor, prompt_mask: Tensor) -> Tensor:
        """One position of each sequence: tokens ``(R, L)``, site ``(R,)``, given positions ``(R, L)`` -> ``(R, V)``.

        A site is not among the given positions.
        """
        mask_token = self.process.graph.mask_token
        if mask_token is not None:
            tokens = tokens.scatter(1, site[:, None], mask_token)
        return self._log_conditionals(tokens, prompt_mask)[torch.arange(len(site), device=site.device), site]

    def everywhere(self, tokens: Tensor, prompt_mask: Tensor) -> Tensor:
        """All positions: tokens and given positions ``(N, L)`` -> ``(N, L, V)``; rows of given ones mean nothing."""
        if self.process.graph.mask_token is None:
            return self._log_conditionals(tokens, prompt_mask)
        num_rows, length = tokens.shape
        site = torch.arange(length, device=tokens.device).repeat(num_rows)
        repeated, given = (rows.repeat_interleave(length, dim=0) for rows in (tokens, prompt_mask))
        return self.at(repeated, site, given).unflatten(0, (num_rows, length))


@dataclass(frozen=True)
class SNISForm(Form):
    r"""The paper's objective at the end x of a trajectory, over its Hamming-1 neighbours y.

    .. math::
        \sum_y \hat\pi_\theta(y)\, f(r_{x,y})\, A , \qquad
        r_{x,y} = \frac{\hat\pi_\theta(y)}{\hat\pi_{old}(y)} \frac{s_{old}(x)_y}{s_\theta(x)_y} ,

    which estimates :math:`\pi_\theta(x) / \pi_{old}(x)`; only :math:`\log s_\theta(x)_y` carries a gradient
    (arXiv 2502.01384). The weight of a neighbour is :math:`\hat\pi(y) = \sum_m w_m P(z_m, y) / \sum_m w_m`:
    draws :math:`z_m` from the ball of Hamming radius 1 around y (a position uniformly, then any of the V
    tokens), :math:`w_m = 1/(s(z_m)_y q(z_m | y))`, and P the single-site mask-and-refill, which leaves
    :math:`\pi` unchanged. It tends to :math:`\pi(y)/\pi(\mathrm{ball}(y))` for many draws.

    The draws are a function of the trajectory's id, of x and of y: the policy that sampled and the one being
    trained meet the same ones, or their ratio would leave the clip range before the first step. One trajectory
    costs about :math:`L (V - 1) M` evaluations without gradient, so this form is a reference for small
    problems. Only a trajectory's last step (s = 0) has terms, ``(N, L, V)``; the regularisers of the loss are sums over
    all steps all the same, each at one evaluation a state.

    Attributes:
        num_draws: M.
        time: the small time at which scores are read, T - T0 in the paper's reversed clock.
        chunk_size: most sequences in one evaluation without gradient; bounds the memory.

    Raises:
        InvalidArgumentError: a number out of range.
    """

    num_draws: int = 2
    time: float = 0.01
    chunk_size: int = 1024

    name = "snis"
    evaluates_visited_states = False

    def __post_init__(self) -> None:
        if self.num_draws < 1 or self.chunk_size < 1:
            raise InvalidArgumentError(
                f"num_draws and chunk_size must be at least 1, got {self.num_draws} and {self.chunk_size}."
            )
        if not 0.0 < self.time < 1.0:
            raise InvalidArgumentError(
                f"the form 'snis' reads scores at a small time in (0, 1), got {self.time}; 0.01 is usual."
            )

    def terms(self, evaluation: StateEvaluation) -> Terms:
        states = evaluation.states
        if states.trajectory is None:
            raise InvalidArgumentError(
                "the form 'snis' seeds its draws with the trajectory's id, so that the policy that sampled and the "
                "one being trained share them; add the entry 'trajectory', int64 (N,)."
            )
        # A trajectory may stand still at time 0 once it is finished; its end counts once.
        last = (states.s <= 0) & (states.t > 0)
        if not bool(last.any()):
            # States that regularisers alone look at, and no network has to answer for no sequences.
            shape = (*states.final_tokens.shape, evaluation.process.graph.num_tokens)
            nothing = states.advantage.new_zeros(shape)
            return Terms(log_prob=nothing, weight=nothing)
        x, free = states.final_tokens[last], ~states.prompt_mask[last]
        conditionals = SiteConditionals(evaluation.denoiser, evaluation.process, self.time)
        log_conditional = conditionals.everywhere(x, ~free)
        if bool((log_conditional[free] == -torch.inf).any()):
            raise InvalidArgumentError(
                "the form 'snis' draws from all tokens, and the denoiser gives some of them no probability at all, as "
                "masked language models do with special tokens; use 'neighbours' or 'path'."
            )
        own = x[..., None]
        log_score = log_conditional - log_conditional.gather(-1, own)
        neighbour = free[..., None] & torch.ones_like(log_score, dtype=torch.bool).scatter(-1, own, False)
        keys = _draw_keys(states.trajectory[last], x)
        log_pi = torch.zeros_like(log_score)
        log_pi[neighbour] = self._log_pi(conditionals, x, free, neighbour, keys).to(log_pi.dtype)
        terms = log_score.new_zeros(len(last), *log_score.shape[1:])
        return Terms(
            log_prob=terms.index_put((last,), torch.where(neighbour, log_pi - log_score, 0.0)),
            weight=terms.index_put((last,), neighbour * log_pi.exp()),
        )

    @torch.no_grad()
    def _log_pi(
        self, conditionals: SiteConditionals, x: Tensor, free: Tensor, neighbour: Tensor, keys: Tensor
    ) -> Tensor:
        r"""Estimate :math:`\log \hat\pi(y)` of the R neighbours y that the mask ``(n, L, V)`` names, ``(R,)``."""
        row, site, token = neighbour.nonzero(as_tuple=True)
        y = x[row].scatter(1, site[:, None], token[:, None])
        counter = site * neighbour.shape[-1] + token
        # In front, the positions that may be drawn: those that no prompt fixes.
        free_first = free.long().argsort(dim=-1, descending=True, stable=True)[row]
        given = ~free[row]
        chunk = max(1, self.chunk_size // self.num_draws)
        estimates = [
            self._log_pi_chunk(conditionals, *parts)
            for parts in zip(*(part.split(chunk) for part in (y, keys[row], counter, free_first, given)), strict=True)
        ]
        return torch.cat([y.new_zeros(0, dtype=torch.float64), *estimates])

    def _log_pi_chunk(
        self,
        conditionals: SiteConditionals,
        y: Tensor,
        keys: Tensor,
        counter: Tensor,
        free_first: Tensor,
        given: Tensor,
    ) -> Tensor:
        num_tokens = conditionals.process.graph.num_tokens
        num_free = (~given).sum(dim=-1)
        u_site, u_token = uniforms(keys, counter, 2 * self.num_draws).chunk(2, dim=-1)
        site = free_first.gather(1, (u_site * num_free[:, None]).long())
        token = (u_token * num_tokens).long()
        y_token = y.gather(1, site)
        z = y.repeat_interleave(self.num_draws, dim=0).scatter(1, site.reshape(-1, 1), token.reshape(-1, 1))
        given = given.repeat_interleave(self.num_draws, dim=0)
        log_conditional = conditionals.at(z, site.reshape(-1), given).unflatten(0, site.shape)
        log_refill = log_conditional.gather(-1, y_token[..., None])[..., 0]
        log_score = log_refill - log_conditional.gather(-1, token[..., None])[..., 0]
        # y itself is drawn through any position; another member of the ball through one of them only. The same
        # holds for the move of P from z to y.
        log_through_site = torch.where(token == y_token, 0.0, -num_free.to(log_score.dtype).log()[:, None])
        log_weights = snis_log_weights(log_score, log_through_site)
        return snis_log_estimate(log_weights, log_refill + log_through_site)


def _draw_keys(trajectory: Tensor, x: Tensor) -> Tensor:
    """Keys ``(n,)`` of the draws; the sequence is hashed in because ids may start anew with every batch."""
    multipliers = keys_from_seed(torch.arange(x.shape[1], device=x.device))
    return keys_from_seed(trajectory, (x * multipliers).sum(dim=-1))
