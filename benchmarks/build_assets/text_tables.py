"""Make the reference tables of the language world, and the figures of its model cards, from the finished weights.

Run ``python -m benchmarks.build_assets.text_tables --help``. No text is written, only percentiles and figures. It needs
the extra ``text``.
"""

import argparse
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor

from benchmarks.build_assets import program, text_sentiment
from benchmarks.build_assets.cards import TEXT_MEANING, write_figures
from benchmarks.build_assets.denoiser_training import evaluate_bits
from benchmarks.build_assets.ngram import NGram
from benchmarks.build_assets.text_data import load_windows
from sepo_env.assets import asset_path
from sepo_env.assets.checksums import record
from sepo_env.denoisers import load_denoiser
from sepo_env.diffusion.sampler import sample
from sepo_env.rewards import VaderReward, load_sentiment
from sepo_env.tasks import metrics
from sepo_env.tasks.codec import WordPieceCodec
from sepo_env.tasks.text_sentiment import LENGTH, TextSentimentTask

LEVELS = np.arange(101.0)
NUM_SAMPLES = 640
COPY_LENGTH = 8

log = logging.getLogger(__name__)
Tokens = npt.NDArray[np.int64]
Figures = dict[str, float]


def denoiser_figures(task: TextSentimentTask, windows: dict[str, Tokens], samples: Tensor, num_masks: int) -> Figures:
    """Return bits a token of the denoiser and of n-gram models on the test chapters, and what its samples are like."""
    test = windows["test"]
    figures: Figures = {}
    figures["denoiser_bits"], figures["denoiser_bits_error"] = evaluate_bits(
        task.denoiser, torch.from_numpy(test), num_masks, seed=0
    )
    for order, name in enumerate(("unigram", "bigram", "trigram")):
        model = NGram(windows["training"], task.num_tokens, order, windows["validation"])
        figures[f"{name}_bits"], figures[f"{name}_bits_error"] = model.bits(test)
        log.info("%s: %.4f bits", name, figures[f"{name}_bits"])
    real = some_rows(test, len(samples))
    for n in (1, 2, 3):
        figures[f"samples_distinct_{n}"] = float(metrics.distinct_n(samples, n))
        figures[f"real_distinct_{n}"] = float(metrics.distinct_n(real, n))
    figures["samples_uniqueness"] = float(metrics.uniqueness(samples))
    known = {tuple(gram) for row in windows["training"].tolist() for gram in grams(row)}
    for name, tokens in (("samples", samples), ("real", real)):
        found = [tuple(gram) in known for row in tokens.tolist() for gram in grams(row)]
        figures[f"{name}_copied"] = float(np.mean(found))
    return figures


def grams(row: list[int]) -> list[list[int]]:
    """Return all runs of `COPY_LENGTH` tokens."""
    return [row[start : start + COPY_LENGTH] for start in range(len(row) - COPY_LENGTH + 1)]


def sentiment_figures(task: TextSentimentTask, work_dir: Path, windows: dict[str, Tokens], samples: Tensor) -> Figures:
    """Return the classifier's accuracy on held-out films and chapters, and its agreement with VADER."""
    codec = task.codec
    assert isinstance(codec, WordPieceCodec)
    model = load_sentiment(asset_path("text_sentiment.safetensors"))
    lexicon = text_sentiment.load_lexicon(work_dir)
    sources = {
        "review": text_sentiment.load_reviews(work_dir, codec),
        "clause": {
            split: text_sentiment.label_windows(windows[split], codec, lexicon) for split in ("training", "test")
        },
    }
    figures: Figures = {}
    for name, source in sources.items():
        train, test = source["training"], source["test"]
        predicted = text_sentiment.log_odds(model, test.tokens)
        baseline = text_sentiment.naive_bayes(train, test, codec.num_tokens)
        figures[f"{name}_accuracy"] = text_sentiment.balanced_accuracy(predicted, test.positive)
        figures[f"{name}_bayes_accuracy"] = text_sentiment.balanced_accuracy(baseline, test.positive)
    test_windows = torch.from_numpy(windows["test"])
    ours, vader = task.make_reward()(test_windows).numpy(), task.judge()(test_windows).numpy()
    figures["vader_pearson"] = float(pearsonr(ours, vader).statistic)
    figures["vader_spearman"] = float(spearmanr(ours, vader).statistic)
    words = {text.strip() for text in task.token_texts}
    judged = set(VaderReward(task.decode).lexicon) & words
    rated = set(lexicon) & words
    figures["afinn_words"], figures["vader_words"] = float(len(rated)), float(len(judged))
    figures["shared_words"] = float(len(rated & judged))
    for name, tokens in (("real", test_windows), ("samples", samples)):
        figures[f"{name}_sentiment_median"] = float(task.make_reward()(tokens).median())
        figures[f"{name}_vader_mean"] = float(task.judge()(tokens).mean())
    return figures


def some_rows(tokens: Tokens, number: int) -> Tensor:
    """Return ``number`` random rows: neighbours overlap."""
    return torch.from_numpy(tokens[np.random.default_rng(0).permutation(len(tokens))[:number]])


def pretrained_samples(task: TextSentimentTask, seed: int) -> Tensor:
    """Return `NUM_SAMPLES` texts of the denoiser, by `LENGTH` ancestral steps."""
    with torch.no_grad():
        return torch.cat(
            [
                sample(task.process, task.denoiser, 64, LENGTH, num_steps=LENGTH, seed=seed + start)
                for start in range(0, NUM_SAMPLES, 64)
            ]
        )


@torch.no_grad()
def build(options: argparse.Namespace) -> dict[str, npt.NDArray[Any]]:
    """Return every table and figure, and write the figures into the cards."""
    codec = WordPieceCodec.load(options.assets_dir / "text_codec.json")
    task = TextSentimentTask(denoiser=load_denoiser(options.assets_dir / "text_denoiser.safetensors"))
    windows = load_windows(options.work_dir, codec)
    samples = pretrained_samples(task, options.seed)
    log.info("sampled")
    real = some_rows(windows["test"], NUM_SAMPLES)
    table: dict[str, npt.NDArray[Any]] = {"percentile_levels": LEVELS}
    for name, tokens in (("test", torch.from_numpy(windows["test"])), ("samples", samples)):
        table[f"vader_percentiles_{name}"] = np.percentile(task.judge()(tokens).numpy(), LEVELS)
        table[f"sentiment_percentiles_{name}"] = np.percentile(task.make_reward()(tokens).numpy(), LEVELS)
        table[f"distinct_tokens_percentiles_{name}"] = np.percentile(metrics.distinct_tokens(tokens).numpy(), LEVELS)
    for name, tokens in (("test", real), ("samples", samples)):
        bounds = task.log_likelihood(tokens, seed=options.seed)
        table[f"log_likelihood_percentiles_{name}"] = np.percentile(bounds.numpy(), LEVELS)
    reports = {
        "denoiser": denoiser_figures(task, windows, samples, options.num_masks),
        "sentiment": sentiment_figures(task, options.work_dir, windows, samples),
    }
    for asset, report in reports.items():
        for name, value in report.items():
            table[f"figure/{asset}/{name}"] = np.array(value)
            log.info("%s %s: %.4f", asset, name, value)
        write_figures(options.assets_dir / f"text_{asset}.md", report, TEXT_MEANING)
    return table


def main() -> None:
    """Build and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="the downloaded data; outside of the repository")
    parser.add_argument("--assets-dir", type=Path, required=True, help="folder of the weights and of the tables")
    parser.add_argument("--num-masks", type=program.count, default=16, help="draws of the masks a text, for the bound")
    parser.add_argument("--seed", type=program.seed, default=0, help="of the samples and of the likelihoods")
    parser.add_argument("--threads", type=program.count, default=1, help="of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    table = build(options)
    path = options.assets_dir / "text_sentiment_tables.npz"
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **table)  # type: ignore[arg-type]
    os.replace(temporary, path)
    record(path)


if __name__ == "__main__":
    program.run(main)
