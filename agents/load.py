"""An agent read back: of whichever class it was saved by, for the world that it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import torch

from agents.agent import Agent
from agents.config import OUTPUT_FIELDS
from agents.identity import check_same_world
from agents.policies.guidance import check_guidance, with_guidance
from agents.policies.weights import load_policy_state, unsound_tensors
from agents.registry import agent_class
from agents.storage import draw_saved_prompts, find_task, load_agent
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.tasks import Task

_Agent = TypeVar("_Agent", bound=Agent)


def load(
    wanted_class: type[_Agent],
    path: Path,
    *,
    task: Task | None,
    reward: Any,
    device: str | torch.device,
    **options: Any,
) -> _Agent:
    """Read an agent that `Agent.save` wrote, or the policy of a checkpoint; arguments and errors as `Agent.load`."""
    description, weights, prompts = load_agent(path)
    # A class of one's own need not be registered.
    own = getattr(wanted_class, "name", None) == description["agent"]
    kind: type[Agent] = wanted_class if own else agent_class(description["agent"])
    if not issubclass(kind, wanted_class):
        raise CheckpointError(path, f"it holds a {kind.__name__} agent", f"use {kind.__name__}.load or Agent.load")
    fields = {name: value for name, value in description["config"].items() if name not in OUTPUT_FIELDS}
    found = find_task(description["task"], path, task)
    if task is None:
        fields = with_guidance(fields, description)
        draw_saved_prompts(found, path, prompts, description.get("prompts"))
    try:
        config = kind.config_class.from_dict(fields)
    except (InvalidArgumentError, UnknownNameError) as error:
        raise CheckpointError(path, f"its settings are not of this version ({error})", "save it again") from error
    agent = kind(found, config=config, reward=reward, device=device, **options)
    check_guidance(agent.denoiser, path, description, options)
    wanted = agent._describe()
    base = wanted.get("base")
    if base != description.get("base"):
        raise CheckpointError(
            path,
            f"its adapters belong to another pretrained denoiser ({description.get('base')}, this one is {base})",
            "give the task with the denoiser that they were trained on, and lora_rank as it was",
        )
    check_same_world(path, description["task"], wanted["task"])
    try:
        load_policy_state(agent.denoiser, weights)
    except RuntimeError as error:
        raise CheckpointError(path, f"its weights do not fit the task's denoiser ({error})", "give task=") from error
    if broken := unsound_tensors(agent.denoiser):
        raise CheckpointError(path, f"weights with NaN or infinity: {', '.join(broken)}", "give a sound agent")
    return agent
