"""The agent as its user sees it: made from a task's name, sampled from, saved and loaded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from agents.config import OUTPUT_FIELDS, SamplerConfig
from agents.cost import Cost, CostMeter
from agents.lookup import named_task
from agents.policies.guidance import describe_guidance, guided
from agents.policies.sampling import PolicySampler
from agents.policies.weights import frozen_fingerprint, policy_state, unsound_tensors
from agents.storage import save_agent
from agents.training.health import sound_outputs
from agents.traits import Traits
from sepo_env.arguments import PathArgument, Positive, Seed, Size, WholeNumber, checked
from sepo_env.denoisers import Denoiser
from sepo_env.device import find_device
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.errors import DivergenceError, InvalidArgumentError
from sepo_env.identity import describe
from sepo_env.loading.paths import as_path
from sepo_env.rewards import OnError, Reward
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import prompts_fingerprint, resolve_prompts


class Agent(ABC):
    """What gives sequences that a reward likes.

    An algorithm is a subclass with a name, traits, a config class and `_draw`; it stands in a file of its own in
    `agents.algorithms` and in `agents.registry.AGENTS`. One that is trained is a `agents.learner.Learner`.

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
        denoiser: the network that it samples with; a copy of the task's pretrained one at first.

    Raises:
        UnknownNameError: an unknown task, reward or field.
        InvalidArgumentError: a setting out of its range.
        HeldOutRewardError: the reward is the one that judges.

    Example:
        >>> from agents import agent_class
        >>> agent = agent_class("sepo")("ToyCTMC-v0", num_steps=4)
        >>> len(agent.sample(3, seed=0)), agent.cost_per_sample()
        (3, Cost(nfe=4.0, reward_calls=0.0))
    """

    name: ClassVar[str]
    traits: ClassVar[Traits]
    config_class: ClassVar[type[SamplerConfig]]
    config: SamplerConfig

    @checked
    def __init__(
        self,
        task: str | Task = "DNAEnhancer-v0",
        *,
        config: SamplerConfig | None = None,
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
        self._spent, self._delivered = Cost(0, 0), 0

    @abstractmethod
    def _draw(self, keys: Tensor, prompt: Tensor | None, num_steps: int) -> Tensor:
        """Draw finished sequences; called without gradients, for some of the sequences at a time.

        Args:
            keys: of the sequences' random numbers, int64 ``(N,)``; sequence n depends on its key alone, or where
                sequences compete with each other, on those of its batch.
            prompt: visible tokens where given, the id V where free, int64 ``(N, L)``; None: nothing is given.
            num_steps: K.

        Returns:
            Tokens, int64 ``(N, L)``.
        """

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
        # Seeds go on after the largest one, as 64-bit numbers do.
        keys = keys_from_seed(torch.arange(num_samples, device=self.device) + seed)
        prompts = resolve_prompts(self.task, prompt, keys)
        steps = self.config.num_steps if num_steps is None else num_steps
        meter = CostMeter(self.denoiser, reward=self.reward)
        try:
            with torch.no_grad(), sound_outputs(self.denoiser, "of these sequences"):
                chunks = [
                    self._draw(keys[rows], None if prompts is None else prompts[rows], steps)
                    for rows in torch.arange(num_samples, device=self.device).split(self._chunk_size)
                ]
        finally:
            self._spent = self._spent + Cost(meter.nfe, meter.reward_calls)
            meter.close()
        self._delivered += num_samples
        return torch.cat(chunks)

    def cost_per_sample(self) -> Cost:
        """What a delivered sequence has cost so far, measured over all that `sample_tokens` has drawn.

        Raises:
            InvalidArgumentError: nothing has been drawn yet.
        """
        if self._delivered == 0:
            raise InvalidArgumentError("nothing has been sampled yet, so nothing has been measured; sample first.")
        return self._spent / self._delivered

    @property
    def _chunk_size(self) -> int:
        """Sequences that `_draw` makes at a time, at most."""
        return self.config.micro_batch_size

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
        from agents.load import load  # the base class does not know its subclasses

        return load(cls, as_path(path), task=task, reward=reward, device=device, **options)

    def close(self) -> None:
        """End what the reward runs in the background, such as worker processes; a later call starts it anew."""
        self.reward.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _make_policy(self) -> Denoiser:
        denoiser = self.task.load_denoiser()
        self._pretrained = describe(denoiser.core)
        return guided(denoiser, self.config)

    def _describe(self) -> dict[str, Any]:
        base = frozen_fingerprint(self.denoiser)
        adapted = {} if base is None else {"base": base}
        guidance, prompts = describe_guidance(self.denoiser), prompts_fingerprint(self.task)
        task = self.task.identity(self._pretrained)
        return {"agent": self.name, "task": task, "prompts": prompts, "guidance": guidance, **adapted}

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
