"""What the policy is worth on the held-out reward, and how far it is from where it started."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.policies.sampling import PolicySampler
from agents.training.logs import Row
from sepo_env.diffusion.likelihood import path_kl
from sepo_env.diffusion.process import DenoiserLike
from sepo_env.diffusion.sampler import ReverseStep
from sepo_env.rewards import Reward

EVALUATION_COLUMNS = (
    "held_out_reward",
    "held_out_reward_mean",
    "eval_reward",
    "eval_reward_mean",
    "kl",
)


@dataclass(frozen=True)
class Evaluator:
    """Samples with the training sampler and asks the judge.

    The same random numbers are used every time, so that evaluations differ by what the policy has learnt.

    Attributes:
        sampler: the sampler of the training.
        reference: the pretrained denoiser.
        reward: what the policy is trained on; its gap to the judge shows when it is being fooled.
        judge: the held-out reward.
        num_samples: sequences per evaluation.
        seed: of the sequences.
    """

    sampler: PolicySampler
    reference: DenoiserLike
    reward: Reward
    judge: Reward
    num_samples: int
    seed: int

    @torch.no_grad()
    def evaluate(self, denoiser: DenoiserLike) -> Row:
        """The figures of `EVALUATION_COLUMNS`: medians, means, and the path KL in nats a sequence."""
        tokens, divergences = [], []
        for path in self.sampler.paths(denoiser, self.num_samples, self.seed):
            ends: list[Tensor] = []
            steps = _keep_end(path, ends)
            divergences.append(path_kl(self.sampler.task.process, self.reference, steps))
            tokens += ends
        finished = torch.cat(tokens)
        judged, trained = self.judge(finished), self.reward(finished)
        return {
            "held_out_reward": float(judged.median()),
            "held_out_reward_mean": float(judged.mean()),
            "eval_reward": float(trained.median()),
            "eval_reward_mean": float(trained.mean()),
            "kl": float(torch.cat(divergences).mean()),
        }


def _keep_end(path: Iterator[ReverseStep], ends: list[Tensor]) -> Iterator[ReverseStep]:
    """Pass the steps on and put the last state into ``ends``: the path itself is too large to be kept."""
    for step in path:
        yield step
        tokens = step.next_tokens
    ends.append(tokens)
