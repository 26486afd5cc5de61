r"""Wrappers that speak the language of other libraries, each for single and for vector environments.

Stock algorithms choose tokens (`TokenAction`, `VectorTokenAction`) or emit real numbers (`LogitAction`,
`VectorLogitAction`); the wrappers translate to jump rates. `KLPenalty` and `VectorKLPenalty` charge the reward for
leaving the pretrained denoiser.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from annotated_types import Ge, Le
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from gymnasium.vector import AutoresetMode

from sepo_env.arguments import NonNegative, checked
from sepo_env.diffusion import StepLaw
from sepo_env.envs.actions import Rates, as_array, as_rates
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.gym_env import DiffusionEnv, Observation
from sepo_env.envs.spaces import box
from sepo_env.envs.vector_env import DiffusionVectorEnv, Step
from sepo_env.errors import InvalidActionError, InvalidArgumentError

Choices = npt.NDArray[np.int64]
Logits = npt.NDArray[np.floating[Any]]

Bound = Annotated[float, Ge(1e-3), Le(1e6)]
BOUND: Bound = 10.0
"""Logits that agents draw lie within this of 0, unless they are told otherwise.

Softmax turns the widest difference, 20, into odds of 2e-9, below float32's resolution of a probability near 1, 6e-8:
so one token can have all the probability that float32 can say, and of 50,257 tokens still 99.99 %.
"""

# Gymnasium's vector wrappers take types in brackets from 1.4 on only.
if TYPE_CHECKING:
    _VectorWrapper = gym.vector.VectorWrapper[Observation, Rates, Observation, Rates, npt.NDArray[Any]]
    _VectorChoiceWrapper = gym.vector.VectorActionWrapper[Observation, Choices, Rates, npt.NDArray[Any]]
    _VectorLogitWrapper = gym.vector.VectorActionWrapper[Observation, Logits, Rates, npt.NDArray[Any]]
else:
    _VectorWrapper = gym.vector.VectorWrapper
    _VectorChoiceWrapper = _VectorLogitWrapper = gym.vector.VectorActionWrapper


class _OfEpisodes:
    """What the vector wrappers share: the episodes of the environment inside."""

    autoreset_mode: AutoresetMode
    _episodes: Episodes

    def _adopt(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        base = env.unwrapped
        if not isinstance(base, DiffusionVectorEnv):
            raise InvalidArgumentError(
                f"this wrapper is for the vector environments of sepo_env, not for {base}; wrap the single ones before."
            )
        self.autoreset_mode = base.autoreset_mode
        self._episodes = base.episodes


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
    choices = _as_choices(choices, (episodes.num_envs, episodes.task.length))
    if choices.min() < 0 or choices.max() > num_actions:
        env, position = np.argwhere((choices < 0) | (choices > num_actions))[0]
        raise InvalidActionError(
            f"environment {env}, position {position}: choice {choices[env, position]} is none of 0 to {num_actions} "
            f"(tokens first, {num_actions} is to wait)."
        )
    rates = np.zeros(episodes.action_shape, dtype=np.float32)
    chosen = np.nonzero(choices < num_actions)
    rates[(*chosen, choices[chosen])] = 1.0
    idle = torch.from_numpy(choices >= num_tokens).to(episodes.device)
    stuck = episodes.dynamics.stuck(episodes.running_state(), idle)
    rates[..., :num_tokens][stuck.cpu().numpy()] = 1.0
    return rates


def logits_to_rates(logits: Logits, episodes: Episodes) -> Rates:
    r"""Logits ``(B, L, V)`` -> rates ``(B, L, V)``: softmax over V where a position can jump, 0 elsewhere.

    On a masked chain that is the action of a denoiser with these logits; a softmax keeps each masked position's total
    rate at 1, so that positions unmask at the ancestral pace.

    Raises:
        InvalidActionError: another shape or dtype, or a logit that is not finite as a float32.
    """
    array = _as_logits(logits, (episodes.num_envs, episodes.task.length, episodes.task.num_tokens))
    with np.errstate(over="ignore"):  # what is too large is infinite, and named below
        tensor = torch.from_numpy(array.astype(np.float32)).to(episodes.device)
    if not bool(torch.isfinite(tensor).all()):
        env, position, token = (int(i) for i in (~torch.isfinite(tensor)).nonzero()[0])
        raise InvalidActionError(
            f"environment {env}, position {position}, token {episodes.task.token_texts[token]!r}: the logit is "
            f"{float(array[env, position, token])}; logits are finite float32 numbers."
        )
    movable = episodes.dynamics.process.graph.can_jump(episodes.running_state().tokens)
    rates: Rates = (tensor.softmax(-1) * movable[..., None]).cpu().numpy()
    return rates


def _as_choices(choices: Any, shape: tuple[int, ...]) -> Choices:
    return as_array(choices, shape, "choices", "iu", "integers")


def _as_logits(logits: Any, shape: tuple[int, ...]) -> Logits:
    return as_array(logits, shape, "logits", "f", "float32")


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

    @checked
    def __init__(self, env: gym.Env[Any, Any], coefficient: NonNegative) -> None:
        RecordConstructorArgs.__init__(self, coefficient=coefficient)
        gym.Wrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        _require_k_step(self._episodes)
        self._coefficient = coefficient

    def step(self, action: Rates) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Step, and take the penalty off the reward."""
        batch = as_array(action, self._episodes.action_shape[1:], "rates", "f", "float32")[None]
        divergence = float(step_divergence(batch, self._episodes)[0])
        observation, reward, terminated, truncated, info = self.env.step(action)
        info["kl"] = divergence
        return observation, float(reward) - self._coefficient * divergence, terminated, truncated, info


class VectorKLPenalty(_OfEpisodes, _VectorWrapper):
    """`KLPenalty` for B environments; ``info["kl"]`` is float64 ``(B,)``."""

    @checked
    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], coefficient: NonNegative) -> None:
        super().__init__(env)
        self._adopt(env)
        _require_k_step(self._episodes)
        self._coefficient = coefficient

    def step(self, actions: Rates) -> Step:
        """Step, and take the penalties off the rewards."""
        divergence = step_divergence(actions, self._episodes)
        observation, rewards, terminated, truncated, infos = self.env.step(actions)
        infos |= {"kl": divergence, "_kl": np.ones(len(divergence), dtype=np.bool_)}
        return observation, rewards - self._coefficient * divergence, terminated, truncated, infos


def _require_k_step(episodes: Episodes) -> None:
    if episodes.dynamics.sampler == "first-hitting":
        raise InvalidArgumentError("the penalty compares laws of k-steps; use sampler='k-step'.")


def _single(env: gym.Env[Any, Any]) -> DiffusionEnv:
    base = env.unwrapped
    if not isinstance(base, DiffusionEnv):
        raise InvalidArgumentError(f"this wrapper is for the environments of sepo_env, not for {base}.")
    return base


class TokenAction(gym.ActionWrapper[Observation, Choices, Rates], RecordConstructorArgs):
    """Choose a token, or to wait, at each position: ``MultiDiscrete([A + 1] * L)``; see `choices_to_rates`.

    The last choice is to wait. With ``remask=True`` the last but one is MASK: a visible token goes back to it.
    Choices at positions that cannot jump are ignored.
    """

    @checked
    def __init__(self, env: gym.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        self.action_space = spaces.MultiDiscrete([self._episodes.dynamics.num_actions + 1] * self._episodes.task.length)

    def action(self, action: Choices) -> Rates:
        choices = _as_choices(action, (self._episodes.task.length,))
        rates: Rates = choices_to_rates(choices[None], self._episodes)[0]
        return rates


class VectorTokenAction(_OfEpisodes, _VectorChoiceWrapper):
    """`TokenAction` for B environments: choices int64 ``(B, L)``."""

    @checked
    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._adopt(env)
        choices = np.full(
            (self._episodes.num_envs, self._episodes.task.length), self._episodes.dynamics.num_actions + 1
        )
        self.single_action_space = spaces.MultiDiscrete(choices[0])
        self.action_space = spaces.MultiDiscrete(choices)

    def actions(self, actions: Choices) -> Rates:
        return choices_to_rates(actions, self._episodes)


class LogitAction(gym.ActionWrapper[Observation, Logits, Rates], RecordConstructorArgs):
    """Give logits: ``Box(-bound, bound, (L, V), float32)``; see `logits_to_rates`.

    Algorithms for continuous actions (PPO, A2C and SAC of Stable-Baselines3, for one) need a space with finite bounds,
    and scale or clip what they draw to it. Finite logits beyond the bounds are taken as they are: log-probabilities of
    a network are good actions.

    Args:
        env: an environment of this library, without ``remask``.
        bound: how far from 0 the space reaches; None is a space without bounds.

    Raises:
        InvalidArgumentError: the environment takes re-masking rates, or a bound out of range.
    """

    @checked
    def __init__(self, env: gym.Env[Any, Any], bound: Bound | None = BOUND) -> None:
        RecordConstructorArgs.__init__(self, bound=bound)
        gym.ActionWrapper.__init__(self, env)
        self._episodes = _single(env).episodes
        self.action_space = _logit_space(self._episodes, (), bound)

    def action(self, action: Logits) -> Rates:
        logits = _as_logits(action, (self._episodes.task.length, self._episodes.task.num_tokens))
        rates: Rates = logits_to_rates(logits[None], self._episodes)[0]
        return rates


class VectorLogitAction(_OfEpisodes, _VectorLogitWrapper):
    """`LogitAction` for B environments: logits float32 ``(B, L, V)``."""

    @checked
    def __init__(self, env: gym.vector.VectorEnv[Any, Any, Any], bound: Bound | None = BOUND) -> None:
        super().__init__(env)
        self._adopt(env)
        self.single_action_space = _logit_space(self._episodes, (), bound)
        self.action_space = _logit_space(self._episodes, (self._episodes.num_envs,), bound)

    def actions(self, actions: Logits) -> Rates:
        return logits_to_rates(actions, self._episodes)


def _logit_space(episodes: Episodes, batch: tuple[int, ...], bound: float | None) -> spaces.Box[np.float32]:
    if episodes.dynamics.remask:
        raise InvalidArgumentError(
            "logits are normalised over the visible tokens, which leaves no rate back to MASK; use remask=False."
        )
    most = np.inf if bound is None else bound
    return box(-most, most, (*batch, episodes.task.length, episodes.task.num_tokens))
