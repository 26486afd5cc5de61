"""Best of n: its law by enumeration, its cost as it is measured."""

from pathlib import Path

import pytest
import torch

from agents import Agent, BestOfN
from agents.registry import AGENTS, agent_class, learner_class, learners
from sepo_env.diffusion.enumeration import state_index
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.tasks import make


def test_the_law_is_that_of_the_largest_of_n_rewards() -> None:
    task = make("toy", num_tokens=2, length=3)
    agent = BestOfN(task, candidates=3, num_steps=4, device="cpu")
    with torch.no_grad():
        law = task.exact_law(task.denoiser, 4)
    # F(R)^n less what lies strictly below: no two rewards of the toy are equal.
    order = task.reward_table.argsort()
    below = torch.cat([law.new_zeros(1), law[order].cumsum(0)])
    wanted = torch.empty_like(law)
    wanted[order] = below[1:] ** 3 - below[:-1] ** 3
    counts = torch.bincount(state_index(agent.sample_tokens(6000, seed=0), 2), minlength=8).double()
    error = (wanted * (1 - wanted) / 6000).sqrt()
    assert ((counts / 6000 - wanted).abs() < 4.5 * error + 1e-6).all()


def test_more_candidates_are_better() -> None:
    task = make("toy")
    reward, means = task.make_reward(), []
    for n in (1, 4, 16):
        agent = BestOfN(task, candidates=n, num_steps=4, device="cpu")
        means.append(float(reward(agent.sample_tokens(400, seed=1)).mean()))
    assert means[0] + 0.05 < means[1] < means[2] - 0.02


def test_a_sequence_is_a_function_of_its_own_seed() -> None:
    agent = BestOfN("ToyCTMC-v0", candidates=4, num_steps=4, device="cpu", micro_batch_size=16)
    whole = agent.sample_tokens(10, seed=5)
    assert torch.equal(whole[7:], agent.sample_tokens(3, seed=12))


def test_the_pool_scores_at_least_as_high() -> None:
    each, pool = (
        BestOfN("ToyCTMC-v0", candidates=4, select=select, num_steps=4, device="cpu") for select in ("each", "pool")
    )
    assert pool.reward(pool.sample_tokens(32, seed=0)).sum() >= each.reward(each.sample_tokens(32, seed=0)).sum()


def test_the_cost_of_a_sequence_is_measured() -> None:
    agent = BestOfN("ToyCTMC-v0", candidates=5, num_steps=4, device="cpu")
    with pytest.raises(InvalidArgumentError, match="nothing has been sampled"):
        agent.cost_per_sample()
    agent.sample(7)
    cost = agent.cost_per_sample()
    assert (cost.nfe, cost.reward_calls) == (20.0, 5.0)
    learner = agent_class("sepo")("ToyCTMC-v0", num_steps=4, device="cpu")
    learner.sample(7)
    assert (learner.cost_per_sample().nfe, learner.cost_per_sample().reward_calls) == (4.0, 0.0)


def test_prompts_stay() -> None:
    agent = BestOfN("ToyCTMC-v0", candidates=4, num_steps=4, device="cpu")
    assert all(text.startswith("A") for text in agent.sample(8, prompt="A???"))


@pytest.mark.parametrize("name", [name for name in AGENTS if name not in learners()])
def test_what_is_not_trained_saves_loads_and_samples(name: str, tmp_path: Path) -> None:
    agent = agent_class(name)("ToyCTMC-v0", num_steps=4, device="cpu")
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path, device="cpu")
    assert type(loaded) is agent_class(name)
    assert torch.equal(loaded.sample_tokens(16, seed=0), agent.sample_tokens(16, seed=0))
    assert not agent_class(name).traits.trains
    with pytest.raises(UnknownNameError, match="agent that is trained"):
        learner_class(name)
