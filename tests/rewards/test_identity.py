"""Every reward says what it is."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sepo_env import tasks
from sepo_env.rewards import LetterContent, MotifDensity, MotifScore, Reward, SequenceClassifierReward, as_reward
from tests.hf_models import save_classifier

REWARDS = [(task, name) for task in tasks.TASKS for name in tasks.make(task).rewards()]


def text(reward: Reward) -> str:
    return json.dumps(reward.identity(), sort_keys=True, allow_nan=False)


@pytest.mark.parametrize(("task", "name"), REWARDS)
def test_every_reward_of_a_task_is_told_whole(task: str, name: str) -> None:
    """Twice the same, no other's, and without a doubt."""
    rewards = tasks.make(task).rewards()
    told = text(rewards[name]())
    assert told == text(tasks.make(task).rewards()[name]())
    assert "cannot be told" not in told
    assert json.loads(told)["name"] == name
    assert all(told != text(make()) for other, make in rewards.items() if other != name)


@pytest.mark.parametrize(("task", "name"), REWARDS)
def test_scoring_changes_nothing_of_it(task: str, name: str) -> None:
    world = tasks.make(task)
    reward = world.rewards()[name]()
    before = text(reward)
    reward(torch.zeros(2, world.length, dtype=torch.int64))
    assert text(reward) == before


def count(sequences: list[str]) -> list[float]:
    return [float(sequence.count("A")) for sequence in sequences]


def test_how_it_is_called_is_no_part_of_it_and_what_becomes_of_failures_is() -> None:
    world = tasks.make("toy")
    for spec in ("table", count, {"table": 1.0, count: -0.5}):
        plain = text(world.make_reward(spec))
        assert text(world.make_reward(spec, cache=True)) == plain
        floored = {text(world.make_reward(spec, on_error="floor", floor=floor)) for floor in (-1.0, -2.0)}
        assert len(floored | {plain}) == 3
    with world.make_reward(count, workers=1, timeout=9.0, cache=5) as spread:
        assert text(spread) == text(world.make_reward(count))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LetterContent("GC"), LetterContent("G", name="GC content")),
        (MotifDensity("TGA"), MotifDensity("TGA", both_strands=False)),
        (MotifDensity("TGA"), MotifDensity("TGC", name="TGA density")),
        (
            MotifScore(torch.tensor([[0.7, 0.1, 0.1, 0.1]])),
            MotifScore(torch.tensor([[0.7, 0.1, 0.1, 0.1]]), background=torch.tensor([0.4, 0.2, 0.2, 0.2])),
        ),
    ],
)
def test_settings_are_told(one: Reward, other: Reward) -> None:
    assert one.name == other.name
    assert text(one) != text(other)


def test_weights_of_a_sum_are_told() -> None:
    def make(weights: dict[Any, float]) -> Reward:
        return as_reward(weights, decode=lambda tokens: [], registry={})

    one, two = (LetterContent(letters, name=letters) for letters in "GC")
    assert make({one: 1.0, two: 2.0}).identity()["weights"] == {"G": 1.0, "C": 2.0}
    assert text(make({one: 1.0, two: 2.0})) != text(make({one: 1.0, two: 2.5}))


def test_a_classifier_is_known_by_its_weights_wherever_it_lies(tmp_path: Path) -> None:
    def reward(folder: str, **settings: Any) -> SequenceClassifierReward:
        return SequenceClassifierReward(
            tmp_path / folder, decode=lambda tokens: [""] * len(tokens), name="x", **settings
        )

    torch.manual_seed(0)
    save_classifier(tmp_path / "one", num_labels=2)
    save_classifier(tmp_path / "two", num_labels=2)
    shutil.copytree(tmp_path / "one", tmp_path / "copy")
    one = reward("one", label=0)
    assert text(one) == text(reward("copy", label=0, batch_size=2))
    assert "cannot be told" not in text(one)
    assert str(tmp_path) not in text(one)
    one(torch.zeros(2, 3, dtype=torch.int64))  # the tokenizer keeps how it has padded
    others = [reward("two", label=0), reward("one", label=1), reward("one", label=0, output="probability")]
    assert text(one) == text(reward("one", label=0))
    assert len({text(other) for other in [one, *others]}) == 4


def test_strings_and_tokens_are_told_apart() -> None:
    def of_tokens(tokens: Tensor) -> Tensor:
        return tokens.sum(-1)

    def of_strings(tokens: list[str]) -> list[float]:
        return tokens.sum(-1)  # type: ignore[attr-defined]

    one, other = (tasks.make("toy").make_reward(function).identity() for function in (of_tokens, of_strings))
    assert (one["reads"], other["reads"]) == ("tokens", "strings")
    assert one["function"]["code"] == other["function"]["code"]
