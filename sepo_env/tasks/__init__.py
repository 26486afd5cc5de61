"""Tasks by name; a new one is a file here and a line in `TASKS`.

>>> import torch, sepo_env.tasks
>>> sepo_env.tasks.make("toy", num_tokens=2, length=3).decode(torch.tensor([[0, 1, 2]]))
['AB?']
"""

from importlib import import_module
from typing import Any

from sepo_env.errors import UnknownNameError
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


def make(name: str, **options: Any) -> Task:
    """The task of that name, with its own options.

    Raises:
        UnknownNameError: no task has that name.
    """
    if name not in TASKS:
        raise UnknownNameError("task", name, TASKS)
    module, _, cls = TASKS[name].partition(":")
    task: Task = getattr(import_module(module), cls)(**options)
    return task


__all__ = ["MASK_LETTER", "TASKS", "TASKS_WITH_ARTEFACTS", "AlphabetTask", "Task", "make"]
