"""Configurations of denoisers are checked by their annotations: other types and ranges are named, in one line."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from sepo_env.denoisers import (
    ClassDNAConvConfig,
    ClassDNAConvDenoiser,
    ClassifierFreeGuidance,
    ConvDenoiser,
    ConvDenoiserConfig,
    DNAConvConfig,
    DNAConvDenoiser,
    MaskedLMDenoiser,
    MDLMConfig,
    MDLMDenoiser,
    SEDDConfig,
    SEDDDenoiser,
    TabularDenoiser,
    TransformerDenoiser,
    TransformerDenoiserConfig,
    load_denoiser,
    load_drakes,
    load_masked_lm,
    load_mdlm,
    load_sedd,
    save_denoiser,
)
from sepo_env.denoisers.dit import DiT, DiTConfig
from sepo_env.denoisers.masked_lm_codec import MaskedLMCodec
from sepo_env.errors import InvalidArgumentError, SepoEnvError, UnknownNameError
from tests.hf_models import make_tokenizer

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


# Constructors and loaders

NETWORKS = [
    ClassDNAConvDenoiser,
    ConvDenoiser,
    DNAConvDenoiser,
    DiT,
    MDLMDenoiser,
    SEDDDenoiser,
    TransformerDenoiser,
]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("config", [None, 3, "config", {}, DNAConvConfig, DiTConfig(5, 8, 1, 2, 4), object()])
def test_networks_take_their_own_configuration_only(kind: Any, config: object) -> None:
    if kind is DiT and isinstance(config, DiTConfig):
        return
    with pytest.raises(InvalidArgumentError, match=r"config is .*, but must be a \w+Config"):
        kind(config)


TABLE = {"num_tokens": 2, "length": 3, "vocab_size": 3}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: value}, f"{name} is") for name in TABLE for value in (0, -1, 2.5, "2", None, 10**30, True)),
        ({"vocab_size": 4}, "vocab_size is 4, but a model of 2 visible tokens reads either 2"),
        ({"length": 22}, "a table of 3 .. 22 states fits into no memory"),
        ({"parameterisation": "odds"}, "unknown parameterisation 'odds'"),
        ({"parameterisation": 3}, "parameterisation is 3"),
        ({"generator": 3}, "generator is 3, but must be a Generator, or None"),
    ],
)
def test_tables_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=message):
        TabularDenoiser(**{**TABLE, **changes})
    assert TabularDenoiser(np.int64(2), 3.0, np.int8(3)).length == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, 1.0), "denoiser is 3, but must be a Module"),
        ((torch.nn.Linear(2, 2), 1.0), "Denoiser"),
        (("table", -1.0), "scale is -1.0 .float., but must be a finite number of at least 0"),
        (("table", float("inf")), "scale is inf"),
        (("table", "1"), "scale is '1'"),
        (("table", True), "scale is True"),
        (("table", None), "scale is None"),
        (("table", 1.0, -1), "label is -1, but must be a whole number from 0"),
        (("table", 1.0, 0.5), "label is 0.5"),
        (("table", 1.0, 0), "label=0 needs a ClassConditionalDenoiser"),
    ],
)
def test_guidance_is_checked(arguments: tuple[Any, ...], message: str) -> None:
    network = TabularDenoiser(**TABLE) if arguments[0] == "table" else arguments[0]
    with pytest.raises(SepoEnvError, match=message):
        ClassifierFreeGuidance(network, *arguments[1:])
    assert ClassifierFreeGuidance(TabularDenoiser(**TABLE), np.int64(2)).scale == 2.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_id": -1}, "mask_id is -1"),
        ({"mask_id": "4"}, "mask_id is '4'"),
        ({"allow": "[CLS]"}, r"allow is '\[CLS\]', but must be a sequence of text"),
        ({"allow": 3}, "allow is 3, but must be a sequence of text"),
        ({"forbid": [1]}, r"forbid is \[1\]"),
        ({"joined": "yes"}, "joined is 'yes', but must be True or False, or None"),
        ({"num_ids": 0}, "num_ids is 0"),
    ],
)
def test_codecs_of_masked_language_models_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        MaskedLMCodec(make_tokenizer(), **{"num_ids": 9, **settings})


def test_masked_language_models_are_checked() -> None:
    with pytest.raises(InvalidArgumentError, match="model is 3, but must be a Module"):
        MaskedLMDenoiser(3, make_tokenizer())


@pytest.mark.parametrize("load", [load_denoiser, load_drakes, load_mdlm, load_sedd])
def test_loaders_are_checked(load: Any) -> None:
    for weights, kind in (("emma", UnknownNameError), (3, InvalidArgumentError), (None, InvalidArgumentError)):
        with pytest.raises(kind, match="weights"):
            load("absent", weights=weights)
    with pytest.raises(InvalidArgumentError, match="path is 3, but must be text, or a path"):
        load(3)


def test_options_of_loaders_are_checked() -> None:
    for load in (load_denoiser, load_masked_lm):
        with pytest.raises(InvalidArgumentError, match="trust_remote_code is 'no', but must be True or False"):
            load("absent", trust_remote_code="no")
    with pytest.raises(InvalidArgumentError, match="dtype is 'float16', but must be a dtype"):
        load_masked_lm("absent", dtype="float16")
    with pytest.raises(InvalidArgumentError, match="path is 3"):
        save_denoiser(TabularDenoiser(**TABLE), 3)
