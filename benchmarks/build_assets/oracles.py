"""Train the activity and accessibility oracles and report their held-out figures.

Run ``python -m benchmarks.build_assets.oracles --help``. Every network is a stage with its own checkpoint: a run that
was stopped goes on with the stage, and the epoch, at which it stood.

1. Networks of each architecture learn to tell HepG2, K562, GM12878 and hESC sites from each other and from
   dinucleotide shuffles (DHS training split; chr2 chooses the epoch).
2. The activity members start from these and learn log2(RNA/DNA), each with another fold of the elements kept aside
   to choose the epoch: the training oracle on the split ``train``, the held-out oracle on the split ``eval``.
3. The pyramid networks of step 1 are the accessibility oracle.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import trange

from benchmarks.build_assets import program
from benchmarks.build_assets.data import LENGTH, ActivityData, DHSData, load_activity, load_dhs
from benchmarks.build_assets.oracle_files import export_accessibility, export_activity
from benchmarks.build_assets.shuffle import dinucleotide_shuffle
from benchmarks.build_assets.training import random_strand, save_atomically, warmup_cosine
from sepo_env.rewards.oracles import NUM_NUCLEOTIDES, Architecture, OracleConfig, OracleMember, Role, build_member

PAD = NUM_NUCLEOTIDES
NUM_CLASSES = 5  # four cell lines and the shuffles
CHANNELS: dict[Architecture, int] = {"residual": 64, "pyramid": 64}
MAX_SHIFT = 8
ACTIVITY_DROPOUT = 0.3
WARMUP_STEPS = 100

log = logging.getLogger(__name__)
Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Recipe:
    """How one network is fitted."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int


@dataclass(frozen=True)
class Examples:
    """Sequences ``(N, 200)`` and what to predict for them ``(N,)``."""

    tokens: Tensor
    target: Tensor


def one_hot(tokens: Tensor) -> Tensor:
    """Return nucleotide weights ``(B, L, 4)``; padding is a row of zeros."""
    return F.one_hot(tokens, NUM_NUCLEOTIDES + 1)[..., :NUM_NUCLEOTIDES].float()


def shift(tokens: Tensor, generator: torch.Generator) -> Tensor:
    """Return ``tokens`` ``(B, L)``, each row moved by up to `MAX_SHIFT` positions, padded where it left."""
    offset = torch.randint(-MAX_SHIFT, MAX_SHIFT + 1, (len(tokens), 1), generator=generator)
    source = torch.arange(LENGTH) + offset
    moved = tokens.gather(1, source.clamp(0, LENGTH - 1))
    return moved.masked_fill((source < 0) | (source >= LENGTH), PAD)


@torch.no_grad()
def both_strands(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return logits ``(N, outputs)``, the mean of both strands."""
    model.eval()
    chunks = [one_hot(chunk) for chunk in tokens.split(512)]
    logits = torch.cat([(model(chunk) + model(chunk.flip(1, 2))) / 2 for chunk in chunks])
    model.train()
    return logits


def fit(
    model: OracleMember,
    training: Examples,
    loss: Loss,
    score: Callable[[OracleMember], float],
    recipe: Recipe,
    path: Path,
) -> OracleMember:
    """Return the weights of the epoch with the best ``score`` (higher is better), resuming from ``path``."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    steps = len(training.tokens) // recipe.batch_size
    first, best, best_weights = 0, -np.inf, model.state_dict()
    if path.exists():
        state = torch.load(path, weights_only=False)
        first, best, best_weights = state["epoch"], state["best"], state["best_weights"]
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        generator.set_state(state["generator"])
        torch.set_rng_state(state["rng"])  # dropout
    for epoch in trange(first, recipe.epochs, initial=first, total=recipe.epochs, desc=path.stem):
        total = 0.0
        order = torch.randperm(len(training.tokens), generator=generator)
        for index, rows in enumerate(order[: steps * recipe.batch_size].split(recipe.batch_size)):
            factor = warmup_cosine(epoch * steps + index, recipe.epochs * steps, WARMUP_STEPS)
            for group in optimiser.param_groups:
                group["lr"] = recipe.learning_rate * factor
            tokens = shift(random_strand(training.tokens[rows], generator), generator)
            value = loss(model(one_hot(tokens)), training.target[rows])
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            total += value.item()
        current = score(model)
        log.info("%s epoch %d: loss %.4f, own validation %.4f", path.stem, epoch + 1, total / steps, current)
        if current > best:
            best, best_weights = current, {key: value.clone() for key, value in model.state_dict().items()}
        save_atomically(
            {
                "epoch": epoch + 1,
                "best": best,
                "best_weights": best_weights,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "generator": generator.get_state(),
                "rng": torch.get_rng_state(),
            },
            path,
        )
    model.load_state_dict(best_weights)
    return model.eval()


def pretrain(dhs: dict[str, DHSData], architecture: Architecture, recipe: Recipe, path: Path) -> OracleMember:
    """Return a classifier of accessible sites and shuffles; chr2 chooses the epoch."""
    rng = np.random.default_rng(recipe.seed)

    def examples(data: DHSData) -> Examples:
        chosen = rng.choice(len(data.tokens), len(data.tokens) // (NUM_CLASSES - 1), replace=False)
        shuffled = np.stack([dinucleotide_shuffle(data.tokens[row], rng) for row in chosen])
        target = np.concatenate([data.cell, np.full(len(chosen), NUM_CLASSES - 1)])
        return Examples(torch.from_numpy(np.concatenate([data.tokens, shuffled])), torch.from_numpy(target))

    training, validation = examples(dhs["training"]), examples(dhs["validation"])
    torch.manual_seed(recipe.seed)
    model = build_member(OracleConfig(architecture, CHANNELS[architecture], NUM_CLASSES))

    def score(network: OracleMember) -> float:
        return -F.cross_entropy(both_strands(network, validation.tokens), validation.target).item()

    return fit(model, training, F.cross_entropy, score, recipe, path)


def finetune(
    data: ActivityData, fold: int, num_folds: int, start: OracleMember, recipe: Recipe, path: Path
) -> OracleMember:
    """Return a regression of standardised activity; the elements of ``fold`` choose the epoch."""
    torch.manual_seed(recipe.seed)
    model = build_member(replace(start.config, num_outputs=1, dropout=ACTIVITY_DROPOUT))
    weights = {key: value for key, value in start.state_dict().items() if not key.startswith("output.")}
    model.load_state_dict(weights, strict=False)
    aside = np.random.default_rng(0).permutation(data.element.max() + 1)[data.element] % num_folds == fold
    mean, scale = data.activity.mean(), data.activity.std()
    target = torch.from_numpy((data.activity - mean) / scale)
    tokens = torch.from_numpy(data.tokens)
    keep, aside = torch.from_numpy(~aside), torch.from_numpy(aside)

    def score(network: OracleMember) -> float:
        predicted = both_strands(network, tokens[aside]).squeeze(-1)
        return torch.corrcoef(torch.stack([predicted, target[aside]]))[0, 1].item()

    def loss(logits: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(logits.squeeze(-1), wanted)

    return fit(model, Examples(tokens[keep], target[keep]), loss, score, recipe, path)


@dataclass(frozen=True)
class Ensemble:
    """Which networks make one activity oracle."""

    role: Role
    split: str
    architecture: Architecture
    export_name: str


ENSEMBLES = (
    Ensemble("training", "train", "residual", "dna_activity_training.safetensors"),
    Ensemble("held_out", "eval", "pyramid", "dna_activity_held_out.safetensors"),
)


def run(options: argparse.Namespace) -> None:
    """Train every network that is not there yet and write the three oracles."""
    dhs, activity = load_dhs(options.work_dir), load_activity(options.lentimpra)
    provenance = {"licence": "MIT", "seed": str(options.seed)}
    for ensemble in ENSEMBLES:
        if ensemble.role not in options.roles:
            continue
        first_seed = options.seed + 100 * ENSEMBLES.index(ensemble)
        starts = [
            pretrain(
                dhs,
                ensemble.architecture,
                Recipe(options.pretraining_epochs, 64, 2e-3, 0.01, first_seed + index),
                options.work_dir / f"classifier_{ensemble.architecture}_{index}.pt",
            )
            for index in range(options.classifiers)
        ]
        if ensemble.role == "held_out":
            export_accessibility(starts, options.export_dir / "dna_accessibility.safetensors", provenance)
        members = [
            finetune(
                activity[ensemble.split],
                fold,
                options.members,
                starts[fold % options.classifiers],
                Recipe(options.epochs, 64, options.learning_rate, options.weight_decay, first_seed + 10 + fold),
                options.work_dir / f"activity_{ensemble.architecture}_{fold}.pt",
            )
            for fold in range(options.members)
        ]
        export_activity(
            members, activity[ensemble.split], ensemble.role, options.export_dir / ensemble.export_name, provenance
        )


def main() -> None:
    """Train, then report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="data and checkpoints; outside of the repository")
    parser.add_argument("--lentimpra", type=Path, required=True, help="the table lentimpra_hepg2.tsv.gz")
    parser.add_argument("--export-dir", type=Path, required=True, help="folder of the safetensors files to write")
    parser.add_argument(
        "--roles", nargs="+", choices=get_args(Role), default=get_args(Role), help="which ensembles; all by default"
    )
    parser.add_argument("--classifiers", type=program.count, default=2, help="pretrained networks of each architecture")
    parser.add_argument("--pretraining-epochs", type=program.count, default=4, help="passes over the DHS training set")
    parser.add_argument("--members", type=program.count, default=4, help="networks, and folds, of each activity oracle")
    parser.add_argument("--epochs", type=program.count, default=9, help="passes of a member over its folds")
    parser.add_argument("--learning-rate", type=program.positive, default=1e-3, help="peak, of the activity members")
    parser.add_argument("--weight-decay", type=program.non_negative, default=0.05, help="of the activity members")
    parser.add_argument("--seed", type=program.seed, default=0, help="of the first network; others count from it")
    parser.add_argument("--threads", type=program.count, default=1, help="of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    options.work_dir.mkdir(parents=True, exist_ok=True)
    run(options)


if __name__ == "__main__":
    program.run(main)
