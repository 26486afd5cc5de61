"""The two public data sets behind the assets: DNase-accessible sequences and lentiMPRA measurements.

Run ``python -m benchmarks.build_assets.data --help``.
"""

import argparse
import csv
import gzip
import logging
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.build_assets import program
from benchmarks.build_assets.download import Package, fetch
from sepo_env.errors import ArtefactsError

DHS = Package(
    "dnadiffusion==0.0.0.dev0",
    "dnadiffusion-0.0.0.dev0-py3-none-any.whl",
    "d97becfde9c1cc2fcae3a5bd7584da2224d072ebf15194fdb25b85840d7f484c",
    "dnadiffusion/data/K562_hESCT0_HepG2_GM12878_12k_sequences_per_group.txt",
)
DHS_TAGS = ("HepG2_ENCLB029COU", "K562_ENCLB843GMH", "GM12878_ENCLB441ZZZ", "hESCT0_ENCLB449ZZZ")
HELD_OUT_CHROMOSOMES = {"test": "chr1", "validation": "chr2"}
ALPHABET = "ACGT"
LENGTH = 200

log = logging.getLogger(__name__)
_TOKEN_OF_BYTE = np.full(256, 255, dtype=np.uint8)
_TOKEN_OF_BYTE[[ord(letter) for letter in ALPHABET]] = np.arange(4)


@dataclass(frozen=True)
class DHSData:
    """One split of the DNase-accessible sequences.

    Attributes:
        tokens: ``(N, 200)`` int64, A C G T = 0..3.
        cell: ``(N,)`` int64, the index in `DHS_TAGS` of the cell line in which the site is accessible.
    """

    tokens: npt.NDArray[np.int64]
    cell: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ActivityData:
    """One split of the HepG2 lentiMPRA measurements.

    Attributes:
        tokens: ``(N, 200)`` int64, A C G T = 0..3; the ``-`` row of an element is its reverse complement.
        activity: ``(N,)`` float32, mean log2(RNA/DNA) over the replicates.
        element: ``(N,)`` int64; both orientations of an element share the number.
    """

    tokens: npt.NDArray[np.int64]
    activity: npt.NDArray[np.float32]
    element: npt.NDArray[np.int64]


def encode(sequences: list[str]) -> npt.NDArray[np.int64]:
    """Return the tokens ``(N, 200)`` of sequences of A, C, G and T.

    Raises:
        ArtefactsError: a sequence of another length or with other letters.
    """
    if any(len(sequence) != LENGTH for sequence in sequences):
        raise ArtefactsError(f"the data holds sequences that are not {LENGTH} long; use the pinned files")
    flat = np.frombuffer("".join(sequences).encode("ascii"), dtype=np.uint8)
    tokens = _TOKEN_OF_BYTE[flat].reshape(-1, LENGTH)
    if (tokens == 255).any():
        raise ArtefactsError("the data holds letters other than A, C, G and T; use the pinned files")
    return tokens.astype(np.int64)


def load_dhs(work_dir: Path) -> dict[str, DHSData]:
    """Return the splits ``training``, ``validation`` (chr2) and ``test`` (chr1) of the DHS sequences.

    Raises:
        ArtefactsError: the ``data_label`` column disagrees with the chromosomes.
    """
    with fetch(DHS, work_dir).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        expected = {chrom: split for split, chrom in HELD_OUT_CHROMOSOMES.items()}.get(row["chr"], "training")
        if row["data_label"] != expected:
            raise ArtefactsError(f"a site of {row['chr']} is labelled {row['data_label']!r}; use the pinned file")
    splits = {}
    for split in ("training", "validation", "test"):
        chosen = [row for row in rows if row["data_label"] == split]
        cell = np.array([DHS_TAGS.index(row["TAG"]) for row in chosen])
        splits[split] = DHSData(encode([row["sequence"] for row in chosen]), cell)
    return splits


def load_activity(path: Path) -> dict[str, ActivityData]:
    """Return the splits ``train`` and ``eval`` of the lentiMPRA table at ``path`` (tab-separated, gzipped).

    Raises:
        ArtefactsError: it is not there, or is another table.
    """
    try:
        with gzip.open(path, "rt", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        splits = {}
        for split in ("train", "eval"):
            chosen = [row for row in rows if row["split"] == split]
            activity = np.array([row["log2_activity"] for row in chosen], dtype=np.float32)
            element = np.unique([row["element"] for row in chosen], return_inverse=True)[1].astype(np.int64)
            splits[split] = ActivityData(encode([row["sequence"] for row in chosen]), activity, element)
    except ArtefactsError:
        raise
    except (OSError, EOFError, zlib.error, csv.Error, KeyError, ValueError, TypeError) as error:
        raise ArtefactsError(f"{path} is no lentiMPRA table ({error!r}); give lentimpra_hepg2.tsv.gz.") from error
    if not all(len(data.tokens) for data in splits.values()):
        raise ArtefactsError(f"{path} lacks rows of a split; give lentimpra_hepg2.tsv.gz.")
    return splits


def main() -> None:
    """Fetch the DHS table and say what it holds."""
    parser = argparse.ArgumentParser(description="Fetch the pinned DHS table and count its splits.")
    parser.add_argument("--work-dir", type=Path, required=True, help="folder for the data, outside of the repository")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for split, data in load_dhs(arguments.work_dir).items():
        log.info("%s: %d sequences, %s", split, len(data.cell), np.bincount(data.cell).tolist())


if __name__ == "__main__":
    program.run(main)
