r"""Wrappers that speak the language of other libraries, each for single and for vector environments.

Stock algorithms choose tokens (`TokenAction`, `VectorTokenAction`) or emit unbounded numbers (`LogitAction`,
`VectorLogitAction`); the wrappers translate to jump rates. `KLPenalty` and `VectorKLPenalty` charge the reward for
leaving the pretrained denoiser.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs

from sepo_env.diffusion import StepLaw
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.gym_env import DiffusionEnv, Observation, Rates, as_rates
from sepo_env.envs.vector_env import DiffusionVectorEnv, Step
from sepo_env.errors import InvalidActionError, InvalidArgumentError

Choices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def choices_to_rates(choices: Choices, episodes: Episodes) -> Rates:
    r"""Token choices ``(B, L)`` -> rates ``(B, L, A)``.

    Choice v < A gives token v the rate 1 and all others 0: a masked position then jumps to v with the ancestral
    probability of the step, :math:`(\alpha_s - \alpha_t)/(1 - \alpha_t)`, and waits otherwise. Choice A is to wait:
    rate 0. Where waiting is impossible it means rate 1 for every visible token, so a uniformly random one: on the last
    step of a masked chain, and in first-hitting where every mask waits.

    Raises:
        InvalidActionError: another shape or dtype, or a choice outside of 0 .. A.
    """
    num_actions, num_tokens = episodes.dynamics.num_actions, episodes.task.num_tokens
    expected = (episodes.num_envs, episodes.task.length)
    if choices.shape != expected or not np.issubdtype(choices.dtype, np.integer):
        raise InvalidActionError(f"the choices are {choices.dtype} {choices.shape}, expected integers {expected}.")
    if choices.size and (choices.min() < 0 or choices.max() > num_actions):
        env, position = np.argwhere((choices < 0) | (choices > num_actions))[0]
        raise InvalidActionError(
            f"environment {env}, position {position}: choice {choices[env, position]} is none of 0 to {num_actions} "
            f"(tokens first, {num_actions} is to wait)."
        )
    rates = np.eye(num_actions + 1, num_actions, dtype=np.float32)[choices]
    idle = torch.from_numpy(choices >= num_tokens).to(episodes.device)
    stuck = episodes.dynamics.stuck(episodes.running_state(), idle)
    rates[..., :num_tokens][stuck.cpu().numpy()] = 1.0
    return rates


def logits_to_rates(logits: Logits, episodes: Episodes) -> Rates:
    r"""Logits ``(B, L, V)`` -> rates ``(B, L, V)``: softmax over V where a position can jump, 0 elsewhere.

    On a masked chain that is the action of a denoiser with these logits; a softmax keeps each masked position's total
    rate at 1, so that positions unmask at the ancestral pace.

    Raises:
        InvalidActionError: a logit that is not finite.
    """
    tensor = torch.as_tensor(np.asarray(logits), dtype=torch.float32, device=episodes.device)
    tensor = tensor.reshape(episodes.num_envs, episodes.task.length, episodes.task.num_tokens)
    if not bool(torch.isfinite(tensor).all()):
        env, position, token = (int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
        raise InvalidActionError(
            f"environment {env}, position {position}, token {episodes.task.token_texts[token]!r}: the logit is "
            f"{float(tensor[env, position, token])}; logits are finite."
        )
    movable = episodes.dynamics.process.graph.can_jump(episodes.running_state().tokens)
    rates: Rates = (tensor.softmax(-1) * movable[..., None]).cpu().numpy()
    return rates


def step_divergence(rates: Rates, episodes: Episodes) -> npt.NDArray[np.float64]:
    """Divergence of the coming step's law under ``rates`` ``(B, L, A)`` from the pretrained one, nats, ``(B,)``."""
    dynamics, state = episodes.dynamics, episodes.running_state()
    action = as_rates(rates, episodes.action_shape, episodes.device)
    dynamics.validate_action(state, action)
    law = dynamics.law(state, action)
    reference: StepLaw = dynamics.law(state, episodes.pretrained_rates())
    return law.kl(reference).sum(-1).cpu().numpy()


class KLPenalty(gym.Wrapper[Observation, Rates, Observation, Rates], RecordConstructorArgs):
    r"""Charge each step for leaving the pretrained denoiser.

    .. math:: r_k \leftarrow r_k - c\, \mathrm{KL}\left( q(x_s | x_t; a) \,\|\, q(x_s | x_t; a_{pre}) \right)

    The divergences of an episode add up to one draw of the path divergence, which bounds that of the finished
    sequences. ``info["kl"]`` holds each step's, in nats. It evaluates the denoiser once a step. Other action wrappers
    go around this one.

    Args:
        env: an environment with the k-step sampler.
        coefficient: c, in units of reward a nat, 0 or more.

    Raises:
        InvalidArgumentError: a negative coefficient, or the first-hitting sampler, whose jump times have no such table.
    """

    def __init__(self, env: gym.Env[Observation, Rates], coefficient: float) -> None:
        RecordConstructorArgs.__init__(self, coefficient=coefficient)
        gym.Wrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        self._coefficient = _checked_coefficient(coefficient, self._episodes)

    def step(self, action: Rates) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step, and take the penalty off the reward."""
        divergence = float(step_divergence(np.asarray(action)[None], self._episodes)[0])
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["kl"] = divergence
        return observation, float(reward) - self._coefficient * divergence, terminated, truncated, info


class VectorKLPenalty(gym.vector.VectorWrapper[Observation, Rates, Observation, Rates, npt.NDArray[Any]]):
    """`KLPenalty` for B environments; ``info["kl"]`` is float64 ``(B,)``."""

    def __init__(self, env: gym.vector.VectorEnv[Observation, Rates, npt.NDArray[Any]], coefficient: float) -> None:
        super().__init__(env)
        self.autoreset_mode = _vector(env).autoreset_mode
        self._episodes = _vector(env).episodes
        self._coefficient = _checked_coefficient(coefficient, self._episodes)

    def step(self, actions: Rates) -> Step:
        """Step, and take the penalties off the rewards."""
        divergence = step_divergence(np.asarray(actions), self._episodes)
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        infos |= {"kl": divergence, "_kl": np.ones(len(divergence), dtype=np.bool_)}
        return observation, rewards - self._coefficient * divergence, terminated, truncated, infos


def _checked_coefficient(coefficient: float, episodes: Episodes) -> float:
    if not coefficient >= 0:
        raise InvalidArgumentError(f"the coefficient of the penalty is {coefficient}; give 0 or more.")
    if episodes.dynamics.sampler == "first-hitting":
        raise InvalidArgumentError("the penalty compares laws of k-steps; use sampler='k-step'.")
    return coefficient


def _single(env: gym.Env[Any, Any]) -> DiffusionEnv:
    base = env.unwrapped
    if not isinstance(base, DiffusionEnv):
        raise InvalidArgumentError(f"this wrapper is for the environments of sepo_env, not for {base}.")
    return base


def _vector(env: gym.vector.VectorEnv[Any, Any, Any]) -> DiffusionVectorEnv:
    base = env.unwrapped
    if not isinstance(base, DiffusionVectorEnv):
        raise InvalidArgumentError(
            f"this wrapper is for the vector environments of sepo_env, not for {base}; wrap the single ones before."
        )
    return base


def _require_no_remask(episodes: Episodes) -> None:
    if episodes.dynamics.remask:
        raise InvalidArgumentError(
            "logits are normalised over the visible tokens, which leaves no rate back to MASK; use remask=False."
        )


class TokenAction(gym.ActionWrapper[Observation, Choices, Rates], RecordConstructorArgs):
    """Choose a token, or to wait, at each position: ``MultiDiscrete([A + 1] * L)``; see `choices_to_rates`.

    The last choice is to wait. With ``remask=True`` the last but one is MASK: a visible token goes back to it.
    Choices at positions that cannot jump are ignored.
    """

    def __init__(self, env: gym.Env[Observation, Rates]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        self.action_space = spaces.MultiDiscrete([self._episodes.dynamics.num_actions + 1] * self._episodes.task.length)

    def action(self, action: Choices) -> Rates:
        rates: Rates = choices_to_rates(np.asarray(action)[None], self._episodes)[0]
        return rates


class VectorTokenAction(gym.vector.VectorActionWrapper[Observation, Choices, Rates, npt.NDArray[Any]]):
    """`TokenAction` for B environments: choices int64 ``(B, L)``."""

    def __init__(self, env: gym.vector.VectorEnv[Observation, Rates, npt.NDArray[Any]]) -> None:
        super().__init__(env)
        self.autoreset_mode = _vector(env).autoreset_mode
        self._episodes = _vector(env).episodes
        choices = np.full(
            (self._episodes.num_envs, self._episodes.task.length), self._episodes.dynamics.num_actions + 1
        )
        self.single_action_space = spaces.MultiDiscrete(choices[0])
        self.action_space = spaces.MultiDiscrete(choices)

    def actions(self, actions: Choices) -> Rates:
        return choices_to_rates(np.asarray(actions), self._episodes)


class LogitAction(gym.ActionWrapper[Observation, Logits, Rates], RecordConstructorArgs):
    """Give unbounded logits: ``Box(-inf, inf, (L, V), float32)``; see `logits_to_rates`.

    Raises:
        InvalidArgumentError: the environment takes re-masking rates.
    """

    def __init__(self, env: gym.Env[Observation, Rates]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        _require_no_remask(self._episodes)
        shape = (self._episodes.task.length, self._episodes.task.num_tokens)
        self.action_space = spaces.Box(-np.inf, np.inf, shape, np.float32)

    def action(self, action: Logits) -> Rates:
        rates: Rates = logits_to_rates(action, self._episodes)[0]
        return rates


class VectorLogitAction(gym.vector.VectorActionWrapper[Observation, Logits, Rates, npt.NDArray[Any]]):
    """`LogitAction` for B environments: logits float32 ``(B, L, V)``."""

    def __init__(self, env: gym.vector.VectorEnv[Observation, Rates, npt.NDArray[Any]]) -> None:
        super().__init__(env)
        self.autoreset_mode = _vector(env).autoreset_mode
        self._episodes = _vector(env).episodes
        _require_no_remask(self._episodes)
        shape = (self._episodes.task.length, self._episodes.task.num_tokens)
        self.single_action_space = spaces.Box(-np.inf, np.inf, shape, np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (self._episodes.num_envs, *shape), np.float32)

    def actions(self, actions: Logits) -> Rates:
        return logits_to_rates(actions, self._episodes)
