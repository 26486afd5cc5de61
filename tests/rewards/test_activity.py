"""Oracles as rewards: the mean and the lower confidence bound, by hand."""

import pickle

import pytest
import torch
from torch import Tensor, nn

from sepo_env.errors import InvalidArgumentError, InvalidTokensError
from sepo_env.rewards import OracleEnsemble, OracleReward
from sepo_env.rewards.oracles import OracleConfig
from tests.comparisons import assert_same


class CountOf(nn.Module):
    """A member that counts one nucleotide."""

    def __init__(self, token: int) -> None:
        super().__init__()
        self.token = token

    def forward(self, weights: Tensor) -> Tensor:
        return weights[..., self.token].sum(1, keepdim=True)


def ensemble(*members: nn.Module, role="training") -> OracleEnsemble:
    return OracleEnsemble(
        members, OracleConfig("residual"), role=role, quantity="count", units="letters", both_strands=False
    )


TOKENS = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]])  # counts of A: 3, 2; of C: 1, 2


def test_the_mean_over_members():
    reward = OracleReward(ensemble(CountOf(0), CountOf(1)))
    assert reward(TOKENS).tolist() == [2.0, 2.0]
    assert (reward.name, reward.role, reward.calls) == ("count", "training", 2)


@pytest.mark.parametrize("pessimism", [0.5, 1.0, 3.0])
def test_the_lower_confidence_bound_charges_disagreement(pessimism):
    # Members say (3, 1) and (2, 2): means 2, 2; deviations 1, 0.
    reward = OracleReward(ensemble(CountOf(0), CountOf(1)), name="lcb", pessimism=pessimism)
    assert reward(TOKENS).tolist() == [2.0 - pessimism, 2.0]
    assert reward.name == "lcb"


def test_the_role_is_the_oracles():
    assert OracleReward(ensemble(CountOf(0), role="held_out")).role == "held_out"


def test_the_ensemble_is_at_hand_for_gradients():
    reward = OracleReward(ensemble(CountOf(0)))
    weights = torch.full((1, 3, 4), 0.25, requires_grad=True)
    reward.ensemble.predict_weights(weights).sum().backward()
    assert weights.grad is not None
    assert weights.grad[0].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3


def test_bad_settings_are_refused():
    with pytest.raises(InvalidArgumentError, match="at least two members"):
        OracleReward(ensemble(CountOf(0)), pessimism=1.0)
    with pytest.raises(InvalidArgumentError, match="pessimism is -1.0 .*, but must be a finite number of at least 0"):
        OracleReward(ensemble(CountOf(0), CountOf(1)), pessimism=-1.0)


def test_masked_sequences_are_refused():
    with pytest.raises(InvalidTokensError, match="finish denoising"):
        OracleReward(ensemble(CountOf(0)))(torch.tensor([[0, 4]]))


def test_it_pickles():
    reward = OracleReward(ensemble(nn.Sequential(nn.Flatten(), nn.Linear(16, 1))))
    copy = pickle.loads(pickle.dumps(reward))
    assert_same(copy(TOKENS), reward(TOKENS))
