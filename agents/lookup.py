"""What a user names, found: a task, with its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sepo_env import tasks
from sepo_env.arguments import checked
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.registration import ENVIRONMENTS
from sepo_env.tasks import Task


@checked
def named_task(task: str | Task, options: Mapping[str, Any] | None = None) -> Task:
    """The task of an environment's id or a name, made with its options, or the task itself.

    Raises:
        UnknownNameError: there is none of that name.
        UnknownOptionError: it does not take one of the options.
        InvalidArgumentError: options for a task that is made already.
    """
    if isinstance(task, Task):
        if options:
            raise InvalidArgumentError(f"the options {sorted(options)} come too late for a task that is made already.")
        return task
    name = ENVIRONMENTS.get(task, task)
    if name not in tasks.TASKS:
        raise UnknownNameError("task", task, [*ENVIRONMENTS, *tasks.TASKS])
    return tasks.make(name, **(options or {}))
