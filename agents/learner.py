"""The agent that is trained: its method, its training, and what a checkpoint says that the run is."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from agents.agent import Agent
from agents.config import LearnerConfig
from agents.identity import describe_reward
from agents.policies.guidance import guided
from agents.policies.lora import add_lora
from agents.training.collect import derived_seed, rollout_size
from agents.training.evaluation import Evaluator
from agents.training.logs import Row
from agents.training.method import Method
from agents.training.optimiser import check_trainable
from agents.training.recovery import own_randomness
from agents.training.trainer import Callback, Trainer
from sepo_env import TorchRLEnv
from sepo_env.arguments import checked
from sepo_env.denoisers import Denoiser
from sepo_env.errors import InvalidArgumentError
from sepo_env.identity import describe, is_library
from sepo_env.rewards import Reward

# Iterations are counted from 0 up, their other random numbers from -2 down: agents.training.trainer.
_EVALUATION = -1


class Learner(Agent):
    """A denoiser that learns to sample what a reward likes; see `agents.agent.Agent` for the arguments.

    An algorithm is a subclass with a name, traits, a config class and `make_method`.

    Attributes:
        history: one row of figures for each iteration of the last training.

    Example:
        >>> from agents import SEPO
        >>> agent = SEPO("ToyCTMC-v0", num_iterations=2, batch_size=8, num_steps=4, states_per_trajectory=0)
        >>> history = agent.train(progress=False)
        >>> [row["reward_calls"] for row in history], len(agent.sample(3))
        ([8, 16], 3)
    """

    config_class: ClassVar[type[LearnerConfig]]
    config: LearnerConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.history: list[Row] = []

    @abstractmethod
    def make_method(self, reference: Denoiser) -> Method:
        """The algorithm: the loss on `denoiser`, what it eats, and what it keeps.

        Args:
            reference: the pretrained denoiser, frozen.
        """

    @checked
    def train(self, *, resume: bool = False, callbacks: Sequence[Callback] = (), progress: bool = True) -> list[Row]:
        """Train until ``num_iterations`` are done, or the next one would exceed ``max_nfe`` or ``max_reward_calls``.

        Args:
            resume: go on from the checkpoint in ``log_dir``, bit for bit on the same CPU with as many threads; others,
                and another ``micro_batch_size``, round otherwise (weights 3e-6 apart after four iterations).
            callbacks: called with the row of each iteration.
            progress: whether to show a bar.

        Returns:
            `history`, one row an iteration: cost so far, rewards, losses, diagnostics, and every ``eval_every``
            iterations the held-out reward.

        Raises:
            InvalidArgumentError: weights that are frozen, or in a precision that cannot be trained in.
            CheckpointError: nothing to resume from, a checkpoint of another run, or one that would be overwritten. Of
                what cannot be told (whether a reward's lambda is the same), there is one warning.
            DivergenceError: a loss, gradient, weight or ratio out of bounds, or a policy that cannot be sampled from.
                The checkpoint is that of the last iteration before; `load` takes it into other settings.
            FolderError: ``log_dir`` cannot be written to, or another run writes there (`FolderInUseError`).
            KeyboardInterrupt: Ctrl-C; the checkpoint has been written.
        """
        config = self.config
        if config.group_size > 0 and not self.task.conditional:
            raise InvalidArgumentError(
                f"group_size is {config.group_size}, but the task {self.task.name!r} draws no prompts to share: the "
                "whole batch is one group; give 0, or prompts to the task."
            )
        check_trainable(self.denoiser, self.device)
        # The caller's own random numbers are not touched, and a no_grad() of his does not reach in here.
        with own_randomness(config.seed), torch.enable_grad():
            reference = guided(self.task.load_denoiser(), config).to(self.device).requires_grad_(False)
            judge = self.task.judge()
            self._pretrained = describe(reference.core)
            trainer = Trainer(
                self._describe_run(judge),
                config,
                env=TorchRLEnv(
                    self.task,
                    num_envs=rollout_size(config),
                    num_steps=config.num_steps,
                    reward=self.reward,
                    device=self.device,
                    seed=config.seed,
                    prompt_repeats=max(1, config.group_size),
                ),
                denoiser=self.denoiser,
                reference=reference,
                method=self.make_method(reference),
                reward=self.reward,
                evaluator=Evaluator(
                    self._sampler(),
                    reference,
                    self.reward,
                    judge,
                    num_samples=config.eval_samples,
                    seed=derived_seed(config.seed, _EVALUATION),
                ),
            )
            try:
                trainer.run(resume=resume, callbacks=callbacks, progress=progress)
            finally:
                self.history = trainer.rows  # an interrupted training leaves its rows as well
        return self.history

    def _draw(self, keys: Tensor, prompt: Tensor | None, num_steps: int) -> Tensor:
        return self._sampler(num_steps).draw(self.denoiser, keys, prompt)

    def _make_policy(self) -> Denoiser:
        denoiser, config = self.task.load_denoiser(), self.config
        self._pretrained = describe(denoiser.core)
        if config.lora_rank > 0:
            add_lora(denoiser.core, config.lora_rank, config.lora_alpha, config.seed)
        return guided(denoiser, config)

    def _describe_run(self, judge: Reward) -> dict[str, Any]:
        """What a checkpoint says that the run is; without one, there is nobody to read it."""
        if self.config.log_dir is None:
            return {"agent": self.name}
        rewards = {"reward": describe_reward(self.reward), "judge": describe_reward(judge)}
        own = None if is_library(type(self).__module__) else describe(type(self))
        return {**self._describe(), **rewards, "own code": own}
