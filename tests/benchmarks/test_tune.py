"""Equal effort for every agent, on a seed of its own, and the best of each selected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pandas as pd
import pytest
import tune
from comparison.suite import make_suite

from sepo_env.errors import InvalidArgumentError


def test_every_agent_tries_the_same_configurations() -> None:
    suite = make_suite("DNAEnhancer-v0", "default", agents=("sepo", "ppo", "ddpo", "reinforce"), seeds=(1000,))
    runs = tune.tuning_runs(suite)
    tried = {
        agent: Counter(tuple(run.settings[name] for name in tune.GRID) for run in runs if run.agent == agent)
        for agent in suite.agents
    }
    assert all(counts == tried["sepo"] for counts in tried.values())
    assert len(tried["sepo"]) == len(tune.configurations()) == len(runs) / 4
    assert len({run.name for run in runs}) == len(runs)


@pytest.mark.parametrize("seed", make_suite("DNAEnhancer-v0", "full").seeds)
def test_a_seed_of_the_comparison_is_refused(seed: int) -> None:
    with pytest.raises(InvalidArgumentError, match="tune on another one"):
        tune.main(tune.Options(seed=seed))


def test_the_table_marks_the_best_of_each_agent(tmp_path: Path) -> None:
    suite = make_suite("ToyCTMC-v0", "smoke", agents=("sepo", "ddpo"), seeds=(1000,))
    runs = tune.tuning_runs(suite)
    for place, run in enumerate(runs):
        run.claim(tmp_path)
        held_out = 1.0 if place in (3, 4) else 0.01 * place
        run.finish(tmp_path, pd.DataFrame({"iteration": []}), pd.DataFrame(), {tune.CRITERION: held_out, "nfe": 5})
    table = tune.results_table(runs, tmp_path)
    assert len(table) == len(runs)
    selected = table[table["selected"]].set_index("agent")
    for place in (3, 4):
        run = runs[place]
        assert all(selected.loc[run.agent, name] == run.settings[name] for name in tune.GRID)
    assert len(selected) == 2
