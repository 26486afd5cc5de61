"""Which pairs are held out: no prompt and no text stands on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from agents.reward_modelling.pairs import ANSWER, Pair, pair_text, read_pairs
from sepo_env.errors import InvalidArgumentError

_SHOWN = 80


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Hold some pairs out: whole groups that share neither a prompt nor a text with the rest.

    Two pairs are of one group if they have the same prompt (see `prompts_of`) or a text in common, preferred or not,
    and so on from pair to pair. The largest group always trains. Pairs all of one prompt are parted by their texts.

    Args:
        pairs: at least two different ones.
        share: of the groups that are held out; at least one is, and one is not.
        seed: which.

    Returns:
        Training pairs and held-out pairs, in the order of the file.

    Raises:
        InvalidArgumentError: there is nothing to split.
    """
    if len(set(pairs)) < 2:
        raise InvalidArgumentError("there is only one different pair, so none can be held out; give more pairs.")
    prompts = prompts_of(pairs)
    groups = _groups(pairs, prompts)
    if len(set(groups)) < 2:
        groups = _groups(pairs, [()] * len(pairs))
    if len(set(groups)) < 2:
        raise InvalidArgumentError(
            f"all {len(pairs)} pairs hang together by prompts and texts that they share, so that whatever is held out "
            "would be known from training; give held-out pairs of other prompts with --eval-pairs."
        )
    members: dict[int, list[str]] = {}
    for group, pair in zip(groups, pairs, strict=True):
        members.setdefault(group, []).append(pair_text(pair))
    names = {group: min(texts) for group, texts in members.items()}
    order = sorted(names, key=lambda group: hashlib.sha256(f"{seed} {names[group]}".encode()).digest())
    largest = max(reversed(order), key=lambda group: len(members[group]))
    candidates = [group for group in order if group != largest]
    held = set(candidates[: max(1, round(share * len(order)))])
    training = [pair for pair, group in zip(pairs, groups, strict=True) if group not in held]
    return training, [pair for pair, group in zip(pairs, groups, strict=True) if group in held]


def prompts_of(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    r"""What each pair was an answer to, as far as its texts tell.

    Of a dialogue (``"\n\nAssistant:"``) it is what comes before the first answer: dialogues that go on from the same
    opening are not independent of each other. Of other texts it is what chosen and rejected begin with, up to a whole
    word. Both may go on with the same words by chance, so a beginning that is a prompt of another pair counts as that.

    >>> prompts_of([Pair("say hello you", "say hello there"), Pair("say hello my dear", "say hello my friend")])
    [('say hello',), ('say hello',)]
    """
    found: list[tuple[str, ...]] = []
    plain: set[str] = set()
    for pair in pairs:
        openings = {_opening(text) for text in (pair.chosen, pair.rejected)} - {""}
        beginning = "" if openings else _common_beginning(pair.chosen, pair.rejected)
        plain |= {beginning} - {""}
        found.append(tuple(sorted(openings)) or ((beginning,) if beginning else ()))
    roots = _roots(plain)
    return [tuple(roots.get(prompt, prompt) for prompt in prompts) for prompts in found]


def _opening(text: str) -> str:
    """A dialogue up to its first answer; "" where there is none."""
    before, answer, _ = text.partition(ANSWER)
    return before.strip() if answer else ""


def _common_beginning(one: str, other: str) -> str:
    """The words that both texts begin with."""
    end = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    if not all(text[end : end + 1].strip() == "" for text in (one, other)):  # in the middle of a word
        while end and not one[end - 1].isspace():
            end -= 1
    return one[:end].strip()


def _roots(texts: Iterable[str]) -> Mapping[str, str]:
    """For each text the shortest of them that it begins with, at the end of a word."""
    roots: dict[str, str] = {}
    above: list[str] = []  # those that the current text begins with, in the order of their length
    for text in sorted(texts):
        while above and not text.startswith(above[-1]):
            above.pop()
        parents = [parent for parent in above if text[len(parent)].isspace()]
        roots[text] = roots[parents[0]] if parents else text
        above.append(text)
    return roots


def _groups(pairs: Sequence[Pair], prompts: Sequence[tuple[str, ...]]) -> list[int]:
    """The number of the group of each pair: those that prompts or texts connect."""
    nodes: dict[tuple[str, str], int] = {}
    edges = [
        (row, nodes.setdefault(name, len(nodes)))
        for row, (pair, keys) in enumerate(zip(pairs, prompts, strict=True))
        for name in [("text", pair.chosen), ("text", pair.rejected), *(("prompt", key) for key in keys)]
    ]
    rows, columns = np.array(edges).T
    size = len(pairs) + len(nodes)
    graph = coo_array((np.ones(len(edges)), (rows, len(pairs) + columns)), shape=(size, size))
    labels: list[int] = connected_components(graph, directed=False)[1][: len(pairs)].tolist()
    return labels


def refuse_common(pairs: Sequence[Pair], held_out: Sequence[Pair], names: tuple[str, str]) -> None:
    """Raise if a prompt or a text of the first pairs stands among the others as well.

    Args:
        pairs: training pairs.
        held_out: held-out pairs.
        names: what the two are called.

    Raises:
        InvalidArgumentError: the number of common prompts, and one of them.
    """
    prompts = prompts_of([*pairs, *held_out])
    of_training = {prompt for found in prompts[: len(pairs)] for prompt in found}
    common = sorted(of_training & {prompt for found in prompts[len(pairs) :] for prompt in found})
    kind = "prompts"
    if not common:
        kind = "texts"
        texts = [{text for pair in part for text in (pair.chosen, pair.rejected)} for part in (pairs, held_out)]
        common = sorted(texts[0] & texts[1])
    if common:
        shown = common[0] if len(common[0]) <= _SHOWN else f"{common[0][:_SHOWN]} ..."
        raise InvalidArgumentError(
            f"{len(common)} {kind} stand in {names[0]} and in {names[1]}, such as {shown!r}; the held-out accuracy "
            "would be that of memory. Take them out of one of the two."
        )


def read_or_split(
    path: str | Path, eval_path: str | Path | None, share: float, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Training pairs and held-out pairs: from two files, or from one that is split.

    Raises:
        InvalidArgumentError: a prompt or a text of the first file stands in the second as well.
    """
    pairs = read_pairs(path)
    if eval_path is None:
        return split_pairs(pairs, share, seed)
    held_out = read_pairs(eval_path)
    refuse_common(pairs, held_out, (str(path), str(eval_path)))
    return pairs, held_out
