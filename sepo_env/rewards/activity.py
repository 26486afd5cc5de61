"""Predictions of trained oracles as rewards."""

from __future__ import annotations

from torch import Tensor

from sepo_env.arguments import NonNegative, checked
from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards.base import Reward
from sepo_env.rewards.oracles import NUM_NUCLEOTIDES, OracleEnsemble


class OracleReward(Reward):
    r"""What an ensemble of oracles predicts, less a penalty for its members' disagreement.

    .. math:: R(x) = \mu(x) - k\, s(x), \qquad \mu = \frac{1}{M} \sum_m f_m(x), \quad
              s^2 = \frac{1}{M} \sum_m (f_m(x) - \mu(x))^2

    With :math:`k = 0` it is the mean; with :math:`k > 0` a lower confidence bound, which pays less for
    sequences far from what the oracles have seen, where they disagree. Units are the oracle's, log2(RNA/DNA)
    for activity and a probability for accessibility. The role is the oracle's.

    Args:
        ensemble: the oracles, also at hand as ``reward.ensemble`` for methods that need gradients.
        name: of the reward; the oracle's quantity where it is not given.
        pessimism: :math:`k`.

    Raises:
        InvalidArgumentError: ``pessimism`` is negative or not finite, or there is one member only and no
            disagreement.
    """

    num_ids = NUM_NUCLEOTIDES

    @checked
    def __init__(self, ensemble: OracleEnsemble, *, name: str | None = None, pessimism: NonNegative = 0.0) -> None:
        if pessimism > 0 and len(ensemble.members) < 2:
            raise InvalidArgumentError(
                "a lower confidence bound needs at least two members, and this ensemble has one; take pessimism=0."
            )
        self.ensemble = ensemble.eval()
        self.name = name or ensemble.quantity
        self.role = ensemble.role
        self.pessimism = pessimism

    def score(self, tokens: Tensor) -> Tensor:
        """Return the penalised means ``(B,)`` for ``tokens`` ``(B, L)``, computed on their device."""
        predictions = self.ensemble.to(tokens.device)(tokens)  # (M, B)
        return predictions.mean(0) - self.pessimism * predictions.std(0, correction=0)
