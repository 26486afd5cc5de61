"""Text to tokens and back, against words and letters spelled out by hand."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidTokensError
from sepo_env.tasks.codec import WordPieceCodec

PIECES = [*" abdeghlnoprst,.", " the", " lord", " and", " good", " be", "er"]
CODEC = WordPieceCodec(PIECES)
MASK = len(PIECES)
SINGLE = {"the", "lord", "and", "good", ",", ".", "_"}
WORDS = st.sampled_from(["the", "lord", "and", "good", "herd", "lords", "a", ",", ".", "_"])  # herd: blank, h, er, d


def pieces(row: torch.Tensor) -> list[str]:
    return [PIECES[token] if token < MASK else "MASK" for token in row.tolist()]


def test_words_are_tokens_and_others_are_spelled_by_the_longest_pieces() -> None:
    rows = CODEC.encode(["The lord, and herbs."], 12, "_")
    assert pieces(rows[0]) == [" the", " lord", ",", " and", " ", "h", "er", "b", "s", ".", "MASK", "MASK"]


def test_a_longer_word_that_begins_with_a_known_one_keeps_it() -> None:
    assert pieces(CODEC.encode(["lords"], 2, "_")[0]) == [" lord", "s"]


@given(st.lists(st.lists(WORDS, max_size=5), min_size=1, max_size=4))
def test_decoding_undoes_encoding(texts: list[list[str]]) -> None:
    written = ["".join(word if word in ",." else f" {word}" for word in words).strip() for words in texts]
    lengths = [sum(1 if word in SINGLE else 4 if word == "herd" else 2 for word in words) for words in texts]
    rows = CODEC.encode(written, 20, "_")
    for row, length in zip(rows, lengths, strict=True):
        assert (row[length:] == MASK).all()
    assert [CODEC.decode(row[None, :length], "_")[0] for row, length in zip(rows, lengths, strict=True)] == written


def test_masks_stand_between_words_and_after_short_texts() -> None:
    rows = CODEC.encode(["the _ _ good", "_ , lord _.", ""], 5, "_")
    assert [pieces(row) for row in rows] == [
        [" the", "MASK", "MASK", " good", "MASK"],
        ["MASK", ",", " lord", "MASK", "."],
        ["MASK"] * 5,
    ]
    assert CODEC.decode(rows, "_") == ["the _ _ good _", "_, lord _.", "_ _ _ _ _"]


def test_what_cannot_be_written_is_named() -> None:
    with pytest.raises(InvalidTokensError, match=r"sequence 1 has 'z'; the codec knows ' ,.abdeghlnoprst'"):
        CODEC.encode(["the", "zeal"], 8, "_")
    with pytest.raises(InvalidTokensError, match="sequence 0 has 3 tokens, but there is room for 2"):
        CODEC.encode(["the lord and"], 2, "_")


@pytest.mark.parametrize("bad", [["a", "a"], ["a", ""], ["a", "ab"]])
def test_pieces_must_be_distinct_and_spelled_in_letters_that_are_pieces(bad: list[str]) -> None:
    with pytest.raises(InvalidArgumentError, match="pieces"):
        WordPieceCodec(bad)


def test_a_file_gives_the_same_codec_and_others_are_refused(tmp_path) -> None:
    path = tmp_path / "codec.json"
    CODEC.save(path)
    assert WordPieceCodec.load(path).pieces() == PIECES
    assert [file.name for file in tmp_path.iterdir()] == ["codec.json"]
    ours = {"format": "sepo_env.codec/1"}
    for content, message in (
        (path.read_text()[:-20], "it is no JSON"),
        ("[]", "expected a JSON object"),
        (json.dumps({"format": "other"}), "expected the format 'sepo_env.codec/1', found 'other'"),
        (json.dumps({"pieces": ["a"]}), "expected the format 'sepo_env.codec/1', found None"),
        (json.dumps(ours), "no codec .pieces is None"),
        (json.dumps(ours | {"pieces": 1}), "no codec .pieces is 1"),
        (json.dumps(ours | {"pieces": {"a": 1}}), "no codec .pieces is"),
        (json.dumps(ours | {"pieces": ["a", 1]}), "no codec .pieces is"),
        (json.dumps(ours | {"pieces": ["ab"]}), "no codec .pieces must be distinct"),
    ):
        path.write_text(content)
        with pytest.raises(CheckpointError, match=message):
            WordPieceCodec.load(path)
    with pytest.raises(CheckpointError, match="no such file"):
        WordPieceCodec.load(tmp_path / "absent.json")
