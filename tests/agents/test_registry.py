"""What every registered agent must do; a new one is tested from its registry line on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents import Agent, agent_class
from agents.registry import learners
from sepo_env.errors import UnknownNameError
from sepo_env.tasks import make

SMALL: dict[str, Any] = {
    "kl_coeff": 0.0,
    "batch_size": 8,
    "num_steps": 4,
    "eval_every": 1,
    "eval_samples": 8,
    "tensorboard": "off",
}

every_agent = pytest.mark.parametrize("name", learners())


def small(name: str, **overrides: Any) -> Agent:
    return agent_class(name)("ToyCTMC-v0", device="cpu", **(SMALL | overrides))


@every_agent
def test_names_agree(name: str) -> None:
    kind = agent_class(name)
    assert kind.name == name
    assert kind.__name__.lower() == name.replace("_", "")
    assert kind.__doc__
    assert kind.config_class.__doc__
    assert kind.config_class.__name__ == f"{kind.__name__}Config"


def test_unknown_agent() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'sepo'"):
        agent_class("sep")


@every_agent
def test_trains_saves_loads_and_samples(name: str, tmp_path: Path) -> None:
    agent = small(name, num_iterations=2, learning_rate=0.1)
    before = agent.denoiser.state_dict()["logits"].clone()
    rows = agent.train(progress=False)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert not torch.equal(agent.denoiser.state_dict()["logits"], before)
    assert all(row["held_out_reward"] is not None and row["kl"] >= 0 for row in rows)
    agent.save(tmp_path)
    loaded = Agent.load(tmp_path, device="cpu")
    assert type(loaded) is agent_class(name)
    assert torch.equal(loaded.sample_tokens(16, seed=0), agent.sample_tokens(16, seed=0))


@every_agent
def test_resumes_bit_for_bit(name: str, tmp_path: Path) -> None:
    def trained(folder: str, iterations: int, resume: bool = False) -> Agent:
        agent = small(name, log_dir=str(tmp_path / folder), num_iterations=iterations, learning_rate=0.1)
        agent.train(progress=False, resume=resume)
        return agent

    whole = trained("whole", 4)
    trained("parted", 2)
    resumed = trained("parted", 4, resume=True)
    for parameter, value in whole.denoiser.state_dict().items():
        assert torch.equal(resumed.denoiser.state_dict()[parameter], value)
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert one | {"wall_time": 0} == other | {"wall_time": 0}


@every_agent
def test_first_update_has_ratio_one(name: str) -> None:
    rows = small(name, num_iterations=1, inner_epochs=1).train(progress=False)
    assert rows[0]["ratio_max"] == 1.0
    assert rows[0]["clip_fraction"] == 0.0
    assert rows[0]["ess"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    "name", [name for name in learners() if "advantage" in agent_class(name).config_class().to_dict()]
)
def test_equal_rewards_teach_nothing(name: str) -> None:
    """Compared with each other, trajectories of the same reward give no gradient."""
    agent = agent_class(name)("toy", reward=lambda s: [1.0] * len(s), device="cpu", **SMALL, num_iterations=2)
    before = agent.denoiser.state_dict()["logits"].clone()
    assert all(row["grad_norm"] == 0 for row in agent.train(progress=False))
    assert torch.equal(agent.denoiser.state_dict()["logits"], before)


@every_agent
def test_learns_the_toy(name: str) -> None:
    """The exact return, by enumeration, reaches 95 % of the best that any policy could."""
    task = make("toy", num_tokens=2, length=4)
    settings = {"num_iterations": 40, "batch_size": 128, "learning_rate": 0.15, "eval_every": 0}
    agent = agent_class(name)(task, device="cpu", **(SMALL | settings))
    with torch.no_grad():
        start = float(task.exact_return(agent.denoiser, num_steps=4))
        agent.train(progress=False)
        reached = float(task.exact_return(agent.denoiser, num_steps=4))
    assert start < 0.7 * task.best_return
    assert reached > 0.95 * task.best_return
