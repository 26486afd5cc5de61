"""Pairs of texts of which one is preferred: read from JSONL, checked, split into training and held-out ones."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sepo_env.errors import CheckpointError, InvalidArgumentError

ANSWER = "\n\nAssistant:"
_LAYOUT = '{"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": "\\n\\nHuman: ...\\n\\nAssistant: ..."}'


@dataclass(frozen=True)
class Pair:
    """Two texts that answer the same prompt.

    Attributes:
        chosen: the preferred one.
        rejected: the other one.
    """

    chosen: str
    rejected: str

    @property
    def prompt(self) -> str:
        """The dialogue up to the last answer of the preferred text; "" where it is no dialogue.

        >>> Pair("\\n\\nHuman: Hi\\n\\nAssistant: Hello", "\\n\\nHuman: Hi\\n\\nAssistant: No").prompt
        '\\n\\nHuman: Hi\\n\\nAssistant:'
        """
        before, answer, _ = self.chosen.rpartition(ANSWER)
        return before + answer


def read_pairs(path: str | os.PathLike[str]) -> list[Pair]:
    """Read a JSONL file of preferences, plain or gzipped, in the layout of HH-RLHF (arXiv 2204.05862).

    Pairs of equal texts say nothing and are left out; blank lines are passed over.

    Raises:
        CheckpointError: no such file, or not a text file.
        InvalidArgumentError: a line that is no pair, with its number, or a file without any.
    """
    opened = gzip.open if str(path).endswith(".gz") else open
    pairs: list[Pair] = []
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    pairs.append(_read_line(line, f"{path}, line {number}"))
    except FileNotFoundError as error:
        raise CheckpointError(path, "there is no such file", "check the path") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise CheckpointError(path, f"no text file ({error})", "give JSON lines in UTF-8, plain or as .gz") from error
    telling = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not telling:
        raise InvalidArgumentError(
            f"{path} has {len(pairs)} pairs, none of two different texts; give lines such as {_LAYOUT}."
        )
    return telling


def _read_line(line: str, where: str) -> Pair:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{where}: no JSON ({error}); write one object a line, with line breaks in texts as \\n."
        ) from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"{where}: expected an object, found {_kind(found)}; write {_LAYOUT}.")
    for key in ("chosen", "rejected"):
        if key not in found:
            raise InvalidArgumentError(f"{where}: no entry {key!r}, only {sorted(found)}; write {_LAYOUT}.")
        if not isinstance(found[key], str):
            raise InvalidArgumentError(
                f"{where}: {key!r} is {_kind(found[key])}, expected a text; join the turns of a dialogue as {_LAYOUT}."
            )
        if not found[key].strip():
            raise InvalidArgumentError(f"{where}: {key!r} is empty; take the line out, or give the text.")
    return Pair(found["chosen"], found["rejected"])


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Hold some pairs out: all that belong to a share of the prompts, so that no prompt stands on both sides.

    Pairs without a dialogue, or all of one prompt, are held out one by one, equal ones together.

    Args:
        pairs: at least two different ones.
        share: of the prompts that are held out; at least one is, and one is not.
        seed: which.

    Returns:
        Training pairs and held-out pairs, in the order of the file.

    Raises:
        InvalidArgumentError: there is nothing to split.
    """
    prompts = {pair.prompt for pair in pairs}
    keys = [pair.prompt or _text(pair) for pair in pairs] if len(prompts) > 1 else [_text(pair) for pair in pairs]
    distinct = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed} {key}".encode()).digest())
    if len(distinct) < 2:
        raise InvalidArgumentError("there is only one different pair, so none can be held out; give more pairs.")
    held = set(distinct[: min(max(1, round(share * len(distinct))), len(distinct) - 1)])
    training = [pair for pair, key in zip(pairs, keys, strict=True) if key not in held]
    return training, [pair for pair, key in zip(pairs, keys, strict=True) if key in held]


def digest(pairs: Iterable[Pair]) -> str:
    """What tells one set of pairs from another."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(_text(pair).encode())
    return found.hexdigest()[:16]


def _text(pair: Pair) -> str:
    return json.dumps([pair.chosen, pair.rejected])


def read_or_split(
    path: str | Path, eval_path: str | Path | None, share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and held-out pairs: from two files, or from one that is split.

    Raises:
        InvalidArgumentError: a pair of the first file stands in the second as well.
    """
    pairs = read_pairs(path)
    if eval_path is None:
        return split_pairs(pairs, share, seed)
    held_out = read_pairs(eval_path)
    both = set(pairs) & set(held_out)
    if both:
        raise InvalidArgumentError(
            f"{len(both)} pairs stand in {path} and in {eval_path}; the held-out accuracy would be that of memory. "
            "Take them out of one of the two."
        )
    return pairs, held_out
