"""Telling functions of strings from functions of tokens."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from sepo_env.errors import InvalidArgumentError
from sepo_env.rewards import RewardFunction, string_reward, token_reward
from sepo_env.rewards.functions import function_name, reward_function


def unannotated(sequences):
    return sequences


def of_list(sequences: list[str]) -> list[float]:
    return [0.0 for _ in sequences]


def of_sequence(sequences: Sequence[str]):
    return sequences


def of_iterable(sequences: Iterable[str]):
    return sequences


def of_anything(sequences: Any):
    return sequences


def of_bare_list(sequences: list):
    return sequences


def of_tensor(tokens: Tensor) -> Tensor:
    return tokens


def of_long_tensor(tokens: torch.LongTensor):
    return tokens


def of_forward_reference(tokens: "Tensor"):
    return tokens


def of_unresolvable_reference(tokens: "torchtyping.Tensor"):  # noqa: F821
    return tokens


class CallableOnTokens:
    def __call__(self, tokens: Tensor) -> Tensor:
        return tokens

    def method(self, sequences: list[str]) -> list[float]:
        return [0.0 for _ in sequences]


@pytest.mark.parametrize(
    ("function", "reads"),
    [
        (unannotated, "strings"),
        (lambda sequences: sequences, "strings"),
        (len, "strings"),
        (of_list, "strings"),
        (of_sequence, "strings"),
        (of_iterable, "strings"),
        (of_anything, "strings"),
        (of_bare_list, "strings"),
        (functools.partial(of_list), "strings"),
        (CallableOnTokens().method, "strings"),
        (of_tensor, "tokens"),
        (of_long_tensor, "tokens"),
        (of_forward_reference, "tokens"),
        (of_unresolvable_reference, "tokens"),
        (functools.partial(of_tensor), "tokens"),
        (CallableOnTokens(), "tokens"),
    ],
)
def test_the_annotation_of_the_first_parameter_tells(function, reads):
    told = reward_function(function)
    assert told.reads == reads
    assert told.function is function


def test_a_function_of_one_string_is_told_to_read_a_batch():
    def one(sequence: str) -> float:
        return len(sequence)

    with pytest.raises(InvalidArgumentError, match=r"reads one sequence.*lambda sequences: \[one\(s\) for s"):
        reward_function(one)


def test_other_annotations_ask_for_an_explicit_word():
    def of_number(value: int) -> float:
        return value

    with pytest.raises(InvalidArgumentError, match=r"annotation int .* wrap the function in string_reward"):
        reward_function(of_number)
    assert token_reward(of_number) == RewardFunction(of_number, "tokens", "of_number")
    assert string_reward(of_number, name="n") == RewardFunction(of_number, "strings", "n")


def test_a_function_without_parameters_is_refused():
    with pytest.raises(InvalidArgumentError, match="takes no argument"):
        reward_function(lambda: [1.0])


def test_said_outright_it_stays_callable():
    @token_reward
    def total(tokens):
        return tokens.sum(-1)

    assert total.name == "total"
    assert total(torch.ones(2, 3)).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (of_list, "of_list"),
        (functools.partial(of_list), "of_list"),
        (CallableOnTokens(), "CallableOnTokens"),
        (CallableOnTokens().method, "method"),
        (len, "len"),
        (string_reward(len, "size"), "size"),
        (torch.nn.Linear(1, 1), "Linear"),
    ],
)
def test_names(function, name):
    assert function_name(function) == name
