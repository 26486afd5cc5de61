"""Rewards of the sequence itself, against string code and hand-computed numbers."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError
from sepo_env.rewards import LetterContent, MotifDensity, MotifScore, gc_content

DNA_STRINGS = st.lists(st.text(alphabet="ACGT", min_size=9, max_size=9), min_size=1, max_size=6)
COMPLEMENT = str.maketrans("ACGT", "TGCA")


def tokens_of(sequences):
    return torch.tensor([["ACGT".index(letter) for letter in s] for s in sequences])


def reverse_complement(sequence):
    return sequence.translate(COMPLEMENT)[::-1]


@given(DNA_STRINGS)
def test_gc_content_counts_letters(sequences):
    expected = [(s.count("G") + s.count("C")) / len(s) for s in sequences]
    torch.testing.assert_close(gc_content()(tokens_of(sequences)), torch.tensor(expected))


def test_letter_content_over_another_alphabet():
    reward = LetterContent("BD", "ABCD")
    assert reward.name == "BD content"
    assert reward(torch.tensor([[0, 1, 3, 3], [2, 0, 0, 0]])).tolist() == [0.75, 0.0]
    with pytest.raises(InvalidArgumentError, match="'X' is no letter of the alphabet 'ABCD'"):
        LetterContent("X", "ABCD")


@given(DNA_STRINGS, st.text(alphabet="ACGTRYSN", min_size=1, max_size=4))
def test_motif_density_equals_a_regular_expression(sequences, motif):
    classes = {"R": "[AG]", "Y": "[CT]", "S": "[CG]", "N": "[ACGT]"}
    pattern = re.compile("".join(classes.get(code, code) for code in motif))

    def windows(sequence):
        return [sequence[i : i + len(motif)] for i in range(len(sequence) - len(motif) + 1)]

    def hit(window, both):
        return bool(pattern.fullmatch(window)) or (both and bool(pattern.fullmatch(reverse_complement(window))))

    for both in (False, True):
        expected = [sum(hit(w, both) for w in windows(s)) / len(windows(s)) for s in sequences]
        got = MotifDensity(motif, both_strands=both)(tokens_of(sequences))
        torch.testing.assert_close(got, torch.tensor(expected))


def test_a_palindrome_is_counted_once():
    assert MotifDensity("ACGT")(tokens_of(["ACGTA"])).tolist() == [0.5]


def test_motif_score_by_hand():
    # log2 odds against a uniform background: A A -> log2(0.7 * 4) + log2(0.4 * 4), and so on.
    probabilities = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1]])
    reward = MotifScore(probabilities, both_strands=False)
    best, worst = math.log2(2.8) + math.log2(1.6), math.log2(0.4) + math.log2(0.4)
    middle = math.log2(2.8) + math.log2(1.2)
    got = reward(tokens_of(["CAA", "TCT", "AGT"]))
    # Windows: CA, AA -> the consensus; TC, CT -> log2(.4 * .8) is the better one; AG, GT -> AG.
    second = math.log2(0.4) + math.log2(0.8)
    expected = [(s - worst) / (best - worst) for s in (best, second, middle)]
    torch.testing.assert_close(got, torch.tensor(expected))


@given(DNA_STRINGS)
def test_both_strands_score_alike(sequences):
    reward = MotifScore(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.2, 0.3, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    mirrored = [reverse_complement(s) for s in sequences]
    values = reward(tokens_of(sequences))
    torch.testing.assert_close(values, reward(tokens_of(mirrored)))
    assert bool(((values >= 0) & (values <= 1)).all())


def test_background_changes_the_ranking():
    probabilities = torch.tensor([[0.4, 0.4, 0.1, 0.1]])
    reward = MotifScore(probabilities, background=torch.tensor([0.1, 0.7, 0.1, 0.1]), both_strands=False)
    # Log odds: A log2 4, C log2(4/7), G and T 0: C is rare against its background, so it scores worst.
    values = reward(tokens_of(["A", "C", "G"])).tolist()
    assert values == pytest.approx([1.0, 0.0, math.log2(7 / 4) / (2 + math.log2(7 / 4))])


def test_masks_and_short_sequences_are_refused():
    with pytest.raises(InvalidTokensError, match=r"tokens 0\.\.3, but got tokens in 0\.\.4; finish denoising"):
        gc_content()(torch.tensor([[0, 4]]))
    with pytest.raises(InvalidShapeError, match="the motif's width 3"):
        MotifDensity("ACG")(torch.tensor([[0, 1]]))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: MotifDensity(""), InvalidArgumentError, "at least one letter"),
        (lambda: MotifDensity("AB", "AB"), InvalidArgumentError, "only DNA has another strand"),
        (lambda: MotifScore(torch.ones(2, 3) / 3), InvalidShapeError, "V = 4"),
        (lambda: MotifScore(torch.ones(2, 4)), InvalidArgumentError, "rows that sum to 1"),
        (lambda: MotifScore(torch.tensor([[1.0, 0, 0, 0]])), InvalidArgumentError, "expected positive"),
        (lambda: MotifScore(torch.full((2, 4), 0.25)), InvalidArgumentError, "prefers no letter"),
        (
            lambda: MotifScore(torch.full((2, 4), 0.25), background=torch.ones(3) / 3),
            InvalidShapeError,
            "background",
        ),
    ],
)
def test_motifs_that_cannot_be_scored_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
