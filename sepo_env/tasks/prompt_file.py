"""Prompts from a file: one JSON object a line."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import torch

from sepo_env.errors import InvalidPromptError
from sepo_env.tasks.prompts import PromptSet

if TYPE_CHECKING:
    from sepo_env.tasks.base import Task

_LAYOUT = '{"prompt": "..."}'


def read_prompts(path: str | os.PathLike[str]) -> list[tuple[int, str]]:
    """Read a JSONL file of prompts; blank lines are passed over, and so are other entries of a line.

    Returns:
        The number of each line, counted from 1, and its prompt.

    Raises:
        InvalidPromptError: no such file, a line that holds no prompt (with its number), or no prompt at all.
    """
    prompts: list[tuple[int, str]] = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    prompts.append((number, _read_line(line, f"{path}, line {number}")))
    except FileNotFoundError as error:
        raise InvalidPromptError(f"{path}: there is no such file; check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPromptError(f"{path}: no text file ({error}); give JSON lines in UTF-8.") from error
    if not prompts:
        raise InvalidPromptError(f"{path} holds no prompt; write one a line, as {_LAYOUT}.")
    return prompts


def _read_line(line: str, where: str) -> str:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidPromptError(f"{where}: no JSON ({error}); write one object a line, as {_LAYOUT}.") from error
    if not isinstance(found, dict) or "prompt" not in found:
        kind = f"the entries {sorted(found)}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InvalidPromptError(f"{where}: expected an object with 'prompt', found {kind}; write {_LAYOUT}.")
    prompt = found["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidPromptError(f"{where}: 'prompt' is {prompt!r}, expected a text; write {_LAYOUT}.")
    return prompt


def load_prompt_set(task: Task, path: str | os.PathLike[str]) -> PromptSet:
    """The prompts of a file as a task reads them.

    Raises:
        InvalidPromptError: as `read_prompts`; or a prompt that does not fit the task, with the number of its line.
    """
    rows = []
    for number, prompt in read_prompts(path):
        try:
            rows.append(PromptSet.of(task, [prompt]).tokens)
        except InvalidPromptError as error:
            raise InvalidPromptError(f"{path}, line {number}: {error}") from error
    return PromptSet(torch.cat(rows))
