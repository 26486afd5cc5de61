"""The published DNA artefacts: the data folder of DRAKES (arXiv 2410.13643), found, checked and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sepo_env.arguments import PathArgument, Size, checked
from sepo_env.denoisers import Denoiser
from sepo_env.errors import ArtefactsError, HeldOutRewardError
from sepo_env.rewards import OracleEnsemble, OracleReward, Reward
from sepo_env.rewards.grelu import load_grelu
from sepo_env.tasks import metrics
from sepo_env.tasks.artefact_files import find, fingerprint, resolve_folder
from sepo_env.tasks.measured_dna import LETTERS, Measurements, read_measurements
from sepo_env.tasks.motif_metrics import motif_counts
from sepo_env.tasks.motifs import shipped_motifs

_LEVELS = np.arange(101.0)
_SHARES = {"top_0_1_percent": 0.999, "top_1_percent": 0.99}
_MOTIF_ROWS = "top_0_1_percent"
"""In which of them motifs are counted; it takes a second for every few hundred rows."""

Table = npt.NDArray[Any]


class Artefacts:
    """The files of a DRAKES data folder.

    Args:
        folder: the folder that holds ``mdlm/``, one in which that folder lies, or ``mdlm`` itself.
        length: L of the measured sequences.

    Attributes:
        paths: the file of each of `sepo_env.tasks.artefact_files.ARTEFACTS`.

    Raises:
        ArtefactsError: files are missing or not unique; one message lists all of them.
        HeldOutRewardError: one file is both the training and the held-out oracle.
    """

    @checked
    def __init__(self, folder: PathArgument, length: Size = 200) -> None:
        self.folder = resolve_folder(folder)
        self.length = length
        self.paths = find(self.folder)
        self._oracles: dict[str, OracleEnsemble] = {}
        training, held_out = self.paths["training oracle"], self.paths["held-out oracle"]
        if training.samefile(held_out) or fingerprint(training) == fingerprint(held_out):
            raise HeldOutRewardError(
                f"{training} and {held_out} are the same oracle, which would judge what was trained on it; give the "
                "published files."
            )

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """What each file holds, as a short hash by role: results of other files are other results."""
        return {key: fingerprint(path) for key, path in self.paths.items()}

    def load_denoiser(self) -> Denoiser:
        """The pretrained denoiser, its raw weights: those that the published fine-tuning starts from."""
        from sepo_env.denoisers.published import load_drakes

        return load_drakes(self.paths["denoiser"], weights="raw")

    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        """The oracles by the names that the task gives them; each entry gives one, loaded once through gReLU."""
        activity: dict[str, Any] = {
            "task": "regression",
            "column": 0,  # hepg2, k562, sknsh
            "num_outputs": 3,
            "quantity": "predicted HepG2 MPRA activity",
            "units": "log2(RNA/DNA)",
        }
        accessibility: dict[str, Any] = {
            "task": "binary",
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
        if key not in self._oracles:  # of 0.9 GB, so that all rewards of this folder share it; it is frozen
            self._oracles[key] = load_grelu(self.paths[key], **settings)
        return OracleReward(self._oracles[key], name=name)

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
            counts = metrics.kmer_counts(self._tokens(rows), 3, len(LETTERS))
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
    def _data(self) -> Measurements:
        return read_measurements(self.paths["data"], self.length)
