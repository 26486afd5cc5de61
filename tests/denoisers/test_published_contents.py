"""What stands in published files: numbers of the wrong kind, settings that no model has, averages out of order."""

import collections
import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepo_env.denoisers import (
    ConvDenoiser,
    ConvDenoiserConfig,
    DNAConvDenoiser,
    TabularDenoiser,
    TransformerDenoiserConfig,
    load_denoiser,
    load_drakes,
    load_masked_lm,
    save_denoiser,
)
from sepo_env.denoisers.dna_cnn import DNAConvConfig
from sepo_env.denoisers.layouts import plain
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.loading.foreign import read_foreign

ODD = [torch.int64, torch.uint8, torch.bool, torch.int8, torch.complex64, torch.float8_e4m3fn]


@pytest.fixture
def folder(fixtures, tmp_path):
    """A copy of the fixtures that a test may change."""
    for name in ("dna_cnn", "mdlm", "sedd"):
        shutil.copytree(fixtures / name, tmp_path / name, ignore=shutil.ignore_patterns("*.npz", "README.md"))
    return tmp_path


def change_state(folder, change):
    path = folder / "dna_cnn" / "finetuned.ckpt"
    state = dict(read_foreign(path))
    change(state)
    torch.save(state, path)
    return path


def change_safetensors(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def written(path, metadata, tensors=None):
    """A safetensors file with this metadata."""
    save_file(tensors or {"logits": torch.zeros(9, 2, 3)}, path, metadata=metadata)
    return path


FORMAT = {"format": "sepo_env.denoiser/1"}
TABLE = {"num_tokens": 3, "length": 2, "vocab_size": 3}


# Numbers


@pytest.mark.parametrize("dtype", ODD)
def test_weights_that_are_no_floats_are_refused(folder, dtype):
    message = f"expected floats of 16 bits or more, found {dtype}"
    path = change_state(folder, cast("backbone.linear.bias", dtype))
    with pytest.raises(CheckpointError, match=f"linear.bias {message}"):
        load_denoiser(path)
    if dtype.is_complex:
        pytest.importorskip("safetensors", minversion="0.7")  # writes complex numbers
    name = "backbone.output_layer.norm_final.weight"
    change_safetensors(folder / "mdlm" / "model.safetensors", cast(name, dtype))
    with pytest.raises(CheckpointError, match=f"{name} {message}"):
        load_denoiser(folder / "mdlm")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    def spoil(name):
        return lambda tensors: tensors[name].view(-1)[:1].fill_(value)

    with pytest.raises(CheckpointError, match=r"tensors with NaN or infinity: \['linear.bias'\]"):
        load_denoiser(change_state(folder, spoil("backbone.linear.bias")))
    for model, name in (("mdlm", "backbone.vocab_embed.embedding"), ("sedd/absorb", "vocab_embed.embedding")):
        change_safetensors(folder / model / "model.safetensors", spoil(name))
        with pytest.raises(CheckpointError, match="tensors with NaN or infinity: .*vocab_embed.embedding"):
            load_denoiser(folder / model)
    ours = ConvDenoiser(ConvDenoiserConfig(channels=8, dilations=(1,), length=None))
    spoil("head.weight")(ours.state_dict())
    save_denoiser(ours, folder / "ours.safetensors")
    with pytest.raises(CheckpointError, match=r"tensors with NaN or infinity: \['head.weight'\]"):
        load_denoiser(folder / "ours.safetensors")


def test_doubles_beyond_float32_are_refused(folder, tmp_path):
    large = torch.full((16,), 1e300, dtype=torch.float64)
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_denoiser(change_state(folder, lambda state: state.update({"backbone.linear.bias": large})))
    metadata = FORMAT | {"architecture": "tabular", "config": json.dumps(TABLE)}
    path = written(tmp_path / "a.safetensors", metadata, {"logits": large[:1].repeat(54).reshape(9, 2, 3)})
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        load_denoiser(path)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", ["mdlm", "sedd/absorb"])
def test_a_model_that_was_cast_as_a_whole_is_read(folder, name, dtype):
    path = folder / name / "model.safetensors"
    save_file({key: value.to(dtype) for key, value in load_file(path).items()}, path)
    assert all(parameter.dtype == torch.float32 for parameter in load_denoiser(folder / name).parameters())


# Names and order


def test_averages_follow_the_order_of_the_model_not_of_the_file(fixtures, tmp_path):
    checkpoint = read_foreign(fixtures / "dna_cnn" / "pretrained.ckpt")
    expected = load_drakes(fixtures / "dna_cnn" / "pretrained.ckpt", weights="ema").state_dict()
    names = [name.removeprefix("backbone.") for name in checkpoint["state_dict"] if not name.endswith("embedder.0.W")]
    assert names == [name for name, _ in DNAConvDenoiser(DNAConvConfig(channels=16, num_stacks=1)).named_parameters()]
    state = collections.OrderedDict(sorted(checkpoint["state_dict"].items()))
    torch.save({"state_dict": state, "ema": {"shadow_params": checkpoint["ema"]["shadow_params"]}}, tmp_path / "a.ckpt")
    found = load_drakes(tmp_path / "a.ckpt", weights="ema").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_averages_do_not_hide_a_tensor_that_is_missing(fixtures, tmp_path):
    checkpoint = read_foreign(fixtures / "dna_cnn" / "pretrained.ckpt")
    del checkpoint["state_dict"]["backbone.norms.0.bias"]
    parts = {"state_dict": checkpoint["state_dict"], "ema": {"shadow_params": checkpoint["ema"]["shadow_params"]}}
    torch.save(parts, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"missing: \['norms.0.bias'\]"):
        load_drakes(tmp_path / "a.ckpt", weights="ema")


def test_names_that_coincide_without_their_prefix_are_refused(folder):
    path = change_state(folder, lambda state: state.update({"linear.bias": torch.ones(16)}))
    with pytest.raises(CheckpointError, match="two tensors for one place: 'backbone.linear.bias' and 'linear.bias'"):
        load_denoiser(path)


def test_averages_can_be_asked_of_load_denoiser(fixtures, tmp_path):
    path = fixtures / "dna_cnn" / "pretrained.ckpt"
    raw, ema = load_denoiser(path), load_denoiser(path, weights="ema")
    assert torch.equal(ema.linear.bias, load_drakes(path, weights="ema").linear.bias)
    assert not torch.equal(ema.linear.bias, raw.linear.bias)
    with pytest.raises(UnknownNameError, match="did you mean 'ema'"):
        load_denoiser(path, weights="emma")
    save_denoiser(ema, tmp_path / "ema.safetensors")
    for other in (tmp_path / "ema.safetensors", fixtures / "mdlm"):
        with pytest.raises(CheckpointError, match=r"expected averages \(ema\), found none; give weights='raw'"):
            load_denoiser(other, weights="ema")


# Settings


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mdlm", {"hidden_dim": 1e30}, "expected hidden_dim to be of type int, found 1e"),
        ("mdlm", {"hidden_dim": 10**30}, "width is 1000"),
        ("mdlm", {"vocab_size": 10**30}, "num_tokens is 9999"),
        ("mdlm", {"vocab_size": 2**62}, "num_tokens is 4611686018427387903, but must be a whole number from 2 to"),
        ("mdlm", {"cond_dim": 2**61}, "cond_width is 2305843009213693952, but must be"),
        ("mdlm", {"n_blocks": 10**9}, "depth is 1000000000, but must be a whole number from 1 to 4096"),
        ("sedd/uniform", {"noise": {"sigma_min": 10**400}}, "expected a finite noise.sigma_min"),
        ("sedd/uniform", {"noise": {"sigma_max": float("inf")}}, "expected a finite noise.sigma_max"),
        ("sedd/absorb", {"model": {"type": "mamba"}}, r"expected model.type to be among \['ddit'\], found 'mamba'"),
        ("sedd/uniform", {"model": {"scale_by_sigma": True}}, "scale_by_sigma with graph.type 'absorb' only"),
        ("mdlm", {"model_type": ["mdlm"]}, "is not part of transformers"),
        ("mdlm", {"model_type": {"a": 1}, "auto_map": 5}, "expected an MDLM, a SEDD or a masked"),
        ("mdlm", {"model_type": "x", "architectures": 5, "auto_map": 5}, "expected an MDLM, a SEDD or a masked"),
    ],
)
def test_settings_that_no_model_has_are_refused(folder, name, changes, message):
    path = folder / name / "config.json"
    config = json.loads(path.read_text())
    config["auto_map"] = {"AutoModelForMaskedLM": "modeling.Model"}
    for key, value in changes.items():
        config[key] = {**config[key], **value} if isinstance(value, dict) and key in ("noise", "model") else value
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder / name)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 100_000])
def test_configurations_without_an_end_are_refused(folder, content):
    (folder / "mdlm" / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match="it is no JSON"):
        load_denoiser(folder / "mdlm")
    with pytest.raises(CheckpointError, match="no folder with a config.json"):
        load_masked_lm(folder / "mdlm")


def test_a_configuration_that_shares_its_parts_is_read_once():
    shared: dict = {}
    for _ in range(31):
        shared = {"a": shared, "b": shared}
    found = plain({"config": shared})
    assert found["config"]["a"] is found["config"]["b"]
    cyclic: dict = {"x": [1]}
    cyclic["self"] = cyclic
    assert plain(cyclic)["self"]["x"] == [1]


# Our own files


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "expected an architecture among .*, found None"),
        ({"architecture": "tabular"}, "its configuration does not build"),
        ({"architecture": "tabular", "config": "[" * 100_000}, "its configuration does not build"),
        ({"architecture": "tabular", "config": json.dumps({**TABLE, "length": 10**9})}, "length is 1000000000"),
        ({"architecture": "tabular", "config": json.dumps({**TABLE, "length": 1000})}, "fits into no memory"),
        ({"architecture": "tabular", "config": json.dumps({**TABLE, "length": 25})}, "expected|does not build"),
        ({"architecture": "conv", "config": json.dumps({"channels": 10**14, "dilations": [1]})}, "expected|not build"),
        (
            {"architecture": "mdlm", "config": json.dumps({"num_tokens": 10**16, "schedule": {"name": "log-linear"}})},
            "num_tokens is 10000000000000000, but must be",
        ),
        ({"architecture": "mdlm", "config": json.dumps({"num_tokens": 4, "schedule": {"name": [1]}})}, "unhashable"),
        (
            {"architecture": "dna-conv", "config": '{"num_stacks": 1000000, "schedule": {"name": "log-linear"}}'},
            "stacks",
        ),
    ],
)
def test_our_files_with_other_metadata_are_refused(tmp_path, metadata, message):
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(written(tmp_path / "a.safetensors", FORMAT | metadata))


def test_our_files_with_other_numbers_are_refused(tmp_path):
    metadata = FORMAT | {"architecture": "tabular", "config": json.dumps(TABLE)}
    path = written(tmp_path / "a.safetensors", metadata, {"logits": torch.zeros(9, 2, 3, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match="logits expected floats of 16 bits or more, found torch.int64"):
        load_denoiser(path)
    half = written(tmp_path / "b.safetensors", metadata, {"logits": torch.ones(9, 2, 3).half()})
    assert load_denoiser(half).logits.dtype == torch.float32


def test_headers_whose_size_looks_like_torch_are_ours(tmp_path):
    # The eight bytes of a header's size may be any.
    save_denoiser(TabularDenoiser(3, 2, 3), tmp_path / "a.safetensors", {"note": "x" * 2000})
    content = (tmp_path / "a.safetensors").read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    padding = 0x8A0280 - size
    (tmp_path / "a.safetensors").write_bytes(
        struct.pack("<Q", size + padding) + content[8 : 8 + size] + b" " * padding + content[8 + size :]
    )
    assert (tmp_path / "a.safetensors").read_bytes()[:3] == b"\x80\x02\x8a"
    assert type(load_denoiser(tmp_path / "a.safetensors")) is TabularDenoiser


def test_depths_have_a_limit():
    with pytest.raises(InvalidArgumentError, match="depth is 1000000000, but must be a whole number from 1 to 4096"):
        TransformerDenoiserConfig(4, 5, depth=10**9)
