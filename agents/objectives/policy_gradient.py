"""What all objectives share: keys, functional parameters, regularisers, reduction and diagnostics."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import LossModule

from agents.functional import (
    effective_sample_share,
    k3_kl,
    log_importance_ratio,
    mean_where,
    step_log_ratio,
)
from agents.objectives.forms import Form
from agents.objectives.states import StateEvaluation, VisitedStates
from agents.objectives.surrogates import Surrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.errors import InvalidArgumentError


class PolicyGradientLoss(LossModule):
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

    policy_network: Denoiser
    policy_network_params: TensorDictParams
    target_policy_network_params: TensorDictParams
    reference: Denoiser | None

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
        if reference is not None and _share_parameters(policy_network, reference):
            raise InvalidArgumentError(
                "the reference shares parameters with the policy and would move with it; give a copy, such as "
                "copy.deepcopy(denoiser)."
            )
        form.check(process)
        policy_network, reference = unwrapped(policy_network), unwrapped(reference)
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        self.convert_to_functional(policy_network, "policy_network")
        # Past nn.Module's registry: the reference is not trained, saved or moved with the loss.
        self.__dict__["reference"] = reference
        self.process = process
        self.form = form
        self.surrogate = surrogate
        self.kl_coeff = kl_coeff
        self.entropy_coeff = entropy_coeff

    @property
    def in_keys(self) -> list[NestedKey]:
        """The keys that are read, in the order of positional arguments."""
        return self._entries() if self._in_keys is None else self._in_keys

    @in_keys.setter
    def in_keys(self, value: list[NestedKey]) -> None:
        self._in_keys = value

    @property
    def out_keys(self) -> list[NestedKey]:
        """The scalars that are returned."""
        return self._scalars() if self._out_keys is None else self._out_keys

    @out_keys.setter
    def out_keys(self, value: list[NestedKey]) -> None:
        self._out_keys = value

    def _entries(self) -> list[NestedKey]:
        return list(vars(self.tensor_keys).values())

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

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """Advantages and value targets come with the batch; there is no value estimator to tell."""

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

    def _required(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = tensordict.get(key, None)
        if value is None:
            raise InvalidArgumentError(
                f"{type(self).__name__} needs the entry {key!r}, which the tensordict does not have; add it, or "
                "name the entry that holds it with set_keys()."
            )
        return value

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


def _share_parameters(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    storages = {parameter.data_ptr() for parameter in one.parameters()}
    return any(parameter.data_ptr() in storages for parameter in other.parameters())
