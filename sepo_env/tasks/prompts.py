"""Prompts: tokens that are given and never change, at any positions: a prefix, flanks, infilling, motif sites.

As tokens a prompt is int64 ``(L,)`` with the visible token where one is given and the id V where the position is free;
as a string of an alphabet it has "?" there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sepo_env.arguments import checked, shown
from sepo_env.diffusion.random import keys_from_seed, uniforms
from sepo_env.errors import InvalidPromptError, InvalidTokensError

if TYPE_CHECKING:
    from sepo_env.tasks.base import Task

FREE = "?"
"""Stands for a free position in a template; `sepo_env.tasks.MASK_LETTER`."""
# So many draws tell apart tasks that draw prompts in a way of their own.
_NUM_DRAWS = 256
# Counter 0 belongs to the prior and those from 1 on to the steps.
_PROMPT_COUNTER = -1

Motifs = Mapping[int | str, str] | Iterable[tuple[int | str, str]]


class PromptSet:
    """Prompts to start episodes from, each as likely as the others.

    Args:
        tokens: int64 ``(P, L)``, the id V where free.

    Raises:
        InvalidPromptError: another shape or dtype, or no prompt at all.
    """

    @checked
    def __init__(self, tokens: Tensor) -> None:
        if tokens.dtype != torch.int64 or tokens.ndim != 2 or not tokens.numel():
            raise InvalidPromptError(f"prompts are {tokens.dtype} of shape {tuple(tokens.shape)}; give int64 (P, L).")
        self._tokens = tokens.clone()

    @property
    def tokens(self) -> Tensor:
        """The prompts, int64 ``(P, L)``, the id V where free; a copy."""
        return self._tokens.clone()

    @classmethod
    def of(cls, task: Task, prompts: Sequence[str]) -> PromptSet:
        """The prompts of a task, from strings.

        Raises:
            InvalidPromptError: none at all, one that does not fit, or one that leaves nothing to generate.
        """
        if not prompts:
            raise InvalidPromptError("there is no prompt to start from; give at least one, or leave prompts out.")
        tokens = _encode(task, prompts)
        full = (tokens < task.num_tokens).all(-1)
        if bool(full.any()):
            raise InvalidPromptError(
                f"prompt {int(full.nonzero()[0])} gives every position, so that nothing is left to generate."
            )
        return cls(tokens)

    @property
    def fingerprint(self) -> str:
        """A short hash of the prompts: runs on others are other runs."""
        return _hash(self._tokens)

    def draw(self, keys: Tensor) -> Tensor:
        """One prompt for each key: int64 ``(B,)`` -> ``(B, L)``; a function of the key alone."""
        choice = uniforms(keys, _PROMPT_COUNTER, 1)[:, 0]
        return self._tokens.to(keys.device)[(choice * len(self._tokens)).long()]


def prompts_fingerprint(task: Task) -> str | None:
    """A short hash of the prompts that a task draws, of its set or, where it has none, of draws; None: none."""
    if task.prompt_set is not None:
        return task.prompt_set.fingerprint
    drawn = task.prompt(keys_from_seed(torch.arange(_NUM_DRAWS))) if task.conditional else None
    return None if drawn is None else _hash(drawn)


def _hash(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()[:16]


def resolve_prompts(task: Task, prompt: Any, keys: Tensor) -> Tensor | None:
    """What B episodes of a task start from.

    Args:
        task: says how strings are read, and which prompts it draws where none is given.
        prompt: a string, for all episodes; B strings, or None for those that get the task's own; int64 ``(L,)`` or
            ``(B, L)``, as an array, a tensor or lists, with V or -1 where free; None: the task's own for all.
        keys: int64 ``(B,)``; the task draws its own prompts with them.

    Returns:
        int64 ``(B, L)`` with the id V where free, on the device of the keys; None where nothing is given and the task
        draws none.

    Raises:
        InvalidPromptError: another number of prompts, another length or dtype, or a letter or an id that the task
            does not have.
    """
    own = task.prompt(keys) if task.conditional else None
    if prompt is None:
        return own
    free = torch.full((len(keys), task.length), task.num_tokens, dtype=torch.int64, device=keys.device)
    if isinstance(prompt, str):
        prompt = _encode(task, [prompt])[0]
    elif _holds_strings(prompt):
        rows = [row for row, text in enumerate(prompt) if text is not None]
        _check_number(len(prompt), len(keys))
        given = (free if own is None else own).clone()
        given[rows] = _encode(task, [prompt[row] for row in rows]).to(keys.device)
        return given
    tokens = _as_tokens(prompt)
    if tokens.ndim not in (1, 2) or tokens.shape[-1] != task.length:
        raise InvalidPromptError(
            f"the prompt has shape {tuple(tokens.shape)}; give {(task.length,)} for all, or "
            f"{(len(keys), task.length)}, or a string."
        )
    if tokens.ndim == 2:
        _check_number(len(tokens), len(keys))
    tokens = tokens.to(keys.device).expand_as(free)
    return torch.where(task.process.graph.given(tokens), tokens, free)


def _holds_strings(prompt: Any) -> bool:
    return (
        isinstance(prompt, Sequence)
        and len(prompt) > 0
        and all(entry is None or isinstance(entry, str) for entry in prompt)
    )


def _check_number(given: int, wanted: int) -> None:
    if given != wanted:
        raise InvalidPromptError(f"{given} prompts for {wanted} episodes; give one for each, or one for all.")


def _encode(task: Task, prompts: Sequence[str]) -> Tensor:
    try:
        return task.encode(prompts)
    except InvalidTokensError as error:
        raise InvalidPromptError(f"the prompt does not fit: {error}") from error


def _as_tokens(prompt: Any) -> Tensor:
    try:
        tokens = prompt if isinstance(prompt, Tensor) else torch.as_tensor(np.asarray(prompt))
    except (TypeError, ValueError) as error:
        raise InvalidPromptError(f"{type(prompt).__name__} is no prompt ({error}); give strings or ids.") from error
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise InvalidPromptError(f"a prompt holds token ids, got {tokens.dtype}; give integers or a string.")
    return tokens.long()


def prompt_template(
    length: int, alphabet: str, *, flanks: Sequence[str] | None = None, motifs: Motifs | None = None
) -> str:
    """A prompt with fixed ends and required sites, as a string with "?" where free.

    Args:
        length: L.
        alphabet: the letters that may be given.
        flanks: what the sequence begins and ends with; "" leaves an end free.
        motifs: the position of its first letter (from 0) and the letters of each site, as a mapping or as pairs; "?"
            within a site is free. Positions may be strings, which is what JSON makes of a mapping's keys.

    Raises:
        InvalidPromptError: a letter that is not in the alphabet; a site or flank that is empty, does not fit into
            the sequence or covers a position of another one; or nothing left to generate.

    >>> prompt_template(12, "ACGT", flanks=("AC", "G"), motifs={4: "TGA?T"})
    'AC??TGA?T??G'
    """
    parts: list[tuple[str, int, str]] = []
    if flanks is not None:
        if not isinstance(flanks, (list, tuple)) or [type(flank) for flank in flanks] != [str, str]:
            raise InvalidPromptError(f"flanks are two strings, the beginning and the end; got {shown(flanks)}.")
        first, last = flanks
        parts += [("the first flank", 0, first), ("the last flank", length - len(last), last)]
        parts = [part for part in parts if part[2]]
    parts += [(f"the motif {letters!r} at {start}", start, letters) for start, letters in _sites(motifs)]
    template, owner = [FREE] * length, [""] * length
    for name, start, letters in parts:
        unknown = next((letter for letter in letters if letter not in alphabet + FREE), None)
        if not letters or unknown is not None:
            what = "is empty" if unknown is None else f"holds {unknown!r}"
            raise InvalidPromptError(f"{name} {what}; write it in the letters {alphabet!r} ({FREE!r} where free).")
        if start < 0 or start + len(letters) > length:
            raise InvalidPromptError(
                f"{name} would cover the positions {start} to {start + len(letters) - 1}, but there are 0 to "
                f"{length - 1}; move or shorten it."
            )
        for position, letter in enumerate(letters, start):
            if owner[position]:
                raise InvalidPromptError(f"{name} and {owner[position]} both cover position {position}; move one.")
            owner[position] = name
            template[position] = letter
    if FREE not in template:
        raise InvalidPromptError("flanks and motifs give every position, so that nothing is left to generate.")
    return "".join(template)


def _sites(motifs: Motifs | None) -> list[tuple[int, str]]:
    """Positions and letters of the motifs."""
    given: Any = () if motifs is None else motifs.items() if isinstance(motifs, Mapping) else motifs
    try:
        pairs = [(start, letters) for start, letters in given]
    except (TypeError, ValueError) as error:
        raise InvalidPromptError(
            f"motifs are {shown(motifs)}, but must be pairs of a position and letters; give {{96: 'TGACTCA'}}."
        ) from error
    for start, letters in pairs:
        if not isinstance(letters, str):
            raise InvalidPromptError(f"the motif at {start!r} is {shown(letters)}, but must be letters.")
    return [(_position(start), letters) for start, letters in pairs]


def _position(start: int | str) -> int:
    try:
        if isinstance(start, (float, bool)):
            raise ValueError("not a whole number")
        return int(start)
    except (TypeError, ValueError) as error:
        raise InvalidPromptError(
            f"{start!r} is no position of a motif ({error}); give a whole number, counted from 0."
        ) from error
