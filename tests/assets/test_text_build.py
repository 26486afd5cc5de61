"""How the language world's assets were made: texts, windows, labels and baselines, against counts by hand."""

import numpy as np
import pytest
import torch

from benchmarks.build_assets.ngram import NGram
from benchmarks.build_assets.text_data import LETTERS, NUM_TOKENS, clean, learn_codec, windows
from benchmarks.build_assets.text_sentiment import Labelled, balanced_accuracy, label_windows, naive_bayes, valences
from sepo_env.tasks.codec import WordPieceCodec


def test_cleaning_leaves_lower_case_letters_and_signs() -> None:
    assert clean("(For God  is the judge): he SAID, Beth-el\u2019s!") == "for god is the judge: he said, beth el's!"


def test_the_codec_holds_the_letters_and_the_most_frequent_words() -> None:
    pieces = learn_codec(["a lord and the lord and and the a cat"]).pieces()
    assert pieces[: len(LETTERS)] == list(LETTERS)
    # Ties by the alphabet; a single letter with its blank is a word, too.
    assert pieces[len(LETTERS) :] == [" and", " a", " lord", " the", " cat"]
    many = " ".join(f"{a}{b}{c}" for a in LETTERS[1:15] for b in LETTERS[1:15] for c in LETTERS[1:15])
    assert len(learn_codec([many]).pieces()) == NUM_TOKENS


def test_windows_begin_with_clauses_and_hold_no_spelled_word() -> None:
    codec = WordPieceCodec([*LETTERS, " the", " lord", " and", " he"])
    chapter = "the lord: and he, the lord. he and cat the lord; and he"
    written = codec.decode(torch.from_numpy(windows(codec, [chapter], length=3)), "_")
    assert written == ["the lord:", "and he,"]


def test_valences_are_summed_over_words() -> None:
    lexicon = {"good": 3, "evil": -3, "death": -2}
    assert valences(["good and evil", "evil, death.", "goodness"], lexicon).tolist() == [0, -5, 0]
    codec = WordPieceCodec([*LETTERS, " good", " evil", " and"])
    tokens = codec.encode(["good and good", "good and evil", "evil and evil"], 3, "_").numpy()
    labelled = label_windows(tokens, codec, lexicon)
    assert labelled.tokens.tolist() == tokens[[0, 2]].tolist()
    assert labelled.positive.tolist() == [True, False]


def test_naive_bayes_counts_with_one_pseudocount() -> None:
    data = Labelled(np.array([[0, 0], [0, 1], [1, 2]]), np.array([True, True, False]))
    test = Labelled(np.array([[0, 1], [2, 2]]), np.array([True, False]))
    # Positive: 3 of token 0 and 1 of 1; negative: 1 of token 1; id 2 is empty. With pseudocounts 4/6, 2/6 and 1/3, 2/3.
    scores = naive_bayes(data, test, num_tokens=2)
    assert scores == pytest.approx([np.log((4 / 6) / (1 / 3)) + np.log((2 / 6) / (2 / 3)), 0.0])
    assert balanced_accuracy(np.array([1.0, -1.0, -1.0]), np.array([True, True, False])) == 0.75


@pytest.mark.parametrize("order", [0, 1, 2])
def test_n_gram_probabilities_sum_to_one(order: int) -> None:
    rng = np.random.default_rng(0)
    model = NGram(rng.integers(4, size=(30, 6)) // 2, 3, order, rng.integers(2, size=(10, 6)))
    for context in ((3, 3), (3, 0), (0, 1), (1, 1), (2, 0)):
        law = [model.probability((*context, token)[2 - order :]) for token in range(3)]
        assert sum(law) == pytest.approx(1.0)
        assert min(law) > 0.0


def test_a_bigram_by_hand() -> None:
    tokens = np.array([[0, 1], [0, 1], [0, 0]])
    model = NGram(tokens, 2, 0, tokens)
    counts, discount = {0: 4, 1: 2}, model._discounts[0]
    left = 1 - sum(count - discount for count in counts.values()) / 6
    assert model.probability((1,)) == pytest.approx((2 - discount) / 6 + left / 2)
    bits = -np.log2(model.probability((0,)))
    assert model.bits(np.array([[0, 0], [0, 0]]))[0] == pytest.approx(bits)


def test_a_longer_context_explains_a_cycle() -> None:
    rows = np.array([[(start + i) % 4 for i in range(12)] for start in range(4)] * 5)
    bits = [NGram(rows, 4, order, rows).bits(rows)[0] for order in (0, 1)]
    assert bits[0] == pytest.approx(2.0, abs=0.01)
    assert bits[1] < 0.3
