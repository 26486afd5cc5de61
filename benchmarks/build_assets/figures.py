"""The held-out figures of the shipped models, as the model cards state them."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from benchmarks.build_assets import baselines
from benchmarks.build_assets.data import DHS_TAGS, LENGTH, ActivityData, DHSData
from benchmarks.build_assets.denoiser_training import evaluate_bits
from benchmarks.build_assets.markov import context_counts, markov_bits
from benchmarks.build_assets.shuffle import dinucleotide_shuffle
from sepo_env.denoisers import Denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.diffusion.sampler import sample
from sepo_env.rewards.oracles import OracleEnsemble

Figures = dict[str, float]
NUM_SAMPLES = 640
NUM_STEPS = 128
NUM_CONTROLS = 2000
HEPG2 = 0


def process() -> DiffusionProcess:
    """Return the process under which the denoiser is sampled and scored."""
    return DiffusionProcess(Absorbing(4), LogLinear())


def three_mers(tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the 3-mer counts ``(64,)`` of ``tokens`` ``(N, L)``, in lexicographic order."""
    return context_counts(tokens, order=2).ravel().astype(np.int64)


@torch.no_grad()
def predict(oracle: OracleEnsemble, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the members' predictions ``(M, N)``."""
    chunks = torch.from_numpy(tokens).split(256)
    return torch.cat([oracle(chunk) for chunk in chunks], dim=1).double().numpy()


def pretrained_samples(denoiser: Denoiser, seed: int) -> npt.NDArray[np.int64]:
    """Return `NUM_SAMPLES` sequences of the denoiser, by `NUM_STEPS` ancestral steps."""
    batches: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, NUM_SAMPLES, 64):
            # A sequence depends on seed + row alone, so that the batches continue each other.
            batches.append(sample(process(), denoiser, 64, LENGTH, num_steps=NUM_STEPS, seed=seed + start))
    return torch.cat(batches).numpy()


def denoiser_figures(
    denoiser: Denoiser, dhs: Mapping[str, DHSData], samples: npt.NDArray[np.int64], num_masks: int
) -> Figures:
    """Return bits a base on chr1 of the denoiser and the Markov models, and the 3-mer agreement of its samples."""
    test = dhs["test"].tokens
    bits, error = evaluate_bits(denoiser, torch.from_numpy(test), num_masks, seed=0)
    figures = {"denoiser_bits": bits, "denoiser_bits_error": error}
    for order in range(6):
        figures[f"markov_{order}_bits"], figures[f"markov_{order}_bits_error"] = markov_bits(
            dhs["training"].tokens, test, order
        )
    figures["samples_three_mer_r"] = float(pearsonr(three_mers(samples), three_mers(test)).statistic)
    # What as many real sequences of another chromosome reach: the ceiling of the figure above.
    real = _some_rows(dhs["validation"].tokens, len(samples))
    figures["real_three_mer_r"] = float(pearsonr(three_mers(real), three_mers(test)).statistic)
    return figures


def activity_figures(
    oracle: OracleEnsemble, fitted: ActivityData, other: ActivityData, samples: npt.NDArray[np.int64]
) -> Figures:
    """Return agreement with the split that the oracle was not fitted on, and what it says of other sequences."""
    members = predict(oracle, other.tokens)
    mean = members.mean(axis=0)
    baseline = baselines.ridge(fitted, other)
    each = [float(pearsonr(member, other.activity).statistic) for member in members]
    rng = np.random.default_rng(0)
    on_random = predict(oracle, rng.integers(4, size=(NUM_CONTROLS, LENGTH)))
    shuffled = np.stack([dinucleotide_shuffle(row, rng) for row in _some_rows(other.tokens, NUM_CONTROLS)])
    return {
        "pearson": float(pearsonr(mean, other.activity).statistic),
        "spearman": float(spearmanr(mean, other.activity).statistic),
        "element_pearson": float(pearsonr(_by_element(mean, other), _by_element(other.activity, other)).statistic),
        "element_spearman": float(spearmanr(_by_element(mean, other), _by_element(other.activity, other)).statistic),
        "member_pearson": float(np.mean(each)),
        "ridge_pearson": float(pearsonr(baseline, other.activity).statistic),
        "ridge_spearman": float(spearmanr(baseline, other.activity).statistic),
        "real_median": float(np.median(mean)),
        "real_spread": float(members.std(axis=0, ddof=1).mean()),
        "shuffled_median": float(np.median(predict(oracle, shuffled).mean(axis=0))),
        "random_median": float(np.median(on_random.mean(axis=0))),
        "random_spread": float(on_random.std(axis=0, ddof=1).mean()),
        "samples_median": float(np.median(predict(oracle, samples).mean(axis=0))),
    }


def accessibility_figures(
    oracle: OracleEnsemble, dhs: Mapping[str, DHSData], samples: npt.NDArray[np.int64]
) -> Figures:
    """Return how well HepG2 sites of chr1 are told from those of the other lines, and shares above one half."""
    test = dhs["test"]
    positive = test.cell == HEPG2
    predicted = predict(oracle, test.tokens).mean(axis=0)
    rng = np.random.default_rng(0)
    shuffled = np.stack([dinucleotide_shuffle(row, rng) for row in _some_rows(test.tokens, NUM_CONTROLS)])
    linear = baselines.logistic(dhs["training"], test, HEPG2)
    figures = {
        "auroc": baselines.auroc(predicted, positive),
        "logistic_auroc": baselines.auroc(linear, positive),
        "samples_share": float((predict(oracle, samples).mean(axis=0) > 0.5).mean()),
        "shuffled_share": float((predict(oracle, shuffled).mean(axis=0) > 0.5).mean()),
    }
    for cell, tag in enumerate(DHS_TAGS):
        figures[f"{tag.split('_')[0]}_share"] = float((predicted[test.cell == cell] > 0.5).mean())
    return figures


def _by_element(values: npt.NDArray[np.floating], data: ActivityData) -> npt.NDArray[np.float64]:
    """Return the mean over the two orientations of each element."""
    return np.bincount(data.element, weights=values) / np.bincount(data.element)


def _some_rows(tokens: npt.NDArray[np.int64], number: int) -> npt.NDArray[np.int64]:
    """Return ``number`` rows; the files are sorted by kind, so that the first ones would be of one kind."""
    return tokens[np.random.default_rng(0).permutation(len(tokens))[:number]]
