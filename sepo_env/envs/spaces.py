"""The observation and action spaces of the Gymnasium environments."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from sepo_env.envs.dynamics import State
from sepo_env.envs.episodes import Episodes

_LARGEST_RATE = float(np.finfo(np.float32).max)


def rate_space(shape: tuple[int, ...]) -> spaces.Box[np.float32]:
    """All finite non-negative float32 rates; random ones are exponential with mean 1.

    The upper bound is the largest float32, because an infinite rate is no action. Without ``bounded_above`` a Box
    samples an exponential law, and not a uniform one over 38 orders of magnitude.
    """
    space = box(0.0, _LARGEST_RATE, shape)
    space.bounded_above = _filled(np.False_, shape)
    return space


def box(low: float, high: float, shape: tuple[int, ...]) -> spaces.Box[np.float32]:
    """A Box of float32 with one bound for all entries, stored once.

    An ordinary Box stores its bounds for each entry; views of one entry say the same, whatever the vocabulary.
    """
    space = spaces.Box(low, high, shape, np.float32)
    for name in ("low", "high", "bounded_below", "bounded_above"):
        setattr(space, name, _filled(getattr(space, name).flat[0], shape))
    return space


def _filled(value: np.generic[Any], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """One value seen at every entry. Not a read-only view: torch, which TorchRL turns spaces into, warns of those."""
    return np.lib.stride_tricks.as_strided(np.array(value), shape, strides=(0,) * len(shape))


def action_space(episodes: Episodes) -> spaces.Box[np.float32]:
    """Rates of one environment, float32 ``(L, A)``."""
    return rate_space(episodes.action_shape[1:])


def observation_space(episodes: Episodes) -> spaces.Dict[Any]:
    """Tokens, time and, if conditional, the prompt mask of one environment."""
    length = episodes.task.length
    vocab_size = episodes.task.process.graph.vocab_size
    entries: dict[str, spaces.Space[Any]] = {
        # Categories, which stock agents encode as one-hot; a Box of integers they would read as magnitudes.
        "tokens": spaces.MultiDiscrete([vocab_size] * length, dtype=np.int64),
        "time": spaces.Box(0.0, 1.0, (1,), np.float32),
    }
    if episodes.conditional:
        entries["prompt_mask"] = spaces.MultiBinary(length)
    return spaces.Dict(entries)


def observation(state: State, conditional: bool) -> dict[str, np.ndarray[Any, Any]]:
    """What B agents see: tokens int64 ``(B, L)``, time float32 ``(B, 1)``, prompt_mask int8 ``(B, L)``."""
    seen = {
        "tokens": np.array(state.tokens.cpu().numpy()),
        "time": state.time[:, None].cpu().numpy().astype(np.float32),
    }
    if conditional:
        seen["prompt_mask"] = state.prompt_mask.cpu().numpy().astype(np.int8)
    return seen
