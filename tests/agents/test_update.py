"""The optimiser's step: gradients are scaled down, weights decay, the step size is the configured one; every agent."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from agents import Agent, agent_class
from agents.registry import learners
from sepo_env.rewards import token_reward
from sepo_env.tasks import make

SMALL: dict[str, Any] = {
    "num_iterations": 2,
    "batch_size": 8,
    "num_steps": 4,
    "states_per_trajectory": 2,
    "inner_epochs": 1,
    "learning_rate": 0.1,
    "kl_coeff": 0.0,
    "entropy_coeff": 0.0,
    "eval_every": 0,
    "tensorboard": "off",
}

every_agent = pytest.mark.parametrize("name", learners())


@pytest.fixture
def norms() -> Iterator[list[float]]:
    """Total norms of the gradients that optimisers were given, step by step."""
    found: list[float] = []

    def note(optimiser: torch.optim.Optimizer, *rest: Any) -> None:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        found.append(float(torch.stack([gradient.norm() for gradient in gradients]).norm()))

    handle = register_optimizer_step_pre_hook(note)
    yield found
    handle.remove()


def trained(name: str, **overrides: Any) -> Agent:
    agent = agent_class(name)(make("toy"), device="cpu", **(SMALL | overrides))
    agent.train(progress=False)
    return agent


@every_agent
def test_gradients_are_scaled_down_to_the_largest_norm(name: str, norms: list[float]) -> None:
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # somebody else's, whose hooks are its own
    agent = trained(name, max_grad_norm=1e6)
    free = list(norms)
    assert [row["grad_norm"] for row in agent.history] == pytest.approx(free, rel=1e-4)
    assert min(free) > 1e-3
    norms.clear()
    agent = trained(name, max_grad_norm=1e-3)
    assert norms == pytest.approx([1e-3] * len(free), rel=1e-2)
    assert agent.history[0]["grad_norm"] == pytest.approx(free[0], rel=1e-4)  # as it was before


def equal_rewards(name: str, **overrides: Any) -> tuple[Tensor, Tensor]:
    """Policy before and after a training on rewards that tell nothing apart."""
    reward = token_reward(lambda tokens: torch.ones(len(tokens)), name="one")
    agent = agent_class(name)(make("toy"), reward=reward, device="cpu", **(SMALL | overrides))
    before = agent.denoiser.state_dict()["logits"].clone()
    agent.train(progress=False)
    return before, agent.denoiser.state_dict()["logits"]


@pytest.mark.parametrize(
    "name", [name for name in learners() if "advantage" in agent_class(name).config_class().to_dict()]
)
def test_weights_decay(name: str) -> None:
    """Without a gradient, two steps of AdamW multiply the weights by (1 - learning_rate * weight_decay) each."""
    before, after = equal_rewards(name, weight_decay=0.5)
    torch.testing.assert_close(after, before * (1 - 0.1 * 0.5) ** 2, rtol=1e-5, atol=1e-6)
    before, after = equal_rewards(name)
    torch.testing.assert_close(after, before, rtol=0, atol=0)


@every_agent
def test_decay_reaches_whatever_is_trained(name: str) -> None:
    """Also a policy with a critic, whose advantages are never all 0: a strong decay pulls its weights to 0."""
    weak, strong = (trained(name, weight_decay=decay).denoiser.state_dict()["logits"] for decay in (0.0, 5.0))
    assert float(strong.norm()) < 0.6 * float(weak.norm())


@every_agent
def test_the_first_step_is_as_long_as_the_learning_rate(name: str) -> None:
    """AdamW's first step moves each number that has a gradient by the step size."""
    for learning_rate in (0.1, 0.01):
        settings = SMALL | {"num_iterations": 1, "learning_rate": learning_rate}
        agent = agent_class(name)(make("toy"), device="cpu", **settings)
        before = agent.denoiser.state_dict()["logits"].clone()
        agent.train(progress=False)
        moved = (agent.denoiser.state_dict()["logits"] - before).abs()
        assert float(moved.max()) == pytest.approx(learning_rate, rel=0.01)
