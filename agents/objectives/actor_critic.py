"""A policy-gradient objective whose baseline is learnt along with it."""

from __future__ import annotations

from dataclasses import dataclass

from tensordict import NestedKey, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule
from torch import Tensor

from agents.objectives.forms import Form
from agents.objectives.policy_gradient import PolicyGradientLoss
from agents.objectives.states import VisitedStates
from agents.objectives.surrogates import Surrogate
from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError


class ActorCriticLoss(PolicyGradientLoss):
    r"""Any form and surrogate, with a critic :math:`V(x_t, t)`.

    The critic's part is its squared error averaged over the time of a trajectory,
    :math:`\sum_k (t_k - s_k) (V(x_k, t_k) - G_k)^2`. Advantages and value targets :math:`G_k` come with the
    batch, for example from TorchRL's ``GAE``.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        critic_network: the critic to be trained, for example :class:`~agents.policies.rates.Critic`; it reads what keys
            it likes.
        form: whose log-probability is raised.
        surrogate: the function of the ratio.
        critic_coeff: weight of the critic's error, at least 0.
        reference: the pretrained denoiser, frozen.
        kl_coeff: weight of the path KL to it.
        entropy_coeff: weight of the entropy bonus.

    Keys and outputs: those of :class:`~agents.objectives.policy_gradient.PolicyGradientLoss`, and in value_target
    ``(N, 1)``, out loss_critic; value names what the critic writes.

    Raises:
        InvalidArgumentError: a number out of range.
    """

    @dataclass
    class _AcceptedKeys(PolicyGradientLoss._AcceptedKeys):
        """The tensordict keys, as ``set_keys`` takes them."""

        value_target: NestedKey = "value_target"
        value: NestedKey = "state_value"

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys

    critic_network: TensorDictModule
    critic_network_params: TensorDictParams
    target_critic_network_params: TensorDictParams

    def __init__(
        self,
        policy_network: Denoiser,
        process: DiffusionProcess,
        critic_network: TensorDictModule,
        *,
        form: Form,
        surrogate: Surrogate,
        critic_coeff: float = 0.5,
        reference: Denoiser | None = None,
        kl_coeff: float = 0.0,
        entropy_coeff: float = 0.0,
    ) -> None:
        if critic_coeff < 0:
            raise InvalidArgumentError(f"critic_coeff must be at least 0, got {critic_coeff}.")
        super().__init__(
            policy_network,
            process,
            form=form,
            surrogate=surrogate,
            reference=reference,
            kl_coeff=kl_coeff,
            entropy_coeff=entropy_coeff,
        )
        self.convert_to_functional(critic_network, "critic_network")
        self.critic_coeff = critic_coeff

    @property
    def sums_over_path(self) -> bool:
        """The critic's error is one over the whole path."""
        return True

    def _entries(self) -> list[NestedKey]:
        read = [key for key in super()._entries() if key != self.tensor_keys.value]
        return read + [key for key in self.critic_network.in_keys if key not in read]

    def _scalars(self) -> list[NestedKey]:
        return [*super()._scalars(), "loss_critic"]

    def _losses(self, tensordict: TensorDictBase, states: VisitedStates) -> dict[str, Tensor]:
        target = self._required(tensordict, self.tensor_keys.value_target).reshape(len(states.t))
        with self.critic_network_params.to_module(self.critic_network):
            value = self.critic_network(tensordict.select(*self.critic_network.in_keys))[self.tensor_keys.value]
        value = value.reshape(len(states.t))
        error = (states.t - states.s).to(value.dtype) * (value - target.to(value.dtype)).square()
        return super()._losses(tensordict, states) | {"loss_critic": self.critic_coeff * states.per_trajectory(error)}
