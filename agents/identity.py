"""What a run is, and whether a file holds that of another one."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.identity import Difference, differences
from sepo_env.rewards import Reward

REWARDS = ("reward", "judge")
"""Entries of a run's description that say what a reward is."""

_WORLD = ("denoiser", "settings", "own code")
"""Entries of a task's description by which worlds of one name, alphabet, length and process are told apart."""
_MOST_WEIGHTS = 8
_UNRECORDED = "not recorded by the version that wrote the checkpoint"


def describe_reward(reward: Reward) -> dict[str, Any]:
    """What a reward says of itself, with its name whoever wrote `Reward.identity`.

    Raises:
        InvalidArgumentError: it is not for JSON.
    """
    told = {"name": reward.name, **reward.identity()}
    try:
        json.dumps(told, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(
            f"what the reward {reward.name!r} says of its identity is not for JSON ({error}); give numbers, text, "
            "lists and dictionaries, such as sepo_env.identity.describe returns."
        ) from error
    return told


def check_same_run(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse to go on with another run than the one that was begun; warn, once, of what nobody can tell.

    Args:
        path: the checkpoint, for the message.
        found: the description that it holds.
        wanted: that of the run which is to go on.
        others: settings that differ, name -> (old, new).

    Raises:
        CheckpointError: names what differs, with both values.
    """
    entries = [*_run_differences(found, wanted), *(Difference(name, *pair) for name, pair in others.items())]
    if certain := [str(entry) for entry in entries if entry.doubt is None]:
        raise CheckpointError(
            path,
            f"it belongs to a run with other settings ({'; '.join(certain)})",
            "resume with those of the checkpoint",
        )
    if entries:
        doubts = "; ".join(map(str, entries))
        warnings.warn(f"{path}: whether this is the run that was begun cannot be told: {doubts}.", stacklevel=2)


def check_same_world(path: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse an agent of another world than the task's: another pretrained denoiser, or other settings.

    Args:
        path: the agent, for the message.
        found: the description of the task that it was trained on.
        wanted: that of the task that it is loaded for.

    Raises:
        CheckpointError: names what differs, with both values.
    """
    # An agent of an older version does not say.
    pairs = [(name, found[name], wanted.get(name)) for name in _WORLD if name in found]
    pairs += [(name, None, wanted[name]) for name in _WORLD if name in wanted and name not in found and pairs]
    entries = [entry for name, old, new in pairs for entry in differences(name, old, new)]
    if certain := [
        f"{entry.name}: {entry.old!r} there, {entry.new!r} here" for entry in entries if entry.doubt is None
    ]:
        raise CheckpointError(
            path,
            f"it belongs to another task ({'; '.join(certain)})",
            "give the one that it was trained on, with its pretrained denoiser: load(..., task=...)",
        )


def _run_differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> Iterator[Difference]:
    recorded = "judge" in found
    for name, new in wanted.items():
        old = found.get(name)
        if name in REWARDS:
            if recorded:
                yield from _reward_differences(name, old, new)
            elif name == "reward" and old != new["name"]:
                yield Difference(name, old, new["name"])
        elif name == "task" and not recorded and isinstance(old, Mapping):
            yield from differences(name, old, {key: value for key, value in new.items() if key not in _WORLD})
        elif recorded or name in found:
            yield from differences(name, old, new)
    if not recorded:
        yield Difference("reward, judge and pretrained denoiser", None, None, _UNRECORDED)


def _reward_differences(name: str, old: Any, new: Any) -> Iterator[Difference]:
    """What differs in a reward: its name or its weights, or else what these do not say."""
    one, other = (_summary(identity) for identity in (old, new))
    if one != other:
        yield Difference(name, *_those_that_differ(one, other))
    else:
        yield from differences(name, old, new)


def _those_that_differ(one: Any, other: Any) -> tuple[Any, Any]:
    """Weights as they are, or of many those that differ."""
    if not (isinstance(one, Mapping) and isinstance(other, Mapping)) or len(one) + len(other) <= _MOST_WEIGHTS:
        return one, other
    names = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return {name: one[name] for name in names if name in one}, {name: other[name] for name in names if name in other}


def _summary(identity: Any) -> Any:
    return identity.get("weights", identity.get("name")) if isinstance(identity, Mapping) else identity
