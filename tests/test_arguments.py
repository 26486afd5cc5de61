"""The check of arguments: what is taken as what, and what an error says."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from sepo_env.arguments import (
    Count,
    NonNegative,
    PathArgument,
    PathText,
    Positive,
    Seed,
    Share,
    Size,
    WholeNumber,
    check_argument,
    check_fields,
    checked,
    describe,
    shown,
)
from sepo_env.errors import InvalidArgumentError, InvalidCallError, UnknownNameError, UnknownOptionError

Mode = Literal["fast", "exact"]


@pytest.mark.parametrize("value", [3, 3.0, np.int64(3), np.uint8(3), np.float32(3)])
@pytest.mark.parametrize("hint", [int, Count, Size, WholeNumber, Seed, Count | None])
def test_whole_numbers_of_any_kind_are_integers(value, hint):
    found = check_argument("n", value, hint)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, "3", b"3", 3.5, np.nan, np.inf, 1j, [3], (3,), {}, object(), None])
@pytest.mark.parametrize("hint", [int, Count, Size, WholeNumber, Seed])
def test_what_is_no_whole_number_is_refused(value, hint):
    with pytest.raises(InvalidArgumentError, match=r"^n is .*, but must be a whole number.*\.$"):
        check_argument("n", value, hint)


@pytest.mark.parametrize(
    ("hint", "inside", "outside"),
    [
        (Count, [1, 2**31 - 1], [0, -1, 2**31]),
        (Size, [1, 10**6], [0, 10**6 + 1, 10**10]),
        (WholeNumber, [0, 2**31 - 1], [-1, 2**31]),
        (Seed, [0, 2**63 - 1], [-1, 2**63, 2**63 + 7]),
        (Positive, [1e-300, 5], [0, -1.0, float("inf"), float("nan")]),
        (NonNegative, [0, 1e300], [-1e-300, float("inf"), float("nan")]),
        (Share, [0, 1, 0.5], [-0.1, 1.1, float("nan")]),
    ],
)
def test_ranges_end_where_they_say(hint, inside, outside):
    for value in inside:
        assert check_argument("n", value, hint) == value
    for value in outside:
        with pytest.raises(InvalidArgumentError, match="^n is "):
            check_argument("n", value, hint)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), np.int8(1), torch.tensor(0.5)])
def test_real_numbers_of_any_kind_are_floats(value):
    assert type(check_argument("x", value, float)) is float


@pytest.mark.parametrize("value", ["0.5", True, None, 0.5j, [0.5], float("nan"), float("inf")])
def test_what_is_no_finite_number_is_refused(value):
    with pytest.raises(InvalidArgumentError, match=r"^x is .*, but must be a finite number\.$"):
        check_argument("x", value, float)


def test_truth_is_no_number_and_no_text():
    assert check_argument("b", np.True_, bool) is True
    for value in (1, 0, "yes", None):
        with pytest.raises(InvalidArgumentError, match="must be True or False"):
            check_argument("b", value, bool)


class Folder(os.PathLike):
    def __fspath__(self) -> str:
        return "somewhere"


def test_paths_are_text_or_path_like():
    for value in ("a", Path("a"), Folder()):
        assert check_argument("path", value, PathArgument) is value
    for value in (3, b"a", None):
        with pytest.raises(InvalidArgumentError, match="must be text, or a path"):
            check_argument("path", value, PathArgument)


def test_a_choice_is_a_name_or_is_refused():
    assert check_argument("mode", "fast", Mode) == "fast"
    assert check_argument("mode", None, Mode | None) is None
    with pytest.raises(UnknownNameError, match="did you mean 'exact'"):
        check_argument("mode", "exakt", Mode | None)
    with pytest.raises(InvalidArgumentError, match="mode is 3, but must be 'fast' or 'exact'"):
        check_argument("mode", 3, Mode)


def test_containers_are_looked_into_and_copied():
    names = ["a", "b"]
    found = check_argument("names", names, list[str])
    assert found == names
    assert found is not names
    assert check_argument("pair", ["A", "C"], tuple[str, str]) == ("A", "C")  # as JSON gives it
    assert check_argument("weights", {"a": np.float64(1)}, Mapping[str, float]) == {"a": 1.0}
    for value, hint in [(["a", 1], Sequence[str]), ("ab", Sequence[str]), ({"a": "b"}, Mapping[str, float])]:
        with pytest.raises(InvalidArgumentError):
            check_argument("it", value, hint)


@dataclass
class Settings:
    depth: int = 1


def test_dataclasses_are_passed_through_as_they_are():
    given = Settings()
    assert check_argument("settings", given, Settings | None) is given
    assert check_argument("settings", given, Settings) is given
    with pytest.raises(InvalidArgumentError, match="must be a Settings"):
        check_argument("settings", {"depth": 1}, Settings)


def test_sequences_of_any_kind_are_looked_into():
    for value in ([3, 4], (3, 4), torch.Size([3, 4]), range(3, 5)):
        assert list(check_argument("sizes", value, Sequence[Size])) == [3, 4]
    for value in (torch.Size([0]), range(2), {3, 4}, "34", iter([3])):
        with pytest.raises(InvalidArgumentError, match="^sizes is "):
            check_argument("sizes", value, Sequence[Size])


def test_classes_are_told_by_isinstance_and_passed_through():
    tensor = torch.zeros(2)
    assert check_argument("tokens", tensor, torch.Tensor | None) is tensor
    assert check_argument("f", len, Callable[[Any], int]) is len
    with pytest.raises(InvalidArgumentError, match="tokens is 'a', but must be a Tensor, or None"):
        check_argument("tokens", "a", torch.Tensor | None)
    with pytest.raises(InvalidArgumentError, match="must be a function"):
        check_argument("f", 3, Callable[[Any], int])


def test_a_checked_constructor_takes_and_refuses():
    class Sampler:
        @checked
        def __init__(self, steps: Count, *, mode: Mode = "fast", **rest: Any) -> None:
            self.steps, self.mode, self.rest = steps, mode, rest

    made = Sampler(np.int32(4), mode="exact", other="x")
    assert (made.steps, made.mode, made.rest) == (4, "exact", {"other": "x"})
    assert type(made.steps) is int
    with pytest.raises(InvalidArgumentError, match="steps is 0"):
        Sampler(0)
    with pytest.raises(TypeError, match="missing"):  # as Python says it
        Sampler()


class Thing:
    @checked
    def __init__(self, size: Count, *, colour: str = "red") -> None:
        self.size = size


@checked
def anything(first: int, **rest: Any) -> int:
    return first


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda: Thing(2, color="blue"),
            UnknownOptionError,
            "Thing got an unexpected keyword argument 'color'; did you",
        ),
        (lambda: Thing(), InvalidCallError, "Thing: missing a required argument: 'size'; it takes: size, colour."),
        (lambda: Thing(1, 2), InvalidCallError, "Thing: too many positional arguments; it takes: size, colour."),
        (
            lambda: anything(rest=1),
            InvalidCallError,
            "anything: missing a required argument: 'first'; it takes: first.",
        ),
    ],
)
def test_a_call_that_does_not_fit_is_named(call, kind, words):
    with pytest.raises(kind, match=words) as error:
        call()
    assert isinstance(error.value, TypeError)
    assert "\n" not in str(error.value)
    with pytest.raises(kind):  # it can be made again with a longer message, as Gymnasium does
        raise type(error.value)(f"{error.value} More.")


def test_checked_fields_stay_frozen():
    @dataclass(frozen=True)
    class Config:
        steps: int = 8

        def __post_init__(self) -> None:
            check_fields(self)

    config = Config(steps=np.int64(2))
    assert type(config.steps) is int
    with pytest.raises(InvalidArgumentError, match="steps is '8', but must be a whole number"):
        Config(steps="8")
    with pytest.raises(FrozenInstanceError):
        config.steps = 3


class Hostile:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_whatever_is_shown_is_one_short_line():
    assert shown(Hostile()) == "<Hostile>"
    assert "\n" not in shown(torch.zeros(30, 30))
    assert len(shown("a" * 10_000)) == 80
    assert len(shown("a\n" * 10_000)) == 80


def test_a_description_names_bounds_and_parts():
    assert describe(Count) == "a whole number from 1 to 2147483647"
    assert describe(Positive | None) == "a finite number above 0, or None"
    assert describe(tuple[str, str]) == "a tuple of 2: text, text"
    assert describe(Mapping[str, float]) == "a mapping"
    assert describe(Literal["a"]) == "'a'"
    assert describe(torch.Tensor) == "a Tensor"


def test_paths_are_kept_as_text():
    for value in ("a", Path("a")):
        assert check_argument("path", value, PathText | None) == "a"
    with pytest.raises(InvalidArgumentError, match="^path is 3, but must be a path, or None.$"):
        check_argument("path", 3, PathText | None)


def test_choices_may_be_joined():
    with pytest.raises(UnknownNameError, match="did you mean 'slow'. Known: exact, fast, slow"):
        check_argument("mode", "slaw", Mode | Literal["slow"] | None)
    with pytest.raises(InvalidArgumentError, match="but must be"):  # a number may be given as well
        check_argument("mode", "slaw", Mode | int)
