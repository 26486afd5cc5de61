"""Train a reward model from the command line: ``python -m agents.reward_model --pairs FILE.jsonl --log-dir runs/rm``.

The model stands in ``reward_model/`` of the log_dir at the end; `sepo_env.rewards.SequenceClassifierReward` takes that
folder by its path, and so does whatever takes a reward by path.

Exit codes: 0 done; 1 refused or failed, with the reason; 2 wrong usage; 3 diverged; 130 stopped with Ctrl-C.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from agents.command_line import DIVERGED, DONE, FAILED, INTERRUPTED, WRONG_USAGE, flags_of, run, say, settings_of
from agents.reward_modelling import Outcome, RewardModelConfig, train_reward_model
from sepo_env.arguments import check_fields

_DESCRIPTION = f"""Train a reward model on pairs of texts of which people prefer one.

Each line of --pairs is one comparison, in the layout of HH-RLHF:
  {{"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "\\n\\nHuman: Hi\\n\\nAssistant: What?"}}

The model gives every text a number r; training raises that of the chosen text above that of the rejected one, by the
pairwise logistic loss: minus log sigmoid(r_chosen - r_rejected). Pairs that are held out say how often it is right.
They share no text and no prompt with those that train, and --eval-pairs that do are refused. The prompt is what comes
before the first "\\n\\nAssistant:", or else the words that both texts begin with. The paper's own model is GPT-2: give
its folder with --base. Without, a small model of that architecture is trained from scratch. The result,
LOG_DIR/reward_model, is an AutoModelForSequenceClassification with its tokenizer.

Exit codes: {DONE} done; {FAILED} refused or failed, with the reason; {WRONG_USAGE} wrong usage; {DIVERGED} diverged; \
{INTERRUPTED} stopped with Ctrl-C (go on with --resume from the last checkpoint)."""


@dataclass(frozen=True)
class RunOptions:
    """How the run is started and shown."""

    resume: bool = False
    """Go on from the last checkpoint in log_dir; give the same settings as before."""
    quiet: bool = False
    """No progress bar, no report."""

    def __post_init__(self) -> None:
        """Check the types."""
        check_fields(self)


def train(config: RewardModelConfig, options: RunOptions) -> int:
    """Run one training; returns the exit code, and says on standard error what went wrong."""
    return run(lambda: _train(config, options), "Give the same command with --resume to go on.")


def _train(config: RewardModelConfig, options: RunOptions) -> None:
    outcome = train_reward_model(config, resume=options.resume, progress=not options.quiet, say=say)
    if not options.quiet:
        say(
            f"{outcome.num_steps} steps on {outcome.num_training} pairs; of {outcome.num_held_out} held-out pairs "
            f"{outcome.accuracy:.1%} are in the right order (loss {outcome.loss:.4g}).\n"
            + _cuts(outcome)
            + f"The model is in {outcome.folder}."
        )


def _cuts(outcome: Outcome) -> str:
    """What was lost to the length of the model; "" where nothing was."""
    if not (outcome.num_truncated or outcome.num_dropped):
        return ""
    return (
        f"{outcome.num_truncated} texts were longer than the model reads, and were cut; {outcome.num_dropped} pairs "
        "were left out because their texts were the same after that.\n"
    )


_CONFIG_FLAGS, _OPTION_FLAGS = flags_of(RewardModelConfig), flags_of(RunOptions)


def _command(config: RewardModelConfig, options: RunOptions) -> int:
    return train(settings_of(RewardModelConfig, config), settings_of(RunOptions, options))


_command.__annotations__ = {"config": _CONFIG_FLAGS, "options": _OPTION_FLAGS, "return": int}  # for tyro: no strings
_command.__defaults__ = (_OPTION_FLAGS(),)


def main(args: Sequence[str] | None = None) -> int:
    """Parse the arguments and train; returns the exit code."""
    return tyro.cli(
        _command,
        prog="python -m agents.reward_model",
        description=_DESCRIPTION,
        args=args,
        config=(tyro.conf.OmitArgPrefixes,),
    )


if __name__ == "__main__":
    sys.exit(main())
