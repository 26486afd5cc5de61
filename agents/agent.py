"""The agent as its user sees it: made from a task's name, trained, sampled from, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agents.config import OUTPUT_FIELDS, AgentConfig
from agents.identity import check_same_world, describe_reward
from agents.lookup import named_task
from agents.policies.guidance import check_guidance, describe_guidance, guided, with_guidance
from agents.policies.lora import add_lora
from agents.policies.sampling import PolicySampler
from agents.policies.weights import frozen_fingerprint, load_policy_state, policy_state, unsound_tensors
from agents.registry import agent_class
from agents.storage import draw_saved_prompts, find_task, load_agent, save_agent
from agents.training.collect import derived_seed, rollout_size
from agents.training.evaluation import Evaluator
from agents.training.health import sound_outputs
from agents.training.logs import Row
from agents.training.optimiser import check_trainable
from agents.training.recovery import own_randomness
from agents.training.trainer import Callback, Objective, Trainer
from sepo_env import TorchRLEnv
from sepo_env.arguments import PathArgument, Positive, Seed, Size, WholeNumber, checked
from sepo_env.denoisers import Denoiser
from sepo_env.device import find_device
from sepo_env.errors import CheckpointError, DivergenceError, InvalidArgumentError, UnknownNameError
from sepo_env.identity import describe, is_library
from sepo_env.loading.paths import as_path
from sepo_env.rewards import OnError, Reward
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import prompts_fingerprint

# Iterations are counted from 0 up, their other random numbers from -2 down: agents.training.trainer.
_EVALUATION = -1


class Agent(ABC):
    """A denoiser that learns to sample what a reward likes.

    An algorithm is a subclass with a name, a config class and `make_objective`; it stands in a file of its own and in
    `agents.registry.AGENTS`.

    Args:
        task: an environment's id (``"DNAEnhancer-v0"``), a task's name (``"dna_enhancer"``) or a task.
        config: the settings; None takes the defaults.
        reward: what to optimise, as for `sepo_env.tasks.Task.make_reward`: a function of strings or of tokens, a
            module, a name, a weighted sum as a dict; None is the task's training reward.
        workers: processes over which a function of strings is spread; they end with `close`, with a ``with`` block
            around the agent, or with the agent.
        timeout: seconds for one batch, with workers; None waits as long as it takes.
        on_error: what becomes of a sequence that fails: ``"raise"`` an error, or score it with the ``"floor"``.
        floor: the value of such a sequence.
        cache: score repeated sequences once; how many are kept, True for 100 000.
        device: ``"auto"`` takes a GPU where there is one.
        **overrides: single fields of the config.

    Attributes:
        denoiser: the policy's network; a copy of the task's pretrained one at first.
        history: one row of figures for each iteration of the last training.

    Raises:
        UnknownNameError: an unknown task, reward or field.
        InvalidArgumentError: a setting out of its range.
        HeldOutRewardError: the reward is the one that judges.

    Example:
        >>> from agents import SEPO
        >>> agent = SEPO("ToyCTMC-v0", num_iterations=2, batch_size=8, num_steps=4, states_per_trajectory=0)
        >>> history = agent.train(progress=False)
        >>> [row["reward_calls"] for row in history], len(agent.sample(3))
        ([8, 16], 3)
    """

    name: ClassVar[str]
    config_class: ClassVar[type[AgentConfig]]

    @checked
    def __init__(
        self,
        task: str | Task = "DNAEnhancer-v0",
        *,
        config: AgentConfig | None = None,
        reward: Any = None,
        workers: WholeNumber = 0,
        timeout: Positive | None = None,
        on_error: OnError = "raise",
        floor: float | None = None,
        cache: bool | int = False,
        device: str | torch.device = "auto",
        **overrides: Any,
    ) -> None:
        if config is not None and not isinstance(config, self.config_class):
            raise InvalidArgumentError(
                f"{type(self).__name__} is set up by a {self.config_class.__name__}, not a {type(config).__name__}."
            )
        self.config = (self.config_class() if config is None else config).replace(**overrides)
        self.task = named_task(task)
        self.device = find_device(device)
        self.reward: Reward = self.task.make_reward(
            reward, workers=workers, timeout=timeout, on_error=on_error, floor=floor, cache=cache
        )
        self.denoiser = self._make_policy().to(self.device)
        self.history: list[Row] = []

    @abstractmethod
    def make_objective(self, reference: Denoiser | None) -> Objective:
        """The algorithm: the loss on `denoiser`, and how trajectories get their advantages.

        Args:
            reference: the pretrained denoiser, where ``kl_coeff`` asks for it.
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
                objective=self.make_objective(reference if config.kl_coeff > 0 else None),
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

    @checked
    def sample_tokens(
        self,
        num_samples: Size,
        *,
        num_steps: Size | None = None,
        seed: Seed | None = None,
        prompt: Any = None,
    ) -> Tensor:
        """Draw sequences with the sampler of the training.

        Args:
            num_samples: how many.
            num_steps: K; None is the training's.
            seed: sequence i depends on ``seed + i`` alone; None draws one from torch's global generator.
            prompt: given letters with the task's ``mask_letter`` where free, one string for all or one for each; or
                tokens, int64 ``(L,)`` or ``(num_samples, L)``; see `sepo_env.tasks.prompts.resolve_prompts`. It goes
                before the task's own. None: what the task draws, if anything.

        Returns:
            Tokens int64 ``(num_samples, L)``, on the agent's device.

        Raises:
            InvalidPromptError: prompts that do not fit, or leave nothing to generate.
            DivergenceError: weights that are not finite, or a network that answers NaN.
        """
        self._check_weights("samples nothing but noise")
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        with sound_outputs(self.denoiser, "of these sequences"):
            return self._sampler(num_steps).sample(self.denoiser, num_samples, seed, prompt)

    def sample(self, num_samples: Size, **options: Any) -> list[str]:
        """Draw sequences as strings of the task's alphabet; options as for `sample_tokens`."""
        return self.task.decode(self.sample_tokens(num_samples, **options))

    @checked
    def save(self, folder: PathArgument) -> None:
        """Write config.json and the weights (safetensors) into a folder, atomically; `load` reads them.

        With adapters (``lora_rank``) these are the weights; the rest is the task's pretrained denoiser. The
        prompts that the task draws are kept with the weights.

        The state of an unfinished training stands in its checkpoint, not here.

        Raises:
            DivergenceError: weights that are not finite; nothing is written.
        """
        self._check_weights("is not saved")
        config = {name: value for name, value in self.config.to_dict().items() if name not in OUTPUT_FIELDS}
        save_agent(as_path(folder), self._describe() | {"config": config}, policy_state(self.denoiser), self.task)

    @classmethod
    @checked
    def load(
        cls,
        path: PathArgument,
        *,
        task: Task | None = None,
        reward: Any = None,
        device: str | torch.device = "auto",
        **options: Any,
    ) -> Self:
        """Read an agent that `save` wrote, or take over the policy of a training checkpoint.

        Args:
            path: the folder, or the checkpoint's file.
            task: the task, where it is not a registered one with its default options; it draws its own prompts. None:
                the registered one, which draws the prompts that were saved.
            reward: as for the class; it need not be that of the training.
            device: as for the class.
            **options: how the reward is called, as for the class, and fields of the config to change.

        Raises:
            CheckpointError: not a whole agent, one of another class, or of weights that are not finite; or one of
                another task, pretrained denoiser or guidance, or of prompts that the registered task does not draw.
        """
        path = as_path(path)
        description, weights, prompts = load_agent(path)
        # A class of one's own need not be registered.
        kind = cls if getattr(cls, "name", None) == description["agent"] else agent_class(description["agent"])
        if not issubclass(kind, cls):
            raise CheckpointError(path, f"it holds a {kind.__name__} agent", f"use {kind.__name__}.load or Agent.load")
        fields = {name: value for name, value in description["config"].items() if name not in OUTPUT_FIELDS}
        found = find_task(description["task"], path, task)
        if task is None:
            fields = with_guidance(fields, description)
            draw_saved_prompts(found, path, prompts, description.get("prompts"))
        try:
            config = kind.config_class.from_dict(fields)
        except (InvalidArgumentError, UnknownNameError) as error:
            raise CheckpointError(path, f"its settings are not of this version ({error})", "save it again") from error
        agent = kind(found, config=config, reward=reward, device=device, **options)
        check_guidance(agent.denoiser, path, description, options)
        wanted = agent._describe()
        base = wanted.get("base")
        if base != description.get("base"):
            raise CheckpointError(
                path,
                f"its adapters belong to another pretrained denoiser ({description.get('base')}, this one is {base})",
                "give the task with the denoiser that they were trained on, and lora_rank as it was",
            )
        check_same_world(path, description["task"], wanted["task"])
        try:
            load_policy_state(agent.denoiser, weights)
        except RuntimeError as error:
            raise CheckpointError(
                path, f"its weights do not fit the task's denoiser ({error})", "give task="
            ) from error
        if broken := unsound_tensors(agent.denoiser):
            raise CheckpointError(path, f"weights with NaN or infinity: {', '.join(broken)}", "give a sound agent")
        return agent

    def close(self) -> None:
        """End what the reward runs in the background, such as worker processes; a later call starts it anew."""
        self.reward.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make_policy(self) -> Denoiser:
        denoiser, config = self.task.load_denoiser(), self.config
        self._pretrained = describe(denoiser.core)
        if config.lora_rank > 0:
            add_lora(denoiser.core, config.lora_rank, config.lora_alpha, config.seed)
        return guided(denoiser, config)

    def _describe(self) -> dict[str, Any]:
        base = frozen_fingerprint(self.denoiser)
        adapted = {} if base is None else {"base": base}
        guidance, prompts = describe_guidance(self.denoiser), prompts_fingerprint(self.task)
        task = self.task.identity(self._pretrained)
        return {"agent": self.name, "task": task, "prompts": prompts, "guidance": guidance, **adapted}

    def _describe_run(self, judge: Reward) -> dict[str, Any]:
        """What a checkpoint says that the run is; without one, there is nobody to read it."""
        if self.config.log_dir is None:
            return {"agent": self.name}
        rewards = {"reward": describe_reward(self.reward), "judge": describe_reward(judge)}
        own = None if is_library(type(self).__module__) else describe(type(self))
        return {**self._describe(), **rewards, "own code": own}

    def _check_weights(self, fate: str) -> None:
        if broken := unsound_tensors(self.denoiser):
            raise DivergenceError(
                f"the agent {fate}: its weights hold NaN or infinity, in {', '.join(broken)}; load one that was saved, "
                "or train again with a smaller learning_rate."
            )

    def _sampler(self, num_steps: int | None = None) -> PolicySampler:
        config = self.config
        return PolicySampler(
            self.task,
            config.num_steps if num_steps is None else num_steps,
            config.corrector_steps,
            config.corrector_size,
            config.micro_batch_size,
            self.device,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.task.name!r}, {self.config}, device={str(self.device)!r})"
