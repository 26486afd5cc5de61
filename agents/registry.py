"""Agents by name; a new algorithm is one file in this folder and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from sepo_env.errors import UnknownNameError

if TYPE_CHECKING:
    from agents.agent import Agent

AGENTS: dict[str, str] = {
    "sepo": "agents.algorithms.sepo:SEPO",
    "ppo": "agents.algorithms.ppo:PPO",
    "ddpo": "agents.algorithms.ddpo:DDPO",
    "reinforce": "agents.algorithms.reinforce:REINFORCE",
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
