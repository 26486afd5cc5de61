"""The published DNA artefacts: the data folder of DRAKES (arXiv 2410.13643), found, checked and read."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sepo_env.denoisers import Denoiser
from sepo_env.errors import ArtefactsError
from sepo_env.rewards import OracleReward, Reward
from sepo_env.rewards.grelu import load_grelu
from sepo_env.tasks import metrics
from sepo_env.tasks.motif_metrics import motif_counts
from sepo_env.tasks.motifs import shipped_motifs

_LETTERS = "ACGT"
_COLUMNS = ("seq", "hepg2", "k562", "sknsh")
_LEVELS = np.arange(101.0)
_SHARES = {"top_0_1_percent": 0.999, "top_1_percent": 0.99}
_MOTIF_ROWS = "top_0_1_percent"
"""In which of them motifs are counted; it takes a second for every few hundred rows."""

Table = npt.NDArray[Any]


@dataclass(frozen=True)
class Artefact:
    """One file of the folder.

    Attributes:
        path: its place below the folder; where it is searched for, the end of its place.
        searched: whether it may lie at any depth.
        purpose: what it is for.
    """

    path: PurePosixPath
    searched: bool
    purpose: str

    def __str__(self) -> str:
        return f"{'.../' if self.searched else ''}{self.path}"


ARTEFACTS: dict[str, Artefact] = {
    "denoiser": Artefact(
        PurePosixPath("mdlm/outputs_gosai/pretrained.ckpt"), False, "the pretrained denoiser, which agents fine-tune"
    ),
    "training oracle": Artefact(
        PurePosixPath("lightning_logs/reward_oracle_ft.ckpt"), True, 'the reward "activity", which agents train on'
    ),
    "held-out oracle": Artefact(
        PurePosixPath("lightning_logs/reward_oracle_eval.ckpt"), True, 'the judge "held_out_activity" (Pred-Activity)'
    ),
    "accessibility oracle": Artefact(
        PurePosixPath("mdlm/gosai_data/binary_atac_cell_lines.ckpt"), False, 'the judge "accessibility" (ATAC-Acc)'
    ),
    "data": Artefact(
        PurePosixPath("mdlm/gosai_data/processed_data/gosai_all.csv"),
        False,
        "measured activities: the 3-mers of the most active sequences, the likelihoods of real ones",
    ),
}
"""What the folder must hold, by role."""


class Artefacts:
    """The files of a DRAKES data folder.

    Args:
        folder: the folder that holds ``mdlm/``.

    Attributes:
        paths: the file of each of `ARTEFACTS`.

    Raises:
        ArtefactsError: files are missing or not unique; one message lists all of them.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.paths = _find(self.folder)

    def load_denoiser(self) -> Denoiser:
        """The pretrained denoiser, its raw weights: those that the published fine-tuning starts from."""
        from sepo_env.denoisers.published import load_drakes

        return load_drakes(self.paths["denoiser"], weights="raw")

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        """The oracles by the names that the task gives them; each entry loads one, through gReLU."""
        activity: dict[str, Any] = {
            "column": 0,  # hepg2, k562, sknsh
            "num_outputs": 3,
            "quantity": "predicted HepG2 MPRA activity",
            "units": "log2(RNA/DNA)",
        }
        accessibility: dict[str, Any] = {
            "column": 1,
            "num_outputs": 7,
            "quantity": "predicted accessibility in HepG2",
            "units": "probability",
        }
        return {
            "activity": partial(self._oracle, "training oracle", "activity", role="training", **activity),
            "held_out_activity": partial(
                self._oracle, "held-out oracle", "held_out_activity", role="held_out", **activity
            ),
            "accessibility": partial(
                self._oracle, "accessibility oracle", "accessibility", role="held_out", **accessibility
            ),
        }

    def _oracle(self, key: str, name: str, **settings: Any) -> Reward:
        return OracleReward(load_grelu(self.paths[key], **settings), name=name)

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Tables of the measured sequences by name, computed on first use and kept in memory.

        ``three_mers_top_0_1_percent`` and ``three_mers_top_1_percent``: int64 (64,), counts of the rows whose hepg2
        lies above that quantile; ``num_rows_...``: how many rows that is; ``motifs_top_0_1_percent``: int64 (M,), their
        `motif_counts` of `shipped_motifs`; ``measured_activity_percentiles``: (101,).
        """
        tables: dict[str, Table] = {
            "percentile_levels": _LEVELS,
            "measured_activity_percentiles": np.percentile(self._data.activity, _LEVELS),
        }
        for name, level in _SHARES.items():
            # Strictly above, as published.
            rows = np.flatnonzero(self._data.activity > np.quantile(self._data.activity, level))
            if len(rows) == 0:
                raise ArtefactsError(
                    f"{self.paths['data']}: no row of hepg2 lies above its {level:g} quantile; give the whole file."
                )
            tables[f"num_rows_{name}"] = np.array(len(rows))
            counts = metrics.kmer_counts(self._tokens(rows), 3, len(_LETTERS))
            tables[f"three_mers_{name}"] = counts.numpy()
            if name == _MOTIF_ROWS:
                tables[f"motifs_{name}"] = motif_counts(self._tokens(rows), shipped_motifs()).numpy()
        return tables

    def sequences(self, number: int, seed: int = 0) -> Tensor:
        """Measured sequences drawn without replacement, int64 ``(N, L)``; N is at most the number of rows."""
        order = np.random.default_rng(seed).permutation(len(self._data.activity))
        return self._tokens(order[:number])

    def _tokens(self, rows: npt.NDArray[np.intp]) -> Tensor:
        return torch.from_numpy(self._data.tokens[rows].astype(np.int64))

    @cached_property
    def _data(self) -> _Data:
        return _read_data(self.paths["data"])


@dataclass(frozen=True)
class _Data:
    """Measured sequences: tokens uint8 ``(N, L)``, hepg2 activities float64 ``(N,)``."""

    tokens: npt.NDArray[np.uint8]
    activity: npt.NDArray[np.float64]


def _read_data(path: Path) -> _Data:
    sequences: list[bytes] = []
    activity: list[float] = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        absent = [name for name in _COLUMNS if name not in header]
        if absent:
            raise ArtefactsError(f"{path}: no column {', '.join(absent)}, found {header}; give the published file.")
        sequence, value = header.index("seq"), header.index("hepg2")
        for number, row in enumerate(reader, start=2):
            try:
                sequences.append(row[sequence].encode("ascii"))
                activity.append(float(row[value]))
            except (IndexError, ValueError) as error:
                raise ArtefactsError(f"{path}: line {number} does not read ({error}); copy the file again.") from error
    if not sequences:
        raise ArtefactsError(f"{path}: it has no rows; copy the file again.")
    length = len(sequences[0])
    codes = np.full(256, 255, dtype=np.uint8)
    codes[np.frombuffer(_LETTERS.encode(), dtype=np.uint8)] = np.arange(len(_LETTERS))
    odd = next((i for i, letters in enumerate(sequences) if len(letters) != length), None)
    if odd is None:
        tokens = codes[np.frombuffer(b"".join(sequences), dtype=np.uint8).reshape(-1, length)]
        bad = (tokens == 255).any(axis=1) | ~np.isfinite(activity)
        odd = int(bad.argmax()) if bad.any() else None
    if odd is not None:
        raise ArtefactsError(
            f"{path}: line {odd + 2} is no sequence of {length} letters {_LETTERS} with a finite hepg2; copy the file "
            "again."
        )
    return _Data(tokens, np.array(activity))


def _find(folder: Path) -> dict[str, Path]:
    """The file of each artefact, or one error about all that are not there."""
    if not folder.is_dir():
        raise ArtefactsError(
            f"there is no folder {folder}; give the unpacked DRAKES data folder, which holds mdlm/, or leave artefacts "
            "out to run on the shipped assets."
        )
    found: dict[str, list[Path]] = {key: [] for key in ARTEFACTS}
    names = {artefact.path.name for artefact in ARTEFACTS.values() if artefact.searched}
    everywhere = [path for path in _walk(folder) if path.name in names]
    for key, artefact in ARTEFACTS.items():
        if artefact.searched:
            found[key] = sorted(path for path in everywhere if _ends(path, artefact.path))
        elif (path := folder / artefact.path).is_file():
            found[key] = [path]
    if all(len(paths) == 1 for paths in found.values()):
        return {key: paths[0] for key, paths in found.items()}
    raise ArtefactsError(_complaint(folder, found))


def _ends(path: Path, end: PurePosixPath) -> bool:
    return path.parts[-len(end.parts) :] == end.parts


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder; links to folders are followed, once each."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        yield from (Path(root, name) for name in files)


def _complaint(folder: Path, found: Mapping[str, list[Path]]) -> str:
    """There, missing and double files, one line each."""
    there, missing, double = [], [], []
    for key, artefact in ARTEFACTS.items():
        places = [path.relative_to(folder).as_posix() for path in found[key]]
        if len(places) == 1:
            there.append(f"  {places[0]}: {artefact.purpose}")
        elif places:
            double.append(f"  {artefact}: {artefact.purpose}; found {', '.join(places)}")
        else:
            missing.append(f"  {artefact}: {artefact.purpose}")
    lines = [f"the folder {folder} is no whole DRAKES data folder."]
    for title, entries in (("There:", there), ("Missing:", missing), ("More than once:", double)):
        if entries:
            lines += [title, *entries]
    if missing:
        lines.append("Unpack the published archive there (docs/reproducing.md), or give the folder that holds mdlm/.")
    if double:
        lines.append("Keep one of the files that are there more than once.")
    return "\n".join([*lines, "Without artefacts, the task runs on the shipped assets."])
