"""Trajectories for training: TorchRL's collector on the environment, without keeping the actions."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator

import torch
from tensordict import TensorDict, TensorDictBase
from torchrl.collectors import Collector
from torchrl.envs import Compose, Transform, TransformedEnv

from agents.config import LearnerConfig
from agents.policies.rates import RatePolicy
from agents.training.health import CURE
from sepo_env import TorchRLEnv
from sepo_env.denoisers import Denoiser
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import correct
from sepo_env.errors import DivergenceError, InvalidActionError

_SEED_MASK = (1 << 62) - 1


def derived_seed(seed: int, number: int) -> int:
    """The ``number``-th of the unrelated seeds that belong to one seed, 0 .. 2^62 - 1.

    Every random number of a run is a function of its seed and the iteration, so a run that is continued from a
    checkpoint needs no generator's state to go on exactly.
    """
    return int(keys_from_seed(torch.tensor([seed]), number)) & _SEED_MASK


class ForgetAction(Transform):
    """Drops the action once the environment has made its step.

    The rates of a step are ``(B, L, V)`` numbers, and a collector keeps every entry of every step until the
    trajectory ends: at a vocabulary of 50,000 that is gigabytes a step. The losses recompute from the tokens what
    they need, so the rates of one step at a time are enough.
    """

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        # From both: what is stored, and the next step's root, to which TorchRL carries the last action over.
        for td in (tensordict, tensordict_):
            td.pop("action", None)
        return tensordict, tensordict_


class GradientFlow(Transform):
    """Corrector leaps on the state between two steps, as `sepo_env.diffusion.sampler.reverse_steps` makes them.

    The stored ``next`` tokens stay those that the policy's step led to; the corrected ones are where the next step
    starts. The leaps use the counters that the sampler uses, so that a trajectory is the one it would draw.

    Args:
        env: the environment, on its time grid.
        denoiser: whose flow it is: the policy's network.
        num_leaps: leaps between two steps.
        size: length of a leap in units of sigma.
    """

    def __init__(self, env: TorchRLEnv, denoiser: Denoiser, num_leaps: int, size: float) -> None:
        super().__init__()
        self._episodes = env.episodes
        self._denoiser = denoiser
        self._num_leaps = num_leaps
        self._size = size

    def _post_step_mdp_hooks(
        self, tensordict: TensorDictBase, tensordict_: TensorDictBase
    ) -> tuple[TensorDictBase, TensorDictBase]:
        state, dynamics = self._episodes.running_state(), self._episodes.dynamics
        step = int(state.step[0])  # all episodes of a k-step environment walk in step
        if step < dynamics.horizon:
            tokens = correct(
                dynamics.process,
                self._denoiser,
                state.tokens,
                state.time,
                keys=state.keys,
                counters=[dynamics.horizon * (leap + 1) + step for leap in range(self._num_leaps)],
                prompt_mask=state.prompt_mask,
                corrector_size=self._size,
            )
            self._episodes.state = dataclasses.replace(state, tokens=tokens)
            tensordict_["tokens"] = tokens
        return tensordict, tensordict_


def rollout_size(config: LearnerConfig) -> int:
    """How many trajectories walk side by side, R: all B of a batch, or the largest part that fits a micro-batch.

    Parts are equal, and trajectories that share a prompt stay together. What one step holds, ``(R, L, V)`` numbers, is
    thus bounded like the update's.
    """
    group = max(1, config.group_size)
    parts = [size for size in range(group, config.batch_size + 1, group) if config.batch_size % size == 0]
    return max((size for size in parts if size <= config.micro_batch_size), default=parts[0])


def _part_seeds(config: LearnerConfig, iteration: int) -> list[int]:
    # A trajectory's randomness is that of its own seed, so a batch in parts is the batch in one piece.
    first = derived_seed(config.seed, iteration)
    return [first + row for row in range(0, config.batch_size, rollout_size(config))]


def first_states(env: TorchRLEnv, config: LearnerConfig, iteration: int) -> TensorDict:
    """The states ``(B,)`` that the trajectories of an iteration start from."""
    parts = []
    for seed in _part_seeds(config, iteration):
        env.set_seed(seed, static_seed=True)
        parts.append(env.reset())
    return torch.cat(parts)


def collect(
    env: TorchRLEnv, denoiser: Denoiser, config: LearnerConfig, first_iteration: int
) -> Generator[TensorDict, None, None]:
    """Sample a batch of trajectories ``(B, K)`` for each iteration, for ever, without gradients.

    Args:
        env: R environments of K steps (`rollout_size`).
        denoiser: the policy's network; its parameters may change between batches.
        config: the seed, and the corrector.
        first_iteration: index of the first batch; batch i depends on the seed, on i and on the policy alone.

    Raises:
        DivergenceError: the policy's rates are not finite.
    """
    transforms: list[Transform] = [ForgetAction()]
    if config.corrector_steps > 0:
        transforms.append(GradientFlow(env, denoiser, config.corrector_steps, config.corrector_size))
    policy = RatePolicy(denoiser, env.task.process, num_steps=config.num_steps)
    collector = Collector(
        TransformedEnv(env, Compose(*transforms)),
        policy,
        frames_per_batch=env.batch_size[0] * config.num_steps,
        total_frames=-1,
        # With one device for all, the collector steps its own tensordict, from which the transform drops the action;
        # otherwise it would step, and the transform would see, a copy.
        device=env.device,
        reset_at_each_iter=True,
        # Buffers are laid out by a trial step, which costs network evaluations, and would hold the actions.
        use_buffers=False,
        track_traj_ids=False,
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    try:
        batches = iter(collector)
        iteration = first_iteration
        while True:
            parts = []
            for seed in _part_seeds(config, iteration):
                env.set_seed(seed, static_seed=True)
                try:
                    parts.append(next(batches))
                except InvalidActionError as error:
                    _refuse_unsound(policy, env, error)
                    raise
            yield torch.cat(parts) if len(parts) > 1 else parts[0]
            iteration += 1
    finally:
        collector.shutdown(close_env=False)


@torch.no_grad()
def _refuse_unsound(policy: RatePolicy, env: TorchRLEnv, error: InvalidActionError) -> None:
    """Tell an action that the environment refused as a divergence, if the policy's rates in its state are no numbers.

    Nobody but the policy gives actions here; only where one was refused is it asked a second time.
    """
    state = env.episodes.running_state()
    seen = {"tokens": state.tokens, "time": state.time[:, None].float()}
    if env.episodes.conditional:
        seen["prompt_mask"] = state.prompt_mask
    rates = policy(TensorDict(seen, batch_size=env.batch_size))["action"]
    if not bool(rates.isfinite().all()):
        raise DivergenceError(
            f"the policy cannot be sampled from any more: its rates are not finite, though its weights are; {CURE}"
        ) from error


def starts(
    env: TorchRLEnv, denoiser: Denoiser, config: LearnerConfig, first_iteration: int
) -> Generator[TensorDict, None, None]:
    """Where the trajectories of each iteration would start, ``(B, 1)``, for ever; arguments as for `collect`."""
    iteration = first_iteration
    while True:
        yield first_states(env, config, iteration).unsqueeze(1)
        iteration += 1


SOURCES = {"trajectories": collect, "starts": starts}
"""What a `Method` may eat, by name."""
