"""What every reward is: finished sequences in, one number each out."""

from abc import ABC, abstractmethod
from typing import Literal, Self

import torch
from torch import Tensor

from sepo_env.errors import InvalidShapeError, InvalidTokensError, RewardError
from sepo_env.rewards.values import read_values, shorten

RewardRole = Literal["training", "held_out", "any"]


class Reward(ABC):
    r"""A score of finished sequences, :math:`R(x_0)`.

    Subclasses implement `score`; calling the reward checks the tokens, runs `score` without gradients, checks
    the values and counts the sequences.

    Shapes:
        tokens ``(B, L)`` int64 -> values ``(B,)`` float32, on the tokens' device.

    Attributes:
        name: what the reward measures; its key in `terms`.
        role: ``"training"`` may drive an agent, ``"held_out"`` may only judge one, ``"any"`` may do both.
        calls: sequences really scored so far.
        failures: of these, the sequences that failed and were given the floor instead.
        cache_hits: sequences answered from the cache, not scored again.

    Example:
        >>> class CountOfZeros(Reward):
        ...     name = "zeros"
        ...
        ...     def score(self, tokens):
        ...         return (tokens == 0).sum(-1)
        >>> reward = CountOfZeros()
        >>> reward(torch.tensor([[0, 0, 1], [1, 1, 1]])), reward.calls
        (tensor([2., 0.]), 2)
    """

    name: str
    role: RewardRole = "any"
    calls: int = 0
    failures: int = 0
    cache_hits: int = 0

    @abstractmethod
    def score(self, tokens: Tensor) -> Tensor:
        """Return one value for each of the sequences ``tokens`` ``(B, L)``."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the values ``(B,)`` float32 of ``tokens`` ``(B, L)`` int64.

        Raises:
            InvalidTokensError: the tokens are not int64.
            InvalidShapeError: the tokens are not ``(B, L)``.
            RewardError: the values are not ``(B,)`` finite real numbers.
        """
        check_tokens(tokens)
        self.calls += tokens.shape[0]
        with torch.no_grad():
            raw = self.score(tokens)

        def show(row: int) -> str:
            return f"sequence {row} (tokens {shorten(str(tokens[row].tolist()))})"

        outcome = read_values(raw, tokens.shape[0], self.name, show)
        for failure in outcome.failures:
            raise RewardError(
                f"the reward {self.name!r} {failure.cause} for {show(failure.row)}; "
                "return a finite number for every sequence."
            )
        return outcome.values.to(tokens.device)

    def terms(self, tokens: Tensor) -> dict[str, Tensor]:
        """Return the values by name, each ``(B,)``; ``"reward"`` is what the call returns."""
        values = self(tokens)
        return {self.name: values, "reward": values}

    def close(self) -> None:  # noqa: B027 - most rewards hold nothing that must be ended
        """End what runs in the background, such as worker processes; a later call starts it anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def check_tokens(tokens: Tensor) -> None:
    """Raise unless ``tokens`` are int64 of shape ``(B, L)``."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        got = f"dtype {tokens.dtype}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise InvalidTokensError(f"a reward reads int64 token tensors, got {got}; convert with tokens.long().")
    if tokens.dim() != 2:
        raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
