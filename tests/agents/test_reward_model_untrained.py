"""A reward model that has learnt nothing: its figures are those of chance, and what it needs is asked for at once."""

import json
import random
import sys
from pathlib import Path

import pytest
import torch

from agents.reward_modelling import Pair, RewardModelConfig, read_pairs, split_pairs, train_reward_model
from agents.reward_modelling.models import make_model
from sepo_env.errors import MissingExtraError
from sepo_env.rewards.sequence_classifier import SequenceClassifierReward


def random_pairs(number: int) -> list[Pair]:
    rng = random.Random(0)
    return [Pair(*("".join(rng.choices("abcde ", k=20)) for _ in range(2))) for _ in range(number)]


def test_the_held_out_figures_are_those_of_the_model(tmp_path: Path) -> None:
    """Also where some pairs are told apart by little, and others wrongly."""
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in random_pairs(40)))
    shape = {"width": 8, "depth": 1, "heads": 2, "vocab_size": 270, "max_length": 32}
    settings = {"num_epochs": 1, "learning_rate": 1e-9, "eval_share": 0.5, "device": "cpu"}
    outcome = train_reward_model(
        RewardModelConfig(str(pairs), str(tmp_path / "run"), **shape, **settings), progress=False
    )
    card = json.loads((outcome.folder / "reward_model.json").read_text())
    _, held_out = split_pairs(read_pairs(pairs), 0.5, 0)
    reward = SequenceClassifierReward(outcome.folder, decode=lambda tokens: [])
    chosen, rejected = (
        reward.score_texts([getattr(pair, side) for pair in held_out]) for side in ("chosen", "rejected")
    )
    margin = chosen - rejected
    assert 0.1 < float((margin > 0).float().mean()) < 0.9
    assert card["held_out_accuracy"] == pytest.approx(float((margin > 0).float().mean()))
    assert card["held_out_loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(margin).mean()), rel=1e-4)


def test_without_transformers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match="hf"):
        make_model(RewardModelConfig("pairs.jsonl", "run", vocab_size=270), random_pairs(4))
