"""Weighted sums of rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.arguments import check_argument, check_fields, checked, shown
from sepo_env.errors import HeldOutRewardError, InvalidArgumentError, RewardError
from sepo_env.rewards.base import Reward, RewardRole, check_tokens


@dataclass(frozen=True)
class WeightedTerm:
    """One summand: ``weight`` times ``reward``, called ``name`` in `Reward.terms`.

    Raises:
        InvalidArgumentError: a weight that is no finite number, or something else than a reward.
    """

    name: str
    weight: float
    reward: Reward

    def __post_init__(self) -> None:
        check_argument(f"the weight of {shown(self.name)}", self.weight, float)
        check_fields(self)


class WeightedSum(Reward):
    r"""The sum :math:`R(x) = \sum_j w_j R_j(x)`.

    `terms` gives each :math:`R_j` by name, without its weight, and the sum as ``"reward"``. A weight of 0 shows
    a term without optimising it. Terms that share a name, or are called "reward", are numbered. `calls` counts a
    sequence once, however many terms read it.

    Args:
        terms: the summands, at least one.
        name: of the sum.

    Raises:
        InvalidArgumentError: no terms.
        RewardError: on scoring, a sum that float32 cannot hold.
        HeldOutRewardError: a held-out term beside a training one: such a sum may be used for neither.
    """

    @checked
    def __init__(self, terms: Sequence[WeightedTerm], name: str = "weighted sum") -> None:
        if not terms:
            raise InvalidArgumentError("a weighted sum has at least one term, such as {'gc': 1.0}.")
        self.name = name
        self._terms = tuple(
            WeightedTerm(term_name, term.weight, term.reward)
            for term_name, term in zip(_distinct([term.name for term in terms]), terms, strict=True)
        )
        self.role = self._common_role()

    @property
    def weights(self) -> dict[str, float]:
        """The weight of each term."""
        return {term.name: term.weight for term in self._terms}

    @property
    def rewards(self) -> dict[str, Reward]:
        """The reward of each term."""
        return {term.name: term.reward for term in self._terms}

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the weighted sums ``(B,)`` float32."""
        check_tokens(tokens)
        return self.score(tokens)

    def score(self, tokens: Tensor) -> Tensor:
        """Return the weighted sums ``(B,)`` float32."""
        return self.terms(tokens)["reward"]

    def terms(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return each term's values without their weight, and the sum as ``"reward"``."""
        rewards = [term.reward for term in self._terms]
        calls, failures = [reward.calls for reward in rewards], [reward.failures for reward in rewards]
        values = {term.name: term.reward(tokens) for term in self._terms}
        scored = max(reward.calls - before for reward, before in zip(rewards, calls, strict=True))
        self.calls += scored
        self.cache_hits += tokens.shape[0] - scored
        self.failures += sum(reward.failures - before for reward, before in zip(rewards, failures, strict=True))
        total = torch.stack([term.weight * values[term.name] for term in self._terms]).sum(0)
        if not bool(total.isfinite().all()):
            row = int((~total.isfinite()).nonzero()[0])
            parts = ", ".join(f"{term.weight:g} * {float(values[term.name][row]):g}" for term in self._terms)
            raise RewardError(
                f"the weighted sum {self.name!r} is {float(total[row])} for sequence {row} ({shown(parts)}), more than "
                "float32 can hold; give smaller weights."
            )
        return {**values, "reward": total}

    def identity(self) -> dict[str, Any]:
        """The weights, and what each term is."""
        terms = {term.name: term.reward.identity() for term in self._terms}
        return {"name": self.name, "weights": self.weights, "terms": terms}

    def networks(self) -> Iterator[tuple[Reward, nn.Module]]:
        """Those of every term."""
        for term in self._terms:
            yield from term.reward.networks()

    def close(self) -> None:
        """Close every term."""
        for term in self._terms:
            term.reward.close()

    def _common_role(self) -> RewardRole:
        names: dict[RewardRole, str] = {term.reward.role: term.name for term in self._terms}
        if "held_out" in names and "training" in names:
            raise HeldOutRewardError(
                f"a weighted sum of the held-out reward {names['held_out']!r} and the training reward "
                f"{names['training']!r} could neither train nor judge; leave one of them out."
            )
        if "held_out" in names:
            return "held_out"
        return "training" if "training" in names else "any"


def _distinct(names: Sequence[str]) -> list[str]:
    """Number the names that occur again.

    >>> _distinct(["gc", "gc", "reward"])
    ['gc', 'gc_2', 'reward_2']
    """
    taken = {"reward"}
    distinct = []
    for name in names:
        number, candidate = 2, name
        while candidate in taken:
            number, candidate = number + 1, f"{name}_{number}"
        taken.add(candidate)
        distinct.append(candidate)
    return distinct
