"""Measured DNA sequences: the table of activities that the published artefacts bring along."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sepo_env.errors import ArtefactsError

LETTERS = "ACGT"
_COLUMNS = ("seq", "hepg2", "k562", "sknsh")


@dataclass(frozen=True)
class Measurements:
    """Measured sequences.

    Attributes:
        tokens: uint8 ``(N, L)``.
        activity: in HepG2, float64 ``(N,)``.
    """

    tokens: npt.NDArray[np.uint8]
    activity: npt.NDArray[np.float64]


def read_measurements(path: Path, length: int) -> Measurements:
    """Read the published table (gosai_all.csv).

    Raises:
        ArtefactsError: a file that is not whole, is no such table, or has a row that is no sequence of ``length``
            letters A, C, G, T with a finite activity; the message names the line.
    """
    sequences: list[bytes] = []
    activity: list[float] = []
    lines: list[int] = []
    number = 1
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            absent = [name for name in _COLUMNS if name not in header]
            if absent:
                raise ArtefactsError(f"{path}: no column {', '.join(absent)}, found {header}; give the published file.")
            sequence, value = header.index("seq"), header.index("hepg2")
            for row in reader:
                number = reader.line_num
                if len(row) < 2 and not "".join(row).strip():  # a blank line
                    continue
                sequences.append(row[sequence].encode("ascii"))
                activity.append(float(row[value]))
                lines.append(number)
    except ArtefactsError:
        raise
    except UnicodeDecodeError as error:
        raise ArtefactsError(
            f"{path}: it is no text in UTF-8 (near line {number}: {error}); copy the file again."
        ) from error
    except csv.Error as error:
        raise ArtefactsError(f"{path}: line {number + 1} does not read ({error}); copy the file again.") from error
    except (IndexError, ValueError) as error:
        raise ArtefactsError(f"{path}: line {number} does not read ({error}); copy the file again.") from error
    except OSError as error:
        raise ArtefactsError(f"{path} cannot be read ({error}); check its permissions.") from error
    if not sequences:
        raise ArtefactsError(f"{path}: it has no rows; copy the file again.")
    codes = np.full(256, 255, dtype=np.uint8)
    codes[np.frombuffer(LETTERS.encode(), dtype=np.uint8)] = np.arange(len(LETTERS))
    odd = next((i for i, letters in enumerate(sequences) if len(letters) != length), None)
    if odd is None:
        tokens = codes[np.frombuffer(b"".join(sequences), dtype=np.uint8).reshape(-1, length)]
        bad = (tokens == 255).any(axis=1) | ~np.isfinite(activity)
        odd = int(bad.argmax()) if bad.any() else None
    if odd is not None:
        raise ArtefactsError(
            f"{path}: line {lines[odd]} is no sequence of {length} letters {LETTERS} with a finite hepg2 (it has "
            f"{len(sequences[odd])} letters and {activity[odd]}); give the published file."
        )
    return Measurements(tokens, np.array(activity))
