"""The Gymnasium environment: a batch of one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import gymnasium as gym
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from sepo_env.arguments import Seed, check_argument, checked
from sepo_env.envs import spaces
from sepo_env.envs.actions import Rates, as_rates
from sepo_env.envs.episodes import Episodes, Outcome
from sepo_env.envs.rendering import History, Image, ansi
from sepo_env.errors import UnknownNameError
from sepo_env.tasks import Task

Observation = dict[str, npt.NDArray[Any]]

RenderMode = Literal["ansi", "rgb_array"]
RENDER_MODES = [*get_args(RenderMode)]
SEEDS = 1 << 63
"""How many seeds there are."""


class DiffusionEnv(gym.Env[Observation, Rates]):
    r"""Denoising as a Markov decision process.

    ## Description

    An episode walks one sequence from noise (t = 1) to data (t = 0). The state is the noisy sequence; the action says
    how fast each position jumps to each token; the reward is what the finished sequence is worth. The task
    (``task.process``, ``task.denoiser``, ``task.rewards()``) says what the sequences are. With the pretrained
    denoiser's action (`pretrained_action`) the environment is its ancestral sampler exactly.

    ## Action Space

    ``Box(0, largest float32, (L, V), float32)``: jump rates per unit of the action clock
    :math:`\Lambda(t) = \log(1 - \alpha(t))` (absorbing) or :math:`\sigma(t)` (uniform). They are held over the step: a
    position stays with probability :math:`e^{-\Delta\Lambda \sum_v r_v}` and else jumps to v with probability
    proportional to :math:`r_v`. Rates that the graph forbids are ignored: those of visible positions (absorbing), and
    those to the token that is there. With ``remask=True`` the shape is ``(L, V + 1)``; the last column is the rate of
    visible positions back to MASK, ignored on the last step.

    A bad action (another shape or dtype, a rate that is negative or not finite, a masked position without a rate on
    the last step of an absorbing chain) raises `InvalidActionError` and changes nothing: act again.

    ## Observation Space

    ``Dict``: ``tokens``, ``MultiDiscrete([V + 1] * L)``, int64: categories, the visible tokens 0 .. V-1 and MASK = V
    (``[V] * L`` on a uniform graph); ``time`` float32 ``(1,)``; with ``conditional``, ``prompt_mask`` int8 ``(L,)``, 1
    where the position never changes. TorchRL's ``GymWrapper`` shows categories as one-hot; with
    ``categorical_action_encoding=True`` it shows them as they are.

    ## Rewards

    0 until the last step, then the reward of the finished sequence. The ``info`` of the last step holds ``sequence``,
    the decoded string, and ``reward_terms``, each term of the reward by name and their total as ``reward``.

    ## Starting State

    All positions masked (absorbing) or uniformly random (uniform). ``reset(options={"prompt": ...})`` clamps given
    positions for one episode: a string with the task's ``mask_letter`` where free, or token ids with V or -1 where
    free. It goes before a prompt that the task draws (such as the ``prompt``, ``flanks`` and ``motifs`` of
    ``DNAEnhancer-v0``). Where the observation does not show it, the ``info`` of the reset then holds ``prompt_mask``,
    bool ``(L,)``.
    ``reset(seed=s)`` restarts the random stream, ``reset()`` goes on with it.

    ## Episode End

    Terminated after ``num_steps`` steps, or with ``sampler="first-hitting"``, where a step makes exactly one jump, when
    no mask is left. Never truncated.

    ## Arguments

    As for `sepo_env.envs.episodes.Episodes`, all by keyword: ``reward``, ``num_steps``, ``schedule``, ``sampler``,
    ``denoiser``, ``device``, ``artefacts``, ``remask``, ``conditional``, ``workers``, ``timeout``, ``on_error``,
    ``floor``, ``cache`` and the options of the task; and ``render_mode``: ``"ansi"`` (the sequence, masks dim, fresh
    tokens bright) or ``"rgb_array"`` (the token-by-time picture so far).

    ```python
    env = gym.make("DNAEnhancer-v0", reward="activity", num_steps=64)
    env = gym.make("DNAEnhancer-v0", reward=lambda sequences: [s.count("GATAA") for s in sequences])
    ```

    ## Version History

    * v0: first version.
    """

    metadata = {"render_modes": RENDER_MODES, "render_fps": 30}  # noqa: RUF012 - as Gymnasium declares it

    @checked
    def __init__(self, task: str | Task, *, render_mode: RenderMode | None = None, **options: Any) -> None:
        self.render_mode = render_mode
        self.episodes = Episodes(task, 1, **options)
        self.task = self.episodes.task
        self.action_space = cast("gym.Space[Rates]", spaces.action_space(self.episodes))
        self.observation_space = cast("gym.Space[Observation]", spaces.observation_space(self.episodes))
        self._running = False
        self._history = make_history(self.episodes, render_mode)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see Starting State."""
        prompt = check_reset_options(options, {"prompt"}).get("prompt")
        seed = check_argument("seed", seed, Seed | None)
        fresh = seed is None and (not self.episodes.seeded or self.np_random_seed == -1)
        seeds = [root_seed(self) if fresh else seed]
        state = self.episodes.reset(prompt=prompt, seeds=seeds)
        super().reset(seed=seed)  # last, so that a bad prompt leaves everything as it was
        self._running = True
        # An observation that shows the mask needs no second one, which readers of infos would write over it.
        hidden = not self.episodes.conditional and bool(state.prompt_mask.any())
        return self._observe(), {"prompt_mask": state.prompt_mask[0].cpu().numpy().copy()} if hidden else {}

    def step(self, action: Rates) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Hold the rates ``action`` ``(L, A)`` over one step; see Action Space."""
        if not self._running:
            raise ResetNeeded("there is no running episode; call reset() before step().")
        outcome = self.episodes.step(as_rates(action, self.episodes.action_shape[1:], self.episodes.device)[None])
        terminated = bool(outcome.terminated[0])
        self._running = not terminated
        return (
            self._observe(),
            float(outcome.reward[0]),
            terminated,
            False,
            final_infos(outcome)[0] if terminated else {},
        )

    def pretrained_action(self) -> Rates:
        """The pretrained denoiser's action in the present state, float32 ``(L, A)``: its ancestral sampler."""
        action: Rates = self.episodes.pretrained_rates()[0].cpu().numpy()
        return action

    def render(self) -> str | Image | None:
        """The present state as text or as a picture, by ``render_mode``."""
        if self._history is None:
            gym.logger.warn(
                "render() needs a render_mode; make the environment with render_mode='ansi' or 'rgb_array'."
            )
            return None
        return draw(self.episodes, self._history, self.render_mode, 0)

    def close(self) -> None:
        """Stop what the reward runs in the background."""
        self.episodes.close()

    def _observe(self) -> Observation:
        record(self.episodes, self._history)
        batch = spaces.observation(self.episodes.running_state(), self.episodes.conditional)
        return {name: values[0] for name, values in batch.items()}


def root_seed(env: gym.Env[Any, Any] | gym.vector.VectorEnv[Any, Any, Any]) -> int:
    """The seed of an environment that was reset without one.

    A random one, unless somebody set ``np_random``: then the seeds come from that generator.
    """
    if env.np_random_seed == -1:
        return int(env.np_random.integers(2**63))
    return int(env.np_random_seed) % SEEDS  # type: ignore[arg-type]


def check_reset_options(options: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    """The options of a reset, {} for None.

    Raises:
        InvalidArgumentError: no dictionary.
        UnknownNameError: an option that nobody reads.
    """
    given = check_argument("options", options, Mapping[str, Any] | None) or {}
    for name in given:
        if name not in known:
            raise UnknownNameError("reset option", name, known)
    return dict(given)


def final_infos(outcome: Outcome) -> list[dict[str, Any]]:
    """The infos of the episodes that ended, in order of their rows."""
    terms = {name: values.tolist() for name, values in outcome.terms.items()}
    return [
        {"sequence": sequence, "reward_terms": {name: values[n] for name, values in terms.items()}}
        for n, sequence in enumerate(outcome.sequences)
    ]


def make_history(episodes: Episodes, render_mode: str | None) -> History | None:
    """A record for pictures, if any are wanted."""
    if render_mode is None:
        return None
    task = episodes.task
    return History(episodes.num_envs, task.length, episodes.dynamics.horizon, task.num_tokens)


def record(episodes: Episodes, history: History | None) -> None:
    """Note the present states."""
    if history is not None:
        state = episodes.running_state()
        history.record(state.tokens.cpu().numpy(), state.step.cpu().numpy())


def draw(episodes: Episodes, history: History, render_mode: str | None, env: int) -> str | Image:
    """The present state of one environment, as text or as a picture."""
    if render_mode == "rgb_array":
        return history.image(env)
    state = episodes.running_state()
    return ansi(
        state.tokens[env].cpu().numpy(),
        history.previous(env),
        [*episodes.task.token_texts, episodes.task.mask_letter],
        step=int(state.step[env]),
        time=float(state.time[env]),
    )
