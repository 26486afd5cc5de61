"""What the tests of environments share: every registered id, small enough to walk through."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

import sepo_env  # noqa: F401 - registers the ids
from sepo_env.diffusion.enumeration import state_index
from sepo_env.registration import ENVIRONMENTS

_FEW_STEPS: dict[str, Any] = {"num_steps": 5}


@pytest.fixture(params=sorted(ENVIRONMENTS))
def env_id(request: pytest.FixtureRequest) -> str:
    """Each registered id in turn."""
    return str(request.param)


@pytest.fixture
def few_steps() -> dict[str, Any]:
    """Options that make the episodes of every id short."""
    return dict(_FEW_STEPS)


TOYS: dict[str, dict[str, Any]] = {
    "absorbing": {},
    "uniform": {"graph": "uniform"},
    "score": {"parameterisation": "score"},
    "cosine": {"schedule": "cosine"},
    "first-hitting": {"sampler": "first-hitting"},
    "remask": {"remask": True},
    "prompted": {"prompted": True},
    "prompted uniform": {"prompted": True, "graph": "uniform"},
}


@pytest.fixture(params=sorted(TOYS))
def toy_options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of the toy for each kind of dynamics."""
    return dict(TOYS[request.param])


@pytest.fixture
def p_value() -> Callable[[Tensor, Tensor], float]:
    """Probability, by a chi-square test, of counts at least this far from an exact law over all clean sequences."""

    def test(tokens: Tensor, law: Tensor) -> float:
        num_tokens = round(len(law) ** (1 / tokens.shape[1]))
        counts = torch.bincount(state_index(tokens, num_tokens), minlength=len(law)).numpy()
        expected = law.detach().numpy() * len(tokens)
        assert counts[expected < 1e-9].sum() == 0  # nothing impossible was drawn
        # The usual rule: pool the cells in which fewer than five are expected.
        rare = expected < 5
        observed = np.append(counts[~rare], counts[rare].sum())
        predicted = np.append(expected[~rare], expected[rare].sum())
        observed, predicted = observed[predicted > 0], predicted[predicted > 0]
        return float(chisquare(observed, predicted * observed.sum() / predicted.sum()).pvalue)

    return test


@pytest.fixture
def final_tokens() -> Callable[..., Tensor]:
    """Run a vector environment to the end of its episodes under its pretrained action, and return the tokens."""

    def run(envs: gym.vector.VectorEnv, *, seed: int = 0, **reset_options: Any) -> Tensor:
        envs.reset(seed=seed, options=reset_options)
        over = np.zeros(envs.num_envs, dtype=bool)
        final = np.zeros((envs.num_envs, envs.unwrapped.task.length), dtype=np.int64)
        while not over.all():
            _, _, terminated, _, infos = envs.step(envs.unwrapped.pretrained_action())
            for env in np.flatnonzero(terminated & ~over):
                final[env] = infos["final_obs"][env]["tokens"]
            over |= terminated
        return torch.from_numpy(final)

    return run
