"""Agents by name; a new algorithm is one file in this folder and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sepo_env.errors import UnknownNameError

if TYPE_CHECKING:
    from agents.agent import Agent
    from agents.learner import Learner

AGENTS: dict[str, str] = {
    "sepo": "agents.algorithms.sepo:SEPO",
    "ppo": "agents.algorithms.ppo:PPO",
    "ddpo": "agents.algorithms.ddpo:DDPO",
    "reinforce": "agents.algorithms.reinforce:REINFORCE",
    "grpo": "agents.algorithms.grpo:GRPO",
    "dr_grpo": "agents.algorithms.grpo:DrGRPO",
    "best_of_n": "agents.algorithms.best_of_n:BestOfN",
}


def agent_class(name: str) -> type[Agent]:
    """The class of that name.

    Raises:
        UnknownNameError: no agent has that name.

    >>> agent_class("sepo").__name__
    'SEPO'
    """
    if name not in AGENTS:
        raise UnknownNameError("agent", name, AGENTS)
    module, _, cls = AGENTS[name].partition(":")
    agent: type[Agent] = getattr(import_module(module), cls)
    return agent


def learner_class(name: str) -> type[Learner]:
    """The class of that name, of an agent that is trained.

    Raises:
        UnknownNameError: no agent that is trained has that name.
    """
    from agents.learner import Learner  # the classes import this module

    found = agent_class(name)
    if not issubclass(found, Learner):
        raise UnknownNameError("agent that is trained", name, learners())
    return found


def learners() -> list[str]:
    """The names of the agents that are trained; the others do all their work while they sample."""
    return [name for name in AGENTS if agent_class(name).traits.trains]
