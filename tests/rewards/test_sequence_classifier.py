"""A classifier's reward is what Transformers' model says of the decoded text, whatever the batch."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.rewards.sequence_classifier import SequenceClassifierReward
from tests.comparisons import assert_same
from tests.hf_models import POSITIONS, make_tokenizer, save_classifier, save_masked_lm, transformers

WORDS = "abcd"
TOKENS = torch.tensor([[0, 1, 2, 4], [3, 4, 4, 4], [2, 2, 0, 1], [1, 0, 4, 4], [3, 3, 3, 4]])


def decode(tokens: Tensor) -> list[str]:
    """Four words, and the id 4 for nothing: texts of different lengths."""
    return [" ".join(WORDS[token] for token in row if token < 4) for row in tokens.tolist()]


def upstream_logits(folder: Path) -> Tensor:
    """Each text by itself, without padding."""
    library = transformers()
    model = library.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return torch.cat([model(**tokenizer(text, return_tensors="pt")).logits for text in decode(TOKENS)])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("classifiers")
    labels = {"id2label": {0: "sad", 1: "plain", 2: "happy"}, "label2id": {"sad": 0, "plain": 1, "happy": 2}}
    return {
        "one": save_classifier(root / "one"),
        "three": save_classifier(root / "three", num_labels=3, **labels),
        "many": save_classifier(root / "many", num_labels=3, problem_type="multi_label_classification", **labels),
    }


@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_one_output_is_the_reward(batch_size: int, folders: dict[str, Path]) -> None:
    reward = SequenceClassifierReward(folders["one"], decode=decode, batch_size=batch_size)
    values = reward(TOKENS)
    torch.testing.assert_close(values, upstream_logits(folders["one"])[:, 0], atol=1e-5, rtol=1e-5)
    assert (reward.name, reward.role, reward.calls) == ("one", "any", 5)
    assert not any(parameter.requires_grad for parameter in reward.model.parameters())


@pytest.mark.parametrize("kind", ["three", "many"])
@pytest.mark.parametrize("label", ["happy", 2])
def test_a_label_has_a_probability_and_its_log_odds(kind: str, label: str | int, folders: dict[str, Path]) -> None:
    logits = upstream_logits(folders[kind])
    p = (logits.softmax(-1) if kind == "three" else logits.sigmoid())[:, 2]
    chance = SequenceClassifierReward(folders[kind], decode=decode, label=label, output="probability")
    odds = SequenceClassifierReward(folders[kind], decode=decode, label=label, role="held_out")
    torch.testing.assert_close(chance(TOKENS), p, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(odds(TOKENS), (p / (1 - p)).log(), atol=1e-4, rtol=1e-4)
    assert (odds.name, odds.role) == ("happy", "held_out")


def test_long_texts_are_cut(folders: dict[str, Path]) -> None:
    reward = SequenceClassifierReward(folders["one"], decode=decode)
    assert reward.max_length == POSITIONS
    long = reward.score_texts(["a b c d a b c d a b " + "d " * 50, "a b c d a b c d a b"])
    assert_same(long[0], long[1])  # CLS, ten words, SEP
    short = SequenceClassifierReward(folders["one"], decode=decode, max_length=4)
    values = short.score_texts(["a b", "a b c", "a"])
    assert_same(values[0], values[1])
    assert not torch.allclose(values[1], values[2], rtol=1e-3)


def save_kind(folder: Path, kind: str, **settings: object) -> Path:
    """A tiny classifier of another architecture; its tokenizer names no maximum."""
    library, tokenizer = transformers(), make_tokenizer()
    if kind == "T5":  # reads the answer off at the end of the text
        tokenizer.eos_token = "[SEP]"
    config = getattr(library, f"{kind}Config")(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.sep_token_id,
        num_labels=1,
        **settings,
    )
    library.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("Bloom", {"hidden_size": 16, "n_layer": 1, "n_head": 2}),
        ("T5", {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}),
    ],
)
def test_models_without_a_position_table_read_the_whole_text(
    kind: str, settings: dict[str, object], tmp_path: Path
) -> None:
    reward = SequenceClassifierReward(save_kind(tmp_path, kind, **settings), decode=decode)
    assert reward.max_length is None
    values = reward.score_texts(["a b c d " * 30 + letter for letter in "ab"])
    assert torch.isfinite(values).all()
    assert values[0] != values[1]


def test_rows_of_the_table_that_belong_to_padding_are_no_room(tmp_path: Path) -> None:
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    folder = save_kind(tmp_path, "Roberta", max_position_embeddings=POSITIONS, **shape)
    reward = SequenceClassifierReward(folder, decode=decode)
    assert reward.max_length == POSITIONS - reward.tokenizer.pad_token_id - 1
    assert torch.isfinite(reward.score_texts(["a b c d " * 10])).all()


def test_wrong_uses_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"labels \['sad', 'plain', 'happy'\]; say which"):
        SequenceClassifierReward(folders["three"], decode=decode)
    with pytest.raises(UnknownNameError, match="did you mean 'happy'"):
        SequenceClassifierReward(folders["three"], decode=decode, label="hapy")
    with pytest.raises(InvalidArgumentError, match="label 3 is none of 0 to 2"):
        SequenceClassifierReward(folders["three"], decode=decode, label=3)
    with pytest.raises(InvalidArgumentError, match="no labels to choose from"):
        SequenceClassifierReward(folders["one"], decode=decode, label="happy")
    with pytest.raises(UnknownNameError, match="unknown output"):
        SequenceClassifierReward(folders["three"], decode=decode, label=0, output="odds")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="batch_size is 0"):
        SequenceClassifierReward(folders["one"], decode=decode, batch_size=0)
    with pytest.raises(CheckpointError, match=r"BertForMaskedLM.*missing: .*classifier"):
        SequenceClassifierReward(save_masked_lm(tmp_path / "lm"), decode=decode)
    with pytest.raises(CheckpointError, match="no folder"):
        SequenceClassifierReward(tmp_path / "absent", decode=decode)


@pytest.mark.parametrize(("token", "config_pad"), [("[SEP]", None), (None, 3), ("[SEP]", 3)])
def test_a_causal_classifier_reads_the_last_token_whatever_the_batch(
    token: str | None, config_pad: int | None, tmp_path: Path
) -> None:
    library, tokenizer = transformers(), make_tokenizer()
    tokenizer.pad_token, tokenizer.eos_token = token, "[CLS]"
    torch.manual_seed(0)
    shape = library.GPT2Config(vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=2, num_labels=1)
    model = library.GPT2ForSequenceClassification(shape)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.config.pad_token_id = config_pad
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reward = SequenceClassifierReward(tmp_path, decode=decode)
    alone = torch.cat([reward(row[None]) for row in TOKENS])
    torch.testing.assert_close(reward(TOKENS), alone, atol=1e-6, rtol=1e-6)


def test_what_it_is_tells_the_model_the_vocabulary_and_what_is_read_off(folders: dict[str, Path]) -> None:
    one, same, other, label = (
        SequenceClassifierReward(folders[kind], decode=decode, **options)
        for kind, options in (("one", {}), ("one", {}), ("three", {"label": 0}), ("three", {"label": 1}))
    )
    told = [json.dumps(reward.identity(), sort_keys=True) for reward in (one, same, other, label)]
    assert told[0] == told[1]
    assert len(set(told)) == 3
    assert not any("cannot be" in text for text in told)
    same.tokenizer.add_tokens(["zebra"])
    assert json.dumps(same.identity(), sort_keys=True) != told[0]
