"""Configurations of denoisers are checked by their annotations: other types and ranges are named, in one line."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from sepo_env.denoisers import (
    ClassDNAConvConfig,
    ConvDenoiserConfig,
    DNAConvConfig,
    MDLMConfig,
    SEDDConfig,
    TransformerDenoiserConfig,
)
from sepo_env.denoisers.dit import DiTConfig
from sepo_env.errors import InvalidArgumentError, SepoEnvError, UnknownNameError

CONFIGS: dict[type, dict[str, Any]] = {
    ClassDNAConvConfig: {},
    ConvDenoiserConfig: {},
    DNAConvConfig: {},
    MDLMConfig: {},
    SEDDConfig: {},
    DiTConfig: {"vocab_size": 5},
    TransformerDenoiserConfig: {"num_tokens": 4, "vocab_size": 5},
}
FIELDS = [(kind, field.name) for kind in CONFIGS for field in dataclasses.fields(kind)]
WRONG = [-1, 0, 2.5, 10**30, float("nan"), float("inf"), "3", b"3", None, [], {}, object(), np.array([1, 2]), True]


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_every_field_is_checked(kind: Any, field: str) -> None:
    default = getattr(kind(**CONFIGS[kind]), field)
    refused = 0
    for value in WRONG:
        is_length, is_truth = field == "length" and value is None, isinstance(default, bool) and value is True
        if is_length or is_truth or (field == "dilations" and isinstance(value, list)):
            continue
        with pytest.raises(SepoEnvError) as error:
            kind(**{**CONFIGS[kind], field: value})
        assert isinstance(error.value, InvalidArgumentError | UnknownNameError)
        assert field in str(error.value)
        assert "\n" not in str(error.value)
        refused += 1
    assert refused >= len(WRONG) - 1


@pytest.mark.parametrize(("kind", "field"), FIELDS, ids=lambda value: getattr(value, "__name__", value))
def test_numbers_of_other_libraries_are_taken_as_what_they_are(kind: Any, field: str) -> None:
    expected = kind(**CONFIGS[kind])
    default = getattr(expected, field)
    others: list[Any] = [default]
    if isinstance(default, bool):
        others += [np.bool_(default)]
    elif isinstance(default, int):
        others += [np.int32(default), float(default), np.float64(default)]
    elif isinstance(default, tuple):
        others += [list(default), tuple(map(np.int64, default))]
    for value in others:
        found = kind(**{**CONFIGS[kind], field: value})
        assert found == expected
        assert type(getattr(found, field)) is type(default)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConvDenoiserConfig(vocab_size=4.5), r"vocab_size is 4.5 \(float\), but must be a whole number"),
        (lambda: ConvDenoiserConfig(kernel_size=4), "kernel_size is 4, but a centred convolution needs an odd width"),
        (lambda: ConvDenoiserConfig(dilations=(1, 0)), r"dilations is \(1, 0\) \(tuple\), but must be a sequence of"),
        (
            lambda: ConvDenoiserConfig(parameterisation="scores"),
            "did you mean 'score'",
        ),
        (lambda: SEDDConfig(graph="absorb"), "unknown graph 'absorb'; did you mean 'absorbing'"),
        (lambda: MDLMConfig(schedule="cosine"), "schedule is 'cosine', but must be a Schedule"),
        (lambda: MDLMConfig(width=10), "a width of 10 cannot be shared by 12 heads"),
        (lambda: DNAConvConfig(channels=7), "channels is 7, but a DNAConvDenoiser needs an even number"),
    ],
)
def test_what_is_wrong_is_said(build: Any, message: str) -> None:
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=message):
        build()
