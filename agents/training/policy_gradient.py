"""The method of all policy gradients on visited states: advantages, some of the states, the loss on these."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict

from agents.config import PolicyGradientConfig
from agents.objectives import PolicyGradientLoss
from agents.policies.rates import Critic
from agents.training.batch import choose_steps, visited_states
from agents.training.method import Method


def policy_gradient_method(
    loss: PolicyGradientLoss,
    config: PolicyGradientConfig,
    add_advantages: Callable[[TensorDict], None],
    critic: Critic | None = None,
) -> Method:
    """Make the method of a loss on visited states.

    Args:
        loss: trained on visited states.
        config: how many states, and how often they are passed over.
        add_advantages: writes ``advantage`` (and whatever else the loss reads) into trajectories ``(B, K)``.
        critic: the value network that the loss trains as well. Without one, trajectories are compared with others of
            the same prompt.
    """

    def samples(trajectories: TensorDict, iteration: int, generator: torch.Generator) -> TensorDict:
        add_advantages(trajectories)
        steps, weights = choose_steps(loss, config, generator, trajectories["tokens"].device)
        states = visited_states(trajectories, steps, weights, first_id=iteration * config.batch_size)
        if config.optimiser_steps > 1:
            # From the second step on the policy is no longer the one that sampled; remember what that one said.
            parts = states.split(config.micro_batch_size)
            states["old_log_prob"] = torch.cat([loss.log_probs(part) for part in parts])
        return states

    return Method(
        loss,
        samples,
        parts={} if critic is None else {"critic": critic},
        compares=critic is None,
        # Both are sums over the path of a trajectory.
        reductions={"kl_reference": "sum", "entropy": "sum", "ratio_max": "max"},
        limits={"ratio_max": ("max_ratio", config.max_ratio)},
    )
