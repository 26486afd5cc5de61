"""The published protocol of enhancer design on one denoiser, beside the published numbers.

640 sequences in batches of 64, 128 ancestral steps, three seeds, all metrics of the task (arXiv 2410.13643)::

    python benchmarks/paper_dna.py --artefacts DRAKES_data --checkpoint finetuned.ckpt

Without ``--artefacts`` it runs on the shipped denoiser and oracles, whose numbers cannot be compared with the published
ones. Interrupted, the same command goes on with the first seed that is not finished. The results are in the output
folder: ``report.md``, ``comparison.csv``, ``measured.csv`` and the sequences of each seed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__" and not __package__:  # run as a file
    import _checkout  # noqa: F401

import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from agents.command_line import DONE
from benchmarks._candidate import Candidate, agent_description, departures, fingerprint, load_candidate, name_of
from benchmarks._files import read_sealed, sealed
from benchmarks._program import PathOption, run_program
from benchmarks._published import comparison, comparison_markdown
from benchmarks.comparison.tables import markdown_table
from benchmarks.comparison.world import weights_fingerprint
from sepo_env.arguments import Size, WholeNumber, check_fields
from sepo_env.denoisers import Denoiser
from sepo_env.device import find_device
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.files import ClaimedFolder, write_atomically
from sepo_env.tasks.dna_enhancer import REAL_SEQUENCES, DNAEnhancerTask

_SEED_DISTANCE = 1_000_000_007
"""Sequence i of a sampler depends on ``seed + i`` alone: seeds this far apart share no sequence."""


@dataclass(frozen=True)
class Options:
    """The published protocol of enhancer design on one denoiser, beside the published numbers."""

    artefacts: PathOption | None = None
    """The unpacked DRAKES data folder; the shipped denoiser and oracles if not given."""
    checkpoint: str | None = None
    """What is judged: an agent that agent.save wrote, a training checkpoint of ours, a fine-tuned state dict of DRAKES,
    or any denoiser: a file, a folder or hub:owner/name; the pretrained denoiser if not given."""
    seeds: tuple[WholeNumber, ...] = (0, 1, 2)
    """Of the sampling: one set of sequences for each."""
    num_samples: Size = 640
    """Sequences a seed, at least two."""
    batch_size: Size = 64
    """Sequences at a time; of no effect on the result."""
    num_steps: Size = 128
    """Reverse steps of the sampler."""
    num_likelihood_steps: Size = 128
    """Steps of the likelihood bound."""
    device: str = "auto"
    """Where to compute: auto (a GPU where there is one), cpu, cuda, cuda:1, ..."""
    output: PathOption | None = None
    """Folder of the results; runs/paper-dna-<checkpoint> in the present folder if not given."""

    def __post_init__(self) -> None:
        """Check the types and ranges of all flags."""
        check_fields(self)
        if self.num_samples < 2:
            raise InvalidArgumentError(f"num_samples is {self.num_samples}; give at least 2.")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise InvalidArgumentError(f"seeds are {self.seeds}; give at least one, and none twice.")
        if self.checkpoint is not None:
            if not self.checkpoint:
                raise InvalidArgumentError("checkpoint is '', but must be a path, or hub:owner/name.")
            object.__setattr__(self, "checkpoint", os.path.expanduser(self.checkpoint))

    @property
    def name(self) -> str:
        """What is judged, in short."""
        return name_of(self.checkpoint)

    @property
    def folder(self) -> Path:
        """The output folder that is meant."""
        ending = "" if self.artefacts is None else "-artefacts"
        return Path(self.output or Path("runs") / f"paper-dna-{self.name}{ending}")

    @property
    def has_published_numbers(self) -> bool:
        """Whether the numbers of the protocol are the published ones."""
        numbers = (self.num_samples, self.num_steps, self.num_likelihood_steps, len(self.seeds))
        return numbers == (640, 128, 128, 3)


def measure(
    task: DNAEnhancerTask, candidate: Candidate, options: Options, seed: int
) -> tuple[Tensor, dict[str, float]]:
    """The sequences of one seed, and the task's metrics of them."""
    starts = range(0, options.num_samples, options.batch_size)
    tokens = torch.cat(
        [
            candidate.draw(min(options.batch_size, options.num_samples - start), seed * _SEED_DISTANCE + start)
            for start in starts
        ]
    )
    return tokens, task.metrics(tokens, num_likelihood_steps=options.num_likelihood_steps, seed=seed)


@contextmanager
def counted(bar: tqdm[Any], *denoisers: Denoiser) -> Iterator[None]:
    """Move the bar on by one for every sequence that one of the denoisers reads."""

    def advance(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        bar.update(len(inputs[0]))

    hooks = [denoiser.register_forward_hook(advance) for denoiser in set(denoisers)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def settings_of(options: Options, task: DNAEnhancerTask) -> dict[str, Any]:
    """Everything that decides the result of a seed, for JSON."""
    return {
        "num_samples": options.num_samples,
        "num_steps": options.num_steps,
        "num_likelihood_steps": options.num_likelihood_steps,
        "checkpoint": None if options.checkpoint is None else fingerprint(options.checkpoint),
        "shipped weights": weights_fingerprint() if task.artefacts is None else None,
        "artefacts": task.fingerprints or None,
    }


def finished(folder: Path, settings: dict[str, Any], seed: int) -> dict[str, float] | None:
    """The figures of a seed that is done, or None.

    Raises:
        CheckpointError: it was done with other settings, or its file is damaged.
    """
    path = folder / f"seed-{seed}.json"
    if not path.exists():
        return None
    cure = f"delete {path}, and the same command does this seed again"
    record = read_sealed(path, cure)
    made, figures = record.get("settings"), record.get("figures")
    if not isinstance(made, dict) or not isinstance(figures, dict) or not all(map(_is_number, figures.values())):
        raise CheckpointError(path, "it holds something else than the figures of a seed", cure)
    wanted = json.loads(json.dumps(settings))
    if made != wanted:
        changed = [name for name in made.keys() | wanted.keys() if made.get(name) != wanted.get(name)]
        raise CheckpointError(path, f"it was made with another {', '.join(sorted(changed))}", "choose another --output")
    return dict(figures)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def is_published_protocol(options: Options, departing: Sequence[str]) -> bool:
    """Whether nothing departs from the published protocol, neither its numbers nor the sampler."""
    return options.has_published_numbers and not departing


def caveat(options: Options, departing: Sequence[str]) -> str:
    """What the comparison is worth.

    Args:
        options: numbers and world.
        departing: in what the sampler is not the published one.
    """
    lines = []
    if options.artefacts is None:
        lines.append(
            "**The published numbers are NOT comparable with the measured row.** It was measured on the shipped "
            "denoiser and oracles (other data, other networks); theirs belong to the oracles of the DRAKES data folder "
            "(--artefacts)."
        )
    if not is_published_protocol(options, departing):
        reasons = [*departing]
        if not options.has_published_numbers:
            reasons.append(
                "it takes 640 sequences, 128 steps, a 128-step bound and three seeds; here "
                f"{options.num_samples} sequences, {options.num_steps} steps, a {options.num_likelihood_steps}-step "
                f"bound and {len(options.seeds)} seed(s)"
            )
        lines.append(f"**This is not the published protocol**: {'; '.join(reasons)}.")
    lines.append(
        "Measured: mean over seeds, standard deviation over seeds in brackets. The seeds are those of the sampling, of "
        "one checkpoint: their spread holds no variance of training. Published: as the sources print them. "
        "The released SEPO script optimises the evaluation oracle and its notebook reads accessibility from another "
        "column; see docs/reproducing.md. A likelihood far above that of real sequences is collapse, not quality: look "
        "at likely_as_real."
    )
    return "\n\n".join(lines)


def write_report(measured: pd.DataFrame, options: Options, command: str, departing: Sequence[str]) -> str:
    """Write the tables and the report, each whole or not at all; returns the report."""
    table = comparison(measured, options.name)
    spread = measured.drop(columns="seed").agg(["mean", "std"]).T
    details = {
        str(name): [f"{mean:.4g}", "-" if pd.isna(std) else f"{std:.2g}"] for name, mean, std in spread.itertuples()
    }
    world = "shipped assets" if options.artefacts is None else "published artefacts"
    report = "\n\n".join(
        [
            f"# {options.name} on the {world}",
            f"`{command}`",
            comparison_markdown(table),
            caveat(options, departing),
            "## All metrics of the task",
            markdown_table(
                pd.DataFrame.from_dict(details, orient="index", columns=["mean over seeds", "standard deviation"])
            ),
        ]
    )
    folder = options.folder
    write_atomically(folder / "measured.csv", measured.to_csv(index=False).encode())
    write_atomically(folder / "comparison.csv", table.to_csv(index=False).encode())
    write_atomically(folder / "report.md", f"{report}\n".encode())
    return report


def prepare(task: DNAEnhancerTask, options: Options) -> Candidate:
    """Load all that the seeds need, and try it: what is damaged or not installed is found before anything is sampled.

    The oracles stay with the task, so that no seed loads them again.
    """
    candidate = load_candidate(task, options.checkpoint, options.num_steps, options.device)
    task.denoiser.to(options.device)
    generator = torch.Generator().manual_seed(0)
    probe = torch.randint(task.num_tokens, (2, task.length), generator=generator).to(options.device)
    task.metrics(probe, likelihood_samples=0)
    return candidate


def main(options: Options, command: str) -> int:
    """Do the seeds that are not done yet, then write and print the report.

    Raises:
        CheckpointError: no such checkpoint, or the folder holds other or damaged results.
        FolderError: the folder cannot be written; seeds that are done are kept.
        FolderInUseError: another evaluation writes there.
    """
    options = dataclasses.replace(options, device=str(find_device(options.device)))
    task = DNAEnhancerTask(artefacts=options.artefacts)
    settings, folder = settings_of(options, task), options.folder
    done = seeds_done(folder, settings)
    missing = [seed for seed in options.seeds if seed not in done]
    candidate = prepare(task, options) if missing else None
    with ClaimedFolder(folder):
        if candidate is not None:
            done |= do_seeds(missing, task, candidate, options, settings)
        measured = pd.DataFrame([{"seed": seed, **done[seed]} for seed in options.seeds])
        departing = departures(task, agent_description(options.checkpoint))
        report = write_report(measured, options, command, departing)
    print(report)
    print(f"\nreport: {folder / 'report.md'}")
    return DONE


def seeds_done(folder: Path, settings: dict[str, Any]) -> dict[int, dict[str, float]]:
    """The figures of all seeds that a folder holds, by seed; one report is of one setting, so none may have others."""
    names = [path.stem.removeprefix("seed-") for path in folder.glob("seed-*.json")]
    seeds = sorted(int(name) for name in names if name.isdecimal())
    return {seed: figures for seed in seeds if (figures := finished(folder, settings, seed)) is not None}


def do_seeds(
    seeds: Sequence[int], task: DNAEnhancerTask, candidate: Candidate, options: Options, settings: dict[str, Any]
) -> dict[int, dict[str, float]]:
    """Sample and measure seed by seed, with a progress bar; each is written as soon as it is done."""
    folder, done = options.folder, {}
    work = len(seeds) * options.num_samples * (candidate.evaluations + options.num_likelihood_steps)
    if task.artefacts is not None:  # the likelihoods of real sequences, computed once
        work += REAL_SEQUENCES * options.num_likelihood_steps
    with (
        tqdm(total=work, unit="NFE", unit_scale=True, desc=options.name, dynamic_ncols=True) as bar,
        counted(bar, candidate.denoiser, task.denoiser),
    ):
        for seed in seeds:
            bar.set_postfix_str(f"seed {seed}")
            tokens, figures = measure(task, candidate, options, seed)
            done[seed] = figures
            bar.set_postfix_str(f"seed {seed} done, held-out median {figures['held_out_median']:.2f}")
            sequences = pd.DataFrame({"sequence": task.decode(tokens)})
            write_atomically(folder / f"seed-{seed}.csv", sequences.to_csv(index=False).encode())
            write_atomically(folder / f"seed-{seed}.json", sealed({"settings": settings, "figures": figures}))
    return done


if __name__ == "__main__":
    sys.exit(
        run_program(
            Options,
            main,
            file="paper_dna.py",
            description=__doc__,
            how_to_go_on="The same command goes on with the seed that was under way.",
        )
    )
