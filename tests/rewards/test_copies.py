"""What a reward is given is its own, and what it returned is ours: nobody's writing changes anybody else's numbers."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sepo_env import tasks
from sepo_env.errors import RewardError
from sepo_env.rewards import Reward, string_reward, token_reward

NAMED = [(task, reward) for task in tasks.TASKS for reward in tasks.make(task).rewards()]


def overwrite(tokens: Tensor) -> Tensor:
    """The number of zeros, and what was read is wiped."""
    zeros = (tokens == 0).sum(-1)
    tokens.zero_()
    return zeros


class Overwriting(Reward):
    name = "overwriting"

    def score(self, tokens: Tensor) -> Tensor:
        return overwrite(tokens)


class OverwritingModule(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return overwrite(tokens)


KINDS = {
    "function": lambda: token_reward(overwrite, "overwriting"),
    "module": OverwritingModule,
    "reward": Overwriting,
    "sum": lambda: {Overwriting(): 1.0, OverwritingModule(): 2.0},
}


@pytest.fixture
def toy():
    return tasks.make("toy")


@pytest.mark.parametrize("options", [{}, {"cache": True}, {"on_error": "floor", "floor": -1.0}])
@pytest.mark.parametrize("kind", KINDS)
def test_writing_into_tokens_changes_no_other_term(toy, kind, options):
    given = torch.tensor([[0, 0, 1, 2], [0, 1, 2, 2]])
    tokens = given.clone()
    spec = KINDS[kind]()
    alone = toy.make_reward("share_of_a")(tokens)
    specs = {**spec, "share_of_a": 1.0} if isinstance(spec, dict) else {spec: 1.0, "share_of_a": 1.0}
    reward = toy.make_reward(specs, **options)
    for _ in range(2):  # the second time from the cache, where there is one
        terms = reward.terms(tokens)
        assert torch.equal(tokens, given)
        assert torch.equal(terms["share_of_a"], alone)
        assert next(terms[name].tolist() for name in terms if name not in ("share_of_a", "reward")) == [2.0, 1.0]


@pytest.mark.parametrize("kind", KINDS)
def test_writing_into_tokens_leaves_the_episode_as_it_was(kind):
    def last(reward):
        env = gym.make("ToyCTMC-v0", num_steps=3, reward=reward)
        env.reset(seed=0)
        for _ in range(3):
            observation, _, _, _, info = env.step(env.unwrapped.pretrained_action())
        return observation["tokens"].tolist(), info["sequence"]

    assert last(KINDS[kind]()) == last("share_of_a")


@pytest.mark.parametrize(("task", "name"), NAMED)
def test_no_named_reward_hands_out_the_callers_tokens(task, name):
    made = tasks.make(task)
    reward = made.rewards()[name]()
    tokens = torch.randint(made.num_tokens, (3, made.length))
    expected, given = reward(tokens), tokens.clone()
    score = reward.score

    def overwriting(own: Tensor) -> Tensor:
        values = score(own)
        own.zero_()
        return values

    reward.score = overwriting
    assert torch.equal(reward(tokens), expected)
    assert torch.equal(tokens, given)


def test_every_sequence_that_is_tried_alone_is_as_it_was(toy):
    def fails_together(tokens):
        zeros = overwrite(tokens)
        if len(tokens) > 1:
            raise ValueError("too many")
        if zeros[0] == 0:
            raise ValueError("no zeros")
        return zeros

    reward = toy.make_reward(token_reward(fails_together), on_error="floor", floor=-1.0)
    with pytest.warns(RuntimeWarning, match=r"no zeros for sequence 1 \('BBBB', 4 letters\)"):
        values = reward(torch.tensor([[0, 0, 1, 2], [1, 1, 1, 1], [0, 1, 1, 1]]))
    assert values.tolist() == [2.0, -1.0, 1.0]


@pytest.mark.parametrize("workers", [0, 1])
def test_sequences_whose_list_was_emptied_are_still_named(toy, workers):
    def empties(sequences):
        own = list(sequences)
        sequences.clear()
        if "BBBB" in own:
            raise ValueError("no As")
        return [1.0 for _ in own]

    with (
        toy.make_reward(string_reward(empties), workers=workers) as reward,
        pytest.raises(RewardError, match=r"no As for sequence 1 \('BBBB', 4 letters\) of 2"),
    ):
        reward(torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1]]))


def test_a_buffer_that_is_used_again_changes_no_earlier_value(toy):
    class Counter(Reward):
        name = "counter"

        def __init__(self, buffer):
            self.buffer = buffer

        def score(self, tokens):
            self.buffer += 1
            return self.buffer

    tokens = torch.zeros(2, 4, dtype=torch.int64)
    for buffer in (torch.zeros(2), np.zeros(2), np.zeros(2, np.float32)):
        for wrap in (lambda reward: reward, lambda reward: token_reward(reward.score, "counter")):
            reward = toy.make_reward(wrap(Counter(buffer)))
            buffer[:] = 0
            first, second = reward(tokens), reward(tokens)
            assert first.tolist() == [1.0, 1.0]
            assert second.tolist() == [2.0, 2.0]
            second[:] = 100.0
            assert buffer.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("spec", ["share_of_a", {"share_of_a": 1.0}, KINDS["function"]()])
def test_terms_share_no_memory(toy, spec):
    terms = toy.make_reward(spec).terms(torch.tensor([[0, 0, 1, 2]]))
    before = {name: values.clone() for name, values in terms.items()}
    terms["reward"] += 1.0
    assert all(torch.equal(terms[name], values) for name, values in before.items() if name != "reward")
