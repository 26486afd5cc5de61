"""Make the reference tables, and the figures of the model cards, from the data and the finished weights.

Run ``python -m benchmarks.build_assets.tables --help``. No sequence is written, only counts, percentiles and figures.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks.build_assets import cards, figures, program
from benchmarks.build_assets.data import load_activity, load_dhs
from sepo_env.assets.checksums import record
from sepo_env.denoisers import Denoiser, load_denoiser
from sepo_env.diffusion.likelihood import elbo
from sepo_env.rewards.oracles import load_oracle

LEVELS = np.arange(101.0)
NUM_LIKELIHOODS = 640
LEVELS_OF_ACTIVITY = {"top_0_1_percent": 0.001, "top_1_percent": 0.01}
"""Shares of the measured rows, the most active ones, that serve as references."""

log = logging.getLogger(__name__)
Table = dict[str, npt.NDArray[Any]]


def most_active(activity: npt.NDArray[np.float32], share: float) -> npt.NDArray[np.intp]:
    """Return the indices of the most active ``share`` of the rows, the most active one first."""
    return np.argsort(-activity, kind="stable")[: round(share * len(activity))]


@torch.no_grad()
def likelihoods(denoiser: Denoiser, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the 128-step bound on the log-likelihood ``(N,)`` of each sequence, in nats."""
    chunks = torch.from_numpy(tokens).split(64)
    bounds = [
        elbo(figures.process(), denoiser, chunk, num_steps=figures.NUM_STEPS, seed=64 * index)
        for index, chunk in enumerate(tqdm(chunks, desc="bounds", mininterval=10))
    ]
    return torch.cat(bounds).double().numpy()


def build(options: argparse.Namespace) -> Table:
    """Return every table and figure."""
    dhs, activity = load_dhs(options.work_dir), load_activity(options.lentimpra)
    folder: Path = options.assets_dir
    denoiser = load_denoiser(folder / "dna_denoiser.safetensors")
    oracles = {
        name: load_oracle(folder / f"dna_{name}.safetensors")
        for name in ("activity_training", "activity_held_out", "accessibility")
    }
    both_tokens = np.concatenate([activity["train"].tokens, activity["eval"].tokens])
    both_activity = np.concatenate([activity["train"].activity, activity["eval"].activity])
    test = dhs["test"].tokens
    table: Table = {"percentile_levels": LEVELS}
    for name, share in LEVELS_OF_ACTIVITY.items():
        rows = most_active(both_activity, share)
        table[f"three_mers_{name}"] = figures.three_mers(both_tokens[rows])
        table[f"num_rows_{name}"] = np.array(len(rows))
    table["three_mers_dhs_test"] = figures.three_mers(test)
    table["measured_activity_percentiles"] = np.percentile(both_activity, LEVELS)
    unseen = {"activity_training": activity["eval"], "activity_held_out": activity["train"]}
    for name, data in unseen.items():
        predicted = figures.predict(oracles[name], data.tokens).mean(axis=0)
        table[f"{name}_percentiles_lentimpra"] = np.percentile(predicted, LEVELS)
    for name, oracle in oracles.items():
        table[f"{name}_percentiles_dhs_test"] = np.percentile(figures.predict(oracle, test).mean(axis=0), LEVELS)
    samples = figures.pretrained_samples(denoiser, options.seed)
    log.info("sampled")
    order = np.random.default_rng(options.seed).permutation(len(test))[:NUM_LIKELIHOODS]
    for name, tokens in (("dhs_test", test[order]), ("samples", samples)):
        table[f"log_likelihood_percentiles_{name}"] = np.percentile(likelihoods(denoiser, tokens), LEVELS)
    reports = {
        "denoiser": figures.denoiser_figures(denoiser, dhs, samples, options.num_masks),
        "activity_training": figures.activity_figures(
            oracles["activity_training"], activity["train"], activity["eval"], samples
        ),
        "activity_held_out": figures.activity_figures(
            oracles["activity_held_out"], activity["eval"], activity["train"], samples
        ),
        "accessibility": figures.accessibility_figures(oracles["accessibility"], dhs, samples),
    }
    for asset, report in reports.items():
        for name, value in report.items():
            table[f"figure/{asset}/{name}"] = np.array(value)
            log.info("%s %s: %.4f", asset, name, value)
        cards.write_figures(folder / f"dna_{asset}.md", report)
    return table


def main() -> None:
    """Build and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="the downloaded data; outside of the repository")
    parser.add_argument("--lentimpra", type=Path, required=True, help="the table lentimpra_hepg2.tsv.gz")
    parser.add_argument("--assets-dir", type=Path, required=True, help="folder of the weights and of the tables")
    parser.add_argument("--num-masks", type=program.count, default=16, help="draws of masks a sequence, for the bound")
    parser.add_argument("--seed", type=program.seed, default=0, help="of the samples and of the choice of sequences")
    parser.add_argument("--threads", type=program.count, default=2, help="of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    table = build(options)
    path = options.assets_dir / "dna_enhancer_tables.npz"
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **table)  # type: ignore[arg-type]
    os.replace(temporary, path)
    record(path)


if __name__ == "__main__":
    program.run(main)
