"""Published checkpoints: recognised, refused by name where they are not, and never run."""

import json
import shutil
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

import sepo_env  # noqa: F401 - registers the ids
from sepo_env.denoisers import (
    DNAConvDenoiser,
    MDLMDenoiser,
    SEDDDenoiser,
    load_denoiser,
    load_drakes,
    load_mdlm,
    load_sedd,
    save_denoiser,
)
from sepo_env.diffusion import Geometric, LogLinear
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.loading.foreign import read_foreign
from tests.comparisons import assert_same

FORMATS = {
    "dna_cnn/pretrained.ckpt": DNAConvDenoiser,
    "dna_cnn/finetuned.ckpt": DNAConvDenoiser,
    "mdlm": MDLMDenoiser,
    "sedd/absorb": SEDDDenoiser,
    "sedd/uniform": SEDDDenoiser,
}


@pytest.fixture
def folder(fixtures, tmp_path):
    """A copy of the fixtures that a test may damage."""
    for name in ("dna_cnn", "mdlm", "sedd"):
        shutil.copytree(fixtures / name, tmp_path / name, ignore=shutil.ignore_patterns("*.npz", "README.md"))
    return tmp_path


def change_config(folder: Path, **changes) -> None:
    """Set entries of a config.json; None removes one, and a dict changes a section."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            del config[name]
        else:
            config[name] = {**config[name], **value} if isinstance(value, dict) else value
    path.write_text(json.dumps(config))


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def inputs(denoiser, length=10):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(denoiser.num_tokens, (3, length), generator=generator), torch.tensor([0.2, 0.5, 0.9])


@pytest.mark.parametrize(("name", "kind"), FORMATS.items())
def test_load_denoiser_recognises_each_format(fixtures, name, kind):
    denoiser = load_denoiser(fixtures / name)
    assert type(denoiser) is kind
    assert not denoiser.training
    assert denoiser.length is None
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in denoiser.parameters())
    log_p = denoiser(*inputs(denoiser))
    assert log_p.shape == (3, 10, denoiser.num_tokens)
    assert log_p.dtype == torch.float32
    if denoiser.parameterisation == "posterior":
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(3, 10))
    log_p.sum().backward()


def test_what_the_configurations_say_arrives(fixtures):
    absorbing, uniform = (load_sedd(fixtures / "sedd" / name) for name in ("absorb", "uniform"))
    assert (absorbing.config.graph, absorbing.config.schedule) == ("absorbing", LogLinear())
    assert (uniform.config.graph, uniform.config.schedule) == ("uniform", Geometric(1e-4, 20.0))
    assert absorbing.config.scale_by_sigma
    assert not uniform.config.scale_by_sigma
    assert absorbing.parameterisation == uniform.parameterisation == "score"
    assert load_mdlm(fixtures / "mdlm").config.num_tokens == 12  # 13 ids, the last of which is MASK
    assert load_drakes(fixtures / "dna_cnn" / "pretrained.ckpt").config.channels == 16


def test_loading_leaves_the_random_state(fixtures):
    before = torch.get_rng_state()
    for name in FORMATS:
        load_denoiser(fixtures / name)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", FORMATS)
def test_saved_and_read_again(fixtures, tmp_path, name):
    denoiser = load_denoiser(fixtures / name)
    save_denoiser(denoiser, tmp_path / "ours.safetensors")
    again = load_denoiser(tmp_path / "ours.safetensors")
    assert type(again) is type(denoiser)
    assert again.config == denoiser.config
    assert_same(again(*inputs(again)), denoiser(*inputs(denoiser)))


def test_a_gymnasium_environment_runs_on_the_published_dna_model(fixtures):
    path = fixtures / "dna_cnn" / "pretrained.ckpt"
    env = gym.make("DNAEnhancer-v0", denoiser=str(path), reward="gc", num_steps=3)
    task = env.unwrapped.task
    assert type(task.denoiser) is DNAConvDenoiser
    observation, _ = env.reset(seed=0)
    done = False
    while not done:
        tokens, time = (torch.from_numpy(observation[name])[None] for name in ("tokens", "time"))
        with torch.no_grad():
            rates = task.process.rates(task.denoiser, tokens, time[0].double())
        observation, reward, terminated, truncated, _ = env.step(rates[0].numpy())
        done = terminated or truncated
    sequence = task.decode(torch.from_numpy(observation["tokens"])[None])[0]
    assert set(sequence) <= set("ACGT")
    assert reward == pytest.approx(sum(letter in "GC" for letter in sequence) / 200)


# What is refused


def test_weights_of_another_name_are_refused(fixtures):
    with pytest.raises(UnknownNameError, match="did you mean 'ema'"):
        load_drakes(fixtures / "dna_cnn" / "pretrained.ckpt", weights="emma")


def test_averages_are_asked_of_a_file_without(fixtures):
    with pytest.raises(
        CheckpointError, match=r"finetuned.ckpt: expected averages \(ema\), found none; give weights='raw'"
    ):
        load_drakes(fixtures / "dna_cnn" / "finetuned.ckpt", weights="ema")


def rewritten(path: Path, change, **parts):
    """Another checkpoint of tensors, made of the fine-tuned one."""
    state = dict(read_foreign(path))
    change(state)
    torch.save({"state_dict": state, **parts} if parts else state, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("backbone.norms.0.bias"), r"missing: \['norms.0.bias'\], not expected: \[\]"),
        (lambda state: state.update({"backbone.head": torch.ones(2)}), r"not expected: \['head'\]"),
        (
            lambda state: state.update({"backbone.norms.0.bias": torch.ones(3)}),
            r"norms.0.bias expected \(16,\), found \(3,\)",
        ),
        (lambda state: state.pop("backbone.linear.weight"), "expected the dilated CNN of DRAKES"),
        (lambda state: state.pop("backbone.convs.4.weight"), "a multiple of 5 layers"),
        (lambda state: state.update({"backbone.linear.weight": torch.ones(16, 5)}), "of three axes"),
        (
            lambda state: state.update({"backbone.linear.weight": torch.ones(15, 5, 9)}),
            "channels is 15, but .* an even number",
        ),
        (lambda state: state.update(epoch=3), "expected tensors by name, found 40 entries"),
        (lambda state: state.clear(), "expected the dilated CNN of DRAKES.*found 0 entries"),
    ],
)
def test_other_tensors_than_those_of_the_dna_model_are_refused(folder, change, message):
    path = folder / "dna_cnn" / "finetuned.ckpt"
    rewritten(path, change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"ema": {"shadow_params": [torch.ones(2)]}}, "expected 38 averages, one a trained tensor, found 1"),
        ({"ema": {"shadow_params": [torch.ones(2)] * 38}}, r"linear.weight expected \(16, 5, 9\), found \(2,\)"),
        ({"hyper_parameters": {"config": {"parameterization": "sedd"}}}, "expected parameterization 'subs'"),
        ({"hyper_parameters": {"config": {"backbone": "dit"}}}, "expected backbone 'cnn', found 'dit'"),
        ({"hyper_parameters": {"config": {"time_conditioning": "${eval:1}"}}}, r"bool, found '\$\{eval:1\}'"),
        (
            {"hyper_parameters": {"config": {"time_conditioning": True, "noise": {"type": "cosine"}}}},
            r"expected noise.type to be among \['geometric', 'loglinear'\], found 'cosine'",
        ),
    ],
)
def test_lightning_files_with_other_contents_are_refused(folder, parts, message):
    path = folder / "dna_cnn" / "finetuned.ckpt"
    rewritten(path, lambda state: None, **parts)
    with pytest.raises(CheckpointError, match=message):
        load_drakes(path, weights="ema")


def test_a_lightning_file_says_how_the_noise_enters(folder):
    path = folder / "dna_cnn" / "finetuned.ckpt"
    noise = {"type": "geometric", "sigma_min": 1e-3, "sigma_max": 5}
    rewritten(path, lambda state: None, hyper_parameters={"config": {"time_conditioning": True, "noise": noise}})
    denoiser = load_denoiser(path)
    assert denoiser.time_conditioned
    assert denoiser.config.schedule == Geometric(1e-3, 5.0)
    tokens, time = inputs(denoiser)
    assert not torch.equal(denoiser(tokens, time), denoiser(tokens, time / 2))


def test_a_list_of_tensors_is_refused(tmp_path):
    torch.save([torch.ones(2)], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="expected a dictionary, found list"):
        load_denoiser(tmp_path / "list.ckpt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found an empty file"),
        (b"seq,hepg2\nACGT,1\n", "expected safetensors or a checkpoint of torch, found a file that begins with b'seq,"),
        (b"PK\x03\x04 and no more", "not a whole checkpoint of torch"),
        (b"\x10\0\0\0\0\0\0\0{", "not a whole safetensors file"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(path)


@pytest.mark.parametrize("name", ["dna_cnn/pretrained.ckpt", "mdlm/model.safetensors"])
def test_truncated_files_are_refused(folder, name):
    path = folder / name
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="not a whole"):
        load_denoiser(path if path.suffix == ".ckpt" else path.parent)


def test_folders_without_a_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        load_denoiser(tmp_path / "absent")
    with pytest.raises(CheckpointError, match="no such file"):
        load_mdlm(tmp_path / "absent")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(CheckpointError, match=r"expected a config.json in it, found \['notes.txt'\]"):
        load_denoiser(tmp_path)
    for content, message in (
        ("{", "it is no JSON"),
        ("[1]", "expected a JSON object, found list"),
        ('{"x": 1}', r"found a configuration with the entries \['x'\]"),
        ('{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}', "MDLM, a SEDD or a masked.*found 'gpt2'"),
    ):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(tmp_path)


def test_each_loader_refuses_the_other_model(fixtures):
    with pytest.raises(CheckpointError, match="expected an MDLM.*found a configuration with the entries"):
        load_mdlm(fixtures / "sedd" / "absorb")
    with pytest.raises(CheckpointError, match="expected a SEDD.*found 'mdlm'"):
        load_sedd(fixtures / "mdlm")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("mdlm", {"hidden_dim": None}, "expected hidden_dim to be of type int, found None"),
        ("mdlm", {"n_heads": 0}, "heads is 0, but must be"),
        ("mdlm", {"n_heads": 5}, "cannot be shared by 5 heads"),
        ("mdlm", {"time_conditioning": 1}, "expected time_conditioning to be of type bool, found 1"),
        ("mdlm", {"n_heads": 4}, "expected rotary frequencies to the base 10,000 for 8 channels"),
        ("mdlm", {"n_blocks": 3}, r"missing: \['backbone.blocks.2.adaLN_modulation.bias'.* and 2 more"),
        ("mdlm", {"n_blocks": 1}, r"not expected: \['backbone.blocks.1.adaLN_modulation.bias'"),
        ("mdlm", {"vocab_size": 14}, r"output_layer.linear.weight expected \(14, 32\), found \(13, 32\)"),
        ("sedd/absorb", {"graph": {"type": "roulette"}}, r"among \['absorb', 'uniform'\], found 'roulette'"),
        (
            "sedd/absorb",
            {"graph": {"type": "uniform"}, "model": {"scale_by_sigma": False}},
            r"expected \(12, 32\), found \(13, 32\)",
        ),
        ("sedd/absorb", {"noise": {"type": "cosine"}}, "expected noise.type to be among"),
        (
            "sedd/uniform",
            {"noise": {"sigma_min": -1}},
            "sigma_min is -1.0 .float., but must be a finite number above 0",
        ),
        ("sedd/uniform", {"noise": {"sigma_max": "20"}}, "expected noise.sigma_max to be of type float, found '20'"),
        ("sedd/uniform", {"model": {"n_blocks": 2.0}}, "expected model.n_blocks to be of type int, found 2.0"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(folder, name, changes, message):
    change_config(folder / name, **changes)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("backbone.vocab_embed.embedding"), "missing: .*vocab_embed.embedding"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), r"not expected: \['extra'\]"),
        (lambda tensors: tensors["backbone.rotary_emb.inv_freq"].mul_(2), "expected rotary frequencies"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    change_tensors(folder / "mdlm" / "model.safetensors", change)
    with pytest.raises(CheckpointError, match=message):
        load_denoiser(folder / "mdlm")


def test_a_folder_without_weights_is_refused(folder):
    (folder / "mdlm" / "model.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"model.safetensors, pytorch_model.bin, an index of .* in it, found \['config.json'\]"
    ):
        load_denoiser(folder / "mdlm")


def test_the_table_of_rotary_frequencies_may_be_left_out(folder):
    path = folder / "mdlm" / "model.safetensors"
    expected = load_denoiser(folder / "mdlm")
    change_tensors(path, lambda tensors: tensors.pop("backbone.rotary_emb.inv_freq"))
    found = load_denoiser(folder / "mdlm")
    assert_same(found(*inputs(found)), expected(*inputs(expected)))
