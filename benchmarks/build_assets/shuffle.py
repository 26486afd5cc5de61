"""Sequences without regulatory grammar: shuffles that keep every dinucleotide count."""

import numpy as np
import numpy.typing as npt


def dinucleotide_shuffle(tokens: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return one uniformly drawn sequence ``(L,)`` with the same dinucleotide counts and the same two ends.

    A random Eulerian path through the multigraph of dinucleotides: a random tree of last exits that leads to the
    final letter, and before them the other exits in random order (Altschul and Erickson 1985,
    doi 10.1093/oxfordjournals.molbev.a040370).
    """
    final = int(tokens[-1])
    exits = [tokens[1:][tokens[:-1] == letter] for letter in range(4)]
    while True:
        exits = [rng.permutation(successors) for successors in exits]
        last = [int(successors[-1]) if len(successors) else final for successors in exits]
        if all(_reaches(letter, final, last) for letter in range(4) if len(exits[letter])):
            break
    walk, used = [int(tokens[0])], [0, 0, 0, 0]
    for _ in range(len(tokens) - 1):
        letter = walk[-1]
        walk.append(int(exits[letter][used[letter]]))
        used[letter] += 1
    return np.array(walk, dtype=np.int64)


def _reaches(letter: int, final: int, last: list[int]) -> bool:
    """Return whether following last exits from ``letter`` comes to ``final``."""
    for _ in range(4):
        if letter == final:
            return True
        letter = last[letter]
    return letter == final
