"""What all environments share: B running episodes of one task, with their seeds, prompts and reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepo_env import tasks
from sepo_env.arguments import PathArgument, Positive, Seed, Size, WholeNumber, check_argument, checked
from sepo_env.denoisers import DenoiserArgument
from sepo_env.diffusion import Schedule
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.envs.dynamics import Dynamics, Sampler, State
from sepo_env.errors import ArtefactsError, InvalidArgumentError
from sepo_env.rewards import OnError
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import resolve_prompts


@dataclass(frozen=True)
class Outcome:
    """What one step of B episodes brought.

    Attributes:
        state: the episodes after the step.
        reward: 0 until an episode ends, then once its reward, float32 ``(B,)``.
        terminated: which episodes are over, bool ``(B,)``.
        log_prob: log-probability of what happened at each position, float32 ``(B, L)``.
        terms: every term of the reward by name, each ``(N,)``, of the N rows that ended in this step, in order; empty
            if none did.
        sequences: their decoded sequences.
    """

    state: State
    reward: Tensor
    terminated: Tensor
    log_prob: Tensor
    terms: dict[str, Tensor]
    sequences: list[str]


class Episodes:
    """B episodes of one task, side by side.

    Row i that was seeded with s and reset n times since draws its randomness from the key of (s, n): a trajectory
    depends on its own seed, its number and its actions, never on the batch that it runs in (but for the prompt,
    where rows share one).

    Args:
        task: a task, or the name of one.
        num_envs: B.
        reward: what finished sequences are worth: a name of the task's rewards, a function of strings or of tokens,
            a module, a weighted sum as a dict; None is the task's training reward.
        num_steps: K, the number of steps of an episode; None is the task's own. First-hitting has none.
        schedule: name of another noise schedule than the task's, or a schedule.
        sampler: ``"k-step"`` (a fixed time grid) or ``"first-hitting"`` (one jump a step, exact continuous time).
        denoiser: another pretrained denoiser than the task's: a live one or the path of a checkpoint.
        device: where the dynamics and the reward are computed; ``"auto"`` is a GPU where there is one.
        artefacts: folder of the published artefacts to run on, for tasks that have such; as a string it leaves the
            environment's spec writable as JSON (``gym.make`` keeps what it is given), as a Path it does not.
        remask: whether an action has a further column of rates back to MASK.
        conditional: whether the observation shows ``prompt_mask``; None: where the task draws prompts.
        prompt_repeats: n, of which B is a multiple: rows 0 .. n-1, n .. 2n-1 and so on start from one prompt each,
            drawn with the seed of the first of them; their noise stays their own. 1: each row draws a prompt.
        workers: processes that share the reward's work; 0 computes it in this one.
        timeout: seconds that the reward may take; None is no limit.
        on_error: ``"raise"``, or ``"floor"`` to score sequences on which the reward fails with ``floor``.
        floor: see ``on_error``.
        cache: whether rewards of sequences seen before are remembered; a number is how many.
        **task_options: passed to the task, where ``task`` is a name.

    Raises:
        ArtefactsError: the folder of artefacts lacks files, or the task has none.
        CheckpointError: the denoiser's file is missing, or is none.
        InvalidArgumentError: settings of another type, out of range, or that exclude each other.
        InvalidPromptError: prompts that do not fit the task.
        UnknownNameError: no such task, reward, schedule or sampler.
        UnknownOptionError: an option that the task does not take.
    """

    @checked
    def __init__(
        self,
        task: str | Task,
        num_envs: Size,
        *,
        reward: Any = None,
        num_steps: Size | None = None,
        schedule: str | Schedule | None = None,
        sampler: Sampler = "k-step",
        denoiser: DenoiserArgument | None = None,
        device: torch.device | str | int = "cpu",
        artefacts: PathArgument | None = None,
        remask: bool = False,
        conditional: bool | None = None,
        prompt_repeats: Size = 1,
        workers: WholeNumber = 0,
        timeout: Positive | None = None,
        on_error: OnError = "raise",
        floor: float | None = None,
        cache: bool | WholeNumber = False,
        **task_options: Any,
    ) -> None:
        if num_envs % prompt_repeats:
            raise InvalidArgumentError(
                f"prompt_repeats is {prompt_repeats}, but {num_envs} environments fall into groups of as many only if "
                "it divides their number; change either."
            )
        given = {"schedule": schedule, "denoiser": denoiser, "artefacts": artefacts}
        task_options |= {name: value for name, value in given.items() if value is not None}
        self.task = _resolve_task(task, task_options)
        if sampler == "k-step" and num_steps is None:
            num_steps = self.task.num_steps
        self.dynamics = Dynamics(
            self.task.process,
            self.task.length,
            num_steps,
            sampler=sampler,
            remask=remask,
            alphabet=self.task.token_texts,
            device=device,
        )
        self.conditional = self.task.conditional if conditional is None else conditional
        self.reward = self.task.make_reward(
            reward, workers=workers, timeout=timeout, on_error=on_error, floor=floor, cache=cache
        )
        self.num_envs = num_envs
        self.device = self.dynamics.device
        rows = torch.arange(num_envs, device=self.device)
        self._first_of_group = rows - rows % prompt_repeats
        self._seeds = torch.zeros(num_envs, dtype=torch.int64, device=self.device)
        self._episodes = torch.full_like(self._seeds, -1)
        self.seeded = False
        self.state: State | None = None

    @property
    def action_shape(self) -> tuple[int, int, int]:
        """Shape of an action, ``(B, L, A)``: A is V, or V + 1 with re-masking."""
        return self.num_envs, self.task.length, self.dynamics.num_actions

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Restart the random stream of every row that gets a seed; None goes on with the old one.

        Raises:
            InvalidArgumentError: another number of seeds, or one outside of 0 .. 2^63 - 1.
        """
        self._seeds, self._episodes, self.seeded = self._streams(seeds)

    def _streams(self, seeds: Sequence[int | None]) -> tuple[Tensor, Tensor, bool]:
        """Seeds and numbers of the episodes, ``(B,)`` each, after such a restart, and whether any row has a seed."""
        checked_seeds = check_argument("seeds", seeds, Sequence[Seed | None])
        if len(checked_seeds) != self.num_envs:
            raise InvalidArgumentError(f"{len(checked_seeds)} seeds for {self.num_envs} rows; give one for each.")
        new = torch.tensor([seed or 0 for seed in checked_seeds], device=self.device)
        given = torch.tensor([seed is not None for seed in checked_seeds], device=self.device)
        episodes = self._episodes.masked_fill(given, -1)
        return torch.where(given, new, self._seeds), episodes, self.seeded or bool(given.any())

    def reset(self, rows: Tensor | None = None, prompt: Any = None, seeds: Sequence[int | None] | None = None) -> State:
        """Start new episodes, in some rows (bool ``(B,)``) or in all.

        Args:
            rows: which ones; the others go on.
            prompt: one for all rows or one for each, as `sepo_env.tasks.prompts.resolve_prompts` takes them; it holds
                for these episodes only and goes before the task's own. None: what the task draws, if anything.
            seeds: one for each row, as `seed` takes them, before the episodes start; None: all streams go on.

        If it raises, seeds and episodes are as they were before.

        Raises:
            InvalidPromptError: the prompt does not fit the task, or leaves nothing to generate.
            InvalidArgumentError: seeds that `seed` refuses, or rows of another shape or dtype.
        """
        check_argument("rows", rows, Tensor | None)
        if rows is not None and (rows.shape != (self.num_envs,) or rows.dtype != torch.bool):
            raise InvalidArgumentError(f"rows are {rows.dtype} {tuple(rows.shape)}; give bool ({self.num_envs},).")
        own_seeds, before, seeded = (
            (self._seeds, self._episodes, self.seeded) if seeds is None else self._streams(seeds)
        )
        episodes = before + 1
        keys = keys_from_seed(own_seeds, episodes)
        # Numbered as the row's own episodes: rows that are reset one by one still meet the same prompts in turn.
        prompt_keys = keys_from_seed(own_seeds[self._first_of_group], episodes)
        fresh = self.dynamics.initial(keys, resolve_prompts(self.task, prompt, prompt_keys))
        if rows is not None and self.state is not None:
            fresh = fresh.where(rows, self.state)
            episodes = torch.where(rows, episodes, before)
        self.state, self._seeds, self._episodes, self.seeded = fresh, own_seeds, episodes, seeded
        return self.state

    def step(self, rates: Tensor) -> Outcome:
        """Make a step with an action ``(B, L, A)``; rows that are over rest.

        If anything raises, the bad action or the reward, the episodes are as they were before.

        Raises:
            InvalidActionError: see `Dynamics.validate_action`.
        """
        before = self.running_state()
        self.dynamics.validate_action(before, rates)
        rates = rates.detach()  # the environment is no part of a policy's graph
        state, log_prob = self.dynamics.transition(before, rates)
        terminated = self.dynamics.terminal(state)
        reward = torch.zeros(self.num_envs, dtype=torch.float32, device=self.device)
        terms: dict[str, Tensor] = {}
        sequences: list[str] = []
        ended = terminated & ~self.dynamics.terminal(before)
        if bool(ended.any()):
            finished = state.tokens[ended]
            terms = self.reward.terms(finished)
            reward[ended] = terms["reward"]
            sequences = self.task.decode(finished)
        self.state = state
        return Outcome(state, reward, terminated, log_prob, terms, sequences)

    def running_state(self) -> State:
        """The present state.

        Raises:
            InvalidArgumentError: no episode was started yet.
        """
        if self.state is None:
            raise InvalidArgumentError("there is no episode to step; call reset() first.")
        return self.state

    @torch.no_grad()
    def pretrained_rates(self) -> Tensor:
        """The pretrained denoiser's action in the present state, float32 ``(B, L, A)``.

        At masked positions it is the x0-posterior, with which the environment is the ancestral sampler exactly; for a
        uniform graph, the rates that give the ancestral kernel when held over the coming step.
        """
        state = self.running_state()
        denoiser = self.task.denoiser.to(self.device)
        following = None if self.dynamics.sampler == "first-hitting" else self.dynamics.next_time(state)
        # Copies: a denoiser that writes into what it reads changes no episode.
        tokens, given = state.tokens.clone(), state.prompt_mask.clone()
        rates = self.task.process.rates(denoiser, tokens, state.time.clone(), following, given)
        if self.dynamics.remask:
            rates = torch.nn.functional.pad(rates, (0, 1))
        return rates.float()

    def close(self) -> None:
        """Stop what the reward runs in the background."""
        self.reward.close()


def _resolve_task(task: str | Task, options: dict[str, Any]) -> Task:
    if isinstance(task, str):
        if "artefacts" in options and task not in tasks.TASKS_WITH_ARTEFACTS:
            raise ArtefactsError(
                f"there are no published artefacts for the task {task!r}, only for "
                f"{', '.join(tasks.TASKS_WITH_ARTEFACTS)}; leave artefacts out."
            )
        return tasks.make(task, **options)
    if options:
        raise InvalidArgumentError(
            f"{', '.join(sorted(options))} cannot be changed on a ready task; give it to the task when it is made."
        )
    return task
