"""Reinforcement-learning fine-tuning of discrete diffusion models: the world.

Importing this package registers its Gymnasium ids::

    import gymnasium as gym
    import sepo_env

    env = gym.make("DNAEnhancer-v0")
    envs = gym.make_vec("DNAEnhancer-v0", num_envs=64)
    td_env = sepo_env.TorchRLEnv("DNAEnhancer-v0", num_envs=64)
"""

from typing import TYPE_CHECKING, Any

from sepo_env.registration import register_environments

if TYPE_CHECKING:
    from sepo_env.envs.torchrl_env import TorchRLEnv

__all__ = ["TorchRLEnv"]

register_environments()


def __getattr__(name: str) -> Any:
    # TorchRL takes seconds to import and is not needed for Gymnasium, so only those who ask for it pay.
    if name == "TorchRLEnv":
        from sepo_env.envs.torchrl_env import TorchRLEnv

        return TorchRLEnv
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
