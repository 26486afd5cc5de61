"""Train PPO of Stable-Baselines3 on the toy and compare it with acting at random (20 seconds on one core).

The observation is a ``Dict`` of categories and a time, so that the policy is ``MultiInputPolicy``; the actions are
logits, which `LogitAction` turns into jump rates. Needs the extra ``sb3``.

    python examples/stable_baselines.py
"""

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import sepo_env  # noqa: F401 - registers the ids
from sepo_env.envs.wrappers import LogitAction

ENV_ID = "ToyCTMC-v0"
ENV_OPTIONS: dict[str, Any] = {"num_steps": 4}


def train(total_timesteps: int, seed: int) -> PPO:
    """Train on eight environments; the only reward is that of the finished sequence, so it is not discounted."""
    envs = make_vec_env(ENV_ID, n_envs=8, seed=seed, env_kwargs=ENV_OPTIONS, wrapper_class=LogitAction)
    settings: dict[str, Any] = {
        "n_steps": 32,
        "batch_size": 128,
        "learning_rate": 3e-3,
        "gamma": 1.0,
        "policy_kwargs": {"log_std_init": 0.7},  # logits of +-2 make a clear choice among a few tokens
    }
    return PPO("MultiInputPolicy", envs, seed=seed, device="cpu", **settings).learn(total_timesteps)


def returns(act: Callable[[Any, gym.Env[Any, Any]], Any], episodes: int, seed: int) -> np.ndarray:
    """The return of each of some episodes, float64 ``(episodes,)``; ``act`` gets an observation and the environment."""
    env = LogitAction(gym.make(ENV_ID, **ENV_OPTIONS))
    env.action_space.seed(seed)
    found = np.zeros(episodes)
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        over = False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation, env))
            found[episode] += reward
            over = terminated or truncated
    return found


def main() -> None:
    """Train, evaluate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total-timesteps", type=int, default=20_000)
    parser.add_argument("--episodes", type=int, default=500, help="for the evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    model = train(args.total_timesteps, args.seed)
    policies = {
        "random": lambda observation, env: env.action_space.sample(),
        "PPO": lambda observation, env: model.predict(observation, deterministic=True)[0],
    }
    for name, act in policies.items():
        found = returns(act, args.episodes, seed=args.seed)
        print(f"{name}: mean return {found.mean():.3f}, standard error {found.std(ddof=1) / len(found) ** 0.5:.3f}")


if __name__ == "__main__":
    main()
