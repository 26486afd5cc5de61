"""Pairs of texts of which one is preferred: read from JSONL, and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sepo_env.arguments import PathArgument, checked, shown
from sepo_env.errors import InvalidArgumentError
from sepo_env.textfile import half_letter, parse_json, text_lines

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


@checked
def read_pairs(path: PathArgument) -> list[Pair]:
    """Read a JSONL file of preferences, plain or gzipped, in the layout of HH-RLHF (arXiv 2204.05862).

    Pairs of equal texts say nothing and are left out; blank lines are passed over.

    Raises:
        CheckpointError: no such file, or not a text file.
        InvalidArgumentError: a line that is no pair, with its number, or a file without any.
    """
    pairs = [_read_line(line, f"{path}, line {number}") for number, line in text_lines(path)]
    telling = [pair for pair in pairs if pair.chosen != pair.rejected]
    if not telling:
        raise InvalidArgumentError(
            f"{path} has {len(pairs)} pairs, none of two different texts; give lines such as {_LAYOUT}."
        )
    return telling


def _read_line(line: str, where: str) -> Pair:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise InvalidArgumentError(
            f"{where}: no JSON ({error}); write one object a line, with line breaks in texts as \\n."
        ) from error
    if not isinstance(found, dict):
        raise InvalidArgumentError(f"{where}: expected an object, found {_kind(found)}; write {_LAYOUT}.")
    for key in ("chosen", "rejected"):
        if key not in found:
            raise InvalidArgumentError(f"{where}: no entry {key!r}, only {shown(sorted(found))}; write {_LAYOUT}.")
        if not isinstance(found[key], str):
            raise InvalidArgumentError(
                f"{where}: {key!r} is {_kind(found[key])}, expected a text; join the turns of a dialogue as {_LAYOUT}."
            )
        if not found[key].strip():
            raise InvalidArgumentError(f"{where}: {key!r} is empty; take the line out, or give the text.")
        if (half := half_letter(found[key])) is not None:
            raise InvalidArgumentError(
                f"{where}: {key!r} holds half of a letter, {half!r} (a surrogate by itself), as where a text was cut "
                "in two; take it out."
            )
    return Pair(found["chosen"], found["rejected"])


def _kind(value: Any) -> str:
    kinds = {list: "a list", dict: "an object", str: "a text", bool: "a truth value", type(None): "null"}
    return kinds.get(type(value), "a number")


def digest(pairs: Iterable[Pair]) -> str:
    """What tells one set of pairs from another."""
    found = hashlib.sha256()
    for pair in pairs:
        found.update(pair_text(pair).encode())
    return found.hexdigest()[:16]


def pair_text(pair: Pair) -> str:
    """Both texts of a pair as one."""
    return json.dumps([pair.chosen, pair.rejected])
