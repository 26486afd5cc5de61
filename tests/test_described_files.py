"""Files of ours say in their metadata what they hold: whatever else stands there is refused by name, and soon."""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from sepo_env.assets import asset_path
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, load_denoiser, load_masked_lm, save_denoiser
from sepo_env.errors import CheckpointError, FolderError, InvalidArgumentError
from sepo_env.loading.tensorfile import build_from, held_to
from sepo_env.rewards.oracles import load_oracle
from sepo_env.rewards.sentiment import load_sentiment
from tests import hf_models

FILES: dict[str, tuple[str, str, Callable[[Any], nn.Module]]] = {
    "denoiser": ("dna_denoiser.safetensors", "config", load_denoiser),
    "oracle": ("dna_accessibility.safetensors", "description", load_oracle),
    "classifier": ("text_sentiment.safetensors", "config", load_sentiment),
}


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(str(path), framework="pt") as file:
        return load_file(path), dict(file.metadata())


@pytest.fixture(params=FILES)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str, Callable[[Any], nn.Module]]:
    """A copy of an asset, the entry that describes it, and its reader."""
    name, entry, load = FILES[request.param]
    tensors, metadata = read(asset_path(name))
    save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
    return tmp_path / "a.safetensors", entry, load


def describe(path: Path, entry: str, **changes: Any) -> None:
    tensors, metadata = read(path)
    description = json.loads(metadata[entry])
    target = description["config"] if "num_members" in description and "num_members" not in changes else description
    target.update(changes)
    save_file(tensors, path, metadata={**metadata, entry: json.dumps(description)})


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"text"', "[" * 100_000, '{"a": 1}', None])
def test_other_descriptions_are_refused(text: str | None, file) -> None:
    path, entry, load = file
    tensors, metadata = read(path)
    del metadata[entry]
    save_file(tensors, path, metadata=metadata if text is None else {**metadata, entry: text})
    with pytest.raises(
        CheckpointError, match="a.safetensors: (its configuration does not build|.*missing|.*expected)"
    ) as e:
        load(path)
    assert str(e.value).count("\n") == 0


@pytest.mark.parametrize(
    "size", [-1, 0, 1, 7, 2.5, 10**4, 10**6, 10**9, 2**62, 10**30, "64", None, [64], True, float("nan")]
)
def test_other_sizes_are_refused_before_they_take_memory(size: object, file) -> None:
    path, entry, load = file
    describe(path, entry, channels=size)
    with pytest.raises(CheckpointError, match="a.safetensors: "):
        load(path)


def test_a_small_file_does_not_ask_for_a_long_build(tmp_path: Path) -> None:
    start = time.monotonic()
    cases = [
        ("denoiser", {"dilations": [1] * 100_000}),
        ("oracle", {"num_members": 10**9}),
        ("denoiser", {"dilations": [1] * 5_000}),
    ]
    for kind, changes in cases:
        name, entry, load = FILES[kind]
        tensors, metadata = read(asset_path(name))
        save_file(tensors, tmp_path / "a.safetensors", metadata=metadata)
        describe(tmp_path / "a.safetensors", entry, **changes)
        with pytest.raises(CheckpointError, match="ask for a network of more than|does not build"):
            load(tmp_path / "a.safetensors")
    deep = {"num_tokens": 4, "vocab_size": 5, "width": 4, "heads": 1, "depth": 4096}
    metadata = {"format": "sepo_env.denoiser/1", "architecture": "transformer", "config": json.dumps(deep)}
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match="ask for a network of more than 204 tensors, and it has 1"):
        load_denoiser(tmp_path / "a.safetensors")
    assert time.monotonic() - start < 60  # the deepest of them alone took that long


def test_a_published_configuration_does_not_ask_for_a_long_build(fixtures_of_mdlm: Path) -> None:
    config = json.loads((fixtures_of_mdlm / "config.json").read_text())
    (fixtures_of_mdlm / "config.json").write_text(json.dumps(config | {"n_blocks": 4096}))
    with pytest.raises(CheckpointError, match="ask for a network of more than"):
        load_denoiser(fixtures_of_mdlm)


@pytest.fixture
def fixtures_of_mdlm(project_root: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((project_root / "tests" / "fixtures" / "mdlm" / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(value: float, file) -> None:
    path, _, load = file
    tensors, metadata = read(path)
    for name in (min(tensors), max(tensors)):
        spoilt = {key: tensor.clone() for key, tensor in tensors.items()}
        spoilt[name].view(-1)[-1:].fill_(value)
        if not spoilt[name].is_floating_point():
            continue
        save_file(spoilt, path, metadata=metadata)
        with pytest.raises(CheckpointError, match=rf"tensors with NaN or infinity: \['{name}'\]"):
            load(path)


@pytest.mark.parametrize(
    "change",
    [lambda value: value.flatten(), lambda value: value[None], lambda value: value.movedim(0, -1).contiguous()],
)
def test_no_tensor_is_reshaped_to_fit(change: Callable[[torch.Tensor], torch.Tensor], file) -> None:
    path, _, load = file
    tensors, metadata = read(path)
    name = next(name for name, value in tensors.items() if value.ndim > 1 and value.shape[0] != value.shape[1])
    assert tensors[name].shape != change(tensors[name]).shape
    save_file({**tensors, name: change(tensors[name])}, path, metadata=metadata)
    with pytest.raises(CheckpointError, match=rf"{name} expected \(.*\), found \("):
        load(path)


# The checksum of a denoiser


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = ConvDenoiser(ConvDenoiserConfig(channels=8, dilations=(1,), length=None))
    nn.init.normal_(model.head.weight)
    save_denoiser(model, tmp_path / "mine.safetensors")
    return tmp_path / "mine.safetensors"


def test_a_flipped_bit_in_a_saved_denoiser_is_noticed(saved: Path) -> None:
    whole = saved.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    config = whole.index(b"channels")
    for place in [config, config + 11, *range(8 + header, len(whole), max(1, (len(whole) - header) // 40))]:
        content = bytearray(whole)
        content[place] ^= 1 << place % 7
        saved.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"mine.safetensors: "):
            load_denoiser(saved)
    saved.write_bytes(whole)
    load_denoiser(saved)


def test_a_change_that_builds_is_noticed_too(saved: Path) -> None:
    describe(saved, "config", length=7)
    with pytest.raises(
        CheckpointError, match=r"its content has changed since it was written \(SHA-256\); copy it again"
    ):
        load_denoiser(saved)


def test_files_without_a_checksum_are_read(saved: Path) -> None:
    tensors, metadata = read(saved)
    assert len(metadata.pop("sha256")) == 64
    save_file(tensors, saved, metadata=metadata)
    load_denoiser(saved)


def test_what_cannot_be_written_is_named(saved: Path, tmp_path: Path) -> None:
    model = load_denoiser(saved)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "full").touch()
    for path in (tmp_path / "folder", saved / "below"):
        with pytest.raises(FolderError):
            save_denoiser(model, path)
    for arguments in ((model, 3), (model, ""), (3, saved), (None, saved), (model, saved, 3), (model, saved, {"a": 1})):
        with pytest.raises(InvalidArgumentError):
            save_denoiser(*arguments)
    assert (tmp_path / "folder" / "full").exists()


# Small networks


def test_a_network_is_held_to_the_tensors_of_its_file() -> None:
    def build(count: int) -> nn.Module:
        return nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(count))

    with held_to("file", 10):
        build(240)
    message = "file: its settings ask for a network of more than 240 tensors, and it has 10"
    with pytest.raises(CheckpointError, match=message), held_to("file", 10):
        build(241)
    build(500)  # and nothing is held afterwards
    with held_to("file", 1, num_entries=10):
        nn.Linear(1 << 12, 1 << 12, bias=False)  # 2^24 numbers
    message = "file: its settings ask for a network of more than 16,777,376 numbers, and it has 10"
    with pytest.raises(CheckpointError, match=message), held_to("file", 1, num_entries=10):
        nn.Linear(1 << 12, (1 << 12) + 1, bias=False)


def test_other_threads_build_what_they_like() -> None:
    built = []

    def build() -> None:
        built.append(nn.ParameterList(nn.Parameter(torch.zeros(1)) for _ in range(1000)))

    with held_to("file", 1):
        thread = threading.Thread(target=build)
        thread.start()
        thread.join()
    assert len(built) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 10**8}, "ask for a network of more than .* numbers"),
        ({"hidden_size": 10**6}, "ask for a network of more than .* numbers"),
        ({"num_hidden_layers": 2000}, "ask for a network of more than .* tensors"),
        ({"num_hidden_layers": 3}, "missing: bert.encoder.layer.2"),
        ({"intermediate_size": 64}, "of another shape: bert.encoder.layer.0.intermediate.dense.bias"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_masked_language_model_is_no_larger_than_its_file(
    changes: dict[str, int], message: str, packed: bool, tmp_path: Path
) -> None:
    folder = hf_models.save_masked_lm(tmp_path / "bert")
    if packed:
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    load_masked_lm(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(CheckpointError, match=f"bert: .*{message}"):
        load_masked_lm(folder)


def test_a_masked_language_model_of_many_layers_is_read_with_a_prefix(tmp_path: Path) -> None:
    folder = hf_models.save_masked_lm(tmp_path / "bert", num_hidden_layers=30)
    expected = load_masked_lm(folder).state_dict()
    tensors = {f"module.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = load_masked_lm(folder).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "vocab.txt", "extra.bin"])
def test_pipes_and_devices_in_a_folder_are_not_opened(name: str, tmp_path: Path) -> None:
    folder = hf_models.save_masked_lm(tmp_path / "bert")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(CheckpointError, match="found a device or a pipe|no folder with a config.json"):
        load_masked_lm(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match="found a device or a pipe|no folder with a config.json"):
        load_masked_lm(folder)


def test_masked_language_models_whose_weights_are_not_finite_are_refused(tmp_path: Path) -> None:
    folder = hf_models.save_masked_lm(tmp_path / "bert")
    tensors = load_file(folder / "model.safetensors")
    tensors["bert.encoder.layer.0.output.dense.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"with NaN or infinity: \['bert.encoder.layer.0.output.dense.bias'\]"):
        load_masked_lm(folder)


def test_building_takes_what_a_file_says(tmp_path: Path) -> None:
    found = build_from("file", lambda: nn.Linear(2, 1), {"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
    assert found.weight.tolist() == [[1.0, 1.0]]
    with pytest.raises(CheckpointError, match="file: its configuration does not build .two lines"):
        build_from("file", lambda: _raise(ValueError("two\nlines")), {})


def _raise(error: Exception) -> Any:
    raise error
