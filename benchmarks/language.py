"""Fine-tuned language models against the pretrained denoiser, over the number of sampling steps.

Perplexity under a causal language model, distinct-n, held-out reward, and the length-controlled win rate under a judge
(the evaluation of arXiv 2502.01384)::

    python benchmarks/language.py --agents runs/rlhf/agent --perplexity-model gpt2-large \\
        --judge-model runs/rm2/reward_model

Results are in the output folder: ``language.csv``, ``language.md``, ``language.png`` and ``samples.csv``, each written
whole or not at all. The judge is a reward model (``--judge-model``) or any function of yours, such as one that asks a
service (``--judge my_judge.py:ask``): ``def ask(prompt: str, first: str, second: str) -> float`` gives the probability
that the first response is the better one.
"""

from __future__ import annotations

import importlib.util
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import torch
import tyro
from comparison.figures import STYLE, looks
from comparison.runs import write_atomically
from comparison.tables import PRETRAINED, markdown_table
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from agents.agent import Agent
from sepo_env import tasks
from sepo_env.device import find_device
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import InvalidArgumentError, SepoEnvError
from sepo_env.registration import ENVIRONMENTS
from sepo_env.rewards import SequenceClassifierReward
from sepo_env.tasks import Task
from sepo_env.tasks.language_metrics import Judge, Perplexity, play, reward_judge
from sepo_env.tasks.metrics import distinct_n

LABELS = {
    "perplexity": "perplexity",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "distinct_3": "distinct-3",
    "held_out_mean": "held-out reward (mean)",
    "win_rate": "win rate",
    "win_rate_length_controlled": "win rate, length-controlled",
}
Draw = Callable[[int, int], Tensor]
"""The number of steps and a seed -> tokens ``(N, L)``."""


@dataclass(frozen=True)
class Options:
    """Fine-tuned language models against the pretrained denoiser, over the number of sampling steps."""

    agents: tuple[Path, ...] = ()
    """Folders that agent.save wrote (``LOG_DIR/agent``); the pretrained denoiser is evaluated in any case."""
    task: str = "TextRLHF-v0"
    """Environment id or task name."""
    task_options: str = "{}"
    """Options of the task as a JSON object, those that the agents were trained with."""
    steps: tuple[int, ...] = (128, 256, 512, 1024)
    """Numbers of sampling steps."""
    num_samples: int = 128
    """Texts for each number of steps."""
    batch_size: int = 32
    """Texts at a time; of no effect on the result."""
    perplexity_model: Path | None = None
    """Folder or hub id of a causal language model (AutoModelForCausalLM); no perplexity if not given."""
    judge_model: Path | None = None
    """Folder or hub id of a reward model with one label (AutoModelForSequenceClassification) that judges pairs."""
    judge: str | None = None
    """A function that judges them instead, FILE.py:NAME: (prompt, first, second) -> the probability that the first is
    better. Without either there are no win rates. The file is executed."""
    seed: int = 0
    """Text i depends on seed + i alone; all sides get the same prompts."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    output: Path = Path("runs/language")
    """Folder of the results."""


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
    for path in options.agents:
        name = path.parent.name if path.name == "agent" else path.stem
        if name in found:
            raise InvalidArgumentError(f"two sides are named {name!r}; rename the folder of one of them.")
        agent: Agent = Agent.load(path, task=task, device=device, micro_batch_size=options.batch_size)
        found[name] = lambda steps, seed, agent=agent: agent.sample_tokens(  # type: ignore[misc]
            options.num_samples, num_steps=steps, seed=seed
        ).cpu()
    return found


def prompts_of(task: Task, count: int, seed: int) -> Tensor | None:
    """The prompts that texts with the seeds ``seed .. seed + count - 1`` start from; None where there are none."""
    return task.prompt(keys_from_seed(torch.arange(seed, seed + count))) if task.conditional else None


def prompts_and_responses(task: Task, tokens: Tensor, given: Tensor | None) -> tuple[list[str], list[str]]:
    """The given part of each text, and the part that was written."""
    if given is None:
        return [""] * len(tokens), task.decode(tokens)
    free = given == task.num_tokens
    prompts = [task.decode(row[~where][None])[0] for row, where in zip(given, free, strict=True)]
    return prompts, [task.decode(row[where][None])[0] for row, where in zip(tokens, free, strict=True)]


def evaluate(
    task: Task,
    drawers: Mapping[str, Draw],
    options: Options,
    *,
    perplexity: Perplexity | None = None,
    judge: Judge | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All figures of all sides at all numbers of steps, and the texts.

    Args:
        task: gives prompts, texts and the held-out reward.
        drawers: the sides; win rates are against the first.
        options: steps, number of samples and seed.
        perplexity: None leaves it out.
        judge: any function of a prompt and two responses; None leaves the win rates out.
    """
    held_out = task.judge()
    given = prompts_of(task, options.num_samples, options.seed)
    rows: list[dict[str, Any]] = []
    texts: list[pd.DataFrame] = []
    with tqdm(total=len(options.steps) * len(drawers), unit="set", dynamic_ncols=True) as bar:
        for steps in options.steps:
            baseline: list[str] | None = None
            for side, draw in drawers.items():
                bar.set_postfix_str(f"{side}, {steps} steps")
                tokens = draw(steps, options.seed)
                prompts, responses = prompts_and_responses(task, tokens, given)
                whole = task.decode(tokens)
                row: dict[str, Any] = {"side": side, "steps": steps, "texts": len(tokens)}
                if perplexity is not None:
                    row["perplexity"] = perplexity(whole)
                row |= {f"distinct_{n}": float(distinct_n(tokens, n)) for n in (1, 2, 3)}
                row["held_out_mean"] = float(held_out(tokens).mean())
                if judge is not None and baseline is not None:
                    games = play(judge, prompts, responses, baseline)
                    row |= {"win_rate": games.raw, "win_rate_length_controlled": games.length_controlled}
                elif judge is not None:
                    row |= {"win_rate": 0.5, "win_rate_length_controlled": 0.5}  # against itself, by definition
                baseline = responses if baseline is None else baseline
                rows.append(row)
                frame = pd.DataFrame({"prompt": prompts, "response": responses, "text": whole})
                texts.append(frame.assign(side=side, steps=steps))
                bar.update()
    return pd.DataFrame(rows), pd.concat(texts, ignore_index=True)


def draw_figure(table: pd.DataFrame) -> Figure:
    """Each metric against the number of steps, a panel each."""
    names = [name for name in LABELS if name in table]
    look = looks(list(dict.fromkeys(table["side"])))
    with matplotlib.rc_context(STYLE):
        columns = min(3, len(names))
        lines = -(-len(names) // columns)
        figure = Figure(figsize=(2.5 * columns, 2.1 * lines + 0.3))
        panels = figure.subplots(lines, columns, squeeze=False).flat
        for axes, name in zip(panels, names, strict=False):
            for side, group in table.groupby("side", sort=False):
                style = look[str(side)]
                axes.plot(
                    group["steps"], group[name], color=style.colour, marker=style.marker, markersize=4, label=side
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(sorted(set(table["steps"])), [str(step) for step in sorted(set(table["steps"]))])
            axes.set_xlabel("sampling steps")
            axes.set_ylabel(LABELS[name])
        for axes in list(figure.axes)[len(names) :]:
            axes.set_visible(False)
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def write_results(table: pd.DataFrame, texts: pd.DataFrame, folder: Path, command: str) -> str:
    """Write table, picture and texts; returns the report."""
    folder.mkdir(parents=True, exist_ok=True)
    formatted = table.astype({"steps": str, "texts": str}).set_index("side")
    for name in LABELS:
        if name in formatted:
            formatted[name] = formatted[name].map("{:.4g}".format)
    report = "\n\n".join(
        [
            "# Language: metrics over the number of sampling steps",
            f"`{command}`",
            markdown_table(formatted.rename(columns=LABELS)),
            "Win rates are against the pretrained denoiser at the same number of steps, each pair shown to the judge "
            "in both orders; the length-controlled one is that at equal lengths (arXiv 2404.04475). A low perplexity "
            "with low distinct-n is repetition, not quality.",
        ]
    )
    write_atomically(folder / "language.csv", lambda path: table.to_csv(path, index=False))
    write_atomically(folder / "samples.csv", lambda path: texts.to_csv(path, index=False))
    with matplotlib.rc_context(STYLE):
        picture = draw_figure(table)
        write_atomically(
            folder / "language.png",
            lambda path: picture.savefig(path, format="png", metadata={"Software": None}),
        )
    write_atomically(folder / "language.md", lambda path: path.write_text(f"{report}\n"))
    return report


def make_task(options: Options) -> Task:
    """The task with its options."""
    given = tasks.options_from_json(options.task_options)
    return tasks.make(ENVIRONMENTS.get(options.task, options.task), **given)


def load_judge(name: str) -> Judge:
    """The function that ``FILE.py:NAME`` names; the file is executed.

    Raises:
        InvalidArgumentError: no such file or function, or a file that fails.
    """
    path, _, function = name.rpartition(":")
    spec = importlib.util.spec_from_file_location("judge", path) if path.endswith(".py") else None
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise InvalidArgumentError(f"the judge {name!r} names no file; give FILE.py:NAME, such as my_judge.py:ask.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file raises
        raise InvalidArgumentError(f"{path} fails with {type(error).__name__}: {error}; mend it.") from error
    found = getattr(module, function, None)
    if not callable(found):
        raise InvalidArgumentError(f"{path} has no function {function!r}; give FILE.py:NAME of one that it has.")
    return found


def main(options: Options, command: str, *, judge: Judge | None = None) -> int:
    """Evaluate, write and print; ``judge`` goes before that of the options."""
    device = find_device(options.device)
    if options.judge is not None and options.judge_model is not None:
        raise InvalidArgumentError("both judge and judge_model are given; one of them judges.")
    if judge is None and options.judge is not None:
        judge = load_judge(options.judge)
    if not options.steps or min(options.steps) < 1 or options.num_samples < 2 or options.batch_size < 1:
        raise InvalidArgumentError("give at least one number of steps, num_samples from 2 and batch_size from 1.")
    task = make_task(options)
    drawers = sides(task, options)
    perplexity = options.perplexity_model and Perplexity(options.perplexity_model, device=device)
    if judge is None and options.judge_model is not None:
        model = SequenceClassifierReward(options.judge_model, decode=task.decode)
        judge = reward_judge(lambda texts: model.score_texts(texts, device))
    table, texts = evaluate(task, drawers, options, perplexity=perplexity or None, judge=judge)
    print(write_results(table, texts, options.output, command))
    print(f"\nreport: {options.output / 'language.md'}")
    return 0


def _arguments(args: Sequence[str] | None = None) -> Options:
    return tyro.cli(Options, description=__doc__, args=args)


if __name__ == "__main__":
    arguments = _arguments()
    try:
        status = main(arguments, f"python benchmarks/language.py {shlex.join(sys.argv[1:])}".strip())
    except KeyboardInterrupt:
        print("\nstopped; nothing was written", file=sys.stderr)
        status = 130
    except SepoEnvError as error:
        print(f"error: {error}", file=sys.stderr)
        status = 2
    sys.exit(status)
