"""Agents that fine-tune discrete diffusion models by reinforcement learning.

>>> from agents import SEPO
>>> agent = SEPO("ToyCTMC-v0", num_iterations=1, eval_every=0)
>>> rows = agent.train(progress=False)
>>> len(agent.sample(16))
16
"""

from agents.agent import Agent
from agents.config import AgentConfig
from agents.ddpo import DDPO, DDPOConfig
from agents.ppo import PPO, PPOConfig
from agents.registry import AGENTS, agent_class
from agents.reinforce import REINFORCE, REINFORCEConfig
from agents.sepo import SEPO, SEPOConfig

__all__ = [
    "AGENTS",
    "DDPO",
    "PPO",
    "REINFORCE",
    "SEPO",
    "Agent",
    "AgentConfig",
    "DDPOConfig",
    "PPOConfig",
    "REINFORCEConfig",
    "SEPOConfig",
    "agent_class",
]
