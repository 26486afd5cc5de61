"""What every reward is: finished sequences in, one number each out."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from sepo_env.errors import InvalidShapeError, InvalidTokensError, RewardError, SepoEnvError
from sepo_env.identity import Identified
from sepo_env.metering import evaluated, is_running, mark, methods, running, unmarked
from sepo_env.precision import without_autocast
from sepo_env.rewards.values import read_values, say, shorten

RewardRole = Literal["training", "held_out", "any"]


class Reward(Identified, ABC):
    r"""A score of finished sequences, :math:`R(x_0)`.

    Subclasses implement `score`; calling the reward checks the tokens, runs `score` without gradients on a copy of
    them, checks the values, copies them and counts the sequences.

    Shapes:
        tokens ``(B, L)`` int64 -> values ``(B,)`` float32, on the tokens' device.

    Attributes:
        name: what the reward measures; its key in `terms`.
        role: ``"training"`` may drive an agent, ``"held_out"`` may only judge one, ``"any"`` may do both.
        calls: sequences really scored so far.
        failures: of these, the sequences that failed and were given the floor instead.
        cache_hits: sequences answered from the cache, not scored again.
        num_ids: the tokens that it reads are 0 .. ``num_ids`` - 1, which calling it checks; None: whatever they are.

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

    _not_identity: ClassVar[frozenset[str]] = frozenset({"name", "calls", "failures", "cache_hits"})

    name: str
    role: RewardRole = "any"
    calls: int = 0
    failures: int = 0
    cache_hits: int = 0
    num_ids: int | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        """Count the sequences that `score` is asked for past the call; who overrides the call counts by itself."""
        super().__init_subclass__(**options)
        score = methods(cls, above=Reward).get("score")
        if score is not None and unmarked(score) is score and cls.__call__ is Reward.__call__:
            setattr(cls, "score", _counted(score))  # noqa: B010 - to mypy a method is not to be assigned to

    @abstractmethod
    def score(self, tokens: Tensor) -> Tensor:
        """Return one value for each of the sequences ``tokens`` ``(B, L)``, which are its own to write into."""

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the values ``(B,)`` float32 of ``tokens`` ``(B, L)`` int64.

        Raises:
            InvalidTokensError: the tokens are not int64, or outside of what the reward reads.
            InvalidShapeError: the tokens are not ``(B, L)``.
            RewardError: `score` raised, or the values are not ``(B,)`` finite real numbers.
        """
        check_tokens(tokens, self.num_ids)
        if not len(tokens):
            return torch.zeros(0, dtype=torch.float32, device=tokens.device)
        self.calls += tokens.shape[0]
        with torch.no_grad(), without_autocast(), running(self):
            try:
                raw = self.score(tokens.clone())
            except SepoEnvError:
                raise
            except Exception as error:  # somebody else's code
                raise RewardError(
                    f"the reward {self.name!r} raised {say(error)} for {len(tokens)} sequences; mend its score(), or "
                    "score sequences that fail with on_error='floor' and floor=VALUE."
                ) from error

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
        return {self.name: values, "reward": values.clone()}

    def identity(self) -> dict[str, Any]:
        """What this reward is, for JSON: name, class and attributes; a resumed run compares it.

        Of a class of your own the code is told as well. Attributes that scoring assigns (`score` and methods named
        ``_...``) are left out. Override it where something else decides over the values.
        """
        return {"name": self.name, **super().identity()}

    def networks(self) -> Iterator[tuple[Reward, nn.Module]]:
        """The networks that score, each with the reward that calls it, for a meter to look at."""
        yield from ((self, value) for value in vars(self).values() if isinstance(value, nn.Module))

    def close(self) -> None:
        """End what runs in the background, such as worker processes; a later call starts it anew."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _counted(score: Callable[..., Any]) -> Callable[..., Any]:
    """`Reward.score` that counts where it is called by itself; a gradient through it is worth two calls more."""

    @functools.wraps(score)
    def call(self: Reward, tokens: Tensor) -> Any:
        if is_running(id(self)):
            return score(self, tokens)
        with running(self):
            values = score(self, tokens)
        rows, differentiable = evaluated(tokens, values) or (len(tokens), False)
        self.calls += rows * (3 if differentiable else 1)
        return values

    return mark(call)


def check_tokens(tokens: Tensor, num_ids: int | None = None) -> None:
    """Raise unless ``tokens`` are int64 of shape ``(B, L)``, and in 0 .. ``num_ids`` - 1 where that is given."""
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64:
        got = f"dtype {tokens.dtype}" if isinstance(tokens, Tensor) else f"a {type(tokens).__name__}"
        raise InvalidTokensError(f"a reward reads int64 token tensors, got {got}; convert with tokens.long().")
    if tokens.dim() != 2:
        raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
    if tokens.is_meta:
        raise InvalidTokensError("tokens on the device 'meta' have no values that a reward could score.")
    if num_ids is not None and tokens.numel():
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high >= num_ids:
            raise InvalidTokensError(
                f"expected tokens 0..{num_ids - 1}, but got tokens in {low}..{high}; finish denoising before scoring, "
                "and encode with the same alphabet."
            )
