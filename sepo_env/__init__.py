"""Reinforcement-learning fine-tuning of discrete diffusion models: the world.

Importing this package registers its Gymnasium ids::

    import gymnasium as gym
    import sepo_env

    env = gym.make("DNAEnhancer-v0")
    envs = gym.make_vec("DNAEnhancer-v0", num_envs=64)
    td_env = sepo_env.TorchRLEnv("DNAEnhancer-v0", num_envs=64)
    task = sepo_env.tasks.make("dna_enhancer")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sepo_env.registration import register_environments

if TYPE_CHECKING:
    from sepo_env import assets, denoisers, diffusion, envs, rewards, tasks
    from sepo_env.envs.torchrl_env import TorchRLEnv

__all__ = ["TorchRLEnv", "assets", "denoisers", "diffusion", "envs", "rewards", "tasks"]

register_environments()


def __getattr__(name: str) -> Any:
    # Torch takes a second to import and TorchRL several, so only those who ask for them wait.
    if name == "TorchRLEnv":
        from sepo_env.envs.torchrl_env import TorchRLEnv

        return TorchRLEnv
    if name in __all__:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
