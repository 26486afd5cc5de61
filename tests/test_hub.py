"""Whatever takes a path takes a hub id; huggingface_hub is a stand-in that copies from a folder, never a network."""

import fnmatch
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from agents.reward_modelling import RewardModelConfig
from agents.reward_modelling.models import make_model
from sepo_env import tasks
from sepo_env.denoisers import (
    DNAConvDenoiser,
    MaskedLMDenoiser,
    MDLMConfig,
    MDLMDenoiser,
    load_denoiser,
    load_drakes,
    load_masked_lm,
    save_denoiser,
)
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.loading.hub import local_path, lone_file
from sepo_env.rewards import SequenceClassifierReward
from sepo_env.tasks.language_metrics import Perplexity
from tests import hf_models
from tests.comparisons import assert_same


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, project_root) -> Path:
    torch.manual_seed(0)
    root, fixtures = tmp_path_factory.mktemp("hub"), project_root / "tests" / "fixtures"
    hf_models.save_masked_lm(root / "o" / "bert")
    hf_models.save_classifier(root / "o" / "classifier")
    hf_models.make_tokenizer().save_pretrained(root / "o" / "tokenizer")
    library, tokenizer = hf_models.transformers(), hf_models.make_tokenizer()
    causal = library.GPT2LMHeadModel(library.GPT2Config(vocab_size=9, n_positions=12, n_embd=8, n_layer=1, n_head=2))
    causal.save_pretrained(root / "o" / "gpt2")
    tokenizer.save_pretrained(root / "o" / "gpt2")
    pickled = shutil.copytree(root / "o" / "bert", root / "o" / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    (pickled / "training_args.bin").write_bytes(b"")
    (root / "o" / "dna").mkdir()
    shutil.copy(fixtures / "dna_cnn" / "pretrained.ckpt", root / "o" / "dna")
    (root / "o" / "own").mkdir()
    save_denoiser(load_denoiser(fixtures / "mdlm"), root / "o" / "own" / "weights.safetensors")
    remote = root / "o" / "remote"
    tokenizer.save_pretrained(remote)
    hf_models.save_remote(remote)
    return root


@pytest.fixture
def asked(monkeypatch, repositories, tmp_path) -> list[list[str]]:
    """The patterns of each download."""
    patterns: list[list[str]] = []

    def snapshot_download(name, *, revision, allow_patterns):
        patterns.append(allow_patterns)
        target = tmp_path / "cache" / name
        target.mkdir(parents=True, exist_ok=True)
        for file in (repositories / name).iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target)
        return str(target)

    # The module itself stays: Transformers needs the rest of it.
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    return patterns


@pytest.mark.parametrize("name", ["hub:o/bert", Path("hub:o/bert")])
@pytest.mark.parametrize("load", [load_denoiser, load_masked_lm])
def test_masked_language_models(load, name, asked) -> None:
    assert type(load(name)) is MaskedLMDenoiser
    assert not any(pattern.endswith((".py", ".bin", ".ckpt")) for patterns in asked for pattern in patterns)


def test_repositories_with_pickled_weights_alone(asked, tmp_path) -> None:
    assert type(load_denoiser("hub:o/pickled")) is MaskedLMDenoiser
    assert not (tmp_path / "cache" / "o" / "pickled" / "training_args.bin").exists()
    assert type(load_denoiser("hub:o/dna")) is DNAConvDenoiser
    assert type(load_drakes("hub:o/dna", weights="ema")) is DNAConvDenoiser
    assert not any(pattern.endswith(".py") for patterns in asked for pattern in patterns)


def test_one_file_of_weights_needs_no_configuration(asked, tmp_path) -> None:
    assert type(load_denoiser("hub:o/own")) is MDLMDenoiser
    folder = tmp_path / "two"
    folder.mkdir()
    (folder / "a.ckpt").touch()
    assert lone_file(folder) == folder / "a.ckpt"
    (folder / "b.safetensors").touch()
    assert lone_file(folder) == folder
    with pytest.raises(CheckpointError, match=r"expected a config.json in it, found \['a.ckpt', 'b.safetensors'\]"):
        load_denoiser(folder)


def test_tokenizers_and_rewards_of_a_task(asked) -> None:
    task = tasks.make(
        "text_rlhf",
        denoiser=MDLMDenoiser(MDLMConfig(num_tokens=11, width=8, depth=1, heads=2, cond_width=4)),
        tokenizer="hub:o/tokenizer",
        reward_model="hub:o/classifier",
        held_out_model=Path("hub:o/classifier@v2"),
        length=4,
    )
    tokens = task.encode(["a b c d"])
    torch.testing.assert_close(task.make_reward()(tokens), task.judge()(tokens))
    decode = task.decode
    reward = SequenceClassifierReward("hub:o/classifier", decode=decode)
    assert reward.name == "classifier"
    torch.testing.assert_close(reward(tokens), task.judge()(tokens))


def test_models_that_judge_and_bases_of_reward_models(asked, repositories, tmp_path) -> None:
    found = Perplexity("hub:o/gpt2").log_likelihoods(["a b c"])[0]
    assert_same(found, Perplexity(repositories / "o" / "gpt2").log_likelihoods(["a b c"])[0])
    model, _ = make_model(RewardModelConfig(pairs="pairs.jsonl", log_dir=str(tmp_path), base="hub:o/gpt2"), [])
    assert type(model).__name__ == "GPT2ForSequenceClassification"


def test_programs_are_fetched_only_for_those_who_trust_them(asked) -> None:
    with pytest.raises(CheckpointError, match=r"own.OwnModel.*trust_remote_code=True"):
        load_denoiser("hub:o/remote")
    with pytest.raises(CheckpointError, match="trust_remote_code=True"):
        tasks.make("text_rlhf", denoiser="hub:o/remote")
    assert not any("*.py" in patterns for patterns in asked)
    with hf_models.forgotten_modules():
        assert type(load_masked_lm("hub:o/remote", trust_remote_code=True)) is MaskedLMDenoiser
        options = json.loads('{"denoiser": "hub:o/remote", "trust_remote_code": true, "length": 3}')
        task = tasks.make("text_rlhf", **options)
        assert type(task.load_denoiser()) is MaskedLMDenoiser
    assert "*.py" in asked[-1]


def test_ids_that_name_nothing() -> None:
    for name in ("hub:", "hub:/", Path("hub:")):
        with pytest.raises(InvalidArgumentError, match="names no model"):
            local_path(name)
