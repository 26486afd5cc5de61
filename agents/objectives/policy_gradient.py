"""What all policy gradients share: the states that they read, regularisers, reduction and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor

from agents.functional import (
    effective_sample_share,
    k3_kl,
    log_importance_ratio,
    mean_where,
    step_log_ratio,
)
from agents.objectives.base import DenoiserLoss
from agents.objectives.forms import Form
from agents.objectives.states import StateEvaluation, VisitedStates
from agents.objectives.surrogates import Surrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError


class PolicyGradientLoss(DenoiserLoss):
    r"""A policy-gradient objective on the visited states of a denoising chain.

    .. math:: L = -\frac{1}{B} \sum_{n} \omega_n \sum_i w_{n,i}\, f(r_{n,i})\, A_n
              + c_{KL} \frac{1}{B} \sum_n \omega_n KL_n - c_H \frac{1}{B} \sum_n \omega_n H_n

    over the N states of a batch that come from B trajectories, each with the inclusion weight :math:`\omega_n`.
    The *form* gives the terms :math:`(\log p_i, w_i)` of a state, the *surrogate* is f. Log-probabilities are
    recomputed from the tokens; nothing that a network said during sampling is read.

    Every ``loss_*`` is a sum over states divided by the number of trajectories. Give that number as
    ``num_trajectories`` and the losses of micro-batches add up to that of the whole batch exactly; without it,
    the distinct ids in ``trajectory`` are counted.

    The network's gradient flows through each state's own step. The path KL is anchored to a *fixed* reference:
    one that moved along with the policy would anchor nothing.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        form: whose log-probability is raised.
        surrogate: the function of the ratio.
        reference: the pretrained denoiser, frozen. Given, the path KL to it is reported and weighed by
            ``kl_coeff``; it costs one more evaluation a state.
        kl_coeff: weight of the path KL, at least 0.
        entropy_coeff: weight of the entropy bonus, at least 0.

    Keys (all renamed by ``set_keys``; N states of L positions):
        tokens, next tokens, final tokens (the end of the state's trajectory) int64 ``(N, L)``; time, next time
        and advantage ``(N, 1)``. Optional: inclusion_weight ``(N, 1)``, 1 by default; old_log_prob, what
        :meth:`log_probs` gave for the policy that sampled, by default the present value without gradient;
        prompt_mask bool ``(N, L)``; num_trajectories ``(N, 1)``; trajectory int64 ``(N,)``.

    Outputs, all scalars:
        loss_objective, with a reference loss_kl, with a bonus loss_entropy: their sum is the loss.
        Without gradient: clip_fraction (share of ratios without a gradient), ESS (effective sample size of the
        steps' ratios over N), kl_approx (k3 estimate of the KL from the policy that sampled, nats a step),
        ratio_max; entropy and kl_reference (nats a trajectory) where they are computed. These two are sums over the
        path, whatever the form: a batch has to hold states of all steps, or weights that make up for the others.

    Raises:
        InvalidArgumentError: a coefficient out of range, a form that the process does not have, or a reference
            that shares parameters with the policy.
    """

    @dataclass
    class _AcceptedKeys:
        """The tensordict keys, as ``set_keys`` takes them."""

        tokens: NestedKey = "tokens"
        next_tokens: NestedKey = ("next", "tokens")
        time: NestedKey = "time"
        next_time: NestedKey = ("next", "time")
        final_tokens: NestedKey = "final_tokens"
        advantage: NestedKey = "advantage"
        inclusion_weight: NestedKey = "inclusion_weight"
        old_log_prob: NestedKey = "old_log_prob"
        prompt_mask: NestedKey = "prompt_mask"
        num_trajectories: NestedKey = "num_trajectories"
        trajectory: NestedKey = "trajectory"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        *,
        form: Form,
        surrogate: Surrogate,
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        for name, coefficient in (("kl_coeff", kl_coeff), ("entropy_coeff", entropy_coeff)):
            if coefficient < 0:
                raise InvalidArgumentError(f"{name} must be at least 0, got {coefficient}.")
        if kl_coeff > 0 and reference is None:
            raise InvalidArgumentError(
                "kl_coeff > 0 needs a denoiser to stay close to; give reference=, such as task.load_denoiser()."
            )
        form.check(process)
        super().__init__(policy_network, process, reference=reference)
        self.form = form
        self.surrogate = surrogate
        self.kl_coeff = kl_coeff
        self.entropy_coeff = entropy_coeff

    def _scalars(self) -> list[NestedKey]:
        keys: list[NestedKey] = ["loss_objective"]
        if self.reference is not None:
            keys += ["loss_kl", "kl_reference"]
        if self.entropy_coeff > 0:
            keys += ["loss_entropy"]
        if self._measures_entropy:
            keys += ["entropy"]
        return [*keys, "clip_fraction", "ESS", "kl_approx", "ratio_max"]

    @property
    def _measures_entropy(self) -> bool:
        # Where the network is evaluated for another's sake it costs nothing.
        return self.form.evaluates_visited_states or self.entropy_coeff > 0 or self.reference is not None

    @property
    def sums_over_path(self) -> bool:
        """Whether visited states count for more than the form's terms: by a regulariser, or by a critic's error."""
        return self.reference is not None or self.entropy_coeff > 0

    @torch.no_grad()
    def log_probs(self, tensordict: TensorDictBase) -> Tensor:
        """The log-probabilities whose ratios the objective uses, without gradient, for ``old_log_prob`` to hold.

        Args:
            tensordict: visited states ``[N]``.

        Returns:
            ``(N, L)``; for the form ``snis`` ``(N, L, V)``. 0 where there is no term.
        """
        states = self._read(tensordict)
        with self.policy_network_params.to_module(self.policy_network):
            return self.form.terms(StateEvaluation(self.policy_network, self.process, states)).log_prob

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDict:
        """The loss of N visited states; see the class for the keys read and the scalars returned."""
        states = self._read(tensordict)
        with self.policy_network_params.to_module(self.policy_network):
            return TensorDict(self._losses(tensordict, states), batch_size=[])

    def _losses(self, tensordict: TensorDictBase, states: VisitedStates) -> dict[str, Tensor]:
        evaluation = StateEvaluation(self.policy_network, self.process, states)
        terms = self.form.terms(evaluation)
        old_log_prob = terms.log_prob if states.old_log_prob is None else states.old_log_prob
        log_ratio = log_importance_ratio(terms.log_prob, old_log_prob, terms.weight)
        surrogate = self.surrogate(terms, log_ratio, states.advantage.to(log_ratio.dtype))
        out = {"loss_objective": -states.per_trajectory(surrogate.value)}
        if self.reference is not None:
            with torch.no_grad():
                reference = StateEvaluation(self.reference, self.process, states).decision
            kl = states.per_trajectory(evaluation.kl(reference))
            out |= {"loss_kl": self.kl_coeff * kl, "kl_reference": kl.detach()}
        if self._measures_entropy:
            with torch.set_grad_enabled(torch.is_grad_enabled() and self.entropy_coeff > 0):
                entropy = states.per_trajectory(evaluation.entropy())
            if self.entropy_coeff > 0:
                out["loss_entropy"] = -self.entropy_coeff * entropy
            out["entropy"] = entropy.detach()
        with torch.no_grad():
            step = step_log_ratio(log_ratio, terms.weight)
            has_terms = (terms.weight > 0).flatten(start_dim=1).any(dim=-1)
            out |= {
                "clip_fraction": mean_where(surrogate.clipped.to(step.dtype), surrogate.counted),
                "ESS": effective_sample_share(step, has_terms),
                "kl_approx": mean_where(k3_kl(step), has_terms),
                "ratio_max": log_ratio.exp().max(),
            }
        return out

    def _read(self, tensordict: TensorDictBase) -> VisitedStates:
        keys = self.tensor_keys
        tokens = self._required(tensordict, keys.tokens)
        num_states = len(tokens)
        inclusion_weight = tensordict.get(keys.inclusion_weight, None)
        if inclusion_weight is None:
            inclusion_weight = torch.ones(num_states, 1, dtype=torch.float64, device=tokens.device)
        prompt_mask = tensordict.get(keys.prompt_mask, None)
        num_trajectories = tensordict.get(keys.num_trajectories, None)
        if num_trajectories is None:
            num_trajectories = self._required(tensordict, keys.trajectory).unique().numel()
        return VisitedStates(
            tokens=tokens,
            next_tokens=self._required(tensordict, keys.next_tokens),
            final_tokens=self._required(tensordict, keys.final_tokens),
            t=self._required(tensordict, keys.time).double().reshape(num_states),
            s=self._required(tensordict, keys.next_time).double().reshape(num_states),
            advantage=self._required(tensordict, keys.advantage).reshape(num_states),
            share=(inclusion_weight / num_trajectories).reshape(num_states),
            prompt_mask=torch.zeros_like(tokens, dtype=torch.bool) if prompt_mask is None else prompt_mask.bool(),
            trajectory=tensordict.get(keys.trajectory, None),
            old_log_prob=tensordict.get(keys.old_log_prob, None),
        )
