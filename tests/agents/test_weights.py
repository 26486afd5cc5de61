"""Weights that are not finite go nowhere."""

from pathlib import Path
from typing import Any

import pytest
import torch

from agents import Agent, agent_class
from agents.policies.weights import policy_state, unsound_tensors
from agents.registry import learners
from agents.storage import save_agent
from sepo_env.errors import CheckpointError, DivergenceError

SMALL: dict[str, Any] = {"num_steps": 4, "batch_size": 4, "eval_every": 0, "tensorboard": "off", "device": "cpu"}

every_agent = pytest.mark.parametrize("name", learners())


def broken(name: str, value: float, task: str = "ToyCTMC-v0", **options: Any) -> Agent:
    agent = agent_class(name)(task, **(SMALL | options))
    with torch.no_grad():
        parameter = next(iter(agent.denoiser.parameters()))
        parameter[(-1,) * parameter.ndim] = value
    return agent


@every_agent
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_an_agent_without_finite_weights_neither_samples_nor_is_saved(name: str, value: float, tmp_path: Path) -> None:
    agent = broken(name, value)
    for use in (
        lambda: agent.sample(3),
        lambda: agent.sample_tokens(3, seed=0),
        lambda: agent.save(tmp_path / "agent"),
    ):
        with pytest.raises(DivergenceError, match="weights hold NaN or infinity, in logits"):
            use()
    assert not (tmp_path / "agent").exists()


@every_agent
def test_saved_weights_that_are_not_finite_are_not_loaded(name: str, tmp_path: Path) -> None:
    agent = broken(name, float("nan"))
    save_agent(
        tmp_path, agent._describe() | {"config": agent.config.to_dict()}, policy_state(agent.denoiser), agent.task
    )
    with pytest.raises(CheckpointError, match="weights with NaN or infinity: logits"):
        Agent.load(tmp_path, device="cpu")


def test_only_what_is_broken_is_named() -> None:
    agent = broken("sepo", float("nan"), "DNAEnhancer-v0")
    first = next(name for name, _ in agent.denoiser.named_parameters())
    assert unsound_tensors(agent.denoiser) == [first]
    with pytest.raises(DivergenceError, match=f"in {first};"):
        agent.sample(1)


def test_finite_weights_of_a_network_that_answers_nan_sample_nothing() -> None:
    agent = agent_class("sepo")("DNAEnhancer-v0", **SMALL)
    with torch.no_grad():
        for parameter in agent.denoiser.parameters():
            parameter.mul_(1e20)
    assert unsound_tensors(agent.denoiser) == []
    with pytest.raises(DivergenceError, match="its network answers NaN, though its weights are finite"):
        agent.sample(1, seed=0)


def test_sound_weights_are_sound() -> None:
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    module.register_buffer("empty", torch.zeros(0))
    assert unsound_tensors(module) == []
    assert unsound_tensors(torch.nn.ReLU()) == []
    assert unsound_tensors(torch.nn.Linear(2, 2).half()) == []
    with torch.no_grad():
        module.running_mean[1] = torch.nan
        module.weight[0] = torch.inf
    assert unsound_tensors(module) == ["weight", "running_mean"]


def test_the_largest_numbers_are_sound() -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        module = torch.nn.Linear(2, 2).to(dtype)
        with torch.no_grad():
            module.weight.fill_(torch.finfo(dtype).max)
        assert unsound_tensors(module) == []
        with torch.no_grad():
            module.weight[0, 0] = torch.nan
        assert unsound_tensors(module) == ["weight"]
