"""The settings: ranges, overrides, JSON, and that each of them is read."""

import ast
import dataclasses
import inspect
import itertools
import re
from pathlib import Path

import pytest

from agents import AGENTS, AgentConfig, DDPOConfig, REINFORCEConfig, SEPOConfig, agent_class
from agents.config import FREE_ON_RESUME, differing_fields
from sepo_env.errors import InvalidArgumentError, UnknownNameError

CONFIGS = {name: agent_class(name).config_class for name in AGENTS}


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 1},
        {"num_steps": 0},
        {"num_iterations": -1},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"kl_coeff": -0.1},
        {"max_ratio": 1.0},
        {"max_nfe": 0},
        {"minibatches": 1000},
        {"checkpoint_every": 0},
        {"tensorboard": "on"},
    ],
)
def test_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        AgentConfig(**wrong)


def test_objectives_without_ratio_take_one_step() -> None:
    for make in (REINFORCEConfig, lambda **options: DDPOConfig(form="sf", **options)):
        with pytest.raises(InvalidArgumentError, match="importance ratios"):
            make(inner_epochs=2)
        with pytest.raises(InvalidArgumentError, match="importance ratios"):
            make(minibatches=2)


def test_form_settings_are_checked_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match="num_draws"):
        SEPOConfig(snis_draws=0)
    with pytest.raises(InvalidArgumentError, match="form is 'paths'"):
        SEPOConfig(form="paths")


def test_number_of_states() -> None:
    config = AgentConfig(batch_size=10, num_steps=6)
    assert config.replace(states_per_trajectory=4).num_states == 40
    assert config.replace(states_per_trajectory=0).num_states == 60
    assert config.replace(states_per_trajectory=9).num_states == 60
    config = SEPOConfig(form="snis", batch_size=10)
    assert config.num_states == config.replace(form="path").num_states == 80
    assert config.replace(states_per_trajectory=1).num_states == 20  # the last one, and one for all before it
    assert config.replace(num_steps=1).num_states == 10
    assert config.replace(kl_coeff=0.0).num_states == 10
    assert config.replace(kl_coeff=0.0, entropy_coeff=0.1).num_states == 80
    assert config.replace(kl_coeff=0.0, advantage="critic").num_states == 80


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_json_round_trip(config_class: type[AgentConfig]) -> None:
    config = config_class(batch_size=5, log_dir="x", max_nfe=7)
    assert config_class.from_dict(config.to_dict()) == config


def test_unknown_field_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'learning_rate'"):
        SEPOConfig().replace(learning_rat=1.0)


def test_differing_fields_ignores_what_may_change() -> None:
    old = SEPOConfig(seed=1, kl_coeff=0.5)
    free = {"num_iterations": 999, "max_nfe": 5, "max_reward_calls": 6, "checkpoint_every": 2, "log_dir": "elsewhere"}
    assert set(free) | {"tensorboard"} == FREE_ON_RESUME
    assert differing_fields(old.to_dict(), old.replace(**free).to_dict()) == {}
    changed = old.replace(**free, seed=2, form="path")
    assert differing_fields(old.to_dict(), changed.to_dict()) == {"form": ("neighbours", "path"), "seed": (1, 2)}


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_every_field_is_documented(config_class: type[AgentConfig]) -> None:
    documented: set[str] = set()
    for kind in config_class.__mro__[:-1]:
        body = ast.parse(inspect.getsource(kind)).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                documented.add(field.target.id)
    assert {field.name for field in dataclasses.fields(config_class)} <= documented


@pytest.mark.parametrize("config_class", CONFIGS.values(), ids=CONFIGS)
def test_every_field_is_read(config_class: type[AgentConfig], project_root: Path) -> None:
    """A field that nobody reads would be a promise that nobody keeps."""
    sources = "\n".join(path.read_text() for path in (project_root / "agents").rglob("*.py"))
    # Checking a range is not reading it.
    sources = "\n".join(line for line in sources.splitlines() if "_require" not in line and "for name in" not in line)
    for field in dataclasses.fields(config_class):
        assert re.search(rf"(config|self)\.{field.name}\b", sources), f"{field.name} is never read"
