"""The Gymnasium vector environment: B episodes, one batched tensor step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from sepo_env.arguments import Seed, Size, check_argument, checked, shown
from sepo_env.envs import spaces
from sepo_env.envs.actions import Rates, as_rates
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.gym_env import (
    RENDER_MODES,
    SEEDS,
    Observation,
    RenderMode,
    check_reset_options,
    draw,
    final_infos,
    make_history,
    record,
    root_seed,
)
from sepo_env.envs.rendering import Image
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.tasks import Task

Flags = npt.NDArray[np.bool_]
Step = tuple[Observation, npt.NDArray[np.float64], Flags, Flags, dict[str, Any]]


class DiffusionVectorEnv(gym.vector.VectorEnv[Observation, Rates, npt.NDArray[Any]]):
    """B environments of `sepo_env.envs.gym_env.DiffusionEnv` in one batched step: no loop, no processes.

    ## Description

    Environment i gives the same trajectory as a single one with the same seed and actions; ``reset(seed=s)`` seeds it
    with s + i, a list gives a seed (or None) to each.

    ## Action Space

    ``Box(0, largest float32, (B, L, V), float32)``.

    ## Observation Space

    ``Dict`` of ``tokens`` int64 ``(B, L)``, ``time`` float32 ``(B, 1)`` and, if conditional, ``prompt_mask`` int8
    ``(B, L)``: those of the single environment, batched as Gymnasium does it: categories (``MultiDiscrete``) become a
    ``Box``, and ``single_observation_space`` says what they are.

    ## Rewards

    float64 ``(B,)``, as in the single environment.

    ## Starting State

    As in the single environment; a prompt in the options is one for all, or one for each (None: the task's own). It
    holds for the episodes that this reset starts, and not for those that follow automatically.
    ``options={"reset_mask": ...}``, bool ``(B,)``, resets some and lets the others go on.

    ## Episode End

    With ``autoreset_mode=AutoresetMode.SAME_STEP``, the default, an environment that ends starts its next episode
    within the same step; ``info["final_obs"]`` and ``info["final_info"]`` then hold the end of the last one (the latter
    repeats the final observation by name). With ``AutoresetMode.DISABLED`` the caller resets it by ``reset_mask``.

    ## Arguments

    ``num_envs``, ``autoreset_mode``, those of the single environment, and ``prompt_repeats``: how many neighbours
    share each prompt that the task draws, with noise of their own.

    ## Version History

    * v0: first version.

    Raises:
        InvalidArgumentError: another autoreset mode, or settings of another type or out of range.
        UnknownNameError: no autoreset mode of that name.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - Gymnasium declares it on the instance
        "render_modes": RENDER_MODES,
        "render_fps": 30,
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }
    closed = True  # until it is made: old Gymnasiums close what is thrown away, even if its constructor raised
    _AUTORESET_MODES: ClassVar = (AutoresetMode.SAME_STEP, AutoresetMode.DISABLED)

    @checked
    def __init__(
        self,
        num_envs: Size,
        task: str | Task,
        *,
        render_mode: RenderMode | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        **options: Any,
    ) -> None:
        known = {mode.value: mode for mode in AutoresetMode}
        if isinstance(autoreset_mode, str) and autoreset_mode not in known:
            raise UnknownNameError("autoreset_mode", autoreset_mode, known)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        if self.autoreset_mode not in self._AUTORESET_MODES:
            raise InvalidArgumentError(
                f"autoreset_mode is {self.autoreset_mode}; take SAME_STEP or DISABLED: NEXT_STEP throws a step away."
            )
        self.metadata = {**self.metadata, "autoreset_mode": self.autoreset_mode}
        self.render_mode = render_mode
        self.num_envs = num_envs
        self.episodes = Episodes(task, num_envs, **options)
        self.task = self.episodes.task
        self.single_action_space = spaces.action_space(self.episodes)
        self.single_observation_space = spaces.observation_space(self.episodes)
        self.action_space = spaces.rate_space(self.episodes.action_shape)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._running = np.zeros(num_envs, dtype=np.bool_)
        self._history = make_history(self.episodes, render_mode)
        self.closed = False

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start episodes in all environments, or in those of ``options["reset_mask"]``."""
        options = check_reset_options(options, {"prompt", "reset_mask"})
        rows = self._reset_rows(options.get("reset_mask"))
        seeds = self._seeds(seed)
        chosen = None if seeds is None else [own if row else None for own, row in zip(seeds, rows, strict=True)]
        infos = self._begin(rows, options.get("prompt"), chosen)
        # Last, so that a bad prompt leaves everything as it was.
        super().reset(seed=None if seed is None else next((own for own in seeds or () if own is not None), None))
        return self._observe(), infos

    def step(self, actions: Rates) -> Step:
        """Hold the rates ``actions`` ``(B, L, A)`` over one step of every environment."""
        if not self._running.all():
            over = int(np.flatnonzero(~self._running)[0])
            raise ResetNeeded(
                f"environment {over} has no running episode; call reset(), or reset(options={{'reset_mask': ...}})."
            )
        outcome = self.episodes.step(as_rates(actions, self.episodes.action_shape, self.episodes.device))
        terminated = outcome.terminated.cpu().numpy().copy()
        rewards = outcome.reward.cpu().numpy().astype(np.float64)
        self._running = ~terminated
        infos: dict[str, Any] = {}
        observation = self._observe()
        if terminated.any():
            ended = np.flatnonzero(terminated).tolist()
            finals = final_infos(outcome)
            if self.autoreset_mode == AutoresetMode.SAME_STEP:
                for env, final in zip(ended, finals, strict=True):
                    last = {name: values[env] for name, values in observation.items()}
                    infos = self._add_info(infos, {"final_obs": last, "final_info": final}, env)
                # TorchRL 0.14 looks for the final observation of a Dict space here, and not in final_obs.
                for name, values in observation.items():
                    infos["final_info"] |= {name: values.copy(), f"_{name}": terminated.copy()}
                infos |= self._begin(terminated, None)
                observation = self._observe()
            else:
                for env, final in zip(ended, finals, strict=True):
                    infos = self._add_info(infos, final, env)
        return observation, rewards, terminated, np.zeros_like(terminated), infos

    def pretrained_action(self) -> Rates:
        """The pretrained denoiser's action in the present states, float32 ``(B, L, A)``: its ancestral sampler."""
        actions: Rates = self.episodes.pretrained_rates().cpu().numpy()
        return actions

    def render(self) -> tuple[str | Image, ...] | None:
        """The present states as texts or pictures, by ``render_mode``, one for each environment."""
        if self._history is None:
            gym.logger.warn("render() needs a render_mode; make the environments with 'ansi' or 'rgb_array'.")
            return None
        return tuple(draw(self.episodes, self._history, self.render_mode, env) for env in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        """Stop what the reward runs in the background."""
        self.episodes.close()

    def _begin(self, rows: Flags, prompt: Any, seeds: Sequence[int | None] | None = None) -> dict[str, Any]:
        state = self.episodes.reset(torch.from_numpy(rows).to(self.episodes.device), prompt, seeds)
        self._running = self._running | rows
        prompted = state.prompt_mask.any(-1).cpu().numpy() & rows
        if self.episodes.conditional or not prompted.any():
            return {}
        shown = state.prompt_mask.cpu().numpy() & prompted[:, None]
        return {"prompt_mask": shown, "_prompt_mask": prompted}

    def _reset_rows(self, reset_mask: Any) -> Flags:
        if reset_mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        try:
            rows = np.asarray(reset_mask)
        except ValueError as error:  # ragged lists
            raise InvalidArgumentError(f"reset_mask is {shown(reset_mask)}, no array; give flags.") from error
        if rows.shape != (self.num_envs,) or rows.dtype != np.bool_ or not rows.any():
            raise InvalidArgumentError(
                f"reset_mask is {rows.dtype} of shape {rows.shape}; give bool ({self.num_envs},), not all False."
            )
        return rows.copy()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> list[int | None] | None:
        """One seed an environment, or None where all streams go on."""
        if isinstance(seed, np.ndarray):
            seed = seed.tolist()
        given = check_argument("seed", seed, Seed | Sequence[Seed | None] | None)
        if given is None:
            if self.episodes.seeded and self.np_random_seed != -1:
                return None
            first = root_seed(self)
            return [(first + env) % SEEDS for env in range(self.num_envs)]
        if isinstance(given, int):
            check_argument("the last environment's seed", given + self.num_envs - 1, Seed)
            return [given + env for env in range(self.num_envs)]
        seeds = list(given)
        if len(seeds) != self.num_envs:
            raise InvalidArgumentError(
                f"{len(seeds)} seeds for {self.num_envs} environments; give one (or None) for each."
            )
        return seeds

    def _observe(self) -> Observation:
        record(self.episodes, self._history)
        return spaces.observation(self.episodes.running_state(), self.episodes.conditional)
