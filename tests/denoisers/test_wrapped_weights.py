"""Weights as trainings leave them, in wrappers, in shards, beside averages and optimisers: the same network."""

import collections
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sepo_env.denoisers import Denoiser, load_denoiser, load_drakes, load_masked_lm, load_mdlm, load_sedd
from sepo_env.denoisers.weight_files import LONGEST_NAME
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.tensorfile import bare_name, find_prefixes
from tests.hf_models import save_masked_lm

PREFIXES = [
    "module.",
    "_orig_mod.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.module.",
    "model.model.",
    "score_model.net.",
]
MODELS = ["mdlm", "sedd/absorb", "sedd/uniform"]


@pytest.fixture
def folder(fixtures: Path, tmp_path: Path) -> Path:
    """A copy of the fixtures that a test may change."""
    for name in ("dna_cnn", "mdlm", "sedd"):
        shutil.copytree(fixtures / name, tmp_path / name, ignore=shutil.ignore_patterns("*.npz", "README.md"))
    return tmp_path


def outputs(denoiser: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(denoiser.num_tokens, (3, 10), generator=generator)
    with torch.no_grad():
        return denoiser(tokens, torch.tensor([0.2, 0.5, 0.9]))


def same(one: Denoiser, other: Denoiser) -> bool:
    """The same class and configuration, and the same tensors, bit for bit."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    assert type(one) is type(other)
    assert one.config == other.config
    return all(torch.equal(value, second[name]) for name, value in first.items())


def backbone(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by the names that they have within the network."""
    tensors = read_foreign(path) if path.suffix == ".ckpt" else load_file(path)
    return {name.removeprefix("backbone."): value for name, value in tensors.items()}


# Prefixes


@pytest.mark.parametrize("inner", ["", "backbone."])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_the_dna_model(prefix: str, inner: str, folder: Path) -> None:
    path = folder / "dna_cnn" / "finetuned.ckpt"
    expected = load_drakes(path)
    torch.save({f"{prefix}{inner}{name}": value for name, value in backbone(path).items()}, path)
    assert same(load_denoiser(path), expected)
    assert same(load_drakes(path), expected)


@pytest.mark.parametrize("inner", ["", "backbone."])
@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", MODELS)
def test_prefixes_in_folders(name: str, prefix: str, inner: str, folder: Path) -> None:
    path = folder / name / "model.safetensors"
    expected = load_denoiser(folder / name)
    save_file({f"{prefix}{inner}{key}": value for key, value in backbone(path).items()}, path)
    assert same(load_denoiser(folder / name), expected)


def test_wrappers_within_a_network(folder: Path) -> None:
    path = folder / "mdlm" / "model.safetensors"
    expected = load_denoiser(folder / "mdlm")
    tensors = {
        key.replace("blocks.0.", "blocks.0._checkpoint_wrapped_module.").replace(
            "blocks.1.", "_orig_mod.blocks.1."
        ): value
        for key, value in load_file(path).items()
    }
    assert sum("_checkpoint_wrapped_module" in key for key in tensors) > 5
    save_file(tensors, path)
    assert same(load_denoiser(folder / "mdlm"), expected)


def test_a_prefix_of_some_tensors_only_is_taken_off_where_it_stands(folder: Path) -> None:
    path = folder / "dna_cnn" / "finetuned.ckpt"
    expected, tensors = load_drakes(path), backbone(path)
    mixed = {f"module.{name}" if index % 3 else name: value for index, (name, value) in enumerate(tensors.items())}
    torch.save(mixed, path)
    assert same(load_denoiser(path), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {f"{p}{n}": v for p in ("a.", "b.") for n, v in tensors.items()}, "under 'a.' and 'b.'"),
        (lambda tensors: {f"{p}{n}": v for p in ("", "ema.") for n, v in tensors.items()}, "under '' and 'ema.'"),
        (
            lambda tensors: {f"module.{n}": v for n, v in tensors.items()} | {"linear.bias": torch.ones(16)},
            "two tensors for one place: 'module.linear.bias' and 'linear.bias'",
        ),
        (
            lambda tensors: (
                {f"module.{n}": v for n, v in tensors.items()} | {"module._orig_mod.linear.bias": torch.ones(16)}
            ),
            "two tensors for one place: 'module.linear.bias' and 'module._orig_mod.linear.bias'",
        ),
        (
            lambda tensors: {f"module.{n}": v for n, v in tensors.items()} | {"critic.weight": torch.ones(2)},
            r"not expected: \['critic.weight'\]",
        ),
    ],
)
def test_what_is_ambiguous_is_refused(change: Any, message: str, folder: Path) -> None:
    path = folder / "dna_cnn" / "finetuned.ckpt"
    torch.save(change(backbone(path)), path)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path)


def test_prefixes_are_found_by_names_that_are_known() -> None:
    assert find_prefixes(["a", "b"], {"a", "b"}) == [""]
    assert find_prefixes(["x.y"], {"a"}) == []
    assert find_prefixes([], {"a"}) == []
    assert find_prefixes(["m.a", "m.b", "n.a"], {"a", "b"}) == ["m."]
    assert find_prefixes(["m.a", "n.a"], {"a"}) == ["m.", "n."]
    assert find_prefixes([".".join("x" * 10**6)], {"x"}) == []  # and in no time
    assert bare_name("_orig_mod.a._fsdp_wrapped_module.b") == "a.b"
    assert bare_name("my_orig_mod.a") == "my_orig_mod.a"


# Masked language models of Transformers


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("kind", ["bert", "modernbert", "esm"])
def test_prefixes_of_masked_language_models(kind: str, prefix: str, tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / kind, kind)
    expected = load_masked_lm(folder).state_dict()
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for middle in ("", "_orig_mod."):  # of what was compiled layer by layer
        named = {f"{prefix}{name}".replace(".0.", f".0.{middle}"): value for name, value in tensors.items()}
        save_file(named, path, metadata={"format": "pt"})
        found = load_denoiser(folder).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_other_tensors_of_masked_language_models_are_refused_with_a_prefix_too(tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / "bert")
    path = folder / "model.safetensors"
    tensors = {f"module.{name}": value for name, value in load_file(path).items()}
    save_file({**tensors, "module.adapter.weight": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="not expected: .*adapter.weight"):
        load_denoiser(folder)
    del tensors["module.bert.embeddings.word_embeddings.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing: bert.embeddings.word_embeddings.weight"):
        load_denoiser(folder)


# Checkpoints of trainings


def averages(tensors: dict[str, torch.Tensor], model: Denoiser) -> list[torch.Tensor]:
    """Averages as the published trainings keep them: without names, in the order of the parameters."""
    names = [name.removeprefix("backbone.") for name, _ in model.named_parameters()]
    return [tensors[name] + 1.0 for name in names]


def mdlm_training(folder: Path, **changes: Any) -> dict[str, Any]:
    """What Lightning keeps of a training of MDLM."""
    tensors = backbone(folder / "mdlm" / "model.safetensors")
    sizes = json.loads((folder / "mdlm" / "config.json").read_text())
    config = {
        "backbone": "dit",
        "parameterization": "subs",
        "diffusion": "absorbing_state",
        "time_conditioning": False,
        "T": 0,
        "noise": {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20},
        "data": {"tokenizer_name_or_path": "gpt2"},
        "model": {
            "name": "tiny",
            "type": "ddit",
            "hidden_size": sizes["hidden_dim"],
            "cond_dim": sizes["cond_dim"],
            "length": 10,
            "n_blocks": sizes["n_blocks"],
            "n_heads": sizes["n_heads"],
            "scale_by_sigma": True,
        },
    }
    return {
        "epoch": 1,
        "global_step": 100,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": collections.OrderedDict((f"backbone.{name}", value) for name, value in tensors.items()),
        "optimizer_states": [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"params": [0]}]}],
        "hyper_parameters": {"config": config | changes, "tokenizer": object()},
        "ema": {
            "decay": 0.9999,
            "num_updates": 100,
            "shadow_params": averages(tensors, load_mdlm(folder / "mdlm")),
        },
        "sampler": {"random_state": None},
    }


def sedd_training(folder: Path) -> dict[str, Any]:
    """What a training of SEDD keeps."""
    tensors = load_file(folder / "model.safetensors")
    shadows = averages(tensors, load_sedd(folder))
    return {
        "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 3e-4, "params": [0]}]},
        "model": collections.OrderedDict(tensors),
        "ema": {"decay": 0.9999, "num_updates": 3, "shadow_params": shadows},
        "step": 3,
    }


def is_averaged(found: Denoiser, raw: Denoiser) -> bool:
    trained = dict(raw.named_parameters())
    return all(torch.equal(value, trained[name] + 1.0) for name, value in found.named_parameters())


def test_a_lightning_checkpoint_of_mdlm(folder: Path) -> None:
    path, expected = folder / "last.ckpt", load_mdlm(folder / "mdlm")
    torch.save(mdlm_training(folder), path)
    for read in (load_denoiser, load_mdlm):
        assert same(read(path), expected)
        assert is_averaged(read(path, weights="ema"), expected)
        (folder / "alone").mkdir(exist_ok=True)
        shutil.copy(path, folder / "alone")
        assert same(read(folder / "alone"), expected)
    with pytest.raises(UnknownNameError, match="did you mean 'ema'"):
        load_mdlm(path, weights="emma")
    with pytest.raises(CheckpointError, match="expected the dilated CNN of DRAKES"):
        load_drakes(path)
    with pytest.raises(CheckpointError, match="last.ckpt: expected a SEDD"):
        load_sedd(path)


def test_wrapped_lightning_checkpoints_of_mdlm(folder: Path) -> None:
    path, expected = folder / "last.ckpt", load_mdlm(folder / "mdlm")
    for outer in ("_orig_mod.", "backbone."):  # compiled, and the folder of the hub in the program of the training
        training = mdlm_training(folder, backbone="hf_dit")
        training["state_dict"] = {f"{outer}{name}": value for name, value in training["state_dict"].items()}
        torch.save(training, path)
        assert same(load_denoiser(path), expected)


def test_a_lightning_checkpoint_says_how_the_noise_enters(folder: Path) -> None:
    torch.save(mdlm_training(folder, time_conditioning=True), folder / "last.ckpt")
    found = load_denoiser(folder / "last.ckpt")
    assert found.time_conditioned
    assert not torch.equal(outputs(found), outputs(load_mdlm(folder / "mdlm")))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parameterization": "d3pm"}, r"expected parameterization to be among \['subs'\], found 'd3pm'"),
        ({"diffusion": "uniform"}, "expected diffusion to be among"),
        ({"backbone": "dimamba"}, "expected backbone to be among"),
        ({"model": {"hidden_size": 32, "n_blocks": 2, "n_heads": 2}}, "expected model.cond_dim to be of type int"),
        ({"model": {"hidden_size": 32, "n_blocks": 3, "n_heads": 2, "cond_dim": 16}}, "missing: .*blocks.2"),
        ({"model": {"hidden_size": 32, "n_blocks": 2, "n_heads": 4, "cond_dim": 16}}, "expected rotary frequencies"),
        ({"time_conditioning": True, "noise": {"type": "cosine"}}, "expected noise.type to be among"),
        # The mask of these stands amid their ids.
        ({"data": {"tokenizer_name_or_path": "bert-base-uncased"}}, "a tokenizer without a mask .*'bert-base-uncased'"),
    ],
)
def test_trainings_of_other_networks_are_refused(changes: dict[str, Any], message: str, folder: Path) -> None:
    torch.save(mdlm_training(folder, **changes), folder / "last.ckpt")
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder / "last.ckpt")


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_a_training_checkpoint_of_sedd_beside_its_configuration(name: str, folder: Path) -> None:
    model = folder / "sedd" / name
    expected = load_sedd(model)
    torch.save(sedd_training(model), model / "checkpoint.pth")
    (model / "model.safetensors").unlink()
    for read in (load_denoiser, load_sedd):
        for path in (model, model / "checkpoint.pth"):
            assert same(read(path), expected)
            assert is_averaged(read(path, weights="ema"), expected)


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt", "a.ckpt"])
def test_a_training_checkpoint_may_have_any_name(file: str, folder: Path) -> None:
    model = folder / "sedd" / "absorb"
    expected = load_sedd(model)
    torch.save(sedd_training(model), model / file)
    (model / "model.safetensors").unlink()
    assert same(load_denoiser(model), expected)


@pytest.mark.parametrize("name", ["absorb", "uniform"])
def test_the_folder_of_a_training_of_sedd(name: str, folder: Path) -> None:
    model, run = folder / "sedd" / name, folder / "run"
    expected, training = load_sedd(model), sedd_training(model)
    for part in (".hydra", "checkpoints-meta", "checkpoints", "samples"):
        (run / part).mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(yaml_of(json.loads((model / "config.json").read_text())))
    torch.save(training, run / "checkpoints-meta" / "checkpoint.pth")
    torch.save(training, run / "checkpoints" / "checkpoint_3.pth")
    for read in (load_denoiser, load_sedd):
        for path in (run, run / "checkpoints" / "checkpoint_3.pth", run / "checkpoints-meta" / "checkpoint.pth"):
            assert same(read(path), expected)
            assert is_averaged(read(path, weights="ema"), expected)


def yaml_of(config: dict[str, Any], depth: int = 0) -> str:
    """Sections of plain values, as Hydra writes them."""
    lines = []
    for name, value in config.items():
        inner = f"\n{yaml_of(value, depth + 1)}" if isinstance(value, dict) else f" {json.dumps(value)}\n"
        lines.append(f"{'  ' * depth}{name}:{inner}")
    return "".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "no plain YAML"),
        ("- 1\n", "expected a mapping, found list"),
        ("", "expected a mapping, found NoneType"),
        ("a: &x [1]\nb: *x\n", "it has anchors or tags"),
        ("a: !!python/object/apply:os.system ['true']\n", "it has anchors or tags"),
        ("[" * 5000, "no plain YAML"),
        ("a: b\n" + "#" * (1 << 17), "a text of more than 131,072 bytes"),
        ("graph: {}\n", "found a configuration with the entries"),
    ],
)
def test_a_configuration_in_yaml_that_is_none_is_refused(text: str, message: str, folder: Path) -> None:
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text(text)
    torch.save(sedd_training(folder / "sedd" / "absorb"), folder / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder / "checkpoint.pth")


def test_without_a_configuration_it_is_said_what_is_missing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    path = tmp_path / "elsewhere" / "deep" / "checkpoint.pth"
    torch.save(sedd_training(folder / "sedd" / "absorb"), path)
    with pytest.raises(
        CheckpointError, match=r"those of an MDLM or a SEDD, .*put the config.json of the model beside it"
    ):
        load_denoiser(path)


def test_weights_alone_are_read_beside_their_configuration(folder: Path) -> None:
    for name in MODELS:
        assert same(load_denoiser(folder / name / "model.safetensors"), load_denoiser(folder / name))


@pytest.mark.parametrize("name", ["state_dict", "model_state_dict", "model", "module"])
def test_tensors_under_the_names_that_trainings_give_them(name: str, folder: Path) -> None:
    path = folder / "dna_cnn" / "finetuned.ckpt"
    expected = load_drakes(path)
    torch.save({name: {f"module.{key}": value for key, value in read_foreign(path).items()}, "epoch": 3}, path)
    assert same(load_denoiser(path), expected)


def test_a_pickled_network_is_no_tensors(folder: Path) -> None:
    torch.save({"model": torch.nn.Linear(2, 2)}, folder / "a.ckpt")
    with pytest.raises(
        CheckpointError, match=r"'model' is an object, <torch.nn.modules.linear.Linear, .*state_dict\(\)"
    ):
        load_denoiser(folder / "a.ckpt")


def test_averages_of_another_kind_are_refused(folder: Path) -> None:
    for found, message in (
        ([], "found list"),
        ({"shadow": []}, "found 1 entries"),
        ({"shadow_params": [1]}, "found 1"),
    ):
        torch.save(mdlm_training(folder) | {"ema": found}, folder / "last.ckpt")
        with pytest.raises(CheckpointError, match=f"averages.*{message}"):
            load_denoiser(folder / "last.ckpt", weights="ema")
        load_denoiser(folder / "last.ckpt")


# Shards


def shard(folder: Path, prefix: str = "") -> dict[str, str]:
    """Cut model.safetensors into two pickles with an index, as Transformers once did."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {
        f"{prefix}{name}": f"pytorch_model-0000{1 + (index > 9)}-of-00002.bin"
        for index, name in enumerate(sorted(tensors))
    }
    for place in set(places.values()):
        torch.save(
            {name: tensors[name.removeprefix(prefix)] for name in places if places[name] == place}, folder / place
        )
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return places


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", MODELS)
def test_pickled_shards_are_read(name: str, prefix: str, folder: Path) -> None:
    expected = load_denoiser(folder / name)
    shard(folder / name, prefix)
    assert same(load_denoiser(folder / name), expected)


def test_pickled_shards_that_do_not_fit_are_refused(folder: Path) -> None:
    model = folder / "mdlm"
    places = shard(model)
    file = model / "pytorch_model-00001-of-00002.bin"
    index = model / "pytorch_model.bin.index.json"
    for change, message in (
        ({"extra": file.name}, r"do not agree about \['extra'\]"),
        ({"extra": "../pytorch_model.bin"}, "expected names of bin files"),
        ({"extra": "a.safetensors"}, "expected names of bin files"),
        ({"extra": "absent.bin"}, "absent.bin: there is no such file"),
    ):
        index.write_text(json.dumps({"weight_map": places | change}))
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(model)
    index.write_text(json.dumps({"weight_map": places}))
    torch.save([torch.ones(2)], file)
    with pytest.raises(CheckpointError, match="00001-of-00002.bin: expected a dictionary, found list"):
        load_denoiser(model)


def test_names_of_tensors_have_a_limit(folder: Path) -> None:
    path = folder / "dna_cnn" / "finetuned.ckpt"
    tensors = backbone(path)
    prefix = "a" * (LONGEST_NAME - max(map(len, tensors)) - 1) + "."
    torch.save({f"{prefix}{name}": value for name, value in tensors.items()}, path)
    assert load_denoiser(path).config.num_tokens == 4
    torch.save({f"a{prefix}{name}": value for name, value in tensors.items()}, path)
    with pytest.raises(CheckpointError, match="a tensor's name of 1,025 letters"):
        load_denoiser(path)
