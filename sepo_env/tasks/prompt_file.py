"""Prompts from a file: one JSON object a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sepo_env.arguments import PathArgument, checked, shown
from sepo_env.errors import CheckpointError, InvalidPromptError
from sepo_env.tasks.prompts import PromptSet
from sepo_env.textfile import half_letter, parse_json, text_lines

if TYPE_CHECKING:
    from sepo_env.tasks.base import Task

_LAYOUT = '{"prompt": "..."}'


@checked
def read_prompts(path: PathArgument) -> list[tuple[int, str]]:
    """Read a JSONL file of prompts; blank lines are passed over, and so are other entries of a line.

    Returns:
        The number of each line, counted from 1, and its prompt.

    Raises:
        InvalidPromptError: no such file, a line that holds no prompt (with its number), or no prompt at all.
    """
    try:
        prompts = [(number, _read_line(line, f"{path}, line {number}")) for number, line in text_lines(path)]
    except CheckpointError as error:
        raise InvalidPromptError(str(error)) from error
    if not prompts:
        raise InvalidPromptError(f"{path} holds no prompt; write one a line, as {_LAYOUT}.")
    return prompts


def _read_line(line: str, where: str) -> str:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise InvalidPromptError(f"{where}: no JSON ({error}); write one object a line, as {_LAYOUT}.") from error
    if not isinstance(found, dict) or "prompt" not in found:
        kind = f"the entries {shown(sorted(found))}" if isinstance(found, dict) else f"a {type(found).__name__}"
        raise InvalidPromptError(f"{where}: expected an object with 'prompt', found {kind}; write {_LAYOUT}.")
    prompt = found["prompt"]
    if not isinstance(prompt, str) or not prompt.strip():
        raise InvalidPromptError(f"{where}: 'prompt' is {shown(prompt)}, expected a text; write {_LAYOUT}.")
    if (half := half_letter(prompt)) is not None:
        raise InvalidPromptError(
            f"{where}: 'prompt' holds half of a letter, {half!r} (a surrogate by itself), as where a text was cut in "
            "two; take it out."
        )
    return prompt


def load_prompt_set(task: Task, path: PathArgument) -> PromptSet:
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
