"""The build scripts' arithmetic, against brute force."""

import gzip
import itertools
import math
import sqlite3
from contextlib import closing

import numpy as np
import pytest
import torch

from benchmarks.build_assets import baselines, denoiser, denoiser_training, program
from benchmarks.build_assets.data import encode, load_activity
from benchmarks.build_assets.denoiser_training import Recipe, TrainingOptions, bound_nats, fit, mask_tokens
from benchmarks.build_assets.markov import context_counts, markov_bits
from benchmarks.build_assets.motifs import read_jaspar
from benchmarks.build_assets.shuffle import dinucleotide_shuffle
from benchmarks.build_assets.tables import most_active
from benchmarks.build_assets.training import reverse_complement, update_average, warmup_cosine
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, TabularDenoiser, load_denoiser
from sepo_env.errors import ArtefactsError

MASK = 4


def test_encode_maps_acgt_and_refuses_the_rest() -> None:
    assert encode(["ACGT" * 50])[0, :4].tolist() == [0, 1, 2, 3]
    with pytest.raises(ArtefactsError, match="letters"):
        encode(["N" * 200])
    with pytest.raises(ArtefactsError, match="200 long"):
        encode(["ACGT"])


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (["--steps", "0"], "at least 1"),
        (["--steps", "1.5"], "count"),
        (["--seed", "-1"], "seed"),
        (["--learning-rate", "nan"], "finite"),
        (["--learning-rate", "0"], "above 0"),
        (["--dilations", "0"], "count"),
        ([], "required"),
    ],
)
def test_wrong_flags_of_a_script_are_named(flags, word, capsys, tmp_path, monkeypatch) -> None:
    paths = ["--work-dir", str(tmp_path / "w"), "--export", str(tmp_path / "e")] if flags else []
    monkeypatch.setattr("sys.argv", ["denoiser.py", *paths, *flags])
    with pytest.raises(SystemExit) as end:
        denoiser.main()
    assert end.value.code == 2
    assert word in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content",
    [None, b"", b"text", gzip.compress(b"a\tb\n1\t2\n"), gzip.compress(b"x" * 99)[:15]],
    ids=["missing", "empty", "text", "other", "truncated"],
)
def test_another_table_of_measurements_is_refused(content, tmp_path) -> None:
    path = tmp_path / "lentimpra.tsv.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactsError, match="lentimpra.tsv.gz"):
        load_activity(path)


@pytest.mark.parametrize("error", [ArtefactsError("no such data"), OSError("no space")])
def test_a_script_ends_in_a_line(error, capsys) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        program.run(main)
    assert end.value.code == 1
    assert capsys.readouterr().err == f"{type(error).__name__}: {error}\n"


def test_reverse_complement_is_an_involution_of_letters() -> None:
    tokens = torch.tensor([0, 1, 1, 3])  # ACCT -> AGGT
    assert reverse_complement(tokens).tolist() == [0, 2, 2, 3]
    assert torch.equal(reverse_complement(reverse_complement(tokens)), tokens)


def test_mask_counts_are_stratified_and_positions_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.zeros(20, 10, dtype=torch.int64)
    hits = torch.zeros(10)
    for _ in range(150):
        noisy, count = mask_tokens(tokens, generator, MASK)
        assert torch.equal((noisy == MASK).sum(-1), count)
        # 20 rows over the counts 1..10: each twice, to within the one row that the random offset moves.
        assert (torch.bincount(count, minlength=11)[1:] - 2).abs().max() <= 1
        hits += (noisy == MASK).float().mean(0) / 150
    torch.testing.assert_close(hits, torch.full((10,), 0.55), atol=0.04, rtol=0)


def test_bound_equals_the_enumeration_over_mask_sets() -> None:
    length = 3
    denoiser = TabularDenoiser(4, length, 5, generator=torch.Generator().manual_seed(0))
    x_0 = torch.tensor([[2, 0, 3]])
    exact = 0.0
    for size in range(1, length + 1):
        subsets = list(itertools.combinations(range(length), size))
        for subset in subsets:
            noisy = x_0.clone()
            noisy[0, list(subset)] = MASK
            log_p = denoiser(noisy, torch.ones(1))[0]
            exact -= sum(log_p[i, x_0[0, i]].item() for i in subset) / size / len(subsets) / length
    generator = torch.Generator().manual_seed(1)
    estimate = bound_nats(denoiser, x_0.expand(20_000, -1), generator).mean().item()
    assert math.isclose(estimate, exact, abs_tol=0.02)


def test_markov_bits_of_order_one_by_hand() -> None:
    # Training on AAAA (and TTTT): p(A) = p(T) = (4 + 1) / 12 and p(A | A) = (3 + 1) / (3 + 4).
    training = np.zeros((1, 4), dtype=np.int64)
    test = np.zeros((2, 3), dtype=np.int64)
    bits, error = markov_bits(training, test, order=1)
    assert math.isclose(bits, (-math.log2(5 / 12) - 2 * math.log2(4 / 7)) / 3)
    assert error == 0.0


def test_shuffle_keeps_dinucleotides_and_ends_and_changes_the_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        tokens = rng.integers(4, size=60)
        shuffled = dinucleotide_shuffle(tokens, rng)
        assert (context_counts(shuffled[None], 1) == context_counts(tokens[None], 1)).all()
        assert shuffled[0] == tokens[0]
        assert shuffled[-1] == tokens[-1]
        assert (shuffled != tokens).any()


def test_shuffle_draws_every_arrangement_equally_often() -> None:
    # ABACA: the Eulerian paths with its counts that start and end at A are ABACA and ACABA.
    rng = np.random.default_rng(0)
    draws = [tuple(dinucleotide_shuffle(np.array([0, 1, 0, 2, 0]), rng)) for _ in range(2000)]
    assert set(draws) == {(0, 1, 0, 2, 0), (0, 2, 0, 1, 0)}
    assert abs(draws.count((0, 1, 0, 2, 0)) - 1000) < 4 * math.sqrt(500)


def test_the_latest_version_of_each_matrix_of_the_group_is_read(tmp_path) -> None:
    matrices = [
        (1, "CORE", "MA0002", 1, "OLD", "vertebrates"),
        (2, "CORE", "MA0002", 10, "NEW", "vertebrates"),
        (3, "CORE", "MA0002", 9, "MIDDLE", "vertebrates"),
        (4, "CORE", "MA0003", 1, "PLANT", "plants"),
        (5, "UNVALIDATED", "UN0001", 1, "NOT", "vertebrates"),
        (6, "CORE", "MA0001", 2, "FIRST", "vertebrates"),
    ]
    with closing(sqlite3.connect(tmp_path / "jaspar.sqlite")) as database, database:
        database.execute("CREATE TABLE MATRIX (ID, COLLECTION, BASE_ID, VERSION, NAME)")
        database.execute("CREATE TABLE MATRIX_ANNOTATION (ID, TAG, VAL)")
        database.execute('CREATE TABLE MATRIX_DATA (ID, "row", col, val)')
        for key, *rest, group in matrices:
            database.execute("INSERT INTO MATRIX VALUES (?, ?, ?, ?, ?)", (key, *rest))
            database.execute("INSERT INTO MATRIX_ANNOTATION VALUES (?, 'tax_group', ?)", (key, group))
            for column in range(1, 1 + (key + 1) // 2):
                cells = [(key, letter, column, 10 * key + column + i / 4) for i, letter in enumerate("ACGT")]
                database.executemany("INSERT INTO MATRIX_DATA VALUES (?, ?, ?, ?)", cells[::-1])
    table = read_jaspar(tmp_path / "jaspar.sqlite")
    assert table["names"].tolist() == ["MA0001.2 FIRST", "MA0002.10 NEW"]
    assert table["widths"].tolist() == [3, 1]
    assert table["counts"].tolist() == [[first + i / 4 for i in range(4)] for first in (61, 62, 63, 21)]


def test_the_most_active_rows_come_first() -> None:
    assert most_active(np.array([0.0, 3.0, -1.0, 3.0, 2.0], dtype=np.float32), 0.6).tolist() == [1, 3, 4]


def test_auroc_by_hand() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.8])
    positive = np.array([False, False, True, True])
    assert baselines.auroc(scores, positive) == (1 + 0.5 + 1 + 1) / 4


def test_sixmer_counts_read_both_strands_alike() -> None:
    tokens = np.random.default_rng(0).integers(4, size=(3, 30))
    counts = baselines.sixmer_counts(tokens)
    assert (counts != baselines.sixmer_counts(3 - tokens[:, ::-1])).nnz == 0
    assert counts.sum() == 3 * 2 * 25


def test_learning_rate_rises_then_falls_to_zero() -> None:
    factors = [warmup_cosine(step, 100, 10) for step in range(101)]
    assert factors[9] == 1.0
    assert factors[100] == pytest.approx(0.0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_moving_average_forgets_its_start() -> None:
    average, model = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, 3.0)
    for step in range(200):
        update_average(average, model, step, decay=0.999)
    torch.testing.assert_close(average.weight, model.weight, atol=1e-3, rtol=0)


@pytest.mark.parametrize("half_precision", [False, True])
def test_a_training_that_was_stopped_ends_where_one_that_was_not_ends(tmp_path, monkeypatch, half_precision) -> None:
    monkeypatch.setattr(denoiser_training, "CHECKPOINT_SECONDS", 0.0)
    recipe = Recipe(warmup_steps=2, weight_decay=0.01, average_decay=0.5, half_precision=half_precision)
    drawn = []

    def draw_batch(size: int, generator: torch.Generator) -> torch.Tensor:
        drawn.append(torch.randint(4, (size, 3), generator=generator))
        if len(drawn) == stop:
            raise KeyboardInterrupt
        return drawn[-1]

    def run(name: str):
        options = TrainingOptions(tmp_path, tmp_path / f"{name}.safetensors", 6, 8, 0.01, seed=3, threads=1)
        validation = torch.zeros(8, 3, dtype=torch.int64)
        config = ConvDenoiserConfig(channels=4, kernel_size=3, dilations=(1,), length=3)
        return fit(lambda: ConvDenoiser(config), draw_batch, validation, options, recipe)

    stop = -1
    whole = run("whole").state_dict()
    drawn.clear()
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    stop = -1
    parts = run("parts").state_dict()
    assert len(drawn) == 7, "it began anew"
    for name, value in whole.items():
        torch.testing.assert_close(parts[name], value, rtol=0, atol=0)
    exported = load_denoiser(tmp_path / "parts.safetensors").state_dict()
    for name, value in whole.items():
        assert torch.equal(exported[name].float(), (value.half() if half_precision else value).float())
