"""Tasks by name; a new one is a file here and a line in `TASKS`.

>>> import torch, sepo_env.tasks
>>> sepo_env.tasks.make("toy", num_tokens=2, length=3).decode(torch.tensor([[0, 1, 2]]))
['AB?']
"""

import inspect
import json
from importlib import import_module
from typing import Any

from sepo_env.arguments import checked
from sepo_env.errors import InvalidArgumentError, UnknownNameError, UnknownOptionError
from sepo_env.tasks.alphabet import AlphabetTask
from sepo_env.tasks.base import MASK_LETTER, Task

TASKS: dict[str, str] = {
    "dna_enhancer": "sepo_env.tasks.dna_enhancer:DNAEnhancerTask",
    "text_rlhf": "sepo_env.tasks.text_rlhf:TextRLHFTask",
    "text_sentiment": "sepo_env.tasks.text_sentiment:TextSentimentTask",
    "toy": "sepo_env.tasks.toy:ToyTask",
}

TASKS_WITH_ARTEFACTS: tuple[str, ...] = ("dna_enhancer",)
"""Those that also run on a folder of published artefacts."""


@checked
def make(name: str, **options: Any) -> Task:
    """The task of that name, with its own options.

    Raises:
        UnknownNameError: no task has that name.
        UnknownOptionError: the task does not take that option.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    module, _, cls = TASKS[name].partition(":")
    kind: type[Task] = getattr(import_module(module), cls)
    known = inspect.signature(kind).parameters
    for option in options:
        if option not in known:
            raise UnknownOptionError.of(f"the task {name!r}", option, known)
    return kind(**options)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@checked
def options_from_json(text: str) -> dict[str, Any]:
    """The options of a task as command lines take them, a JSON object.

    Raises:
        InvalidArgumentError: no JSON, or no object.

    >>> options_from_json('{"num_steps": 8}')
    {'num_steps': 8}
    """
    try:
        given = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidArgumentError(f'task_options are no JSON ({error}); give an object: {{"name": value}}.') from error
    if not isinstance(given, dict):
        raise InvalidArgumentError(f'task_options are {text}; give an object: {{"name": value}}.')
    return given


__all__ = ["MASK_LETTER", "TASKS", "TASKS_WITH_ARTEFACTS", "AlphabetTask", "Task", "make", "options_from_json"]
