"""What all objectives on a denoiser share: functional parameters, keys, and a reference that does not move."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase, TensorDictParams
from torch import Tensor
from torchrl.objectives import LossModule

from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.errors import InvalidArgumentError


class DenoiserLoss(LossModule):
    """An objective whose parameters are a denoiser's.

    Its scalars ``loss_*`` are minimised together; what else it returns is logged. Sums over samples are divided by
    ``num_trajectories``, so that the losses of micro-batches add up to that of the whole batch. A subclass names the
    entries that it reads in a dataclass ``_AcceptedKeys``, in the order of positional arguments.

    Args:
        policy_network: the denoiser to be trained.
        process: the diffusion process that it belongs to.
        reference: the pretrained denoiser, frozen; None: none is needed.

    Raises:
        InvalidArgumentError: a reference that shares parameters with the policy, and would move with it.
    """

    tensor_keys: Any
    policy_network: Denoiser
    policy_network_params: TensorDictParams
    target_policy_network_params: TensorDictParams
    reference: Denoiser | None

    def __init__(
        self, policy_network: Denoiser, process: DiffusionProcess, *, reference: Denoiser | None = None
    ) -> None:
        policy_network, reference = unwrapped(policy_network), unwrapped(reference)
        if reference is not None and _share_parameters(policy_network, reference):
            raise InvalidArgumentError(
                "the reference shares parameters with the policy and would move with it; give a copy, such as "
                "copy.deepcopy(denoiser)."
            )
        self._in_keys: list[NestedKey] | None = None
        self._out_keys: list[NestedKey] | None = None
        super().__init__()
        self.convert_to_functional(policy_network, "policy_network")
        # Past nn.Module's registry: the reference is not trained, saved or moved with the loss.
        self.__dict__["reference"] = reference
        self.process = process

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
        return ["loss_objective"]

    def _forward_value_estimator_keys(self, **kwargs: NestedKey) -> None:
        """What the objective is about comes with the batch; there is no value estimator to tell."""

    def _required(self, tensordict: TensorDictBase, key: NestedKey) -> Tensor:
        value = tensordict.get(key, None)
        if value is None:
            raise InvalidArgumentError(
                f"{type(self).__name__} needs the entry {key!r}, which the tensordict does not have; add it, or "
                "name the entry that holds it with set_keys()."
            )
        return value

    def _num_trajectories(self, tensordict: TensorDictBase, num_samples: int) -> Tensor | int:
        """By what sums over samples are divided: a number for each sample ``(N,)``, or their own number."""
        given = tensordict.get(self.tensor_keys.num_trajectories, None)
        return num_samples if given is None else given.reshape(num_samples)


def _share_parameters(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    storages = {parameter.data_ptr() for parameter in one.parameters()}
    return any(parameter.data_ptr() in storages for parameter in other.parameters())
