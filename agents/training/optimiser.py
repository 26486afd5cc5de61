"""AdamW for weights of any precision, and what it cannot train."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from sepo_env.errors import InvalidArgumentError
from sepo_env.precision import is_half

_MASTERS = "masters"
_TRAINED = (torch.float32, torch.float64, torch.bfloat16)


class PreciseAdamW(AdamW):
    """AdamW that moves float32 copies of weights in half precision, and rounds these to the weights after each step.

    A step of 1e-4 is less than bfloat16 can add to a weight of 0.1, so that most steps would change nothing. Gradients
    of micro-batches add up in float32, too. Weights of 32 bits or more are moved themselves, as by AdamW.

    Args:
        parameters: to be trained.
        **settings: those of AdamW.

    Attributes:
        parameters: what is moved: the copies, and the parameters that need none.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], **settings: Any) -> None:
        self.parameters: list[Tensor] = []
        self._rounded: list[tuple[nn.Parameter, Tensor]] = []
        for parameter in parameters:
            if is_half(parameter.dtype):
                master = parameter.detach().float().requires_grad_()
                self._rounded.append((parameter, master))
                self.parameters.append(master)
                parameter.register_post_accumulate_grad_hook(_Handover(master))
            else:
                self.parameters.append(parameter)
        super().__init__(self.parameters, **settings)
        # No `step` of its own: torch would call everybody's hooks around both.
        self.register_step_post_hook(self._round)

    @torch.no_grad()
    def _round(self, *_: Any) -> None:
        for parameter, master in self._rounded:
            parameter.copy_(master)
        torch.clear_autocast_cache()  # which would give the weights of before to whoever asks within the same region

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW, and the copies, of which the weights do not tell all."""
        masters = {_MASTERS: [master.detach() for _, master in self._rounded]} if self._rounded else {}
        return {**super().state_dict(), **masters}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what `state_dict` gave."""
        super().load_state_dict(state_dict)
        for (_, master), saved in zip(self._rounded, state_dict.get(_MASTERS, []), strict=True):
            master.copy_(saved)


class _Handover:
    """Adds a gradient to that of the float32 copy as soon as it is there, and takes it off the parameter."""

    def __init__(self, master: Tensor) -> None:
        self._master = master

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is None:
            return
        gradient = parameter.grad.float()
        self._master.grad = gradient if self._master.grad is None else self._master.grad + gradient
        parameter.grad = None


def check_trainable(network: nn.Module, device: torch.device) -> None:
    """Refuse to train what cannot be: frozen weights, and float16, where small gradients are 0 and nobody notices.

    Raises:
        InvalidArgumentError: names the weights, and what to do.
    """
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise InvalidArgumentError(
            "all of the denoiser's weights are frozen, so that there is nothing to train; give "
            "denoiser.requires_grad_(True)."
        )
    cure = "which has no room for small gradients; train in bfloat16 or float32"
    for name, parameter in network.named_parameters():
        if parameter.dtype not in _TRAINED:
            raise InvalidArgumentError(
                f"the denoiser's weights ({name}) are {_short(parameter.dtype)}, {cure}: give denoiser.bfloat16() or "
                "denoiser.float(). Sampling works in it as it is."
            )
    if torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type) == torch.float16:
        raise InvalidArgumentError(f"torch.autocast is on with float16, {cure}: torch.autocast(..., torch.bfloat16).")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
