"""A stand-in for gReLU with the interface that its source shows: architectures by name, checkpoints of Lightning.

The names of the parameters, the shape (N, 4, L) -> (N, tasks, 1), the layout of the checkpoint and the download that
an EnformerPretrainedModel makes are gReLU's (1.0.2 and 1.1.0); the network is a small one.
"""

from __future__ import annotations

import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sepo_env.tasks.artefact_files import ARTEFACTS


class EnformerModel(nn.Module):
    """Takes the arguments of gReLU's; a convolution in place of the trunk."""

    def __init__(
        self,
        n_tasks: int,
        n_conv: int = 7,
        channels: int = 1536,
        n_transformers: int = 11,
        n_heads: int = 8,
        key_len: int = 64,
        attn_dropout: float = 0.05,
        pos_dropout: float = 0.01,
        ff_dropout: float = 0.4,
        crop_len: int = 0,
        final_act_func: str | None = None,
        final_pool_func: str | None = "avg",
    ) -> None:
        super().__init__()
        self.asked = {"n_conv": n_conv, "channels": channels, "n_transformers": n_transformers, "crop_len": crop_len}
        if channels < 0:
            raise RuntimeError(f"a tensor of {channels} channels")
        _ = channels // n_heads
        self.embedding = nn.Sequential(nn.Conv1d(4, 8, 5, padding="same"), nn.BatchNorm1d(8), nn.Dropout(ff_dropout))
        self.head = nn.Conv1d(8, n_tasks, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).relu()).mean(-1, keepdim=True)


class EnformerPretrainedModel(nn.Module):
    def __init__(self, **options: Any) -> None:
        raise AssertionError("gReLU would download the trunk's weights here")


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import grelu`` find this."""
    package, models = types.ModuleType("grelu"), types.ModuleType("grelu.model.models")
    parent = types.ModuleType("grelu.model")
    package.__path__ = parent.__path__ = []
    models.EnformerModel, models.EnformerPretrainedModel = EnformerModel, EnformerPretrainedModel
    parent.models = models
    for module in (package, parent, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def remove(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``import grelu`` fail as where it is not installed."""

    class Blocker:
        def find_spec(self, name: str, *args: Any) -> None:
            if name.partition(".")[0] == "grelu":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    for name in [name for name in sys.modules if name.partition(".")[0] == "grelu"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Blocker(), *sys.meta_path])


class Trainer:
    """An object of gReLU's data parameters that no plain container is."""


def write(
    path: Path, n_tasks: int, *, task: str = "regression", loss: str = "MSE", seed: int = 0, **params: Any
) -> Any:
    """Write a checkpoint as Lightning does, and return its network."""
    torch.manual_seed(seed)
    model = EnformerModel(n_tasks)
    model.train()
    model(torch.rand(32, 4, 20))  # statistics of the normalisation that evaluation mode uses
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
            "hyper_parameters": {
                "model_params": {"model_type": "EnformerPretrainedModel", "n_tasks": n_tasks, **params},
                "train_params": {"task": task, "loss": loss, "lr": 1e-4, "logger": None},
                "data_params": {"train": Trainer(), "tasks": {"name": ["a"] * n_tasks}},
            },
        },
        path,
    )
    return model.eval()


def write_folder(folder: Path, rows: int = 5) -> dict[str, Any]:
    """Write a whole folder of published artefacts, with small models in it; returns the networks of the oracles."""
    networks = {}
    for seed, (key, artefact) in enumerate(ARTEFACTS.items()):
        if "oracle" in key:
            kind = {"task": "binary", "loss": "bce"} if key.startswith("accessibility") else {}
            networks[key] = write(folder / artefact.path, 7 if kind else 3, seed=seed, **kind)
    fixtures = Path(__file__).parent / "fixtures" / "dna_cnn"
    shutil.copy(fixtures / "pretrained.ckpt", folder / ARTEFACTS["denoiser"].path)
    letters = np.random.default_rng(0).choice(list("ACGT"), size=(rows, 200))
    lines = ["seq,hepg2,k562,sknsh", *(f"{''.join(row)},{number},0,0" for number, row in enumerate(letters))]
    table = folder / ARTEFACTS["data"].path
    table.parent.mkdir(parents=True)
    table.write_text("\n".join(lines))
    return networks
