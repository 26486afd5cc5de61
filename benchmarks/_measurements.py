"""What ``benchmarks/speed.py`` measures: each function yields one ratio a turn."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import gymnasium as gym
import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from agents.registry import learner_class
from benchmarks._program import PathOption
from sepo_env import TorchRLEnv, tasks
from sepo_env.arguments import Size, check_fields
from sepo_env.denoisers import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.sampler import sample
from sepo_env.registration import ENVIRONMENTS

MeasurementName = Literal["vector-step", "torchrl-step", "vector", "sampler", "trainer"]

_REWARD = "gc"
"""A reward that costs next to nothing: the figures are of this library, not of an oracle."""


@dataclass(frozen=True)
class Options:
    """Measure the speed of environments, sampler and trainer as ratios, against their goals."""

    device: str = "cpu"
    """Where the networks and the dynamics live: cpu, cuda, cuda:1, ..., or auto (a GPU where there is one)."""
    repeats: Annotated[int, Ge(2), Le(1_000)] = 7
    """Turns of each measurement."""
    threads: Annotated[int, Ge(1), Le(1_024)] | None = None
    """Threads of torch; its own choice if not given."""
    num_envs: Size = 64
    """Environments, and sequences of a batch."""
    num_steps: Size = 32
    """Reverse steps of an episode."""
    only: tuple[MeasurementName, ...] = ()
    """Names of the measurements to make; all of them if none is given."""
    json: PathOption | None = None
    """File for the figures; none is written if not given."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)


class Bench:
    """The worlds and networks that the measurements share."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.env_id = "DNAEnhancer-v0"
        self.task = tasks.make(ENVIRONMENTS[self.env_id])
        self.denoiser = self.task.load_denoiser().to(options.device)
        self._cuda = torch.device(options.device).type == "cuda"

    def seconds(self, work: Callable[[], object]) -> float:
        """Wall time of one call, including what it leaves running on the device."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self._cuda:
            torch.cuda.synchronize()

    def forward(self) -> None:
        """One forward pass of a batch of noise."""
        options = self.options
        tokens = torch.full((options.num_envs, self.task.length), self.task.num_tokens, device=options.device)
        with torch.no_grad():
            self.denoiser(tokens, torch.full((options.num_envs,), 0.5, dtype=torch.float64, device=options.device))


def vector_step(bench: Bench) -> Iterator[float]:
    """A step of the Gymnasium vector environment over a forward pass of the denoiser, both of the same batch."""
    options = bench.options
    env = gym.make_vec(
        bench.env_id, num_envs=options.num_envs, reward=_REWARD, num_steps=options.num_steps, device=options.device
    )
    env.reset(seed=0)
    action = _actions(options.num_envs, bench.task.length)

    def episode() -> None:
        for _ in range(options.num_steps):
            env.step(action)

    yield from in_turns(bench, lambda: bench.seconds(episode) / options.num_steps, lambda: bench.seconds(bench.forward))


def torchrl_step(bench: Bench) -> Iterator[float]:
    """A step of the TorchRL environment over a forward pass of the denoiser, both of the same batch."""
    options = bench.options
    env = TorchRLEnv(
        bench.env_id,
        num_envs=options.num_envs,
        reward=_REWARD,
        num_steps=options.num_steps,
        device=options.device,
        seed=0,
    )
    action = torch.from_numpy(_actions(options.num_envs, bench.task.length)).to(options.device)

    def episode() -> None:
        state = env.reset()
        for _ in range(options.num_steps):
            state["action"] = action
            _, state = env.step_and_maybe_reset(state)

    yield from in_turns(bench, lambda: bench.seconds(episode) / options.num_steps, lambda: bench.seconds(bench.forward))


def vector_against_singles(bench: Bench) -> Iterator[float]:
    """Steps a second of ``gym.make_vec`` over those of as many single environments in a ``SyncVectorEnv``."""
    options = bench.options
    settings: dict[str, Any] = {"reward": _REWARD, "num_steps": options.num_steps, "device": options.device}
    batched = gym.make_vec(bench.env_id, num_envs=options.num_envs, **settings)
    singles = gym.make_vec(bench.env_id, num_envs=options.num_envs, vectorization_mode="sync", **settings)
    action = _actions(options.num_envs, bench.task.length)
    steps = 8
    for env in (batched, singles):
        env.reset(seed=0)

    def several(env: gym.vector.VectorEnv[Any, Any, Any]) -> Callable[[], None]:
        def work() -> None:
            for _ in range(steps):
                env.step(action)

        return work

    yield from in_turns(
        bench, lambda: bench.seconds(several(singles)), lambda: bench.seconds(several(batched)), warm_up=1
    )


def sampler_against_loop(bench: Bench) -> Iterator[float]:
    """Sequences a second of the K-step sampler over those of a plain loop of forward pass and categorical draw."""
    options, process = bench.options, bench.task.process
    count, length, steps = options.num_envs, bench.task.length, options.num_steps

    def ours() -> None:
        sample(process, bench.denoiser, count, length, num_steps=steps, device=options.device)

    def plain() -> None:
        plain_loop(process, bench.denoiser, count, length, steps, options.device)

    yield from in_turns(bench, lambda: bench.seconds(plain), lambda: bench.seconds(ours))


@torch.no_grad()
def plain_loop(
    process: DiffusionProcess, denoiser: Denoiser, num_samples: int, length: int, num_steps: int, device: str
) -> Tensor:
    """Ancestral sampling of an absorbing chain as one would write it down: the yardstick of the sampler.

    Returns:
        Clean tokens, int64 ``(num_samples, length)``.
    """
    mask = process.graph.num_tokens
    tokens = torch.full((num_samples, length), mask, device=device)
    grid = process.time_grid(num_steps, device=device)
    for t, s in itertools.pairwise(grid):
        drawn = torch.distributions.Categorical(logits=denoiser(tokens, t.expand(num_samples))).sample()
        filled = torch.rand(tokens.shape, device=device) < process.unmask_prob(t, s)
        tokens = torch.where((tokens == mask) & filled, drawn, tokens)
    return tokens


def trainer_overhead(bench: Bench) -> Iterator[float]:
    """Time of a training iteration of SEPO over the bare network time of the same passes, minus 1."""
    options = bench.options
    states_per_trajectory, micro_batch = 8, 64
    agent = learner_class("sepo")(
        bench.env_id,
        device=options.device,
        seed=0,
        reward=_REWARD,
        num_iterations=options.repeats + 1,
        batch_size=options.num_envs,
        num_steps=options.num_steps,
        states_per_trajectory=states_per_trajectory,
        inner_epochs=1,
        minibatches=1,
        micro_batch_size=micro_batch,
        kl_coeff=0.0,
        eval_every=0,
    )
    tokens = torch.full((micro_batch, bench.task.length), bench.task.num_tokens, device=options.device)
    times = torch.full((micro_batch,), 0.5, dtype=torch.float64, device=options.device)

    def network() -> None:
        for _ in range(options.num_steps):
            bench.forward()
        for _ in range(options.num_envs * states_per_trajectory // micro_batch):
            bench.denoiser(tokens, times).logsumexp(-1).sum().backward()

    ratios: list[float] = []
    started = time.perf_counter()

    def iteration_ended(row: Mapping[str, Any]) -> None:
        nonlocal started
        bench.wait()
        trainer = time.perf_counter() - started
        ratios.append(trainer / bench.seconds(network) - 1.0)
        started = time.perf_counter()

    agent.train(callbacks=[iteration_ended], progress=False)
    yield from ratios[1:]  # the first iteration warms up


def in_turns(bench: Bench, above: Callable[[], float], below: Callable[[], float], warm_up: int = 1) -> Iterator[float]:
    """The ratio of two timings, taken one after the other in each turn; the order alternates."""
    for _ in range(warm_up):
        above(), below()
    for turn in range(bench.options.repeats):
        if turn % 2:
            denominator, numerator = below(), above()
        else:
            numerator, denominator = above(), below()
        yield numerator / denominator


def _actions(num_envs: int, length: int) -> np.ndarray[Any, Any]:
    rates = np.random.default_rng(0).random((num_envs, length, 4), dtype=np.float32) + np.float32(0.1)
    return rates / rates.sum(-1, keepdims=True)
