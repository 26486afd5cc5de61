"""Collections of motifs, and the MEME files and npz files that they are read from."""

import os

import numpy as np
import pytest

from sepo_env.assets import asset_path
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidShapeError
from sepo_env.tasks.motifs import MotifCollection, load_motifs, read_meme, shipped_motifs

MEME = """\
MEME version 4

ALPHABET= ACGT

strands: + -

Background letter frequencies
A 0.25 C 0.25 G 0.25 T 0.25

MOTIF MA0001.1   AP1
letter-probability matrix: alength= 4 w= 2 nsites= 20 E= 0
 0.10  0.20 0.30 0.40
 1.00\t0.00 0.00 0.00
URL BLANK

MOTIF second
letter-probability matrix: alength=4 w=1
0.25 0.25 0.25 0.25
"""


def write(tmp_path, text):
    path = tmp_path / "motifs.meme"
    path.write_text(text)
    return path


def test_meme_files_are_read_with_names_and_widths(tmp_path):
    motifs = read_meme(write(tmp_path, MEME))
    assert motifs.names == ("MA0001.1 AP1", "second")
    assert motifs.probabilities[0].tolist() == [[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 0.0]]
    assert motifs.probabilities[1].tolist() == [[0.25] * 4]
    np.testing.assert_allclose(motifs.log_odds[0][0], np.log2((np.array([0.1, 0.2, 0.3, 0.4]) + 1e-4) / 0.25))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("ALPHABET= ACGT", "ALPHABET= ACGU", "line 3: the alphabet is not ACGT"),
        ("MOTIF second", "MOTIF MA0001.1 AP1", "line 16: a motif without a name of its own"),
        ("MOTIF second", "MOTIF", "line 16: a motif without a name of its own"),
        ("MOTIF second\n", "", "line 16: a matrix without a MOTIF line"),
        (" w= 2", "", r"line 11: no width"),
        ("w= 2", "w= two", r"line 11: no width"),
        ("w= 2", "w= " + "9" * 5000, r"line 11: no width"),
        ("w= 2", "w= 3", "line 14: expected four probabilities"),
        ("w=1", "w=2", "line 19: expected four probabilities"),
        ("0.30 0.40", "0.30", "line 12: expected four probabilities"),
        ("0.30 0.40", "0.30 0.50", "line 12: expected four probabilities that sum to 1"),
        ("0.30 0.40", "0.80 -0.10", "line 12: expected four probabilities"),
        ("0.30 0.40", "0.30 nan", "line 12: expected four probabilities"),
        ("0.30 0.40", "0.30 x", "line 12: expected four probabilities"),
        (MEME, "MEME version 4\n", "no letter-probability matrix"),
    ],
)
def test_a_wrong_meme_file_is_refused_with_its_line(tmp_path, old, new, message):
    path = write(tmp_path, MEME.replace(old, new))
    with pytest.raises(CheckpointError, match=message) as caught:
        read_meme(path)
    assert str(path) in str(caught.value)


def test_what_is_no_text_file_is_refused(tmp_path):
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, message in (("nowhere", "no such file"), ("binary", "no text file"), (".", "found a folder")):
        with pytest.raises(CheckpointError, match=message):
            read_meme(tmp_path / name)


def test_a_wrong_collection_is_refused_by_the_name_of_the_motif():
    column = np.full((1, 4), 0.25)
    with pytest.raises(InvalidShapeError, match="one a name"):
        MotifCollection(("a", "b"), (column,))
    with pytest.raises(InvalidShapeError, match="one a name"):
        MotifCollection((), ())
    with pytest.raises(InvalidShapeError, match="motif 'a'.*(w, 4)"):
        MotifCollection(("a",), (column.T,))
    for wrong in (2 * column, np.array([[1.5, -0.5, 0.0, 0.0]]), np.full((1, 4), np.nan)):
        with pytest.raises(InvalidArgumentError, match="motif 'b'"):
            MotifCollection(("a", "b"), (column, wrong))


def test_a_wrong_npz_file_is_refused(tmp_path):
    np.savez(tmp_path / "other.npz", names=np.array(["a"]))
    (tmp_path / "text.npz").write_text("text")
    for name in ("other.npz", "text.npz"):
        with pytest.raises(CheckpointError, match="no collection of motifs"):
            load_motifs(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        load_motifs(tmp_path / "nowhere.npz")


@pytest.mark.parametrize(
    ("names", "matrices"),
    [
        ("a", (np.ones((2, 4)) / 4,)),
        ((1,), (np.ones((2, 4)) / 4,)),
        (("a",), np.ones((1, 2, 4)) / 4),
        (("a",), ([[0.25] * 4],)),
        (("a",), (np.array([["A"] * 4]),)),
        (("a",), (np.ones((2, 4), dtype=complex) / 4,)),
    ],
)
def test_names_are_texts_and_matrices_are_arrays_of_real_numbers(names, matrices):
    with pytest.raises(InvalidArgumentError):
        MotifCollection(names, matrices)


def test_jaspar_is_shipped_whole():
    motifs = shipped_motifs()
    assert motifs is shipped_motifs()
    assert len(motifs) == len(set(motifs.names)) == 879
    # Only the latest version of each, and only of the collection CORE, whose identifiers begin with MA.
    assert len({name.split(".")[0] for name in motifs.names}) == 879
    assert all(name.startswith("MA") for name in motifs.names)
    (hnf4a,) = (i for i, name in enumerate(motifs.names) if name.split()[1] == "HNF1A")
    letters = "".join("ACGT"[i] for i in motifs.probabilities[hnf4a].argmax(1))
    assert "GTTAAT" in letters or "ATTAAC" in letters
    with np.load(asset_path("dna_motifs.npz")) as file:
        assert file["widths"].sum() == len(file["counts"])
        for name in ("motifs_top_0_1_percent", "motifs_top_1_percent"):
            assert file[name].shape == (879,)
        # Ten times the rows: about ten times the sites.
        ratio = file["motifs_top_1_percent"].sum() / file["motifs_top_0_1_percent"].sum()
        assert 8 < ratio < 12
    assert asset_path("dna_motifs.npz").stat().st_size < 300e3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"names": None}, "names"),
        ({"names": np.array([1, 2])}, "expected text, integers and numbers, found int64"),
        ({"names": np.array(["a"])}, "its shapes do not fit"),
        ({"names": np.array([["a", "b"]])}, "its shapes do not fit"),
        ({"widths": np.array([1.0, 2.0])}, "expected text, integers and numbers"),
        ({"widths": np.array([1, 3])}, "its shapes do not fit"),
        ({"widths": np.array([-1, 4])}, "a motif of no positions"),
        ({"widths": np.array([0, 3])}, "a motif of no positions"),
        ({"counts": np.ones((3, 5))}, "its shapes do not fit"),
        ({"counts": np.ones(12)}, "its shapes do not fit"),
        ({"counts": np.zeros((3, 4))}, "a position of no counts"),
        ({"counts": np.full((3, 4), np.nan)}, "a position of no counts"),
        ({"counts": np.full((3, 4), np.inf)}, "a position of no counts"),
        ({"counts": np.array([[2.0, -1, 0, 0]] * 3)}, "motif 'a'"),
        ({"counts": np.full((3, 4), "1")}, "expected text, integers and numbers"),
        ({"counts": np.array([object()] * 3, dtype=object)}, "allow_pickle"),
        ({"more": np.zeros(1 << 26)}, "more than 268,435,456 bytes"),
    ],
)
def test_a_file_that_is_no_collection_is_refused(changes, message, tmp_path):
    arrays = {"names": np.array(["a", "b"]), "widths": np.array([1, 2]), "counts": np.ones((3, 4))}
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    assert len(load_motifs(tmp_path / "a.npz")) == 2
    changed = {name: value for name, value in {**arrays, **changes}.items() if value is not None}
    np.savez_compressed(tmp_path / "a.npz", **changed)
    with pytest.raises(CheckpointError, match=f"a.npz: it is no collection of motifs .*{message}"):
        load_motifs(tmp_path / "a.npz")


def test_what_is_no_file_of_motifs_is_named(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for read in (load_motifs, read_meme):
        with pytest.raises(CheckpointError, match="a device or a pipe"):
            read(tmp_path / "pipe")
        with pytest.raises(InvalidArgumentError, match="path is 3"):
            read(3)
