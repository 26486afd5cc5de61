"""What a user names, found: a task and a device."""

from __future__ import annotations

import torch

from sepo_env import tasks
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.registration import ENVIRONMENTS
from sepo_env.tasks import Task


def named_task(task: str | Task) -> Task:
    """The task of an environment's id or a name, or the task itself.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if isinstance(task, Task):
        return task
    name = ENVIRONMENTS.get(task, task)
    if name not in tasks.TASKS:
        raise UnknownNameError("task", task, [*ENVIRONMENTS, *tasks.TASKS])
    return tasks.make(name)


def named_device(device: str | torch.device) -> torch.device:
    """The device of a name; ``"auto"`` takes a GPU where there is one.

    Raises:
        InvalidArgumentError: there is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InvalidArgumentError(f"{device!r} is no device ({error}); give 'auto', 'cpu' or 'cuda'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InvalidArgumentError("there is no GPU that torch can use; give device='cpu', or 'auto'.")
    # With its number: TorchRL takes "cuda" and "cuda:0" for two devices, and would copy from one to the other.
    return torch.zeros(0, device=found).device
