"""Algorithms of Stable-Baselines3 take the environments as they are, and learn."""

import runpy
import subprocess
import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest

from sepo_env.envs.wrappers import LogitAction, TokenAction
from sepo_env.registration import ENVIRONMENTS

sb3 = pytest.importorskip("stable_baselines3")
env_checker = pytest.importorskip("stable_baselines3.common.env_checker")

SCRIPT = "examples/stable_baselines.py"
ON_POLICY = {"n_steps": 4}
SHORT = {
    "PPO": {**ON_POLICY, "batch_size": 4, "n_epochs": 1},
    "A2C": ON_POLICY,
    "SAC": {"learning_starts": 3, "buffer_size": 8, "batch_size": 2},
}


@pytest.fixture(scope="module")
def example(project_root):
    return SimpleNamespace(**runpy.run_path(str(project_root / SCRIPT)))


def short_run(algorithm, env, **settings):
    """Train for a few steps; returns the model and whether its weights moved."""
    model = getattr(sb3, algorithm)("MultiInputPolicy", env, seed=0, device="cpu", **SHORT[algorithm], **settings)
    before = {name: value.clone() for name, value in model.policy.state_dict().items()}
    model.learn(8)
    moved = any(not value.equal(before[name]) for name, value in model.policy.state_dict().items())
    return model, moved


def test_ppo_beats_a_policy_that_acts_at_random(example):
    model = example.train(6_000, seed=0)
    random = example.returns(lambda observation, env: env.action_space.sample(), 250, seed=1)
    trained = example.returns(lambda observation, env: model.predict(observation, deterministic=True)[0], 250, seed=1)
    error = np.sqrt((random.var(ddof=1) + trained.var(ddof=1)) / 250)
    assert trained.mean() > random.mean() + 6 * error


def test_the_script_prints_both(project_root):
    command = [sys.executable, str(project_root / SCRIPT), "--total-timesteps", "256", "--episodes", "5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["random", "PPO"]


@pytest.mark.parametrize("algorithm", SHORT)
@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_algorithms_for_continuous_actions_take_logits(env_id, algorithm):
    env = LogitAction(gym.make(env_id, num_steps=4))
    model, moved = short_run(algorithm, env, policy_kwargs={"net_arch": [4]})
    assert moved
    task = env.unwrapped.task
    vocab_size = task.process.graph.vocab_size
    shown = task.length * (vocab_size + task.conditional) + 1  # tokens are one-hot, not read as magnitudes
    extractor = model.actor.features_extractor if algorithm == "SAC" else model.policy.features_extractor
    assert extractor.features_dim == shown


@pytest.mark.parametrize("algorithm", ["PPO", "A2C"])
def test_algorithms_for_discrete_actions_take_tokens(algorithm):
    _, moved = short_run(algorithm, TokenAction(gym.make("ToyCTMC-v0")))
    assert moved


@pytest.mark.parametrize("wrapper", [LogitAction, TokenAction])
@pytest.mark.parametrize("options", [{}, {"graph": "uniform"}, {"prompted": True}], ids=str)
def test_the_checker_of_stable_baselines_is_content(wrapper, options):
    env_checker.check_env(wrapper(gym.make("ToyCTMC-v0", **options)), warn=False)
