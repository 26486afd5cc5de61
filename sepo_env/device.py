"""Where to compute: what users write as a device, checked once and in one place."""

from __future__ import annotations

import torch

from sepo_env.arguments import checked
from sepo_env.errors import InvalidArgumentError


@checked
def find_device(device: str | int | torch.device) -> torch.device:
    """The device that is meant, with its number.

    With the number because TorchRL takes ``cuda`` and ``cuda:0`` for two devices, and would copy from one to the other.

    Args:
        device: whatever `torch.device` takes, or ``"auto"``: a GPU where there is one that torch can use, else the CPU.

    Raises:
        InvalidArgumentError: no device, or one that this machine, or this build of torch, does not have.

    >>> find_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgumentError(f"{device!r} is no device ({error}); give 'auto', 'cpu' or 'cuda'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("there is no GPU that torch can use; give device='cpu', or 'auto'.")
    try:
        return torch.zeros(0, device=found).device
    except Exception as error:  # each backend that is not there fails in its own way
        raise InvalidArgumentError(
            f"torch cannot use the device {str(device)!r} here ({(str(error).splitlines() or [''])[0]}); give 'auto', "
            "'cpu' or another one."
        ) from error
