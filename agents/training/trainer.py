"""The training loop: sample, estimate advantages, update, evaluate, write down, until it is done or paid out."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from tensordict import TensorDict

from agents.config import LearnerConfig
from agents.cost import CostMeter
from agents.policies.weights import load_policy_state, policy_state
from agents.storage import prompts_state
from agents.training.batch import (
    NOTHING_TO_COMPARE,
    all_alone,
    collected_rewards,
    prompt_figures,
    reward_figures,
)
from agents.training.checkpoint import State
from agents.training.collect import SOURCES, derived_seed, first_states
from agents.training.evaluation import EVALUATION_COLUMNS, Evaluator
from agents.training.health import sound_outputs
from agents.training.logs import Row, RunLog
from agents.training.method import Method
from agents.training.progress import ProgressBar
from agents.training.recovery import RunCheckpoint
from agents.training.update import Updater
from sepo_env import TorchRLEnv
from sepo_env.denoisers import Denoiser
from sepo_env.errors import CheckpointError, DivergenceError, InvalidArgumentError
from sepo_env.rewards import Reward

Callback = Callable[[Row], None]

_PARTS = ("denoiser", "optimiser", "scheduler", "progress")
"""What every run keeps; a method adds parts of its own."""
_COSTS = ("nfe", "reward_calls")
_PROOF = 8
"""Sequences that are sampled at the end of a run, at most, to see whether its policy can be sampled from."""


class Trainer:
    """Trains one policy in one environment.

    All randomness is a function of the seed and the iteration, and whatever stops a run leaves the checkpoint of a
    whole and healthy iteration (`agents.training.recovery.RunCheckpoint`).

    Args:
        label: what the run is: agent, task, reward.
        config: the settings.
        env: environments of K steps, `agents.training.collect.rollout_size` of them.
        denoiser: the policy's network.
        reference: the pretrained network, frozen.
        method: what the algorithm adds.
        reward: the environment's.
        evaluator: judges the policy.
    """

    def __init__(
        self,
        label: Mapping[str, Any],
        config: LearnerConfig,
        *,
        env: TorchRLEnv,
        denoiser: Denoiser,
        reference: Denoiser,
        method: Method,
        reward: Reward,
        evaluator: Evaluator,
    ) -> None:
        self.label = label
        self.config = config
        self.env = env
        self.denoiser = denoiser
        self.method = method
        self.evaluator = evaluator
        self.updater = Updater(method, config)
        self.meter = CostMeter(denoiser, reference, reward=reward)
        self.checkpoint = RunCheckpoint(label, config, (*_PARTS, *method.parts), prompts_state(env.task))
        self.iteration = 0
        self.wall_time = 0.0
        self.eval_cost = dict.fromkeys(_COSTS, 0)
        # At least the sampling has to be paid for; from the first iteration on the whole cost is known.
        evaluations = config.num_steps + config.corrector_steps * (config.num_steps - 1)
        self.iteration_cost = {"nfe": config.batch_size * evaluations, "reward_calls": config.batch_size}
        self.rows: list[Row] = []
        self._skipped = False

    def run(self, *, resume: bool = False, callbacks: Sequence[Callback] = (), progress: bool = True) -> list[Row]:
        """Train until the iterations are done, or the next one would exceed a budget.

        Args:
            resume: go on from the checkpoint in log_dir.
            callbacks: called with each iteration's row once it is written down.
            progress: whether to show a bar.

        Returns:
            One row an iteration, with those from before a resumption.

        Raises:
            CheckpointError: no checkpoint to resume from, that of another run, or one that a new run would overwrite.
            FolderError: log_dir cannot be written to, or another run writes there.
            InvalidArgumentError: advantages compare trajectories that share a prompt, and in no batch would any two.
            DivergenceError: a loss, gradient, weight or ratio out of bounds, or a policy that cannot be sampled from;
                names the last good checkpoint.
        """
        if resume:
            self.checkpoint.refuse_to_resume()
        else:
            self.checkpoint.refuse_to_overwrite()
            self._refuse_lonely_prompts()
        with self.checkpoint.folder or nullcontext():
            try:
                self._start(resume)
                batches = SOURCES[self.method.source](self.env, self.denoiser, self.config, self.iteration)
                try:
                    self._loop(batches, callbacks, progress)
                    self.checkpoint.write()
                except BaseException as error:
                    self._rescue(error)
                    raise
                finally:
                    batches.close()
            finally:
                self.meter.close()
        return self.rows

    def _start(self, resume: bool) -> None:
        if resume:
            parts, self.rows = self.checkpoint.read()
            self.load_state_dict(parts)
        else:
            self.checkpoint.refuse_to_overwrite()  # somebody may have been quicker
        if (fault := self.updater.check_weights.fault()) is not None:
            if resume and self.checkpoint.path is not None:
                raise CheckpointError(self.checkpoint.path, fault, "start a new run")
            raise DivergenceError(f"before the first step {fault}; give an agent whose weights are sound.")
        self.checkpoint.hold(self.state_dict(), self.rows)

    def _refuse_lonely_prompts(self) -> None:
        """Refuse a run of which no batch could be learnt from, before anything is spent on it."""
        iterations = range(self.config.num_iterations)
        if not self.method.compares or not self.env.episodes.conditional or not iterations:
            return
        # Prompts are drawn from the seed, not from the policy, so the draws are those of the run; the first batch
        # with company ends the search.
        if all(all_alone(first_states(self.env, self.config, iteration).unsqueeze(1)) for iteration in iterations):
            raise InvalidArgumentError(f"in each of the {len(iterations)} iterations {NOTHING_TO_COMPARE}")

    def _loop(self, batches: Generator[TensorDict, None, None], callbacks: Sequence[Callback], progress: bool) -> None:
        with (
            self._log() as log,
            ProgressBar(self.label["agent"], self.last_iteration, self.iteration, progress) as bar,
        ):
            try:
                while self.iteration < self.last_iteration:
                    row, is_sampled = self._iterate(batches)
                    self.rows.append(row)
                    self.checkpoint.hold(self.state_dict(), self.rows)
                    log.update()
                    if is_sampled:
                        self.checkpoint.prove()
                    bar.update(row, self.last_iteration)
                    for callback in callbacks:
                        callback(row)
                self._sample_a_little()
            except BaseException:
                if (held := self.checkpoint.held) is not None:
                    self.rows[:] = held["rows"]["rows"]  # in place: the log is written from the same list
                raise

    def _log(self) -> RunLog:
        folder = self.checkpoint.folder
        if folder is None:
            return RunLog(None, self.config.tensorboard)
        return RunLog(folder.path, self.config.tensorboard, self.rows, restore=folder.restore)

    @contextmanager
    def _sampling(self) -> Iterator[None]:
        """Prove the last iteration in the block, or take it back if its policy cannot be sampled from."""
        try:
            yield
        except DivergenceError:
            if self.checkpoint.is_unproven:
                self.rows.pop()
            self.checkpoint.fall_back()
            raise
        self.checkpoint.prove()

    def _sample_a_little(self) -> None:
        """Sample from the policy that is left in the end, if nobody has, before it is called trained."""
        if self.checkpoint.is_unproven:
            before, seed = self.meter.state_dict(), derived_seed(self.config.seed, self.iteration)
            with self._sampling(), sound_outputs(self.denoiser, "of the next sequences"):
                self.evaluator.sampler.sample(self.denoiser, min(_PROOF, self.config.batch_size), seed)
            self.meter.load_state_dict(before)

    def _iterate(self, batches: Generator[TensorDict, None, None]) -> tuple[Row, bool]:
        """One iteration: its row, and whether the policy that it leaves has been sampled from."""
        config, before = self.config, self.meter.state_dict()
        started = time.perf_counter()
        # Negative numbers, so that no iteration shares its seed with the trajectories of another one.
        generator = torch.Generator().manual_seed(derived_seed(config.seed, -2 - self.iteration))
        with self._sampling():
            collected = next(batches)
            sampled = time.perf_counter()
        started += time.perf_counter() - sampled  # less what was written meanwhile
        figures = self._update(collected, generator)
        reward = collected_rewards(collected)
        self.iteration += 1
        self.wall_time += time.perf_counter() - started
        after = self.meter.state_dict()
        for kind in _COSTS:
            self.iteration_cost[kind] = max(self.iteration_cost[kind], after[kind] - before[kind])
        row: Row = {
            "iteration": self.iteration,
            **after,
            "wall_time": self.wall_time,
            **reward_figures(reward),
            **prompt_figures(collected),
            **figures,
            **dict.fromkeys(EVALUATION_COLUMNS),
        }
        evaluates = config.eval_every > 0 and self.iteration % config.eval_every == 0
        if evaluates:
            row |= self._evaluate()
        return row | {f"eval_{kind}": self.eval_cost[kind] for kind in _COSTS}, evaluates

    def _update(self, collected: TensorDict, generator: torch.Generator) -> Mapping[str, float | None]:
        if self.method.compares and all_alone(collected):
            if not self._skipped:
                warnings.warn(
                    f"iteration {self.iteration + 1} updates nothing, and neither will others like it: "
                    f"{NOTHING_TO_COMPARE}",
                    stacklevel=2,
                )
            self._skipped = True
            return self.updater.skip()
        samples = self.method.samples(collected, self.iteration, generator)
        return self.updater.update(samples, generator) if len(samples) else self.updater.skip()

    def _evaluate(self) -> Row:
        """Judge the policy; what that costs is booked apart from the training."""
        before, judged = self.meter.state_dict(), self.evaluator.judge.calls
        with sound_outputs(self.denoiser, "of an evaluation"):
            figures = self.evaluator.evaluate(self.denoiser)
        after = self.meter.state_dict()
        for kind in _COSTS:
            self.eval_cost[kind] += after[kind] - before[kind]
        self.eval_cost["reward_calls"] += self.evaluator.judge.calls - judged
        self.meter.load_state_dict(before)
        return figures

    @property
    def last_iteration(self) -> int:
        """Number of the last iteration that the budgets pay for, if each costs as much as the dearest so far."""
        last, spent = self.config.num_iterations, self.meter.state_dict()
        limits = {"nfe": self.config.max_nfe, "reward_calls": self.config.max_reward_calls}
        for kind, limit in limits.items():
            if limit is not None and self.iteration_cost[kind] > 0:
                last = min(last, self.iteration + max(0, limit - spent[kind]) // self.iteration_cost[kind])
        return last

    def state_dict(self) -> dict[str, State]:
        """All that the rest of the run depends on, by part."""
        progress: dict[str, Any] = {
            "iteration": self.iteration,
            "wall_time": self.wall_time,
            "cost": self.meter.state_dict(),
            "eval_cost": self.eval_cost,
            "iteration_cost": self.iteration_cost,
        }
        parts = (
            policy_state(self.denoiser),
            self.updater.optimiser.state_dict(),
            self.updater.scheduler.state_dict(),
            progress,
        )
        own = {name: part.state_dict() for name, part in self.method.parts.items()}
        return dict(zip(_PARTS, parts, strict=True)) | own

    def load_state_dict(self, parts: Mapping[str, State]) -> None:
        """Continue from what `state_dict` gave."""
        load_policy_state(self.denoiser, parts["denoiser"])
        for name, part in self.method.parts.items():
            part.load_state_dict(parts[name])
        self.updater.optimiser.load_state_dict(dict(parts["optimiser"]))
        self.updater.scheduler.load_state_dict(dict(parts["scheduler"]))
        progress = parts["progress"]
        self.iteration = progress["iteration"]
        self.wall_time = progress["wall_time"]
        self.meter.load_state_dict(progress["cost"])
        self.eval_cost = dict(progress["eval_cost"])
        self.iteration_cost = dict(progress["iteration_cost"])

    def _rescue(self, error: BaseException) -> None:
        """Write what is whole, and say where the run stands; for a divergence, in its own message."""
        diverged, held, path = isinstance(error, DivergenceError), self.checkpoint.held, self.checkpoint.path
        if diverged and held is not None:
            load_policy_state(self.denoiser, held["denoiser"])
        # Counted by its rows: an iteration that was stopped while it was being evaluated has none.
        whole = len(self.rows)
        where = f"The last whole iteration is {whole}; {self.checkpoint.rescue()}"
        if not diverged:
            error.add_note(where)
            return
        if held is not None:
            where += (
                f" Agent.load({str(path)!r}, learning_rate=...) takes its policy into a run with other settings; "
                "resume=True goes on with the same ones, and so to the same end."
            )
        raise DivergenceError(f"iteration {whole + 1}: {error}. {where}") from error
