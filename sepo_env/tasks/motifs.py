"""Collections of binding-site motifs of DNA, and the files that they are read from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from sepo_env.arguments import PathArgument, check_fields, checked
from sepo_env.assets import asset_path
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidShapeError
from sepo_env.loading.paths import check_file
from sepo_env.textfile import read_text

_LETTERS = "ACGT"
_PSEUDOCOUNT = 1e-4
_SUM_TOLERANCE = 0.01
"""Of the sum of a position's probabilities: files print few decimals."""

_LARGEST = 1 << 28
"""Bytes of the arrays of a collection, unpacked."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class MotifCollection:
    """Motifs of DNA: what letters stand at each position of a binding site.

    Attributes:
        names: M names.
        probabilities: M arrays, float64 ``(w, 4)`` with a width w of their own: rows are positions and sum to 1 (to
            within 0.01), columns are A, C, G, T. What is kept are copies, read-only.

    Raises:
        InvalidShapeError: a matrix is not ``(w, 4)``, or there is not one matrix a name.
        InvalidArgumentError: probabilities that are negative, not finite, or do not sum to 1; the motif is named.
    """

    names: tuple[str, ...]
    probabilities: tuple[FloatArray, ...]

    def __post_init__(self) -> None:
        check_fields(self)
        if len(self.names) != len(self.probabilities) or not self.names:
            raise InvalidShapeError("probabilities", (len(self.probabilities),), f"one a name, {len(self.names)} > 0")
        for name, matrix in zip(self.names, self.probabilities, strict=True):
            if matrix.ndim != 2 or matrix.shape[0] == 0 or matrix.shape[1] != len(_LETTERS):
                raise InvalidShapeError(f"motif {name!r}", matrix.shape, "(w, 4) with w of at least 1")
            if matrix.dtype.kind not in "fiu":
                raise InvalidArgumentError(f"motif {name!r}: the probabilities are {matrix.dtype}; give real numbers.")
            # A comparison with NaN is false, so that NaN is refused as well.
            if not ((matrix >= 0).all() and (np.abs(matrix.sum(1) - 1) <= _SUM_TOLERANCE).all()):
                raise InvalidArgumentError(
                    f"motif {name!r}: the probabilities of each position are to be at least 0 and sum to 1; divide "
                    "counts by their sum."
                )
        # Copies that nobody writes into: the shipped collection is shared by all.
        kept = tuple(matrix.astype(np.float64) for matrix in self.probabilities)
        for matrix in kept:
            matrix.setflags(write=False)
        object.__setattr__(self, "probabilities", kept)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def log_odds(self) -> tuple[FloatArray, ...]:
        r"""M arrays ``(w, 4)`` in bits, :math:`s_{j,a} = \log_2 \frac{p_{j,a} + 10^{-4}}{1/4}`."""
        return tuple(np.log2((matrix + _PSEUDOCOUNT) * len(_LETTERS)) for matrix in self.probabilities)


@checked
def read_meme(path: PathArgument) -> MotifCollection:
    """Read the letter-probability matrices of a file in the MEME format (minimal or full, version 4 or later).

    A motif's name is its identifier and, where there is one, its alternate name, as in ``MA0004.1 Arnt``.

    Raises:
        CheckpointError: no such file, no motif in it, another alphabet than ACGT, or a matrix that is cut short, has
            other than four columns or rows that do not sum to 1; the line is named.
    """
    lines = read_text(path).splitlines()
    matrices: dict[str, FloatArray] = {}
    name, number = None, 0
    while number < len(lines):
        line, number = lines[number].strip(), number + 1
        if line.startswith("ALPHABET=") and line.removeprefix("ALPHABET=").strip() != _LETTERS:
            raise CheckpointError(path, f"line {number}: the alphabet is not {_LETTERS}", "give motifs of DNA")
        if line.startswith("MOTIF"):
            name = " ".join(line.split()[1:])
            if not name or name in matrices:
                raise CheckpointError(path, f"line {number}: a motif without a name of its own", "name each motif once")
        elif line.startswith("letter-probability matrix"):
            if name is None or name in matrices:
                raise CheckpointError(path, f"line {number}: a matrix without a MOTIF line", "give each matrix its own")
            matrices[name] = _read_matrix(path, lines, number)
            number += len(matrices[name])
    if not matrices:
        raise CheckpointError(path, "it holds no letter-probability matrix", "give a file in the MEME format")
    return MotifCollection(tuple(matrices), tuple(matrices.values()))


def _read_matrix(path: str | os.PathLike[str], lines: list[str], start: int) -> FloatArray:
    """The matrix below the header line ``start`` (counted from 1), checked."""
    header = lines[start - 1].replace("=", "= ").split()
    width = next((header[i + 1] for i, word in enumerate(header[:-1]) if word == "w="), "")
    if not width.isdecimal() or width == "0" or len(width) > len(str(len(lines))):
        raise CheckpointError(path, f"line {start}: no width (w= ...) of a matrix", "write it into its header")
    rows = []
    for number in range(start, start + int(width)):
        try:
            row = [float(word) for word in lines[number].split()]
        except (IndexError, ValueError):
            row = []
        if len(row) != len(_LETTERS) or min(row) < 0 or not abs(sum(row) - 1) <= _SUM_TOLERANCE:
            cause = f"line {number + 1}: expected four probabilities that sum to 1"
            raise CheckpointError(path, cause, f"mend the matrix of {width} rows")
        rows.append(row)
    return np.array(rows)


@checked
def load_motifs(path: PathArgument) -> MotifCollection:
    """Read a collection from the arrays ``names``, ``widths`` and ``counts`` of an npz file, as the shipped one is.

    ``counts`` holds how often each letter was seen, ``(sum of the widths, 4)``; a motif's probabilities are its counts
    over their sum.

    Raises:
        CheckpointError: the file is no such file.
        InvalidArgumentError: no path.
    """
    file = check_file(path)
    try:
        with ZipFile(file) as archive:
            if sum(record.file_size for record in archive.infolist()) > _LARGEST:
                raise ValueError(f"its arrays have more than {_LARGEST:,} bytes")
        with np.load(file, allow_pickle=False) as arrays:
            names, widths, counts = (arrays[key] for key in ("names", "widths", "counts"))
        if (names.dtype.kind, widths.dtype.kind) not in (("U", "i"), ("U", "u")) or counts.dtype.kind not in "iuf":
            raise ValueError(
                f"expected text, integers and numbers, found {names.dtype}, {widths.dtype}, {counts.dtype}"
            )
        if not names.shape == widths.shape == (len(names),) or counts.shape != (widths.sum(), len(_LETTERS)):
            raise ValueError(f"its shapes do not fit: {names.shape}, {widths.shape}, {counts.shape}")
        totals = counts.astype(np.float64).sum(axis=1, keepdims=True)
        if (widths < 1).any() or not (np.isfinite(totals) & (totals > 0)).all():
            raise ValueError("it has a motif of no positions, or a position of no counts")
        matrices = np.split(counts / totals, np.cumsum(widths)[:-1])
        return MotifCollection(tuple(names.tolist()), tuple(matrices))
    except Exception as error:  # a damaged archive or array may fail in any way
        raise CheckpointError(file, f"it is no collection of motifs ({error})", "give an npz file of motifs") from error


@cache
def shipped_motifs() -> MotifCollection:
    """JASPAR 2024 CORE, vertebrates, non-redundant: 879 motifs; ``assets/dna_motifs.md`` has their source and licence.

    >>> motifs = shipped_motifs()
    >>> len(motifs), motifs.names[0]
    (879, 'MA0002.3 Runx1')
    """
    return load_motifs(asset_path("dna_motifs.npz"))
