"""Motif counts against enumeration, plain loops, hand-computed numbers and those of memesuite-lite."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sepo_env import tasks
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError
from sepo_env.tasks import motif_metrics
from sepo_env.tasks.motif_metrics import motif_correlation, motif_counts, motif_thresholds
from sepo_env.tasks.motifs import MotifCollection, shipped_motifs


def collection(*matrices):
    return MotifCollection(tuple(f"m{i}" for i in range(len(matrices))), matrices)


def random_motifs(seed, widths):
    rng = np.random.default_rng(seed)
    return collection(*(rng.dirichlet(np.full(4, rng.choice([0.1, 0.5, 2.0])), size=width) for width in widths))


def random_tokens(*shape, seed=0):
    return torch.randint(4, shape, generator=torch.Generator().manual_seed(seed))


def words_of(spelling):
    return torch.tensor([["ACGT".index(letter) for letter in spelling]])


@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.3, 0.1, 1e-2, 1e-3]))
@settings(max_examples=30)
def test_thresholds_have_the_p_value_that_all_words_give(seed, width, p_value):
    motifs = random_motifs(seed, [width])
    bins = np.round(motifs.log_odds[0] / 0.1).astype(int)
    words = list(itertools.product(range(4), repeat=width))
    scores = np.array([sum(bins[j, letter] for j, letter in enumerate(word)) for word in words])
    threshold = round(motif_thresholds(motifs, p_value)[0] / 0.1)
    assert (scores >= threshold).mean() < p_value
    assert (scores >= threshold - 1).mean() >= p_value


def test_a_motif_too_short_for_the_p_value_has_its_threshold_above_all_words():
    motifs = collection(np.eye(4)[[0, 1]])  # 16 words: none is rarer than 0.0625
    assert motif_thresholds(motifs, 0.06)[0] == pytest.approx(4.1)  # the best word has 2 + 2 bits
    assert motif_counts(words_of("ACAC"), motifs, 0.06).tolist() == [0]
    assert motif_counts(words_of("ACAC"), motifs, 0.07).tolist() == [2]


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(4, 14), st.sampled_from([0.2, 0.05, 1e-2]))
@settings(max_examples=30)
def test_counts_equal_a_loop_over_windows_of_both_strands(seed, batch, length, p_value):
    motifs = random_motifs(seed, [5, 2, 5, 3, 9])  # in no order, and sometimes wider than the sequences
    tokens = random_tokens(batch, length, seed=seed)
    expected = []
    for log_odds, threshold in zip(motifs.log_odds, motif_thresholds(motifs, p_value), strict=True):
        hits = 0
        for row in tokens.tolist():
            for strand in (row, [3 - token for token in reversed(row)]):
                for start in range(length - len(log_odds) + 1):
                    hits += sum(log_odds[j, strand[start + j]] for j in range(len(log_odds))) > threshold
        expected.append(hits)
    counts = motif_counts(tokens, motifs, p_value)
    assert counts.dtype == torch.int64
    assert counts.tolist() == expected


def test_counts_equal_those_of_memesuite_lite(project_root):
    with np.load(project_root / "tests/fixtures/fimo/cases.npz") as file:
        matrices = np.split(file["probabilities"], np.cumsum(file["widths"])[:-1])
        for p_value in ("1e-2", "1e-3", "1e-4"):
            counts = motif_counts(torch.from_numpy(file["tokens"]), collection(*matrices), float(p_value))
            assert counts.tolist() == file[f"counts_{p_value}"].tolist()


def test_a_palindromic_site_counts_on_both_strands_and_another_on_one():
    palindrome, other = np.eye(4)[[0, 1, 2, 1, 2, 3]], np.eye(4)[[0, 0, 2, 1, 0, 2]]
    motifs = collection(palindrome, other)  # ACGCGT, AAGCAG
    assert motif_counts(words_of("TTACGCGTTT"), motifs).tolist() == [2, 0]
    assert motif_counts(words_of("TTAAGCAGTT"), motifs).tolist() == [0, 1]
    assert motif_counts(words_of("TTCTGCTTTT"), motifs).tolist() == [0, 1]  # the reverse complement of AAGCAG
    assert motif_counts(words_of("ACGCGTACGCGT"), motifs).tolist() == [4, 0]


def test_the_share_of_hits_in_random_sequences_is_the_p_value():
    rng = np.random.default_rng(0)
    motifs = collection(*(rng.dirichlet(np.full(4, 2.0), size=width) for width in (8, 9, 10, 12)))  # scores lie dense
    tokens = random_tokens(400, 200)
    for matrix, count in zip(motifs.probabilities, motif_counts(tokens, motifs, 1e-3).tolist(), strict=True):
        windows = 2 * 400 * (201 - len(matrix))
        # About 150 hits, so 8 % by chance, and a few per cent for the bins.
        assert count / windows == pytest.approx(1e-3, rel=0.25)


def test_counts_do_not_depend_on_chunks_and_add_up(monkeypatch):
    motifs, tokens = random_motifs(1, [4, 6, 6]), random_tokens(30, 40)
    whole = motif_counts(tokens, motifs, 0.01)
    assert torch.equal(whole, motif_counts(tokens, motifs, 0.01))
    assert torch.equal(whole, motif_counts(3 - tokens.flip(1), motifs, 0.01))  # the strands are alike
    assert torch.equal(whole, sum(motif_counts(row[None], motifs, 0.01) for row in tokens))
    monkeypatch.setattr(motif_metrics, "_SCORE_BUDGET", 500)
    assert torch.equal(whole, motif_counts(tokens, motifs, 0.01))


def test_correlation_by_hand():
    # Each letter is a motif: AAAC, and GTTT on the other strand.
    one_letter = collection(*np.eye(4)[:, None])
    tokens = words_of("AAAC")
    assert motif_counts(tokens, one_letter, 0.3).tolist() == [3, 1, 1, 3]
    # Ranks 3.5 1.5 1.5 3.5 against 4 3 2 1: centred (1 -1 -1 1) and (1.5 .5 -.5 -1.5) are orthogonal.
    rho = motif_correlation(tokens, torch.tensor([9, 5, 2, 1]), one_letter, 0.3)
    assert rho.item() == pytest.approx(0.0, abs=1e-12)
    # Against 4 1 2 3: centred (1.5 -1.5 -.5 .5), product 4, norms 2 and sqrt 5.
    rho = motif_correlation(tokens, torch.tensor([90, 5, 20, 30]), one_letter, 0.3)
    assert rho.item() == pytest.approx(4 / (2 * math.sqrt(5)))
    assert rho.dtype == torch.float64


def test_correlation_equals_scipy_and_is_nan_where_one_side_is_constant():
    motifs, tokens = random_motifs(5, [4, 5, 6, 6, 7, 3, 4, 5]), random_tokens(20, 50)
    counts = motif_counts(tokens, motifs, 0.02)
    reference = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])
    rho = motif_correlation(tokens, reference, motifs, 0.02).item()
    assert rho == pytest.approx(scipy.stats.spearmanr(counts.numpy(), reference.numpy()).statistic)
    assert motif_correlation(tokens, counts, motifs, 0.02).item() == pytest.approx(1.0)
    assert math.isnan(motif_correlation(tokens, torch.ones(8), motifs, 0.02).item())
    assert math.isnan(motif_correlation(words_of("A"), reference, motifs, 0.02).item())


def test_wrong_input_is_named():
    motifs, tokens = random_motifs(0, [3]), random_tokens(2, 10)
    masked = tokens.clone()
    masked[0, 0] = 4
    for wrong in (masked, masked - 5, tokens.int()):
        with pytest.raises(InvalidTokensError):
            motif_counts(wrong, motifs)
    with pytest.raises(InvalidShapeError, match=r"\(B, L\)"):
        motif_counts(tokens[0], motifs)
    with pytest.raises(InvalidShapeError, match=r"reference_counts.*\(M,\) = \(1,\)"):
        motif_correlation(tokens, torch.ones(2), motifs)
    for p_value in (0.0, 1.0, -1.0, math.nan):
        with pytest.raises(InvalidArgumentError, match="^p_value is .* above 0 and below 1"):
            motif_counts(tokens, motifs, p_value)


def test_samples_of_the_pretrained_denoiser_hold_the_motifs_of_active_sequences():
    task = tasks.make("dna_enhancer")
    with torch.no_grad():
        samples = sample(task.process, task.denoiser, 64, 200, num_steps=32, seed=0)
    shuffled = torch.stack([row[torch.randperm(200, generator=torch.Generator().manual_seed(0))] for row in samples])
    # Measured: 0.60 and 0.68; shuffled sequences 0.21 and 0.22, random ones 0.05 and 0.06.
    for reference, least in (("motifs_top_0_1_percent", 0.45), ("motifs_top_1_percent", 0.6)):
        counts = torch.from_numpy(task.reference[reference])
        rho, of_shuffled, of_random = (
            motif_correlation(rows, counts, shipped_motifs()).item()
            for rows in (samples, shuffled, random_tokens(64, 200))
        )
        assert rho > least
        assert rho > of_shuffled + 0.2
        assert rho > of_random + 0.2
