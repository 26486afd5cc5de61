"""The sampler that an agent is trained with, and is evaluated and used with as well."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sepo_env.diffusion.process import DenoiserLike
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import ReverseStep, initial_tokens, reverse_steps
from sepo_env.tasks import Task
from sepo_env.tasks.prompts import resolve_prompts


@dataclass(frozen=True)
class PolicySampler:
    """K ancestral steps with correctors: what training trajectories are made of, step by step.

    Attributes:
        task: gives the process, the length and the prompts.
        num_steps: K.
        corrector_steps: gradient-flow leaps after each step but the last.
        corrector_size: length of a leap in units of sigma.
        chunk_size: most sequences at a time.
        device: where to sample.
    """

    task: Task
    num_steps: int
    corrector_steps: int
    corrector_size: float
    chunk_size: int
    device: torch.device

    def paths(
        self, denoiser: DenoiserLike, num_samples: int, seed: int, prompt: Any = None
    ) -> Iterator[Iterator[ReverseStep]]:
        """Walk the reverse paths of ``num_samples`` sequences, chunk by chunk; consume each before the next one.

        Args:
            denoiser: the policy.
            num_samples: how many sequences.
            seed: sequence i depends on ``seed + i`` alone, not on the chunks.
            prompt: one for all or one for each, as `sepo_env.tasks.prompts.resolve_prompts` takes them; None: the
                task's own.

        Raises:
            InvalidPromptError: prompts that do not fit, or leave nothing to generate.
        """
        # Seeds go on after the largest one, as 64-bit numbers do.
        all_keys = keys_from_seed(torch.arange(num_samples, device=self.device) + seed)
        prompts = resolve_prompts(self.task, prompt, all_keys)
        for start in range(0, num_samples, self.chunk_size):
            stop = min(start + self.chunk_size, num_samples)
            keys = all_keys[start:stop]
            given = None if prompts is None else prompts[start:stop]
            yield self.walk(denoiser, keys, given)

    def walk(self, denoiser: DenoiserLike, keys: Tensor, prompt: Tensor | None) -> Iterator[ReverseStep]:
        """Walk the reverse paths of some sequences side by side.

        Args:
            denoiser: the policy.
            keys: int64 ``(N,)``; sequence n depends on its key alone.
            prompt: visible tokens where given, the id V where free, int64 ``(N, L)``; None: nothing is given.
        """
        tokens, prompt_mask = initial_tokens(self.task.process, keys, self.task.length, prompt)
        return reverse_steps(
            self.task.process,
            denoiser,
            tokens,
            num_steps=self.num_steps,
            keys=keys,
            prompt_mask=None if prompt is None else prompt_mask,
            corrector_steps=self.corrector_steps,
            corrector_size=self.corrector_size,
        )

    @torch.no_grad()
    def draw(self, denoiser: DenoiserLike, keys: Tensor, prompt: Tensor | None) -> Tensor:
        """The ends of those paths, int64 ``(N, L)``; arguments as for `walk`."""
        for step in self.walk(denoiser, keys, prompt):
            finished = step.next_tokens
        return finished

    @torch.no_grad()
    def sample(self, denoiser: DenoiserLike, num_samples: int, seed: int, prompt: Any = None) -> Tensor:
        """Draw finished sequences, int64 ``(num_samples, L)``; arguments as for `paths`."""
        chunks = []
        for path in self.paths(denoiser, num_samples, seed, prompt):
            for step in path:
                finished = step.next_tokens
            chunks.append(finished)
        return torch.cat(chunks)
