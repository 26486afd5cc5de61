"""The TorchRL environment: B episodes as a tensordict, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from sepo_env.arguments import Seed, Size, check_argument, checked
from sepo_env.envs.dynamics import State
from sepo_env.envs.episodes import Episodes
from sepo_env.envs.rate_spec import RateSpec
from sepo_env.errors import InvalidArgumentError
from sepo_env.registration import ENVIRONMENTS
from sepo_env.tasks import Task


class TorchRLEnv(EnvBase):
    r"""Denoising as a batched TorchRL environment; the MDP is that of `sepo_env.envs.gym_env.DiffusionEnv`.

    Row i gives the same trajectory as a Gymnasium environment that was reset with the seed ``seed + i`` and got the
    same actions.

    Args:
        task: an environment's id (``"DNAEnhancer-v0"``), a task's name (``"dna_enhancer"``) or a task.
        num_envs: B; or give ``batch_size``.
        batch_size: B as a size with one entry, as TorchRL writes it.
        seed: of the random streams, as `set_seed`; None draws one.
        **options: as for `sepo_env.envs.episodes.Episodes`: ``reward``, ``num_steps``, ``schedule``, ``sampler``,
            ``denoiser``, ``device``, ``remask``, ``conditional``, the reward's options, the task's options.

    Keys:
        Read: ``action`` ``(B, L, A)`` float32, jump rates per unit of the action clock. Written: ``tokens`` ``(B, L)``
        int64, ids of categories (``Categorical`` of V + 1, MASK = V; of V on a uniform graph); ``time`` ``(B, 1)``
        float32; ``prompt_mask`` ``(B, L)`` bool, if conditional; ``transition_log_prob`` ``(B, L)`` float32, the
        log-probability of what happened at each position in the step that led here (0 where
        nothing could happen, and after a reset), so that policies need not store rates; ``reward``, ``done`` and
        ``terminated`` ``(B, 1)``.

    ``reset(prompt=...)`` clamps given positions, see `Episodes.reset`. Where the task draws no prompts it asks for
    ``conditional=True``: losses and baselines that did not see what is given would count it, and compare different
    prompts. (The Gymnasium environments show such a mask in the infos of the reset.)

    Raises:
        InvalidArgumentError: no batch size, two of them, or one with several entries; or a prompt that the
            observation would not show.

    Example:
        >>> env = TorchRLEnv("ToyCTMC-v0", num_envs=3, seed=0)
        >>> policy = lambda td: td.set("action", env.pretrained_action())
        >>> rollout = env.rollout(8, policy)
        >>> rollout["next", "reward"].shape, rollout["next", "done"][:, -1].all().item()
        (torch.Size([3, 8, 1]), True)
    """

    @checked
    def __init__(
        self,
        task: str | Task,
        *,
        num_envs: Size | None = None,
        batch_size: Sequence[Size] | None = None,
        seed: Seed | None = None,
        **options: Any,
    ) -> None:
        size = _one_size(num_envs, batch_size)
        name = ENVIRONMENTS.get(task, task) if isinstance(task, str) else task
        self.episodes = Episodes(name, size, **options)
        self.task = self.episodes.task
        super().__init__(device=self.episodes.device, batch_size=torch.Size([size]))
        self._make_specs()
        self.set_seed(int(torch.randint(2**62, ())) if seed is None else seed)

    def _make_specs(self) -> None:
        episodes, batch = self.episodes, self.batch_size
        length, device = episodes.task.length, self.device
        vocab_size = episodes.task.process.graph.vocab_size
        observation: dict[str, Any] = {
            # Categories as ids: it stores one number, and nothing of the vocabulary's size is ever made.
            "tokens": Categorical(vocab_size, (*batch, length), device, torch.int64),
            "time": Bounded(0.0, 1.0, (*batch, 1), device, torch.float32),
            "transition_log_prob": Unbounded((*batch, length), device, torch.float32),
        }
        if episodes.conditional:
            observation["prompt_mask"] = Binary(shape=(*batch, length), device=device, dtype=torch.bool)
        self.observation_spec = Composite(observation, shape=batch, device=device)
        action_shape = (*batch, length, episodes.dynamics.num_actions)
        self.action_spec = RateSpec(action_shape, device)
        self.reward_spec = Unbounded((*batch, 1), device, torch.float32)
        flag = Binary(shape=(*batch, 1), device=device, dtype=torch.bool)
        self.full_done_spec = Composite(done=flag, terminated=flag.clone(), shape=batch, device=device)

    def _reset(self, tensordict: TensorDictBase | None = None, prompt: Any = None) -> TensorDictBase:
        if prompt is not None and not self.episodes.conditional:
            raise InvalidArgumentError(
                "a prompt is given, but the observation does not show which positions are given; make the environment "
                "with conditional=True."
            )
        rows = None if tensordict is None else tensordict.get("_reset", None)
        state = self.episodes.reset(None if rows is None else rows.reshape(-1), prompt)
        idle = torch.zeros(*self.batch_size, 1, dtype=torch.bool, device=self.device)
        log_prob = torch.zeros(state.tokens.shape, dtype=torch.float32, device=self.device)
        return self._as_tensordict(state, log_prob, done=idle, terminated=idle.clone())

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        outcome = self.episodes.step(tensordict.get("action", None))
        over = outcome.terminated[:, None]
        return self._as_tensordict(
            outcome.state, outcome.log_prob, reward=outcome.reward[:, None], done=over, terminated=over.clone()
        )

    def _as_tensordict(self, state: State, log_prob: Tensor, **entries: Tensor) -> TensorDict:
        # Copies: whoever writes into what was seen changes no episode.
        seen = {
            "tokens": state.tokens.clone(),
            "time": state.time[:, None].float(),
            "transition_log_prob": log_prob,
        }
        if self.episodes.conditional:
            seen["prompt_mask"] = state.prompt_mask.clone()
        return TensorDict({**seen, **entries}, batch_size=self.batch_size, device=self.device)

    @checked
    def set_seed(self, seed: Seed | None = None, static_seed: bool = False) -> int | None:
        """Seed row i with ``seed + i``, and return the seed that TorchRL takes next; None changes nothing."""
        following: int | None = super().set_seed(seed, static_seed)
        return following

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            check_argument("the last row's seed", seed + self.batch_size[0] - 1, Seed)
            self.episodes.seed([seed + row for row in range(self.batch_size[0])])

    def pretrained_action(self) -> Tensor:
        """The pretrained denoiser's action in the present states, float32 ``(B, L, A)``: its ancestral sampler."""
        return self.episodes.pretrained_rates()

    def close(self, **kwargs: Any) -> None:
        """Stop what the reward runs in the background."""
        self.episodes.close()
        super().close(**kwargs)


def _one_size(num_envs: int | None, batch_size: Sequence[int] | None) -> int:
    if (num_envs is None) == (batch_size is None):
        raise InvalidArgumentError("give the number of environments once: as num_envs=B or as batch_size=[B].")
    if batch_size is None:
        return int(num_envs or 0)
    if len(batch_size) != 1:
        raise InvalidArgumentError(f"batch_size is {tuple(batch_size)}; environments have one batch dimension, [B].")
    return int(batch_size[0])
