"""What a user names, found: a task, with its options, and a device."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

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


def task_options(text: str) -> dict[str, Any]:
    """The options of a task, from a JSON object.

    Raises:
        InvalidArgumentError: it is none.

    >>> task_options('{"length": 5}')
    {'length': 5}
    """
    try:
        given = json.loads(text)
    except ValueError as error:
        raise InvalidArgumentError(f'task_options are no JSON ({error}); give an object: {{"name": value}}.') from error
    if not isinstance(given, dict):
        raise InvalidArgumentError(f'task_options are {text}; give an object: {{"name": value}}.')
    return given


def task_with(name: str, options: Mapping[str, Any]) -> Task:
    """The task of an environment's id or a name, made with these options.

    Raises:
        UnknownNameError: there is none of that name.
        InvalidArgumentError: it does not take them.
    """
    if not options:
        return named_task(name)
    try:
        return tasks.make(ENVIRONMENTS.get(name, name), **options)
    except TypeError as error:
        raise InvalidArgumentError(f"{name} does not take these task_options ({error}); check names.") from error


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
