"""Weights of a folder in one file, in several, or in a pickle that is not run; whatever else is refused by name."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepo_env.denoisers import load_denoiser
from sepo_env.errors import CheckpointError
from tests.comparisons import assert_same


@pytest.fixture(params=["mdlm", "sedd/uniform"])
def folder(request, fixtures, tmp_path):
    """A copy of a model's folder."""
    target = tmp_path / "model"
    shutil.copytree(fixtures / request.param, target, ignore=shutil.ignore_patterns("*.npz", "README.md"))
    return target


def outputs(folder):
    denoiser = load_denoiser(folder)
    tokens = torch.arange(20).reshape(2, 10) % denoiser.num_tokens
    return denoiser(tokens, torch.tensor([0.3, 0.8]))


def shard(folder):
    """Cut model.safetensors in two, as transformers does."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    places = {name: f"model-0000{1 + (index > 9)}-of-00002.safetensors" for index, name in enumerate(names)}
    for place in set(places.values()):
        save_file({name: tensors[name] for name in names if places[name] == place}, folder / place)
    return places


def write_index(folder, content):
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))


def test_shards_are_read(folder):
    expected = outputs(folder)
    write_index(folder, {"metadata": {"total_size": 1}, "weight_map": shard(folder)})
    assert_same(outputs(folder), expected)


def test_a_pickle_is_read_and_not_run(folder, tmp_path):
    expected = outputs(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    assert_same(outputs(folder), expected)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    torch.save({**tensors, "trap": Trap()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="among them 'trap' with Inert"):
        load_denoiser(folder)
    assert not (tmp_path / "canary").exists()


def test_without_weights_it_says_what_was_found(folder):
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"expected model.safetensors, .* in it, found \['config.json', 'weights"):
        load_denoiser(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda places: places.popitem(), "it and the index do not agree"),
        (lambda places: places.update(extra=next(iter(places.values()))), r"do not agree about \['extra'\]"),
        (lambda places: places.update(extra="../model.safetensors"), "expected names of safetensors files, found '../"),
        (lambda places: places.update(extra="config.json"), "expected names of safetensors files, found 'config.json'"),
        (lambda places: places.update(extra="absent.safetensors"), "absent.safetensors: there is no such file"),
        (lambda places: places.update(extra=5), "expected a weight_map"),
    ],
)
def test_an_index_that_does_not_fit_is_refused(folder, change, message):
    places = shard(folder)
    change(places)
    write_index(folder, {"weight_map": places})
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder)


@pytest.mark.parametrize("content", ["[" * 100_000, "{", "[]", "{}"])
def test_an_index_that_is_none_is_refused(folder, content):
    shard(folder)
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="it is no JSON|expected a weight_map"):
        load_denoiser(folder)
