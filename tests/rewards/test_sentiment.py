"""Polarity: the classifier's shape and file, its roles, and VADER's own numbers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepo_env.errors import CheckpointError, InvalidTokensError
from sepo_env.rewards import SentimentReward, VaderReward, load_sentiment
from sepo_env.rewards.sentiment import SentimentClassifier, SentimentConfig, save_sentiment

CONFIG = SentimentConfig(num_tokens=5, channels=4)


@pytest.fixture
def classifier() -> SentimentClassifier:
    classifier = SentimentClassifier(CONFIG).eval()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.normal_()
    return classifier


def test_empty_positions_change_nothing(classifier) -> None:
    tokens = torch.randint(5, (6, 7))
    padded = torch.cat([tokens, torch.full((6, 9), 5)], dim=1)
    torch.testing.assert_close(classifier(padded), classifier(tokens))


def test_a_text_without_tokens_has_the_odds_of_the_bias(classifier) -> None:
    assert classifier(torch.full((1, 4), 5)).item() == pytest.approx(classifier.head.bias.item(), abs=1e-6)


def test_the_order_of_the_words_counts(classifier) -> None:
    tokens = torch.tensor([[0, 1, 2, 3]])
    assert not torch.allclose(classifier(tokens), classifier(tokens.flip(1)), atol=1e-3)


def test_the_reward_is_twice_the_probability_less_one(classifier) -> None:
    tokens = torch.randint(5, (20, 7))
    reward = SentimentReward(classifier)
    torch.testing.assert_close(reward(tokens), 2 * classifier(tokens).sigmoid() - 1)
    assert (reward.role, reward.calls) == ("training", 20)
    with pytest.raises(InvalidTokensError, match="finish denoising"):
        reward(torch.full((1, 7), 5))


def test_a_file_holds_half_of_the_bits_and_all_of_the_classifier(tmp_path, classifier) -> None:
    path = tmp_path / "sentiment.safetensors"
    save_sentiment(classifier, path, {"seed": "0"})
    loaded = load_sentiment(path)
    assert loaded.config == CONFIG
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    for name, value in loaded.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, classifier.state_dict()[name].half().float())


def test_wrong_files_are_refused(tmp_path, classifier) -> None:
    path, other = tmp_path / "sentiment.safetensors", tmp_path / "other.safetensors"
    save_sentiment(classifier, path, {})
    tensors = load_file(path)
    save_file(tensors, other, metadata={"format": "other"})
    with pytest.raises(CheckpointError, match="expected the format 'sepo_env.sentiment/1', found 'other'"):
        load_sentiment(other)
    wide = {"num_tokens": 5, "channels": 8}
    save_file(tensors, other, metadata={"format": "sepo_env.sentiment/1", "config": json.dumps(wide)})
    with pytest.raises(CheckpointError, match="expected"):
        load_sentiment(other)
    other.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="whole"):
        load_sentiment(other)
    with pytest.raises(CheckpointError, match="no such file"):
        load_sentiment(tmp_path / "absent.safetensors")


def test_vader_reads_the_decoded_text() -> None:
    texts = ["this is good", "this is not good", "this is terrible and sad", "this is a table", ""]
    reward = VaderReward(lambda tokens: texts[: len(tokens)])
    scores = reward(torch.zeros(5, 3, dtype=torch.int64))
    # good is rated 1.9 in the lexicon, a negation turns by -0.74, and x becomes x / sqrt(x^2 + 15).
    squashed = [x / (x * x + 15) ** 0.5 for x in (1.9, -0.74 * 1.9)]
    assert scores[:2].tolist() == pytest.approx(squashed, abs=1e-4)
    assert scores[2] < -0.5
    assert scores[3:].tolist() == [0.0, 0.0]
    assert reward.role == "held_out"
    assert reward.lexicon["good"] == 1.9
