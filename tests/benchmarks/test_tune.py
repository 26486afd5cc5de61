"""Equal effort for every agent, on a seed of its own, and the best natural configuration of each selected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import tune
from benchmarks.comparison.suite import make_suite
from sepo_env.errors import InvalidArgumentError


@pytest.mark.parametrize("task", ["DNAEnhancer-v0", "TextSentiment-v0", "ToyCTMC-v0"])
def test_every_agent_tries_the_same_configurations(task: str) -> None:
    study = tune.STUDIES["agents"]
    suite = make_suite(task, "default", agents=study.agents, seeds=(1000,))
    pretrained, *runs = tune.tuning_runs(suite, study)
    assert pretrained.agent == "pretrained"
    tried = {
        agent: Counter(tuple(run.settings[name] for name in suite.grid) for run in runs if run.agent == agent)
        for agent in suite.agents
    }
    assert {"sepo", "ppo", "ddpo", "reinforce"} <= tried.keys()
    assert all(counts == tried["sepo"] for counts in tried.values())
    assert len(tried["sepo"]) == len(study.configurations(suite)) == len(runs) / len(tried)
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("name", tune.STUDIES)
def test_a_form_or_a_reward_gets_the_effort_of_an_agent(name: tune.StudyName) -> None:
    suite = make_suite("DNAEnhancer-v0", "default")
    efforts = [len(tune.STUDIES[study].configurations(suite)) for study in (name, "agents")]
    assert efforts[0] == efforts[1] > 1


@pytest.mark.parametrize("seed", make_suite("DNAEnhancer-v0", "full").seeds)
def test_a_seed_of_the_comparison_is_refused(seed: int) -> None:
    with pytest.raises(InvalidArgumentError, match="tune on another one"):
        tune.main(tune.Options(seed=seed))


def results(criterion: list[float], **naturalness: list[float]) -> pd.DataFrame:
    """The pretrained denoiser first, then runs of SEPO."""
    agents = ["pretrained"] + ["sepo"] * (len(criterion) - 1)
    return pd.DataFrame({"agent": agents, tune.CRITERION: criterion, **naturalness})


@pytest.mark.parametrize(
    ("naturalness", "expected"),
    [
        ([0.8, 0.95, 0.75, 0.10], 1),  # the highest reward is not natural; of the other two the better one
        ([0.8, 0.95, 0.69, 0.68], 0),  # the only natural one, although it is the worst
        ([1.0, 0.20, 0.70, 0.60], 1),  # none is natural: the nearest to it
    ],
)
def test_only_natural_configurations_are_eligible(naturalness: list[float], expected: int) -> None:
    table = results([9.0, 0.1, 0.5, 3.0], **{tune.NATURALNESS[0]: naturalness})
    assert tune.select(table).tolist() == [False, *(place == expected for place in range(3))]


def test_every_measured_share_must_be_natural() -> None:
    likely, varied = tune.NATURALNESS
    table = results([0.0, 0.9, 0.5], **{likely: [0.9, 0.9, 0.9], varied: [0.9, 0.1, 0.85]})
    assert tune.select(table).tolist() == [False, False, True]


def test_without_a_measure_of_naturalness_the_highest_criterion_wins() -> None:
    assert tune.select(results([9.0, 0.1, 0.5])).tolist() == [False, False, True]


def test_the_table_marks_the_best_of_each_agent(tmp_path: Path) -> None:
    study = tune.STUDIES["agents"]
    suite = make_suite("ToyCTMC-v0", "smoke", agents=("sepo", "ddpo"), seeds=(1000,))
    pretrained, *runs = tune.tuning_runs(suite, study)
    for place, run in enumerate([*runs, pretrained]):
        run.claim(tmp_path)
        held_out = 1.0 if place in (3, 4) else 0.01 * place
        run.finish(tmp_path, pd.DataFrame({"iteration": []}), pd.DataFrame(), {tune.CRITERION: held_out, "nfe": 5})
    table = tune.results_table([*runs, pretrained], tuple(suite.grid), tmp_path)
    assert len(table) == len(runs) + 1
    selected = table[table["selected"]].set_index("agent")
    for place in (3, 4):
        run = runs[place]
        assert all(selected.loc[run.agent, name] == run.settings[name] for name in suite.grid)
    assert len(selected) == 2
