"""Train an agent from the command line: ``python -m agents.train sepo --task DNAEnhancer-v0 --log-dir runs/sepo``.

Every field of the agent's config is a flag. What the run writes stands in ``--log-dir``: metrics.csv, TensorBoard
events, the checkpoint and, at the end, the agent itself in ``agent/`` (`Agent.load` reads it) and samples.csv with
sequences of before and after.

Exit codes: 0 done; 1 refused or failed, with the reason; 2 wrong usage; 3 diverged; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tyro

from agents.command_line import DIVERGED, DONE, FAILED, INTERRUPTED, WRONG_USAGE, flags_of, run, say, settings_of
from agents.config import LearnerConfig
from agents.learner import Learner
from agents.lookup import named_task
from agents.registry import learner_class, learners
from agents.training.before_after import as_text, judged, write_samples
from agents.training.recovery import AGENT_FOLDER
from sepo_env import tasks
from sepo_env.arguments import Positive, WholeNumber, check_fields
from sepo_env.rewards import OnError

_DESCRIPTION = f"""Fine-tune a discrete diffusion model by reinforcement learning.

Choose an agent; "{{agent}} --help" lists its settings.

Exit codes: {DONE} done; {FAILED} refused or failed, with the reason; {WRONG_USAGE} wrong usage; {DIVERGED} diverged; \
{INTERRUPTED} stopped with Ctrl-C (the checkpoint is written first)."""


@dataclass(frozen=True)
class RunOptions:
    """What is trained, and where."""

    task: str = "DNAEnhancer-v0"
    """Environment id or task name, such as DNAEnhancer-v0 or ToyCTMC-v0."""
    reward: str | None = None
    """Name of one of the task's training rewards; None takes the task's own."""
    workers: WholeNumber = 0
    """Processes over which a reward that is a function of strings is spread; 0 calls it in this one."""
    timeout: Positive | None = None
    """Seconds for one batch of rewards, with workers; None waits as long as it takes."""
    on_error: OnError = "raise"
    """What becomes of a sequence that the reward fails on: raise an error, or score it with the floor."""
    floor: float | None = None
    """Value of a sequence that the reward fails on; read with on_error=floor."""
    cache: WholeNumber = 0
    """Sequences whose rewards are kept, so that repeated ones are not scored again; 0: none."""
    prompt: tuple[str, ...] = ()
    """One or several texts, with the task's mask letter where free (? for DNA, _ for the shipped text worlds): the
    agent is trained on, and shows, sequences that keep one of them."""
    task_options: str = "{}"
    """Options of the task as a JSON object, such as {"artefacts": "DRAKES_data"} for DNAEnhancer-v0, or
    {"reward_model": "runs/rm/reward_model"} for TextRLHF-v0."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1 ..."""
    resume: bool = False
    """Go on from the checkpoint in log_dir; give the same settings as before."""
    samples: WholeNumber = 4
    """Sequences to show at the end as they were before the training and as they are after it, from the same seeds, with
    reward and held-out reward; they are kept in log_dir as samples.csv. 0: none."""
    quiet: bool = False
    """No progress bar, no report."""

    def __post_init__(self) -> None:
        """Check types and ranges."""
        check_fields(self)


def train(name: str, config: LearnerConfig, options: RunOptions) -> int:
    """Run one training; returns the exit code, and says on standard error what went wrong."""
    how = "" if config.log_dir is None else "Give the same command with --resume to go on."
    return run(lambda: _train(name, config, options), how)


def _train(name: str, config: LearnerConfig, options: RunOptions) -> None:
    task = named_task(options.task, tasks.options_from_json(options.task_options))
    scoring = {name: getattr(options, name) for name in ("workers", "timeout", "on_error", "floor")}
    cache = options.cache or False
    kind = learner_class(name)
    agent = kind(task, config=config, reward=options.reward, cache=cache, device=options.device, **scoring)
    with agent:
        _run(agent, options)


def _run(agent: Learner, options: RunOptions) -> None:
    config = agent.config
    if options.prompt:
        agent.task.start_from(options.prompt)
    draw = partial(agent.sample_tokens, options.samples, seed=config.seed) if options.samples > 0 else None
    before = None if draw is None else draw()  # of the pretrained denoiser, when a run is resumed as well
    agent.train(resume=options.resume, progress=not options.quiet)
    folder = None if config.log_dir is None else Path(config.log_dir)
    if folder is not None:
        agent.save(folder / AGENT_FOLDER)
    samples = [] if draw is None or before is None else judged(agent.task, agent.reward, before, draw())
    if folder is not None and samples:
        write_samples(folder, samples)
    if not options.quiet:
        _report(agent.history)
        if samples:
            say(as_text(samples))


def _report(history: Sequence[dict[str, Any]]) -> None:
    last = history[-1] if history else {}
    figures = ("iteration", "nfe", "reward_calls", "reward_median")
    say(", ".join(f"{name} {last[name]:.5g}" for name in figures if name in last))


def _command(name: str) -> Callable[..., int]:
    config_class = learner_class(name).config_class
    config_flags, option_flags = flags_of(config_class), flags_of(RunOptions)

    def command(config: LearnerConfig, options: RunOptions) -> int:
        return train(name, settings_of(config_class, config), settings_of(RunOptions, options))

    # tyro makes the flags from these.
    command.__annotations__ = {"config": config_flags, "options": option_flags, "return": int}
    command.__defaults__ = (config_flags(), option_flags())
    command.__doc__ = config_class.__doc__
    return command


def main(args: Sequence[str] | None = None) -> int:
    """Parse the arguments and train; returns the exit code."""
    return tyro.extras.subcommand_cli_from_dict(
        {name: _command(name) for name in learners()},
        prog="python -m agents.train",
        description=_DESCRIPTION,
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
    )


if __name__ == "__main__":
    sys.exit(main())
