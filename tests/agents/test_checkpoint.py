"""Checkpoints: round trips, damage, foreign files, atomic replacement."""

import os
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torchrl.checkpoint import Checkpoint, StateDictCheckpointAdapter

from agents.training import checkpoint
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from sepo_env.errors import CheckpointError, FolderError


@pytest.fixture
def network() -> nn.Linear:
    return nn.Linear(3, 2)


def trained(network: nn.Module) -> torch.optim.Optimizer:
    optimiser = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    return optimiser


def test_round_trip_is_exact(tmp_path: Path, network: nn.Linear) -> None:
    optimiser = trained(network)
    progress = {"rows": [{"z": 0.1, "a": None}, {"z": float("nan"), "a": 3}], "nested": (1, "x")}
    path = tmp_path / "new folder" / "run.pt"
    save_checkpoint(
        path,
        {"model": network.state_dict(), "optimiser": optimiser.state_dict(), "progress": progress},
        {"iteration": 7},
    )
    parts, metadata = load_checkpoint(path, ["model", "optimiser", "progress"])
    assert metadata["iteration"] == 7
    assert all(torch.equal(parts["model"][name], value) for name, value in network.state_dict().items())
    assert parts["optimiser"]["param_groups"] == optimiser.state_dict()["param_groups"]
    moments = optimiser.state_dict()["state"][0]
    assert all(torch.equal(parts["optimiser"]["state"][0][name], value) for name, value in moments.items())
    # The order of columns and the digits survive.
    assert str(parts["progress"]) == str(progress)
    assert [child.name for child in path.parent.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "flipped"])
def test_damage_is_named(tmp_path: Path, network: nn.Linear, damage: str) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"model": network.state_dict()}, {})
    content = path.read_bytes()
    weights = content.find(network.weight.detach().numpy().tobytes())
    assert weights > 0
    flipped = content[:weights] + bytes([content[weights] ^ 1]) + content[weights + 1 :]
    damaged = {"truncated": content[: len(content) // 2], "empty": b"", "text": b"iteration,nfe", "flipped": flipped}
    path.write_bytes(damaged[damage])
    with pytest.raises(CheckpointError, match="not a whole checkpoint"):
        load_checkpoint(path, ["model"])


def test_missing_file_and_missing_part(tmp_path: Path, network: nn.Linear) -> None:
    path = tmp_path / "run.pt"
    with pytest.raises(CheckpointError, match="there is no such file"):
        load_checkpoint(path, ["model"])
    save_checkpoint(path, {"model": network.state_dict()}, {})
    with pytest.raises(CheckpointError, match="'critic' is missing"):
        load_checkpoint(path, ["model", "critic"])


def test_checkpoint_of_something_else(tmp_path: Path, network: nn.Linear) -> None:
    path = Checkpoint(format="archive", model=network).save(tmp_path / "other.pt", metadata={"format": "theirs"})
    with pytest.raises(CheckpointError, match="its format is 'theirs'"):
        load_checkpoint(path, ["model"])


class Exploit:
    """Runs a command where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("payload", ["torch", "directory"])
def test_nothing_is_unpickled(tmp_path: Path, payload: str) -> None:
    """A hostile checkpoint is refused, whichever way it hides its pickle, and nothing of it runs."""
    mark, path = tmp_path / "was run", tmp_path / "hostile.pt"
    if payload == "torch":
        save_checkpoint(path, {"model": {"weights": Exploit(mark)}}, {})
    else:
        network = nn.Linear(1, 1)
        container = Checkpoint(format="archive")
        container.register("model", network, adapter=StateDictCheckpointAdapter("directory"))
        container.save(path, metadata={"format": checkpoint.FORMAT})
    with pytest.raises(CheckpointError):
        load_checkpoint(path, ["model"])
    assert not mark.exists()


def test_failure_while_writing_keeps_the_old_one(
    tmp_path: Path, network: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"model": network.state_dict()}, {"iteration": 1})

    def power_cut(*_: object) -> None:
        raise OSError("no power")

    for name in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, power_cut)
            with pytest.raises(FolderError, match="cannot be written .no power"):
                save_checkpoint(path, {"model": network.state_dict()}, {"iteration": 2})
    assert load_checkpoint(path, ["model"])[1]["iteration"] == 1
    assert [child.name for child in tmp_path.iterdir()] == ["run.pt"]


def test_there_is_always_a_whole_checkpoint(
    tmp_path: Path, network: nn.Linear, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At no rename is the target missing, unlike in the container's own way of replacing."""
    path = tmp_path / "run.pt"
    save_checkpoint(path, {"model": network.state_dict()}, {"iteration": 1})
    seen = []
    replace = os.replace

    def watch(source: str, target: str) -> None:
        seen.append(zipfile.is_zipfile(path))
        replace(source, target)
        seen.append(zipfile.is_zipfile(path))

    monkeypatch.setattr(os, "replace", watch)
    save_checkpoint(path, {"model": network.state_dict()}, {"iteration": 2})
    assert len(seen) >= 2
    assert all(seen)
