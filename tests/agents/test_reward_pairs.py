"""Pairs of texts: what is read and what is refused; no prompt and no text on both sides of the split."""

import gzip
import itertools
import json
import random
from pathlib import Path

import pytest

from agents.reward_modelling import Pair, read_pairs, split_pairs
from agents.reward_modelling.splitting import prompts_of, read_or_split
from sepo_env.errors import CheckpointError, InvalidArgumentError


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs))
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "line 3: no JSON .*write one object a line"),
        ('["a", "b"]', "line 3: expected an object, found a list"),
        ('{"chosen": "a", "reject": "b"}', "line 3: no entry 'rejected', only \\['chosen', 'reject'\\]"),
        ('{"chosen": [{"role": "user"}], "rejected": "b"}', "line 3: 'chosen' is a list, expected a text; join the"),
        ('{"chosen": "a", "rejected": "\\ud83d"}', "line 3: 'rejected' holds half of a letter, .*take it out"),
        ('{"chosen": "a", "rejected": " "}', "line 3: 'rejected' is empty; take the line out"),
    ],
)
def test_a_malformed_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"chosen": "a", "rejected": "b"}\n\n' + line + "\n")
    with pytest.raises(InvalidArgumentError, match=message):
        read_pairs(path)


def test_files_that_hold_no_pairs(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        read_pairs(tmp_path / "absent.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="no text file"):
        read_pairs(tmp_path / "binary.jsonl")
    with pytest.raises(InvalidArgumentError, match="has 1 pairs, none of two different texts"):
        read_pairs(write_pairs(tmp_path / "same.jsonl", [Pair("a", "a")]))


def test_gzip_and_equal_texts(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.write('{"chosen": "ä", "rejected": "b", "more": 1}\n{"chosen": "c", "rejected": "c"}\n')
    assert read_pairs(path) == [Pair("ä", "b")]


def test_a_mark_of_the_byte_order_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "a", "rejected": "b"}\n', encoding="utf-8-sig")
    assert read_pairs(tmp_path / "pairs.jsonl") == [Pair("a", "b")]


def texts_of(pairs: list[Pair]) -> set[str]:
    return {text for pair in pairs for text in (pair.chosen, pair.rejected)}


def check_split(pairs: list[Pair], share: float = 0.2) -> tuple[list[Pair], list[Pair]]:
    for seed in range(10):
        training, held_out = split_pairs(pairs, share, seed)
        assert training
        assert held_out
        assert sorted(map(pairs.index, [*training, *held_out])) == sorted(map(pairs.index, pairs))
        assert not texts_of(training) & texts_of(held_out)
    return split_pairs(pairs, share, 0)


def turns(*texts: str) -> str:
    return "".join(
        f"\n\n{who}: {text}" for who, text in zip(itertools.cycle(["Human", "Assistant"]), texts, strict=False)
    )


def test_no_prompt_stands_on_both_sides() -> None:
    pairs = [Pair(turns(str(n), f"yes {i}"), turns(str(n), "no")) for n in range(10) for i in "ab"]
    training, held_out = split_pairs(pairs, 0.3, seed=1)
    assert (len(training), len(held_out)) == (14, 6)
    assert not {p.chosen.split()[1] for p in training} & {p.chosen.split()[1] for p in held_out}
    assert split_pairs(pairs, 0.3, seed=1) == (training, held_out)
    assert split_pairs(pairs, 0.3, seed=2) != (training, held_out)
    check_split([Pair("a", "b"), Pair("a", "b"), Pair("c", "d")])
    with pytest.raises(InvalidArgumentError, match="only one different pair"):
        split_pairs([Pair("a", "b"), Pair("a", "b")], 0.1, seed=0)


def test_dialogues_that_go_on_from_one_opening_stay_together() -> None:
    pairs = []
    for n in range(10):
        pairs.append(Pair(turns(f"ask {n}", "fine"), turns(f"ask {n}", "bad")))
        pairs.append(Pair(turns(f"ask {n}", "so", "and?", "fine"), turns(f"ask {n}", "so", "and?", "bad")))
        pairs.append(Pair(turns(f"ask {n}", "x", "y", "fine"), turns(f"ask {n}", "x", "y", "bad")))
    training, held_out = check_split(pairs)
    numbers = [{pair.chosen.split()[2] for pair in part} for part in (training, held_out)]
    assert len(numbers[0]) == 8
    assert not numbers[0] & numbers[1]


def test_texts_without_turns_are_grouped_by_the_words_they_begin_with() -> None:
    draw = random.Random(0)
    prompts = ["the heart of a man", "the heart of", "in the morning", "my son", "as for the house", "then shall"]
    words = ["blessed", "was", "mercy", "and", "of", "joy", "sword", "evil", "blood"]
    pairs = [Pair(*(f"{prompt} {' '.join(draw.sample(words, 6))}" for _ in range(2))) for prompt in prompts * 20]
    for seed in range(10):
        training, held_out = split_pairs(pairs, 0.3, seed)
        sides = [{p for p in prompts for pair in part if pair.chosen.startswith(p)} for part in (training, held_out)]
        assert not sides[0] & sides[1]
        assert held_out
    assert prompts_of([Pair("say hello", "say hellow"), Pair("x", "y"), Pair("say", "say it")]) == [
        ("say",),
        (),
        ("say",),
    ]


def test_pairs_that_share_a_text_stay_together() -> None:
    # Rankings a > b > c as chains, and some of them swapped.
    chains = [[f"{letter}{n}" for letter in "abc"] for n in range(10)]
    pairs = [Pair(*chain[i : i + 2]) for chain in chains for i in (0, 1)]
    pairs += [Pair(pair.rejected, pair.chosen) for pair in pairs[::3]]
    check_split(pairs)


def test_pairs_of_one_prompt_are_parted_by_their_texts() -> None:
    check_split([Pair(turns("ask", f"yes {n}"), turns("ask", f"no {n}")) for n in range(6)])
    with pytest.raises(InvalidArgumentError, match="all 6 pairs hang together.*--eval-pairs"):
        split_pairs([Pair(turns("ask", f"yes {n}"), turns("ask", "no")) for n in range(6)], 0.2, 0)


def test_the_largest_group_trains() -> None:
    pairs = [Pair(turns("ask", f"yes {n}"), turns("ask", f"no {n}")) for n in range(50)] + [Pair("a", "b")]
    assert all(split_pairs(pairs, 0.9, seed)[1] == [Pair("a", "b")] for seed in range(5))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (Pair(turns("ask 1", "so", "and?", "fine"), turns("ask 1", "so", "and?", "bad")), "1 prompts .*'Human: ask 1'"),
        (Pair(turns("ask 2", "no 2"), turns("ask 2", "yes 2")), "1 prompts"),
        (Pair("say it again", "say nothing"), "1 prompts .*such as 'say'"),
        (Pair("else", "word"), "1 texts .*such as 'word'"),
    ],
)
def test_held_out_pairs_share_nothing_with_the_others(pair: Pair, message: str, tmp_path: Path) -> None:
    pairs = [Pair(turns(f"ask {n}", f"yes {n}"), turns(f"ask {n}", f"no {n}")) for n in range(3)]
    pairs += [Pair("say yes", "say no"), Pair("word", "other")]
    path, other = write_pairs(tmp_path / "pairs.jsonl", pairs), Pair("new", "fresh")
    held_out = write_pairs(tmp_path / "held_out.jsonl", [other])
    assert read_or_split(path, held_out, 0.1, 0) == (pairs, [other])
    write_pairs(held_out, [other, pair])
    with pytest.raises(InvalidArgumentError, match=f"{message}.*that of memory"):
        read_or_split(path, held_out, 0.1, 0)
