"""What is compared with what, at which cost: every number that decides a comparison stands in this file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import fspath
from typing import Any, Literal

from agents.config import PolicyGradientConfig
from agents.registry import learner_class, learners
from benchmarks.comparison.tables import MAX_COST_SPREAD, PRETRAINED
from sepo_env.arguments import Count, NonNegative, PathArgument, Size, WholeNumber, check_fields
from sepo_env.errors import InvalidArgumentError, UnknownNameError
from sepo_env.tasks import options_from_json

SuiteName = Literal["default", "full", "smoke"]


@dataclass(frozen=True)
class Evaluation:
    """How the end of a run is judged; the same for all agents, and not charged to them.

    Attributes:
        num_samples: sequences drawn from the trained policy.
        num_steps: reverse steps of the sampler that draws them.
        metrics: options of the task's ``metrics``.
    """

    num_samples: Size
    num_steps: Size
    metrics: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Check the types and ranges of all fields."""
        check_fields(self)


@dataclass(frozen=True)
class Suite:
    """Agents x seeds on one task at one cost.

    Equal network evaluations *and* equal reward calls need more than two budgets: an agent that spends more
    evaluations a trajectory would use up one budget with the other half full. So a trajectory costs every agent the
    same: sampling takes K evaluations, and ``states_per_trajectory`` is set such that learning makes up the rest of
    ``cost_per_trajectory``. An agent with more passes over its states thus learns from fewer of them. The table
    checks the costs that were realised.

    Attributes:
        task: Gymnasium id of the world.
        agents: names in the registry, and ``"pretrained"``.
        seeds: one run of each agent for each.
        budget: network evaluations a run (NFE: a sequence forward is 1, forward and backward 3).
        cost_per_trajectory: network evaluations for each trajectory, sampling and update together.
        common: settings of every agent.
        tuned: settings by agent; each suite says how they were chosen.
        grid: values of the configuration's fields that tuning tries; every agent gets all combinations. The path KL
            is in nats a sequence.
        evaluation: how the ends of the runs are judged.
        reward: what all agents are trained on; None is the task's training reward.
        prompt: texts of which every sequence keeps one, of agents and of the pretrained denoiser alike, with the task's
            mask letter where free; none: what the task draws, if anything.
        task_options: options of the task, for JSON.
        guidance_scale: of classifier-free guidance by the prompts, of agents and of the pretrained denoiser alike. It
            doubles what everything costs, so the budget pays for half as many iterations.
    """

    task: str
    agents: tuple[str, ...]
    seeds: tuple[WholeNumber, ...]
    budget: Count
    cost_per_trajectory: Count
    common: Mapping[str, Any]
    tuned: Mapping[str, Mapping[str, Any]]
    evaluation: Evaluation
    grid: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    reward: str | None = None
    prompt: tuple[str, ...] = ()
    task_options: Mapping[str, Any] = field(default_factory=dict)
    guidance_scale: NonNegative = 0.0

    def __post_init__(self) -> None:
        """Check names and numbers before anything runs."""
        check_fields(self)
        for agent in self.agents:
            if agent != PRETRAINED and agent not in learners():
                raise UnknownNameError("agent", agent, [PRETRAINED, *learners()])
        for name in ("agents", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise InvalidArgumentError(f"{name} are {values}; give at least one, and none twice.")
        if self.num_iterations < 1:
            least = self._iteration_cost
            raise InvalidArgumentError(
                f"a budget of {self.budget} does not pay for one iteration; give at least {least}."
            )

    @property
    def world(self) -> str:
        """A name for folders: what runs on other options shall not overwrite what runs on none."""
        if not self.task_options:
            return self.task
        return f"{self.task}-{'artefacts' if 'artefacts' in self.task_options else 'options'}"

    @property
    def num_iterations(self) -> int:
        """Iterations that the budget pays for."""
        return self.budget // self._iteration_cost

    @property
    def _iteration_cost(self) -> int:
        guided = evaluations_per_call(self.guidance_scale)
        return self.common["batch_size"] * self.cost_per_trajectory * guided

    def settings(self, agent: str) -> dict[str, Any]:
        """The fields of an agent's configuration; none for the pretrained denoiser, which does not train.

        Raises:
            InvalidArgumentError: no number of states makes the agent's trajectories cost what they should.
        """
        if agent == PRETRAINED:
            return {}
        chosen = {**self.common, **self.tuned.get(agent, {})}
        config = learner_class(agent).config_class().replace(**chosen)
        if not isinstance(config, PolicyGradientConfig):
            raise InvalidArgumentError(
                f"{agent} does not learn from visited states, so no number of them makes its trajectories cost what "
                "they should; compare it by a script of its own."
            )
        states = round((self.cost_per_trajectory - config.num_steps) / evaluations_per_state(config))
        chosen["states_per_trajectory"] = min(max(states, 1), config.num_steps)
        cost = config.num_steps + chosen["states_per_trajectory"] * evaluations_per_state(config)
        if abs(cost / self.cost_per_trajectory - 1.0) > MAX_COST_SPREAD / 2:
            raise InvalidArgumentError(
                f"{agent} comes to {cost} evaluations a trajectory, the nearest to {self.cost_per_trajectory}: choose "
                "another cost_per_trajectory, or other inner_epochs for the agent, in benchmarks/comparison/suite.py."
            )
        guidance = {"guidance_scale": self.guidance_scale} if self.guidance_scale > 0 else {}
        return {
            **chosen,
            **guidance,
            "num_iterations": self.num_iterations,
            # The iterations end a run; the budgets only stop an agent that spends more than was foreseen.
            "max_nfe": round(self.budget * (1.0 + MAX_COST_SPREAD / 2)),
            "max_reward_calls": self.num_iterations * config.batch_size,
        }


def evaluations_per_call(guidance_scale: float) -> int:
    """Network evaluations for one output: guidance also takes the one without the condition."""
    return 2 if guidance_scale > 0 else 1


def evaluations_per_state(config: PolicyGradientConfig) -> int:
    """Network evaluations that an update spends on each of the visited states.

    In each pass a forward and a backward (3) and, with a path KL, the reference (1); before them, where there is more
    than one optimiser step, the log-probabilities of the policy that sampled (1). Guidance doubles them all.
    """
    return config.inner_epochs * (3 + (config.kl_coeff > 0)) + (config.optimiser_steps > 1)


COMPARED = ("sepo", "ppo", "ddpo", "reinforce")
"""The agents that have been tuned, with equal effort."""
ALL_AGENTS = (PRETRAINED, *COMPARED)

_DNA = Suite(
    task="DNAEnhancer-v0",
    agents=ALL_AGENTS,
    seeds=(0, 1),
    budget=12 * 32 * 104,
    cost_per_trajectory=104,
    common={
        "batch_size": 32,
        "num_steps": 32,
        "micro_batch_size": 64,
        "eval_every": 4,
        "eval_samples": 64,
        "checkpoint_every": 5,
    },
    # By benchmarks/tune.py, nine configurations an agent, on a seed of its own: the highest held-out median among those
    # whose samples are as likely as real ones (benchmarks/results/tuning/DNAEnhancer-v0/agents.csv).
    tuned={
        "sepo": {"inner_epochs": 1, "learning_rate": 3e-4, "kl_coeff": 0.3},
        "ppo": {"inner_epochs": 2, "learning_rate": 3e-4, "kl_coeff": 0.1},
        "ddpo": {"inner_epochs": 2, "learning_rate": 3e-4, "kl_coeff": 0.3},
        "reinforce": {"inner_epochs": 1, "learning_rate": 3e-3, "kl_coeff": 0.1},
    },
    grid={"learning_rate": (3e-4, 1e-3, 3e-3), "kl_coeff": (0.1, 0.3, 1.0)},
    evaluation=Evaluation(num_samples=128, num_steps=32, metrics={"likelihood_samples": 64}),
)

_TOY = Suite(
    task="ToyCTMC-v0",
    agents=ALL_AGENTS,
    seeds=(0, 1),
    budget=50 * 32 * 48,
    cost_per_trajectory=48,
    common={
        "batch_size": 32,
        "num_steps": 12,
        "eval_every": 5,
        "eval_samples": 64,
        "learning_rate": 0.05,
        "kl_coeff": 0.001,
    },
    tuned={"ppo": {"inner_epochs": 2}, "ddpo": {"inner_epochs": 2}},
    grid={"learning_rate": (0.02, 0.05, 0.1), "kl_coeff": (0.001, 0.003, 0.01)},
    evaluation=Evaluation(num_samples=256, num_steps=12, metrics={}),
)

_TEXT = Suite(
    task="TextSentiment-v0",
    agents=ALL_AGENTS,
    seeds=(0, 1),
    budget=12 * 32 * 96,
    cost_per_trajectory=96,
    common={
        "batch_size": 32,
        "num_steps": 24,
        "micro_batch_size": 64,
        "eval_every": 4,
        "eval_samples": 64,
        "checkpoint_every": 5,
    },
    # As for DNA, and with words as varied as real ones (benchmarks/results/tuning/TextSentiment-v0/agents.csv).
    tuned={
        "sepo": {"inner_epochs": 1, "learning_rate": 3e-4, "kl_coeff": 0.03},
        "ppo": {"inner_epochs": 2, "learning_rate": 1e-3, "kl_coeff": 0.3},
        "ddpo": {"inner_epochs": 2, "learning_rate": 1e-3, "kl_coeff": 0.03},
        "reinforce": {"inner_epochs": 1, "learning_rate": 1e-3, "kl_coeff": 0.1},
    },
    # A text has 24 tokens and a reward from -1 to 1: both are smaller than on DNA, and so is the weight between them.
    grid={"learning_rate": (3e-4, 1e-3, 3e-3), "kl_coeff": (0.03, 0.1, 0.3)},
    evaluation=Evaluation(num_samples=128, num_steps=24, metrics={}),
)

_RLHF = dataclasses.replace(
    _TEXT,
    task="TextRLHF-v0",
    # Denoiser, length and reward are those of TextSentiment-v0, and so are the settings.
    # Eight trajectories share each prompt: a baseline never mixes prompts.
    common={**_TEXT.common, "group_size": 8},
    evaluation=Evaluation(num_samples=128, num_steps=24, metrics={"likelihood_samples": 64}),
)

_FULL: dict[str, dict[str, Any]] = {
    "DNAEnhancer-v0": {
        # Twice the cost in larger batches: as many updates as the settings were tuned for, on better gradients.
        "common": {**_DNA.common, "batch_size": 64},
        "budget": 12 * 64 * 104,
        "evaluation": Evaluation(num_samples=640, num_steps=32, metrics={"likelihood_samples": 128}),
    },
    "TextRLHF-v0": {
        "budget": 24 * 32 * 96,
        "evaluation": Evaluation(num_samples=320, num_steps=24, metrics={"likelihood_samples": 128}),
    },
    "TextSentiment-v0": {
        # Twice the iterations: the settings are gentle, and the reward still climbs at the end of the default budget.
        "budget": 24 * 32 * 96,
        "evaluation": Evaluation(num_samples=320, num_steps=24, metrics={}),
    },
    "ToyCTMC-v0": {
        "budget": 100 * 32 * 48,
        "evaluation": Evaluation(num_samples=640, num_steps=12, metrics={}),
    },
}
"""What the full suite changes beside the seeds; the sampler that judges is the one that was trained."""

_SUITES: dict[str, Suite] = {suite.task: suite for suite in (_DNA, _RLHF, _TEXT, _TOY)}


def task_options(text: str, artefacts: PathArgument | None) -> dict[str, Any]:
    """The options of the task that a command line gives, as a JSON object and as a folder of artefacts.

    Raises:
        InvalidArgumentError: no JSON object, or two folders.
    """
    given = options_from_json(text)
    if artefacts is None:
        return given
    if "artefacts" in given:
        raise InvalidArgumentError("both --artefacts and --task-options name a folder of artefacts; give one of them.")
    return {**given, "artefacts": fspath(artefacts)}


def make_suite(task: str, name: SuiteName, **changes: Any) -> Suite:
    """The suite of a task.

    Args:
        task: Gymnasium id.
        name: ``"default"``, ``"full"`` (five seeds, a larger budget, more samples to judge) or ``"smoke"`` (a
            few iterations, to see that all parts work).
        **changes: fields that replace the suite's own: agents, seeds, budget, prompt, ...

    Raises:
        UnknownNameError: no suite is written for that task; add one in this file.
    """
    if task not in _SUITES:
        raise UnknownNameError("task with a suite", task, _SUITES)
    suite = _SUITES[task]
    if name == "full":
        suite = dataclasses.replace(suite, seeds=(0, 1, 2, 3, 4), **_FULL[task])
    elif name == "smoke":
        iteration = suite.common["batch_size"] * suite.cost_per_trajectory
        few = dataclasses.replace(suite.evaluation, num_samples=16)
        often = {**suite.common, "eval_every": 1, "eval_samples": 16}
        suite = dataclasses.replace(suite, budget=3 * iteration, common=often, evaluation=few)
    return dataclasses.replace(suite, **changes)
