r"""Forms of the objective: whose log-probability is raised when a trajectory did well, and with which weight.

Every form maps visited states to terms :math:`(\log p, w)`; a surrogate turns the terms into
:math:`\sum w\, f(p_\theta / p_{old})\, A`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.objectives.states import StateEvaluation
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.graph import per_position
from sepo_env.errors import InvalidArgumentError


@dataclass(frozen=True)
class Terms:
    """The terms of an objective.

    Attributes:
        log_prob: differentiable, ``(N, ...)``; 0 where the weight is 0.
        weight: non-negative and without gradient, same shape.
    """

    log_prob: Tensor
    weight: Tensor


class Form(ABC):
    """Maps visited states to the terms whose ratios an objective uses.

    Attributes:
        name: as the configuration spells it.
        evaluates_visited_states: whether there are terms at all visited states; else at the end of a trajectory only.
        needs_mask: whether the form exists on graphs with a mask only.
    """

    name: str
    evaluates_visited_states: bool = True
    needs_mask: bool = False

    def check(self, process: DiffusionProcess) -> None:
        """Refuse a process that the form is not defined for.

        Raises:
            InvalidArgumentError: the form does not exist for the process' graph.
        """
        if self.needs_mask and process.graph.mask_token is None:
            raise InvalidArgumentError(
                f"the form {self.name!r} sums over masks, and {process.graph} has no mask; use 'path'."
            )

    @abstractmethod
    def terms(self, evaluation: StateEvaluation) -> Terms:
        """The terms of N states, ``(N, ...)``."""


class PathForm(Form):
    r"""The transitions that were sampled: :math:`\sum_k \sum_{i\ jumped} f(r)\, A`, r of the token that jumped.

    Unbiased for the K-step sampler. On an absorbing graph the law of staying does not depend on the policy
    (discrete Girsanov: the compensator vanishes for a normalised posterior), so only jumps are terms. On other
    graphs it does, and every position is a term, whether it jumped or stayed. Terms ``(N, L)``.
    """

    name = "path"

    def terms(self, evaluation: StateEvaluation) -> Terms:
        states = evaluation.states
        counts = evaluation.free
        if evaluation.process.graph.mask_token is not None:
            counts = counts & (states.next_tokens != states.tokens)
        log_prob = evaluation.log_prob(states.next_tokens)
        return Terms(torch.where(counts, log_prob, torch.zeros_like(log_prob)), counts.to(log_prob.dtype))


class NeighboursForm(Form):
    r"""The whole Hamming-1 neighbourhood: :math:`\sum_k p_k \sum_{i\ masked} f(r_i)\, A`.

    :math:`r_i = p_\theta(x_0^i | x_k) / p_{old}(x_0^i | x_k)` and
    :math:`p_k = (\alpha_s - \alpha_t)/(1 - \alpha_t)`: one forward pass scores what each masked position became
    in the end, and the expectation over which position jumps next is taken in closed form. The bias is O(1/K)
    where the conditionals come from one joint law. Terms ``(N, L)``.
    """

    name = "neighbours"
    needs_mask = True

    def terms(self, evaluation: StateEvaluation) -> Terms:
        states = evaluation.states
        log_prob = evaluation.log_posterior.gather(-1, states.final_tokens[..., None])[..., 0]
        log_prob = torch.where(evaluation.free, log_prob, torch.zeros_like(log_prob))
        return Terms(log_prob, evaluation.free * per_position(evaluation.fill_prob, log_prob))
