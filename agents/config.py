"""What every agent can be told: one frozen dataclass, each field documented once and checked when it is made.

The command line (`python -m agents.train`) is generated from these dataclasses, so a field's text below is its help.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le, Lt

from sepo_env.arguments import Count, NonNegative, PathText, Positive, Seed, Size, WholeNumber, check_fields
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.loading.paths import as_path

GroupAdvantage = Literal["group", "leave-one-out", "batch-mean"]
TensorBoard = Literal["auto", "on", "off"]

# Where a run writes says nothing about what it is.
OUTPUT_FIELDS = frozenset({"log_dir", "tensorboard", "checkpoint_every"})
# A resumed run may also go on for longer, and in smaller or larger parts, which changes figures by rounding alone; all
# else would change what its finished part means.
FREE_ON_RESUME = OUTPUT_FIELDS | {"num_iterations", "max_nfe", "max_reward_calls", "micro_batch_size"}

Budget = Annotated[int, Ge(1)]
"""What may be spent, at least 1."""
OpenShare = Annotated[float, Gt(0), Lt(1)]
"""A share that is neither nothing nor all."""


@dataclass(frozen=True)
class SamplerConfig:
    """Settings that all agents share: how sequences are drawn.

    Raises:
        InvalidArgumentError: a value of another type or out of its range, or values that exclude each other.
        UnknownNameError: text that is none of a field's choices.
    """

    num_steps: Size = 32
    """Reverse steps per trajectory (K), in training, in evaluation and in `agent.sample` alike."""
    corrector_steps: WholeNumber = 0
    """Gradient-flow corrector leaps after each reverse step but the last, in training and in evaluation alike."""
    corrector_size: Positive = 0.1
    """Length of a corrector leap in units of the total noise sigma; read where corrector_steps > 0."""
    guidance_scale: NonNegative = 0.0
    """Scale w of classifier-free guidance, of the policy and of the pretrained denoiser that it is held to alike: in
    training, evaluation and sampling, at twice the evaluations. 0 is the conditional model; without guidance_label the
    prompts are the condition."""
    guidance_label: WholeNumber | None = None
    """Class to generate, of a denoiser that can be told one; None: no class."""
    micro_batch_size: Count = 256
    """States per forward and backward pass, at most, and trajectories that are sampled side by side (a divisor of
    batch_size; those that share a prompt stay together); bounds the memory, and changes nothing but the rounding of
    floats, so a run that died for lack of memory goes on with a smaller one."""

    def __post_init__(self) -> None:
        """Check types, ranges, and what several fields must agree on."""
        check_fields(self)

    def _require(self, name: str, condition: bool, rule: str) -> None:
        if not condition:
            raise InvalidArgumentError(f"{name} is {getattr(self, name)!r}, but must be {rule}.")

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed.

        Raises:
            UnknownNameError: no field has that name.

        >>> SamplerConfig().replace(num_steps=4).num_steps
        4
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UnknownNameError(f"{type(self).__name__} field", name, known)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as JSON would read them back."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Self:
        """The inverse of `to_dict`.

        Raises:
            UnknownNameError: a field that this class does not have.
        """
        return cls().replace(**fields)


@dataclass(frozen=True)
class LearnerConfig(SamplerConfig):
    """Settings that all agents share which train: cost, optimiser, evaluation, logs."""

    num_iterations: WholeNumber = 100
    """Iterations: each samples a batch of trajectories and updates the policy on it."""
    batch_size: Annotated[Size, Ge(2)] = 32
    """Trajectories per iteration (B)."""
    group_size: WholeNumber = 0
    """Trajectories of a batch that share each prompt, of a task that draws prompts: every prompt is drawn once and
    batch_size / group_size of them make a batch. 0: each trajectory draws its own, and is compared with those that
    happen to draw the same; a batch in which none do is passed over, unless there is a critic."""
    inner_epochs: Count = 1
    """Passes over each batch of states."""
    minibatches: Count = 1
    """Optimiser steps per pass."""
    learning_rate: Positive = 3e-4
    """Step size of AdamW."""
    weight_decay: NonNegative = 0.0
    """Decoupled weight decay of AdamW."""
    warmup_iterations: WholeNumber = 0
    """Iterations over which the step size rises linearly to learning_rate."""
    lora_rank: Annotated[int, Ge(0), Le(65_536)] = 0
    """Rank of low-rank adapters (LoRA, extra `lora`): they alone are trained, the pretrained weights stay. 0 trains all
    weights."""
    lora_alpha: Positive | None = None
    """Adapters are scaled by lora_alpha / lora_rank; None is twice the rank. Read where lora_rank > 0."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this total norm before each optimiser step."""
    max_nfe: Budget | None = None
    """Network evaluations (sequences forward; a backward counts two more) that training may spend; None: no limit."""
    max_reward_calls: Budget | None = None
    """Sequences that the training reward may score; None: no limit."""
    eval_every: WholeNumber = 10
    """Iterations between evaluations by the held-out reward; 0: never. Not charged to the budgets."""
    eval_samples: Size = 64
    """Sequences per evaluation."""
    checkpoint_every: Count = 10
    """Iterations between checkpoints; the end of a run and Ctrl-C write one, too. Read where log_dir is given."""
    log_dir: PathText | None = None
    """Folder of metrics.csv, the TensorBoard events and the checkpoint, of this run alone; None: nothing is written."""
    tensorboard: TensorBoard = "auto"
    """TensorBoard events in log_dir: auto (where tensorboard is installed), on, or off."""
    seed: Seed = 0
    """Seed of the trajectories, of the minibatches and of the critic."""

    def __post_init__(self) -> None:
        """Check types, ranges, and what several fields must agree on."""
        super().__post_init__()
        self._require(
            "group_size",
            self.group_size == 0 or (self.group_size >= 2 and self.batch_size % self.group_size == 0),
            f"0, or a divisor of batch_size ({self.batch_size}) from 2 on: one alone has none to be compared with",
        )
        self._require(
            "minibatches",
            self.minibatches <= self.num_samples,
            f"at most the {self.num_samples} samples of a batch",
        )
        if self.log_dir is not None:
            object.__setattr__(self, "log_dir", str(as_path(self.log_dir)))
        elif self.tensorboard == "on":
            raise InvalidArgumentError("tensorboard='on' needs a folder to write to; give log_dir as well.")

    def _require_one_step(self) -> None:
        if self.optimiser_steps > 1:
            raise InvalidArgumentError(
                f"{self.inner_epochs} inner_epochs of {self.minibatches} minibatches need importance ratios from the "
                "second step on, and this objective has none; give inner_epochs=1 and minibatches=1."
            )

    @property
    def num_samples(self) -> int:
        """Samples that an update works on, N."""
        return self.batch_size

    @property
    def optimiser_steps(self) -> int:
        """Optimiser steps per iteration; from the second on, the policy differs from the one that sampled."""
        return self.inner_epochs * self.minibatches


@dataclass(frozen=True)
class PolicyGradientConfig(LearnerConfig):
    """Settings that all agents share which learn from the states that a trajectory has visited."""

    states_per_trajectory: WholeNumber = 8
    """Visited states of each trajectory that the update uses, at most; drawn uniformly and weighted by the inverse of
    their inclusion probability. 0 uses all num_steps of them."""
    kl_coeff: NonNegative = 0.3
    """Weight of the path KL to the pretrained denoiser, nats per sequence: without it, samples soon leave the data and
    fool the reward. 0 also saves the evaluations of the reference."""
    entropy_coeff: NonNegative = 0.0
    """Weight of the entropy bonus."""
    max_ratio: Annotated[float, Gt(1)] = 1e4
    """Largest importance ratio; a larger one stops the run with an error."""

    @property
    def kept_steps(self) -> int:
        """Visited states of each trajectory that an update uses."""
        return min(self.states_per_trajectory or self.num_steps, self.num_steps)

    @property
    def num_samples(self) -> int:
        """Visited states that an update uses, N."""
        return self.batch_size * self.kept_steps


def differing_fields(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields whose values forbid resuming, name -> (found, wanted), given two configs as dictionaries.

    >>> differing_fields({"seed": 0, "max_nfe": 5}, {"seed": 1, "max_nfe": 9})
    {'seed': (0, 1)}
    """
    names = sorted((found.keys() | wanted.keys()) - FREE_ON_RESUME)
    return {n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)}
