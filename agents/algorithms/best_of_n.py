"""Best of n: draw more than is asked for, and deliver what the reward likes best."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from agents.agent import Agent
from agents.config import SamplerConfig
from agents.traits import Traits
from sepo_env.arguments import Count
from sepo_env.diffusion.random import child_keys


@dataclass(frozen=True)
class BestOfNConfig(SamplerConfig):
    """Settings of best of n: nothing is trained, n sequences are drawn for each that is delivered."""

    candidates: Count = 16
    """Sequences drawn, and scored, for each that is delivered (n)."""
    select: Literal["each", "pool"] = "each"
    """each: the best of every n, independent of the others; pool: the best of all that are drawn at a time, at most
    micro_batch_size of them, which score higher and are more alike."""


class BestOfN(Agent):
    r"""Best of n of the pretrained denoiser, the baseline that fine-tuning has to beat.

    Of n independent samples the one with the largest reward is delivered. Its law is
    :math:`n\, \pi_0(x)\, F(R(x))^{n - 1}` where no two rewards are equal, with F the distribution function of the
    reward under :math:`\pi_0`; its KL to :math:`\pi_0` is at most :math:`\log n - (n - 1)/n` (arXiv 2401.01879). A
    sequence costs n K network evaluations and n reward calls.
    """

    name: ClassVar[str] = "best_of_n"
    traits: ClassVar[Traits] = Traits(trains=False)
    config_class: ClassVar[type[SamplerConfig]] = BestOfNConfig
    config: BestOfNConfig

    @property
    def _chunk_size(self) -> int:
        return max(1, self.config.micro_batch_size // self.config.candidates)

    def _draw(self, keys: Tensor, prompt: Tensor | None, num_steps: int) -> Tensor:
        number, count = len(keys), self.config.candidates
        candidate = torch.arange(count, device=keys.device).repeat(number)
        own_keys = child_keys(keys.repeat_interleave(count), candidate)
        prompts = None if prompt is None else prompt.repeat_interleave(count, dim=0)
        tokens = self._sampler(num_steps).draw(self.denoiser, own_keys, prompts)
        reward = self.reward(tokens)
        if self.config.select == "pool":
            return tokens[reward.topk(number).indices]
        best = reward.reshape(number, count).argmax(dim=1)
        return tokens.reshape(number, count, -1)[torch.arange(number, device=keys.device), best]
