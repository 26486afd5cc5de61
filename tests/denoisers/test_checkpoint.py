"""Denoisers survive the way to the disk and back; damaged files are refused by name."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sepo_env.denoisers import (
    ClassDNAConvConfig,
    ClassDNAConvDenoiser,
    ClassifierFreeGuidance,
    ConvDenoiser,
    ConvDenoiserConfig,
    Denoiser,
    TabularDenoiser,
    checkpoint,
    load_denoiser,
    save_denoiser,
)
from sepo_env.diffusion import Geometric
from sepo_env.errors import CheckpointError, UnknownNameError
from tests.comparisons import assert_same

CONV = ConvDenoiserConfig(channels=8, dilations=(1, 2), length=None)


def conv() -> ConvDenoiser:
    torch.manual_seed(0)
    model = ConvDenoiser(CONV)
    torch.nn.init.normal_(model.head.weight)
    return model


def tabular() -> TabularDenoiser:
    return TabularDenoiser(3, 2, 3, parameterisation="score", generator=torch.Generator().manual_seed(0))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_denoiser(conv(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(str(path), framework="pt") as file:
        return dict(file.metadata())


def guided() -> ClassifierFreeGuidance:
    return ClassifierFreeGuidance(conv(), scale=1.5)


def guided_by_class() -> ClassifierFreeGuidance:
    torch.manual_seed(0)
    config = ClassDNAConvConfig(channels=8, num_stacks=1, num_classes=3, schedule=Geometric(1e-3, 5.0))
    return ClassifierFreeGuidance(ClassDNAConvDenoiser(config), scale=10.0, label=2)


def test_guidance_is_read_back_with_its_scale_and_label(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for model in (guided(), guided_by_class()):
        save_denoiser(model, path)
        again = load_denoiser(path)
        assert isinstance(again, ClassifierFreeGuidance)
        assert (again.scale, again.label, type(again.core)) == (model.scale, model.label, type(model.core))
        tokens, mask = torch.tensor([[0, 3, 2, 3]]), torch.tensor([[True, False, False, False]])
        assert_same(again(tokens, torch.ones(1), mask), model(tokens, torch.ones(1), mask))
        assert again.core.config == model.core.config


@pytest.mark.parametrize("build", [conv, tabular, guided, guided_by_class])
def test_round_trip_keeps_weights_bit_for_bit_and_settings(build: type, tmp_path: Path) -> None:
    model: Denoiser = build()
    path = tmp_path / "model.safetensors"
    save_denoiser(model, path, provenance={"licence": "MIT"})
    again = load_denoiser(path)
    tokens, time = torch.randint(0, 3, (4, 2)), torch.rand(4)
    assert type(again) is type(model)
    assert not again.training
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())
    assert_same(again(tokens, time), model(tokens, time))
    for name in ("num_tokens", "length", "parameterisation", "time_conditioned"):
        assert getattr(again, name) == getattr(model, name)
    assert metadata_of(path)["licence"] == "MIT"
    assert list(tmp_path.iterdir()) == [path]


def test_every_registered_architecture_names_its_class() -> None:
    kept = {"class-dna-conv", "conv", "dna-conv", "guided", "mdlm", "sedd", "tabular", "transformer"}
    assert set(checkpoint.ARCHITECTURES) == kept


def test_a_failed_write_leaves_the_old_file_and_no_other(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full_disk(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_denoiser(conv(), saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_truncated_file_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_denoiser(saved)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        load_denoiser(tmp_path / "absent.safetensors")


def test_foreign_safetensors_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"expected the format 'sepo_env.denoiser/1', found None"):
        load_denoiser(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"architecture": "dit"},
            r"among \['class-dna-conv', 'conv', .*'transformer'\], found 'dit'",
        ),
        ({"config": json.dumps({"width": 3})}, "configuration does not build"),
        ({"config": json.dumps({"channels": 16, "dilations": [1, 2]})}, r"expected \(16, .*found \(8, "),
        ({"config": json.dumps({"channels": 8, "dilations": [1]})}, "not expected: .*blocks.1"),
        ({"config": json.dumps({"channels": 8, "dilations": [1, 2, 4]})}, "missing: .*blocks.2"),
    ],
)
def test_metadata_that_does_not_fit_the_tensors_is_refused(saved: Path, change: dict[str, str], message: str) -> None:
    metadata = {**metadata_of(saved), **change}
    save_file(load_file(saved), saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(saved)


def test_unregistered_class_is_refused(tmp_path: Path) -> None:
    class Mine(ConvDenoiser):
        """Not in the registry."""

    with pytest.raises(UnknownNameError, match="Mine"):
        save_denoiser(Mine(CONV), tmp_path / "mine.safetensors")
