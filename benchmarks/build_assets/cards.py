"""Write the held-out figures into the model cards, between two marks, so that no number is copied by hand."""

from collections.abc import Mapping
from pathlib import Path

BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
_ORDERS = ("unigram", "bigram", "trigram")
MEANING = {
    "denoiser_bits": "bits a base of the likelihood bound on chr1",
    "denoiser_bits_error": "its standard error over the sequences",
    **{f"markov_{order}_bits": f"bits a base of the order-{order} Markov model on chr1" for order in range(6)},
    **{f"markov_{order}_bits_error": "its standard error over the sequences" for order in range(6)},
    "samples_three_mer_r": "Pearson r of the 3-mer counts of 640 samples (128 ancestral steps) and of chr1",
    "real_three_mer_r": "the same for 640 real sequences of chr2, the ceiling",
    "pearson": "Pearson r with the measured activity, one point an orientation, split not fitted on",
    "spearman": "Spearman r of the same",
    "element_pearson": "Pearson r of the means over both orientations of an element",
    "element_spearman": "Spearman r of the same",
    "member_pearson": "mean Pearson r of the single members",
    "ridge_pearson": "Pearson r of the 6-mer ridge regression fitted on the same split",
    "ridge_spearman": "its Spearman r",
    "real_median": "median prediction for real sequences, log2(RNA/DNA)",
    "real_spread": "mean standard deviation over the members on real sequences, log2(RNA/DNA)",
    "shuffled_median": "median prediction for dinucleotide shuffles of real sequences, log2(RNA/DNA)",
    "random_median": "median prediction for uniformly random sequences, log2(RNA/DNA)",
    "random_spread": "mean standard deviation over the members on random sequences, log2(RNA/DNA)",
    "samples_median": "median prediction for samples of the pretrained denoiser, log2(RNA/DNA)",
    "auroc": "AUROC on chr1, HepG2 sites against sites of the other three lines",
    "logistic_auroc": "AUROC of the 6-mer logistic regression",
    "samples_share": "share of the pretrained denoiser's samples above 0.5",
    "shuffled_share": "share of dinucleotide shuffles of chr1 sites above 0.5",
    "HepG2_share": "share of chr1 HepG2 sites above 0.5",
    "K562_share": "share of chr1 K562 sites above 0.5",
    "GM12878_share": "share of chr1 GM12878 sites above 0.5",
    "hESCT0_share": "share of chr1 hESC sites above 0.5",
}
TEXT_MEANING = {
    "denoiser_bits": "bits a token of the likelihood bound on the test chapters",
    "denoiser_bits_error": "its standard error over the clauses",
    **{f"{name}_bits": f"bits a token of the {name} model on the test chapters" for name in _ORDERS},
    **{f"{name}_bits_error": "its standard error over the clauses" for name in _ORDERS},
    **{f"samples_distinct_{n}": f"distinct-{n} of 640 samples (24 ancestral steps)" for n in (1, 2, 3)},
    **{f"real_distinct_{n}": "the same of 640 clauses of the test chapters" for n in (1, 2, 3)},
    "samples_uniqueness": "share of distinct samples",
    "samples_copied": "share of runs of 8 tokens in the samples that occur in the training clauses",
    "real_copied": "the same of clauses of the test chapters, which quote other chapters",
    "review_accuracy": "balanced accuracy on snippets about films that were not trained on",
    "review_bayes_accuracy": "the same of a naive Bayes classifier over tokens",
    "clause_accuracy": "balanced accuracy on clearly positive or negative clauses (AFINN) of the test chapters",
    "clause_bayes_accuracy": "the same of a naive Bayes classifier over tokens",
    "vader_pearson": "Pearson r with VADER's compound score on all clauses of the test chapters",
    "vader_spearman": "Spearman r of the same",
    "afinn_words": "words of the vocabulary that AFINN rates",
    "vader_words": "words of the vocabulary that VADER rates",
    "shared_words": "words of the vocabulary that both rate",
    "real_sentiment_median": "median score of clauses of the test chapters",
    "real_vader_mean": "VADER's mean for the same",
    "samples_sentiment_median": "median score of 640 samples of the pretrained denoiser",
    "samples_vader_mean": "VADER's mean for the same",
}


def write_figures(card: Path, figures: Mapping[str, float], meaning: Mapping[str, str] = MEANING) -> None:
    """Replace what stands between the marks of ``card`` by a table of ``figures``, with the ``meaning`` of each."""
    before, rest = card.read_text().split(BEGIN)
    after = rest.split(END)[1]
    rows = [f"| `{name}` | {value:.4f} | {meaning[name]} |" for name, value in figures.items()]
    table = "\n".join(["| figure | value | meaning |", "|---|---|---|", *rows])
    card.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")
