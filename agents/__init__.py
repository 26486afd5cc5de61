"""Agents that fine-tune discrete diffusion models by reinforcement learning.

>>> from agents import SEPO
>>> agent = SEPO("ToyCTMC-v0", num_iterations=1, eval_every=0)
>>> rows = agent.train(progress=False)
>>> len(agent.sample(16))
16
"""

from agents.agent import Agent
from agents.algorithms.ddpo import DDPO, DDPOConfig
from agents.algorithms.ppo import PPO, PPOConfig
from agents.algorithms.reinforce import REINFORCE, REINFORCEConfig
from agents.algorithms.sepo import SEPO, SEPOConfig
from agents.config import LearnerConfig, PolicyGradientConfig, SamplerConfig
from agents.learner import Learner
from agents.registry import AGENTS, agent_class

__all__ = [
    "AGENTS",
    "DDPO",
    "PPO",
    "REINFORCE",
    "SEPO",
    "Agent",
    "DDPOConfig",
    "Learner",
    "LearnerConfig",
    "PPOConfig",
    "PolicyGradientConfig",
    "REINFORCEConfig",
    "SEPOConfig",
    "SamplerConfig",
    "agent_class",
]
