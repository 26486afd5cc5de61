"""Fine-tuned language models against the pretrained denoiser, over the number of sampling steps.

Perplexity under a causal language model, distinct-n, held-out reward, and the length-controlled win rate under a judge
(the evaluation of arXiv 2502.01384)::

    python benchmarks/language.py --agents runs/rlhf/agent --perplexity-model gpt2-large \\
        --judge-model runs/rm2/reward_model

Perplexity is that of the response given the prompt, and distinct-n is of the positions that were written; where given
tokens stand behind free ones, there is no such prompt, and the whole text is scored and judged.

Results are in the output folder: ``language.csv``, ``language.md``, ``language.png`` and ``samples.csv``, each written
whole or not at all. Texts and figures are written as they come: what is done survives a failing judge, and Ctrl-C. The
judge is a reward model (``--judge-model``) or any function of yours, such as one that asks a
service (``--judge my_judge.py:ask``): ``def ask(prompt: str, first: str, second: str) -> float`` gives the probability
that the first response is the better one.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from agents.agent import Agent
from agents.command_line import DONE
from agents.lookup import named_task
from benchmarks._judges import judges_what_it_trained, load_judge
from benchmarks._language_report import keep_tables, write_results
from benchmarks._language_texts import prompts_and_responses, prompts_of
from benchmarks._program import PathOption, run_program
from benchmarks.comparison.statistics import win_rate_estimates
from benchmarks.comparison.tables import PRETRAINED
from sepo_env import tasks
from sepo_env.arguments import Size, WholeNumber, check_fields
from sepo_env.device import find_device
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import InvalidArgumentError, RewardError
from sepo_env.files import ClaimedFolder
from sepo_env.rewards import SequenceClassifierReward, string_reward
from sepo_env.tasks import Task
from sepo_env.tasks.language_metrics import Judge, Perplexity, play_games, reward_judge
from sepo_env.tasks.metrics import distinct_n

WIN_RATES = ("win_rate", "win_rate_length_controlled")
Draw = Callable[[int, int], Tensor]
"""The number of steps and a seed -> tokens ``(N, L)``."""


@dataclass(frozen=True)
class Options:
    """Fine-tuned language models against the pretrained denoiser, over the number of sampling steps."""

    agents: tuple[PathOption, ...] = ()
    """Folders that agent.save wrote (``LOG_DIR/agent``); the pretrained denoiser is evaluated in any case."""
    task: str = "TextRLHF-v0"
    """Environment id or task name."""
    task_options: str = "{}"
    """Options of the task as a JSON object, those that the agents were trained with."""
    steps: tuple[Size, ...] = (128, 256, 512, 1024)
    """Numbers of sampling steps."""
    num_samples: Size = 128
    """Texts for each number of steps, at least two."""
    batch_size: Size = 32
    """Texts at a time; of no effect on the result."""
    perplexity_model: PathOption | None = None
    """Folder of a causal language model (AutoModelForCausalLM); no perplexity if not given."""
    judge_model: PathOption | None = None
    """Folder of a reward model with one label (AutoModelForSequenceClassification) that judges pairs of responses."""
    judge: str | None = None
    """A function that judges them instead, FILE.py:NAME: (prompt, first, second) -> the probability that the first is
    better. Without either there are no win rates. The file is executed."""
    seed: WholeNumber = 0
    """Text i depends on seed + i alone; all sides get the same prompts."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    output: PathOption = Path("runs/language")
    """Folder of the results."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)
        if not self.steps or self.num_samples < 2:
            raise InvalidArgumentError("give at least one number of steps, and num_samples from 2.")
        if len(set(self.steps)) != len(self.steps):
            raise InvalidArgumentError(f"steps are {self.steps}; give none twice.")
        if self.judge is not None and self.judge_model is not None:
            raise InvalidArgumentError("both judge and judge_model are given; one of them judges.")


def sides(task: Task, options: Options) -> dict[str, Draw]:
    """How each side draws its texts, by name; the pretrained denoiser first.

    Raises:
        CheckpointError: no agent, or one of another task.
        InvalidArgumentError: two agents of one name.
    """
    device = find_device(options.device)
    pretrained = task.denoiser.to(device)

    def ancestral(steps: int, seed: int) -> Tensor:
        parts = []
        for start in range(0, options.num_samples, options.batch_size):
            count = min(options.batch_size, options.num_samples - start)
            prompt = prompts_of(task, count, seed + start)
            parts.append(
                sample(
                    task.process,
                    pretrained,
                    count,
                    task.length,
                    num_steps=steps,
                    seed=seed + start,
                    prompt=None if prompt is None else prompt.to(device),
                    device=device,
                )
            )
        return torch.cat(parts).cpu()

    found: dict[str, Draw] = {PRETRAINED: ancestral}
    for path in map(Path, options.agents):
        name = path.parent.name if path.name == "agent" else path.stem
        if name in found:
            raise InvalidArgumentError(f"two sides are named {name!r}; rename the folder of one of them.")
        # What it was trained on is not asked again, and may be a function that only its trainer had.
        agent: Agent = Agent.load(
            path,
            task=task,
            reward=string_reward(_not_asked, "not asked"),
            device=device,
            micro_batch_size=options.batch_size,
        )
        found[name] = lambda steps, seed, agent=agent: agent.sample_tokens(  # type: ignore[misc]
            options.num_samples, num_steps=steps, seed=seed
        ).cpu()
    return found


def _not_asked(sequences: list[str]) -> list[float]:
    raise RewardError("the training reward was asked during an evaluation, which needs none.")


def evaluate(
    task: Task,
    drawers: Mapping[str, Draw],
    options: Options,
    *,
    perplexity: Perplexity | None = None,
    judge: Judge | None = None,
    keep: Callable[[pd.DataFrame, pd.DataFrame], None] = lambda table, texts: None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All figures of all sides at all numbers of steps, and the texts.

    Args:
        task: gives prompts, texts and the held-out reward.
        drawers: the sides; win rates are against the first.
        options: steps, number of samples and seed.
        perplexity: None leaves it out.
        judge: any function of a prompt and two responses; None leaves the win rates out.
        keep: told figures and texts so far whenever there are more, and before the judge is asked.

    Raises:
        RewardError: the judge failed.
    """
    held_out = task.judge()
    given = prompts_of(task, options.num_samples, options.seed)
    free = None if given is None else given == task.num_tokens
    shown = ""
    rows: list[dict[str, Any]] = []
    texts: list[pd.DataFrame] = []
    with tqdm(total=len(options.steps) * len(drawers), unit="set", dynamic_ncols=True) as bar:
        for steps in options.steps:
            baseline: list[str] | None = None
            for side, draw in drawers.items():
                bar.set_postfix_str(f"{side}, {steps} steps{shown}")
                tokens = draw(steps, options.seed)
                prompts, responses = prompts_and_responses(task, tokens, given)
                whole = task.decode(tokens)
                frame = pd.DataFrame({"prompt": prompts, "response": responses, "text": whole})
                texts.append(frame.assign(side=side, steps=steps))
                keep(pd.DataFrame(rows), pd.concat(texts, ignore_index=True))
                row: dict[str, Any] = {"side": side, "steps": steps, "texts": len(tokens)}
                if perplexity is not None:
                    row["perplexity"] = perplexity(whole, prompts)
                row |= {f"distinct_{n}": float(distinct_n(tokens, n, free)) for n in (1, 2, 3)}
                row["held_out_mean"] = float(held_out(tokens).mean())
                shown = f"; before: held-out reward {row['held_out_mean']:.3g}"
                rows.append(row)
                keep(pd.DataFrame(rows), pd.concat(texts, ignore_index=True))
                if judge is not None and baseline is not None:
                    games = play_games(judge, prompts, responses, baseline)
                    texts[-1]["win"] = games.wins
                    rates = zip(WIN_RATES, win_rate_estimates(games, seed=options.seed), strict=True)
                    for name, (value, low, high) in rates:
                        row |= {name: value, f"{name}_low": low, f"{name}_high": high}
                elif judge is not None:
                    row |= dict.fromkeys(WIN_RATES, 0.5)  # against itself, by definition
                keep(pd.DataFrame(rows), pd.concat(texts, ignore_index=True))
                baseline = responses if baseline is None else baseline
                bar.update()
    return pd.DataFrame(rows), pd.concat(texts, ignore_index=True)


def main(options: Options, command: str, *, judge: Judge | None = None) -> int:
    """Evaluate, write and print; ``judge`` goes before that of the options."""
    if judge is None and options.judge is not None:
        judge = load_judge(options.judge)
    task_options = tasks.options_from_json(options.task_options)
    task = named_task(options.task, task_options)
    drawers = sides(task, options)
    device = find_device(options.device)
    perplexity = options.perplexity_model and Perplexity(options.perplexity_model, device=device)
    if judge is None and options.judge_model is not None:
        model = SequenceClassifierReward(options.judge_model, decode=task.decode)
        judge = reward_judge(lambda texts: model.score_texts(texts, device))
    warning = ""
    if judges_what_it_trained(options.judge_model, task_options.get("reward_model")):
        warning = (
            "The judge is the reward model that training maximised: its win rates say how well it was exploited, not "
            "which texts are better. Give another --judge-model."
        )
    kept, folder = False, Path(options.output)

    def keep(table: pd.DataFrame, texts: pd.DataFrame) -> None:
        nonlocal kept
        keep_tables(table, texts, folder)
        kept = True

    with ClaimedFolder(folder):
        try:
            table, texts = evaluate(task, drawers, options, perplexity=perplexity or None, judge=judge, keep=keep)
        except BaseException as error:
            error.add_note(f"What was done until then is in {folder}." if kept else "Nothing was written.")
            raise
        report = write_results(table, texts, folder, command, warning)
    print(report)
    print(f"\nreport: {folder / 'language.md'}")
    return DONE


if __name__ == "__main__":
    sys.exit(run_program(Options, main, file="language.py", description=__doc__))
