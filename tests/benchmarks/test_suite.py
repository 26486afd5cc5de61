"""What is compared costs every agent the same; suites are checked before anything runs."""

from __future__ import annotations

import dataclasses

import pytest

from agents.registry import agent_class
from benchmarks.comparison.suite import ALL_AGENTS, COMPARED, Evaluation, Suite, evaluations_per_state, make_suite
from benchmarks.comparison.tables import PRETRAINED
from sepo_env.errors import InvalidArgumentError, UnknownNameError

TASKS = ["DNAEnhancer-v0", "TextRLHF-v0", "TextSentiment-v0", "ToyCTMC-v0"]


@pytest.mark.parametrize("inner_epochs", [1, 2])
@pytest.mark.parametrize("kl_coeff", [0.0, 0.1])
@pytest.mark.parametrize("agent", COMPARED)
def test_the_cost_rule_is_what_the_trainer_spends(agent: str, kl_coeff: float, inner_epochs: int) -> None:
    if agent == "reinforce":
        inner_epochs = 1
    learner = agent_class(agent)(
        "ToyCTMC-v0",
        device="cpu",
        num_iterations=1,
        batch_size=4,
        num_steps=5,
        states_per_trajectory=3,
        eval_every=0,
        kl_coeff=kl_coeff,
        inner_epochs=inner_epochs,
    )
    (row,) = learner.train(progress=False)
    assert row["nfe"] == 4 * (5 + 3 * evaluations_per_state(learner.config))
    assert row["reward_calls"] == 4


def test_guidance_doubles_the_cost_and_halves_the_iterations() -> None:
    suite = make_suite("ToyCTMC-v0", "default", prompt=("A???",))
    guided = dataclasses.replace(suite, guidance_scale=1.0)
    assert guided.num_iterations == suite.num_iterations // 2
    for agent in COMPARED:
        settings, plain = guided.settings(agent), suite.settings(agent)
        assert settings["guidance_scale"] == 1.0
        assert "guidance_scale" not in plain
        assert settings["states_per_trajectory"] == plain["states_per_trajectory"]
        assert settings["max_nfe"] == plain["max_nfe"]
        assert settings["max_reward_calls"] == plain["max_reward_calls"] // 2


@pytest.mark.parametrize("name", ["default", "full", "smoke"])
@pytest.mark.parametrize("task", TASKS)
def test_every_agent_costs_the_same_to_within_the_allowed_spread(task: str, name: str) -> None:
    suite = make_suite(task, name)
    costs = []
    for agent in COMPARED:
        settings = suite.settings(agent)
        config = agent_class(agent).config_class().replace(**settings)
        costs.append(config.num_steps + config.states_per_trajectory * evaluations_per_state(config))
        assert settings["num_iterations"] * config.batch_size * costs[-1] <= settings["max_nfe"]
        assert settings["num_iterations"] * config.batch_size <= settings["max_reward_calls"]
    assert max(costs) / min(costs) <= 1.05


def test_the_full_suite_has_five_seeds_and_judges_more_sequences() -> None:
    default, full = make_suite("DNAEnhancer-v0", "default"), make_suite("DNAEnhancer-v0", "full")
    assert default.agents == (PRETRAINED, *COMPARED)
    assert len(default.seeds) >= 2
    assert len(full.seeds) == 5
    assert full.evaluation.num_samples == 640  # of the published protocol
    assert full.budget > default.budget


@pytest.mark.parametrize("name", ["default", "full", "smoke"])
@pytest.mark.parametrize("task", TASKS)
def test_the_sampler_that_is_judged_is_the_one_that_was_trained(task: str, name: str) -> None:
    suite = make_suite(task, name)
    assert suite.evaluation.num_steps == suite.common["num_steps"]


def test_what_is_given_replaces_the_suites_own() -> None:
    suite = make_suite("ToyCTMC-v0", "default", agents=("ddpo",), seeds=(7,), budget=32 * 48 * 2)
    assert (suite.agents, suite.seeds, suite.num_iterations) == (("ddpo",), (7,), 2)


def test_wrong_suites_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'ddpo'"):
        make_suite("ToyCTMC-v0", "default", agents=("dpo",))
    with pytest.raises(UnknownNameError, match="suite"):
        make_suite("CartPole-v1", "default")
    with pytest.raises(InvalidArgumentError, match="none twice"):
        make_suite("ToyCTMC-v0", "default", seeds=(1, 1))
    with pytest.raises(InvalidArgumentError, match="does not pay for one iteration"):
        make_suite("ToyCTMC-v0", "default", budget=10)


def test_a_cost_that_no_number_of_states_reaches_is_refused() -> None:
    suite = Suite(
        "ToyCTMC-v0",
        ALL_AGENTS,
        (0,),
        1000,
        17,
        {"batch_size": 2, "num_steps": 8, "kl_coeff": 0.0},
        {},
        Evaluation(2, 2, {}),
    )
    coarse = dataclasses.replace(suite, tuned={"ddpo": {"inner_epochs": 4}})
    with pytest.raises(InvalidArgumentError, match="ddpo comes to 21 evaluations a trajectory, the nearest to 17"):
        coarse.settings("ddpo")
    assert suite.settings("ddpo")["states_per_trajectory"] == 3
