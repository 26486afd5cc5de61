"""The settings: ranges, overrides, JSON, and that each of them is read."""

import ast
import dataclasses
import inspect
import itertools
import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from agents import DDPOConfig, PolicyGradientConfig, REINFORCEConfig, SEPOConfig, agent_class
from agents.config import FREE_ON_RESUME, differing_fields
from agents.registry import learners
from agents.reward_modelling import RewardModelConfig
from sepo_env.errors import InvalidArgumentError, UnknownNameError

CONFIGS = {name: agent_class(name).config_class for name in learners()}


ALL = {**CONFIGS, "reward model": partial(RewardModelConfig, **{"pairs": "pairs.jsonl", "log_dir": "run"})}
FIELDS = [
    (name, field.name)
    for name, config_class in {**CONFIGS, "reward model": RewardModelConfig}.items()
    for field in dataclasses.fields(config_class)
]
NONSENSE = [
    "3e-4",
    "8",
    8.5,
    -1,
    10**400,
    float("nan"),
    float("inf"),
    True,
    "yes",
    b"x",
    [1],
    {"a": 1},
    object(),
    "\n" * 500,
]
"""None of a field's type, or none in its range; what of this a field takes stands in `TAKEN`."""
TEXT = ("3e-4", "8", "yes", "\n" * 500)
TAKEN: dict[str, tuple[object, ...]] = {
    **dict.fromkeys(("log_dir", "pairs", "base", "eval_pairs"), TEXT),
    **dict.fromkeys(("learning_rate", "corrector_size", "guidance_scale", "weight_decay", "lora_alpha"), (8.5,)),
    **dict.fromkeys(("max_grad_norm", "kl_coeff", "entropy_coeff", "critic_coeff", "max_ratio"), (8.5,)),
    **dict.fromkeys(("max_nfe", "max_reward_calls"), (10**400,)),
}


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_nonsense_is_refused_by_the_name_of_the_field(config: str, field: str) -> None:
    for value in NONSENSE:
        if value in TAKEN.get(field, ()):
            continue
        with pytest.raises((InvalidArgumentError, UnknownNameError)) as caught:
            ALL[config](**{field: value})
        message = str(caught.value)
        assert field in message
        assert "\n" not in message
        assert len(message) < 400


@pytest.mark.parametrize(("config", "field"), FIELDS)
def test_numbers_of_any_kind_are_taken_as_what_they_are(config: str, field: str) -> None:
    default = {f.name: f.default for f in dataclasses.fields(ALL[config]())}[field]
    if isinstance(default, bool) or not isinstance(default, (int, float)):
        pytest.skip("no number by default")
    kinds = (float, np.int64, np.float64) if isinstance(default, int) else (np.float64,)
    for kind in kinds:
        found = getattr(ALL[config](**{field: kind(default)}), field)
        assert found == default
        assert type(found) is type(default)


@pytest.mark.parametrize("config", ALL)
def test_single_precision_and_paths_end_as_json(config: str) -> None:
    made = ALL[config](learning_rate=np.float32(0.5), log_dir=Path("a") / "b", seed=np.uint8(3))
    fields = made.to_dict()
    assert (fields["learning_rate"], fields["log_dir"], fields["seed"]) == (0.5, str(Path("a/b")), 3)
    assert json.loads(json.dumps(fields)) == fields


class Folder(os.PathLike[str]):
    def __fspath__(self) -> str:
        return "somewhere"


@pytest.mark.parametrize("config", ALL)
def test_a_folder_is_named_once_and_for_all(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home of mine")
    monkeypatch.setenv("USERPROFILE", "/home of mine")
    assert ALL[config](log_dir=Folder()).log_dir == "somewhere"
    assert ALL[config](log_dir="~/runs/a").log_dir == str(Path("/home of mine/runs/a"))
    assert ALL[config](log_dir=Path("~")).log_dir == str(Path("/home of mine"))
    assert ALL[config](log_dir="./a").log_dir == "a"
    with pytest.raises(InvalidArgumentError, match="begins with a home that this machine does not know"):
        ALL[config](log_dir="~nobody of that name/a")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1, but must be a whole number from 2 to"),
        ({"batch_size": 10**10}, "batch_size is 10000000000, but"),
        ({"num_steps": 0}, "num_steps is 0, but must be a whole number from 1 to"),
        ({"num_iterations": -1}, "num_iterations is -1, but must be a whole number from 0 to"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0 .float., but must be a finite number above 0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf .float., but must be a finite number"),
        ({"kl_coeff": -0.1}, "kl_coeff is -0.1 .float., but must be a finite number of at least 0"),
        ({"max_ratio": 1.0}, "max_ratio is 1.0 .float., but must be a finite number above 1"),
        ({"max_nfe": 0}, "max_nfe is 0, but must be a whole number of at least 1, or None"),
        ({"seed": 2**63}, "seed is 9223372036854775808, but must be a whole number from 0 to"),
        ({"num_iterations": None}, "num_iterations is None, but must be a whole number"),
        ({"tensorboard": "yes"}, "unknown tensorboard 'yes'"),
        ({"minibatches": 1000}, "minibatches is 1000, but must be at most the 256 samples of a batch"),
        ({"group_size": 3}, "group_size is 3, but must be 0, or a divisor of batch_size"),
        ({"tensorboard": "on"}, "tensorboard='on' needs a folder"),
        ({"log_dir": ""}, "log_dir is '', but must be a path"),
        ({"log_dir": "a\0b"}, "log_dir is 'a.x00b'"),
    ],
)
@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_out_of_range(config_class: type[PolicyGradientConfig], wrong: dict[str, object], message: str) -> None:
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=message):
        config_class(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 3}, "heads is 3, but must be a divisor of the width 128"),
        ({"vocab_size": 257}, "vocab_size is 257, but must be a whole number from 258 to"),
        ({"seed": 2**32}, "seed is 4294967296, but must be a whole number from 0 to 4294967295"),
        ({"eval_share": 1.0}, "eval_share is 1.0 .float., but must be a finite number above 0 and below 1"),
        ({"device": "cuda"}, "unknown device 'cuda'"),
    ],
)
def test_reward_models_out_of_range(wrong: dict[str, object], message: str) -> None:
    with pytest.raises((InvalidArgumentError, UnknownNameError), match=message):
        RewardModelConfig("pairs.jsonl", "run", **wrong)


def test_objectives_without_ratio_take_one_step() -> None:
    for make in (REINFORCEConfig, lambda **options: DDPOConfig(form="sf", **options)):
        with pytest.raises(InvalidArgumentError, match="importance ratios"):
            make(inner_epochs=2)
        with pytest.raises(InvalidArgumentError, match="importance ratios"):
            make(minibatches=2)


def test_form_settings_are_checked_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="snis_draws is 0"):
        SEPOConfig(snis_draws=0)
    with pytest.raises(UnknownNameError, match="unknown form 'paths'; did you mean 'path'"):
        SEPOConfig(form="paths")


def test_number_of_states() -> None:
    config = PolicyGradientConfig(batch_size=10, num_steps=6)
    assert config.replace(states_per_trajectory=4).num_samples == 40
    assert config.replace(states_per_trajectory=0).num_samples == 60
    assert config.replace(states_per_trajectory=9).num_samples == 60
    config = SEPOConfig(form="snis", batch_size=10)
    assert config.num_samples == config.replace(form="path").num_samples == 80
    assert config.replace(states_per_trajectory=1).num_samples == 20  # the last one, and one for all before it
    assert config.replace(num_steps=1).num_samples == 10
    assert config.replace(kl_coeff=0.0).num_samples == 10
    assert config.replace(kl_coeff=0.0, entropy_coeff=0.1).num_samples == 80
    assert config.replace(kl_coeff=0.0, advantage="critic").num_samples == 80


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config_class: type[PolicyGradientConfig]) -> None:
    config = config_class(batch_size=5, log_dir="x", max_nfe=7)
    assert config_class.from_dict(config.to_dict()) == config


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'learning_rate'"):
        SEPOConfig().replace(learning_rat=1.0)


def test_differing_fields_ignores_what_may_change() -> None:
    old = SEPOConfig(seed=1, kl_coeff=0.5)
    free = {"num_iterations": 999, "max_nfe": 5, "max_reward_calls": 6, "checkpoint_every": 2, "log_dir": "elsewhere"}
    free |= {"micro_batch_size": 2}
    assert set(free) | {"tensorboard"} == FREE_ON_RESUME
    assert differing_fields(old.to_dict(), old.replace(**free).to_dict()) == {}
    changed = old.replace(**free, seed=2, form="path")
    assert differing_fields(old.to_dict(), changed.to_dict()) == {"form": ("neighbours", "path"), "seed": (1, 2)}


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_every_field_is_documented(config_class: type[PolicyGradientConfig]) -> None:
    documented: set[str] = set()
    for kind in config_class.__mro__[:-1]:
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                documented.add(field.target.id)
    assert {field.name for field in dataclasses.fields(config_class)} <= documented
