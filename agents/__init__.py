"""Agents that fine-tune discrete diffusion models by reinforcement learning.

>>> from agents import SEPO
>>> agent = SEPO("ToyCTMC-v0", num_iterations=1, eval_every=0)
>>> rows = agent.train(progress=False)
>>> len(agent.sample(16))
16
"""

from agents.agent import Agent
from agents.algorithms.best_of_n import BestOfN, BestOfNConfig
from agents.algorithms.ddpo import DDPO, DDPOConfig
from agents.algorithms.grpo import GRPO, DrGRPO, DrGRPOConfig, GRPOConfig
from agents.algorithms.ppo import PPO, PPOConfig
from agents.algorithms.reinforce import REINFORCE, REINFORCEConfig
from agents.algorithms.sepo import SEPO, SEPOConfig
from agents.config import LearnerConfig, PolicyGradientConfig, SamplerConfig
from agents.learner import Learner
from agents.registry import AGENTS, agent_class

__all__ = [
    "AGENTS",
    "DDPO",
    "GRPO",
    "PPO",
    "REINFORCE",
    "SEPO",
    "Agent",
    "BestOfN",
    "BestOfNConfig",
    "DDPOConfig",
    "DrGRPO",
    "DrGRPOConfig",
    "GRPOConfig",
    "Learner",
    "LearnerConfig",
    "PPOConfig",
    "PolicyGradientConfig",
    "REINFORCEConfig",
    "SEPOConfig",
    "SamplerConfig",
    "agent_class",
]
