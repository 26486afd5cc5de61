"""What things are: data, functions, objects and networks."""

import functools
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sepo_env.identity import CANNOT_BE_TOLD, describe, describe_callable, tensors_digest


def doubts(described: Any) -> list[str]:
    """Every reason why something cannot be told."""
    if isinstance(described, dict):
        own = [described[CANNOT_BE_TOLD]] if CANNOT_BE_TOLD in described else []
        return own + [doubt for value in described.values() for doubt in doubts(value)]
    return [doubt for value in described for doubt in doubts(value)] if isinstance(described, list) else []


def text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


@dataclass(frozen=True)
class Settings:
    weight: float = 1.0


class Scorer:
    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.count = 0

    def __call__(self, sequences: list[str]) -> list[float]:
        self.count += 1
        return [self.weight] * len(sequences)

    def score(self, sequences: list[str]) -> list[float]:
        return self(sequences)


class Network(nn.Module):
    def __init__(self, scale: float = 1.0, sizes: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.scale = scale
        self.sizes = list(sizes)
        self.seen = 0
        self.layers = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), nn.GELU())
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        self.seen += 1
        return self.scale * tokens.float().mean(-1)


def network(**settings: Any) -> Network:
    torch.manual_seed(0)
    return Network(**settings)


def changed(change: Callable[[Network], Any]) -> Network:
    module = network()
    with torch.no_grad():
        change(module)
    return module


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 2),
        (1.0, math.nan),
        ("a", "b"),
        ("a" * 1000, "a" * 999 + "b"),
        ((1, 2), (2, 1)),
        (tuple(range(1000)), tuple(range(1001))),
        (frozenset("ab"), frozenset("ac")),
        (torch.zeros(3), torch.zeros(3, dtype=torch.float64)),
        (torch.zeros(3), torch.tensor([0.0, 0.0, 1e-30])),
        (np.zeros(3), np.ones(3)),
        (np.float32(1), np.float32(2)),
        (Settings(1.0), Settings(2.0)),
        (network(), network(scale=2.0)),
        (network(), changed(lambda module: module.layers[0].weight[0].add_(1e-3))),
        (network(), changed(lambda module: module.hidden.add_(1))),
        (network(), changed(lambda module: setattr(module.layers[1], "p", 0.1))),
        (network(), changed(lambda module: setattr(module.layers[2], "approximate", "tanh"))),
        (network(), network(sizes=(2,))),
    ],
)
def test_other_things_have_other_descriptions(one: Any, other: Any) -> None:
    assert text(describe(one)) != text(describe(other))


@pytest.mark.parametrize(
    "make",
    [
        lambda: (1, "a", 2.5, None, True, b"x", math.inf),
        lambda: frozenset({"a", "b", "c"}),
        lambda: torch.arange(6).reshape(2, 3).T,
        lambda: np.arange(4.0),
        lambda: Settings(),
        network,
    ],
)
def test_what_is_told_is_told_the_same_twice(make: Callable[[], Any]) -> None:
    assert text(describe(make())) == text(describe(make()))
    assert not [doubt for doubt in doubts(describe(make())) if "a list" not in doubt]


def test_a_network_is_the_same_on_both_sides_of_running() -> None:
    module = network()
    before = describe(module)
    module.eval()(torch.zeros(2, 2, dtype=torch.int64))
    assert describe(module) == before


def test_a_compiled_network_is_what_was_compiled() -> None:
    module = network()
    assert describe(torch.compile(module, backend="eager")) == describe(module)


def test_scripted_networks_are_told_by_their_program() -> None:
    class Plus(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens + 1

    class Minus(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens - 1

    plus, again, minus = (torch.fx.symbolic_trace(kind()) for kind in (Plus, Plus, Minus))
    assert describe(plus) == describe(again) != describe(minus)


def test_the_digest_of_tensors_does_not_depend_on_their_order() -> None:
    a, b = torch.zeros(2), torch.ones(1)
    assert tensors_digest([("a", a), ("b", b)]) == tensors_digest([("b", b), ("a", a)])
    assert tensors_digest([("a", a), ("b", b)]) != tensors_digest([("b", a), ("a", b)])


def closing_over(value: Any) -> Callable[[list[str]], list[float]]:
    def score(sequences: list[str]) -> list[float]:
        return [float(bool(value))] * len(sequences)

    return score


def counting() -> Callable[[list[str]], list[float]]:
    count = 0

    def score(sequences: list[str]) -> list[float]:
        nonlocal count
        count += 1
        return [1.0] * len(sequences)

    return score


def test_closures_over_data_are_told_apart() -> None:
    one, same, other = (text(describe_callable(closing_over(value))) for value in (1.0, 1.0, 2.0))
    assert one == same != other
    assert not doubts(describe_callable(closing_over((1, "a"))))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda sequences: [0.0] * len(sequences), "a lambda"),
        (closing_over([1.0]), "a list, which may change"),
        (closing_over({"a": 1.0}), "a dict, which may change"),
        (counting(), "a variable that it assigns"),
        (len, "a C function"),
        (Scorer(1.0), "a live Scorer"),
        (Scorer(1.0).score, "a bound method of a live Scorer"),
        (functools.partial(Scorer(1.0)), "a live Scorer"),
        (closing_over(torch.Generator()), "a live Generator"),
        (functools.partial(len), "a C function"),
    ],
)
def test_what_cannot_be_told_says_so_once(function: Callable[..., Any], reason: str) -> None:
    assert doubts(describe_callable(function)) == [reason]
    text(describe_callable(function))


def test_settings_of_an_object_are_told_and_its_counters_are_not() -> None:
    one, same, other = Scorer(1.0), Scorer(1.0), Scorer(2.0)
    one(["a"])
    assert describe_callable(one) == describe_callable(same) != describe_callable(other)
    assert describe_callable(one.score) != describe_callable(other.score)


def test_arguments_of_a_partial_are_told() -> None:
    def score(sequences: list[str], weight: float = 1.0) -> list[float]:
        return [weight] * len(sequences)

    one, other = (describe_callable(functools.partial(score, weight=weight)) for weight in (1.0, 2.0))
    assert one != other
    assert not doubts(one)


def decorated(weight: float) -> Callable[[Tensor], Tensor]:
    @torch.no_grad()
    def score(tokens: Tensor) -> Tensor:
        return weight * tokens.sum(-1)

    return score


def test_decorators_of_others_are_known_by_their_name() -> None:
    """And what they decorate by its code."""
    one, same, other = (describe_callable(decorated(weight)) for weight in (1.0, 1.0, 2.0))
    assert one == same != other
    assert not doubts(one)
    assert one["wrapped"]["closure"] == {"weight": 1.0}
    assert one["wrapper"].startswith("torch.")
    cached = describe_callable(functools.lru_cache(closing_over(1.0)))
    assert not doubts(cached)
    assert cached != describe_callable(functools.lru_cache(closing_over(2.0)))


def test_nothing_makes_it_fail() -> None:
    class Hostile:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

        def __call__(self, sequences: list[str]) -> list[float]:
            return [0.0]

    deep: Any = ()
    for _ in range(500):
        deep = (deep,)
    round_trip: list[Any] = []
    round_trip.append(round_trip)
    for value in (
        Hostile(),
        deep,
        round_trip,
        {"a": round_trip},
        torch.zeros(1).to_sparse(),
        torch.zeros(1, device="meta"),
    ):
        assert doubts(describe(value))
    assert doubts(describe_callable(Hostile()))


def recursive(sequences: list[str]) -> list[float]:
    return [*recursive(sequences[1:]), 0.0] if sequences else []


def test_recursion_ends() -> None:
    assert describe_callable(recursive)["reads"]["recursive"]["reads"] == {"recursive": "again recursive"}
