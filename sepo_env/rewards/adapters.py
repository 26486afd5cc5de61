"""A function as a reward: checked, optionally spread over processes, floored where it fails, cached."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from sepo_env.arguments import Count, check_fields, checked
from sepo_env.errors import InvalidArgumentError, RewardError, RewardTimeoutError
from sepo_env.identity import describe_callable
from sepo_env.metering import running
from sepo_env.precision import without_autocast
from sepo_env.rewards import isolate
from sepo_env.rewards.base import Reward, RewardRole, check_tokens
from sepo_env.rewards.cache import DEFAULT_ENTRIES, ValueCache
from sepo_env.rewards.functions import RewardFunction
from sepo_env.rewards.values import Failure, read_values, say, shorten
from sepo_env.rewards.worker_process import WorkerDied
from sepo_env.rewards.workers import WorkerPool

Workers = Annotated[int, Ge(0), Le(1024)]
"""A number of processes, or none."""
Timeout = Annotated[float, Gt(0), Le(4_000_000)]
"""Seconds; the most, a month and a half, is what every system can wait for."""
OnError = Literal["raise", "floor"]
Decode = Callable[[Tensor], list[str]]

_NAMED = 4
"""Sequences that a message names; more are counted."""


@dataclass(frozen=True)
class ScoringOptions:
    """How a function is called.

    Attributes:
        workers: processes over which a function of strings is spread; 0 calls it here.
        timeout: seconds for one batch, with workers only; None waits as long as it takes.
        on_error: what becomes of a sequence that raises, has no finite value or does not answer in time:
            ``"raise"`` an error that names it, or score it with the ``"floor"``.
        floor: the value of such a sequence.
        cache: keep values: True for 100 000 sequences, or their number.

    Raises:
        InvalidArgumentError: a value of another type or out of range, or options that exclude each other.
        UnknownNameError: ``on_error`` is neither of the two.
    """

    workers: Workers = 0
    timeout: Timeout | None = None
    on_error: OnError = "raise"
    floor: float | None = None
    cache: bool | Count = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.timeout is not None and self.workers == 0:
            raise InvalidArgumentError(
                "a timeout needs worker processes, because a call in this process cannot be stopped; "
                "give workers=1 or more."
            )
        if self.on_error == "floor" and self.floor is None:
            raise InvalidArgumentError(
                "on_error='floor' needs a value for the sequences that fail; give floor=VALUE, below what a poor "
                "sequence scores."
            )
        if self.on_error == "raise" and self.floor is not None:
            raise InvalidArgumentError("a floor is used with on_error='floor' only; give both or neither.")


class FunctionReward(Reward):
    """A function of strings or of tokens as a reward.

    Args:
        function: what scores a batch, and what it reads.
        decode: tokens ``(B, L)`` -> ``list[str]``.
        options: how it is called.
        role: what the values may be used for.
        num_ids: the tokens that it is asked to score are 0 .. ``num_ids`` - 1; None does not look.

    Example:
        >>> reward = FunctionReward(
        ...     RewardFunction(lambda sequences: [s.count("G") for s in sequences], "strings", "guanines"),
        ...     decode=lambda tokens: ["".join("ACGT"[t] for t in row) for row in tokens.tolist()],
        ... )
        >>> reward(torch.tensor([[2, 2, 0], [1, 2, 3]]))
        tensor([2., 1.])
    """

    @checked
    def __init__(
        self,
        function: RewardFunction,
        *,
        decode: Decode,
        options: ScoringOptions | None = None,
        role: RewardRole = "any",
        num_ids: Count | None = None,
    ) -> None:
        self.function = function
        self.num_ids = num_ids
        self.name = function.name
        self.role = role
        self.options = options or ScoringOptions()
        self._decode = decode
        if self.options.workers and function.reads != "strings":
            raise InvalidArgumentError(
                f"workers={self.options.workers} spreads functions of strings, but the reward {self.name!r} "
                "reads tokens, which are scored best in one batch; take workers=0."
            )
        self._pool = (
            WorkerPool(function.function, self.name, self.options.workers, self.options.timeout)
            if self.options.workers
            else None
        )
        entries = DEFAULT_ENTRIES if self.options.cache is True else self.options.cache
        self._cache = ValueCache(entries) if self.options.cache is not False else None

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the values ``(B,)`` float32 of ``tokens`` ``(B, L)`` int64.

        Raises:
            InvalidTokensError, InvalidShapeError: the tokens are not ``(B, L)`` int64, or not those that it reads.
            RewardError: the function raised, or its values cannot be used; the message names the sequence.
            RewardTimeoutError: it did not answer in time.
        """
        check_tokens(tokens, self.num_ids)
        with torch.no_grad(), without_autocast():
            return self.score(tokens) if self._cache is None else self._score_cached(tokens, self._cache)

    def score(self, tokens: Tensor) -> Tensor:
        """Return the values of ``tokens``, every one scored anew."""
        return self._score_rows(tokens, list(range(tokens.shape[0])))[0]

    def identity(self) -> dict[str, Any]:
        """What the function is, and what becomes of sequences that fail; how it is called changes no value."""
        floored = self.options.on_error == "floor"
        options = {"on_error": "floor", "floor": self.options.floor} if floored else {}
        function: Any = self.function.function
        if isinstance(function, Reward):  # the same as without an option that changes nothing
            return {**function.identity(), **options}
        told = describe_callable(function.module if isinstance(function, ModuleReward) else function)
        return {"name": self.name, "reads": self.function.reads, "function": told, **options}

    def networks(self) -> Iterator[tuple[Reward, nn.Module]]:
        """The module that scores, or what another reward scores with."""
        function: Any = self.function.function
        if isinstance(function, Reward):
            yield from function.networks()
        elif isinstance(function, ModuleReward):
            yield self, function.module

    def close(self) -> None:
        """End the worker processes; the next call starts new ones."""
        if self._pool is not None:
            self._pool.close()
        if isinstance(self.function.function, Reward):
            self.function.function.close()

    def _score_cached(self, tokens: Tensor, cache: ValueCache) -> Tensor:
        keys = cache.keys(tokens)
        # Beside the cache, which may hold fewer sequences than the batch has.
        known = {key: cache.get(key) for key in dict.fromkeys(keys)}
        rows: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            if known[key] is None:
                rows.setdefault(key, row)
        values, failed = self._score_rows(tokens, list(rows.values()))
        for key, row, value in zip(rows, rows.values(), values.tolist(), strict=True):
            known[key] = value
            if row not in failed:  # a failure may pass
                cache.put(key, value)
        self.cache_hits += len(keys) - len(rows)
        return torch.tensor([known[key] for key in keys], dtype=torch.float32, device=tokens.device)

    def _score_rows(self, tokens: Tensor, rows: list[int]) -> tuple[Tensor, set[int]]:
        """Score the given rows; return their values and which of them were given the floor."""
        values = torch.full((len(rows),), math.nan, dtype=torch.float32)
        if not rows:
            return values.to(tokens.device), set()
        batch: Any = tokens if len(rows) == tokens.shape[0] else tokens[rows]
        if self.function.reads == "strings":
            batch = self._decode(batch.clone())
        self.calls += len(rows)

        def show(position: int) -> str:
            row = rows[position]
            try:
                text = batch[position] if self.function.reads == "strings" else self._decode(tokens[[row]])[0]
            except Exception:  # what cannot be written may be why it failed
                return f"sequence {row} (tokens {shorten(str(tokens[row].tolist()))})"
            return f"sequence {row} ({shorten(text)!r}, {len(text)} letters)"

        with running(self):
            failures = self._attempt(batch, values, show)
        if failures and self.options.on_error == "raise":
            self._raise(failures, len(rows), show)
        floor = self.options.floor if self.options.floor is not None else math.nan
        for failure in failures:
            values[failure.row] = floor
        self._count_failures(failures, show)
        return values.to(tokens.device), {rows[failure.row] for failure in failures}

    def _attempt(self, batch: Any, values: Tensor, show: Callable[[int], str]) -> list[Failure]:
        """Call the function, write what it returns to ``values``, and return the failures by row."""
        fail_fast = self.options.on_error == "raise"
        if self._pool is not None:
            result = self._pool.attempt(batch, fail_fast)
        else:
            copy = list if self.function.reads == "strings" else Tensor.clone
            result = isolate.attempt(self.function.function, batch, fail_fast, copy)
        if result.batch_error is not None and fail_fast:
            raise RewardError(
                f"the reward {self.name!r} raised {say(result.batch_error)} for several of {len(batch)} sequences "
                f"together, though for none of them alone; the first is {show(0)}. "
                "Mend how the function treats a batch."
            ) from result.batch_error
        failures = [Failure(row, _cause(error), error) for row, error in result.errors.items()]
        for start, stop, raw in result.pieces:
            outcome = read_values(raw, stop - start, self.name, functools.partial(_show_from, show, start))
            values[start:stop] = outcome.values
            failures += [Failure(start + f.row, f.cause) for f in outcome.failures]
        late = f"did not answer within {self.options.timeout} s"
        failures += [Failure(row, late, timed_out=True) for row in result.unanswered]
        return sorted(failures, key=lambda failure: failure.row)

    def _raise(self, failures: list[Failure], count: int, show: Callable[[int], str]) -> None:
        cure = "or score such sequences with on_error='floor' and floor=VALUE."
        first = next((failure for failure in failures if not failure.timed_out), None)
        if first is not None:
            raise RewardError(
                f"the reward {self.name!r} {first.cause} for {show(first.row)} of {count}; "
                f"mend the function so that every sequence has a finite value, {cure}"
            ) from first.error
        raise RewardTimeoutError(
            f"the reward {self.name!r} {failures[0].cause} for {len(failures)} of {count} sequences: "
            f"{_list(failures, show)}; give a longer timeout or more workers, {cure}"
        )

    def _count_failures(self, failures: list[Failure], show: Callable[[int], str]) -> None:
        if failures and self.failures == 0:
            warnings.warn(
                f"the reward {self.name!r} {failures[0].cause} for {show(failures[0].row)}; it and others that "
                f"fail are given the floor {self.options.floor}, counted in `failures`, not reported again.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.failures += len(failures)


class ModuleReward(nn.Module):
    """A torch module as a function of tokens that live anywhere.

    Tokens are moved to the module's device. The module is put in evaluation mode, because dropout would make
    its values random.
    """

    @checked
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval()

    def forward(self, tokens: Tensor) -> Tensor:
        """Return what the module makes of ``tokens`` ``(B, L)``."""
        weights = next(self.module.parameters(), None)
        return self.module(tokens if weights is None else tokens.to(weights.device))


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, WorkerDied) else f"raised {say(error)}"


def _show_from(show: Callable[[int], str], start: int, row: int) -> str:
    return show(start + row)


def _list(failures: list[Failure], show: Callable[[int], str]) -> str:
    named = [show(failure.row) for failure in failures[:_NAMED]]
    return ", ".join(named) + (f" and {len(failures) - _NAMED} more" if len(failures) > _NAMED else "")
