"""The template that every reward of one's own fills in."""

import pytest
import torch
from torch import Tensor

from sepo_env.errors import InvalidShapeError, InvalidTokensError, RewardError
from sepo_env.rewards import Reward


class Total(Reward):
    name = "total"

    def score(self, tokens: Tensor) -> Tensor:
        return tokens.sum(-1)


class Broken(Reward):
    name = "broken"

    def __init__(self, raw):
        self.raw = raw

    def score(self, tokens: Tensor) -> Tensor:
        return self.raw


def test_values_are_float32_counted_and_without_gradient():
    reward = Total()
    values = reward(torch.tensor([[1, 2], [3, 4], [5, 6]]))
    assert values.dtype == torch.float32
    assert values.tolist() == [3.0, 7.0, 11.0]
    assert reward.calls == 3
    assert reward(torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)
    assert (reward.calls, reward.failures, reward.cache_hits) == (3, 0, 0)
    assert Total().calls == 0, "counters belong to the instance"


def test_terms_name_the_value_and_score_once():
    reward = Total()
    terms = reward.terms(torch.tensor([[1, 2]]))
    assert {name: value.tolist() for name, value in terms.items()} == {"total": [3.0], "reward": [3.0]}
    assert reward.calls == 1


def test_scoring_runs_without_gradients():
    weight = torch.ones((), requires_grad=True)

    class Weighted(Total):
        def score(self, tokens: Tensor) -> Tensor:
            assert not torch.is_grad_enabled()
            return weight * tokens.sum(-1)

    assert not Weighted()(torch.tensor([[1, 2]])).requires_grad


def test_tokens_are_checked():
    with pytest.raises(InvalidTokensError, match=r"int64 token tensors, got dtype torch.float32; convert"):
        Total()(torch.zeros(1, 2))
    with pytest.raises(InvalidTokensError, match="got a list"):
        Total()([[0, 1]])
    with pytest.raises(InvalidShapeError, match=r"tokens has shape \(3,\), expected \(B, L\)"):
        Total()(torch.zeros(3, dtype=torch.int64))


def test_unusable_values_name_the_reward_and_the_sequence():
    tokens = torch.tensor([[0, 1], [2, 3]])
    with pytest.raises(RewardError, match=r"'broken' returned nan for sequence 1 \(tokens \[2, 3\]\); return a finite"):
        Broken(torch.tensor([1.0, torch.nan]))(tokens)
    with pytest.raises(RewardError, match=r"'broken' returned 1 values for 2 sequences, none for sequence 1"):
        Broken(torch.tensor([1.0]))(tokens)


def test_what_scoring_raises_is_named():
    class Raising(Total):
        def score(self, tokens: Tensor) -> Tensor:
            raise KeyError("C\nand more")

    with pytest.raises(RewardError, match=r"'total' raised KeyError: .* for 2 sequences; mend its score") as caught:
        Raising()(torch.tensor([[0, 1], [2, 3]]))
    assert isinstance(caught.value.__cause__, KeyError)
    assert "\n" not in str(caught.value)


def test_it_is_a_context_that_closes():
    closed = []

    class Closing(Total):
        def close(self) -> None:
            closed.append(True)

    with Closing() as reward:
        assert reward(torch.tensor([[1]])).tolist() == [1.0]
    assert closed == [True]
