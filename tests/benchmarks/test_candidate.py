"""What the published protocol judges: agents with their own samplers, files, folders and models on the hub."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from agents import REINFORCE
from benchmarks import _candidate, paper_dna
from sepo_env import tasks
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, save_denoiser
from sepo_env.diffusion import Cosine
from sepo_env.errors import CheckpointError

SMALL = {"seeds": (0,), "num_samples": 6, "batch_size": 4, "num_steps": 3, "num_likelihood_steps": 2, "device": "cpu"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A denoiser file of the task that evaluates in no time."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_denoiser(ConvDenoiser(ConvDenoiserConfig(length=200, channels=8, dilations=(1,))), path)
    return str(path)


@pytest.fixture
def options(tiny: str, tmp_path: Path) -> paper_dna.Options:
    return paper_dna.Options(**SMALL, checkpoint=tiny, output=tmp_path / "out")


def changed(options: paper_dna.Options, **fields: object) -> paper_dna.Options:
    return paper_dna.Options(**{**vars(options), **fields})


def save(folder: Path, settings: dict[str, object] | None = None, **task: object) -> str:
    REINFORCE(tasks.make("dna_enhancer", **task), device="cpu", **(settings or {})).save(folder / "agent")
    return str(folder / "agent")


def test_an_agent_that_samples_otherwise_is_not_said_to_follow_the_protocol(tiny: str, tmp_path: Path) -> None:
    saved = {
        "corrected": save(tmp_path / "a", {"corrector_steps": 2}, denoiser=tiny),
        "prompted": save(tmp_path / "b", flanks=("ACG", ""), denoiser=tiny),
        "plain": save(tmp_path / "c", denoiser=tiny),
    }
    shown = {}
    for name, path in saved.items():
        options = paper_dna.Options(checkpoint=path)
        departing = _candidate.departures(tasks.make("dna_enhancer"), _candidate.agent_description(path))
        assert paper_dna.is_published_protocol(options, departing) is (name == "plain")
        shown[name] = paper_dna.caveat(options, departing)
    assert "not the published protocol**: its sampler makes 2 corrector step(s)" in shown["corrected"]
    assert "not the published protocol**: it was trained on prompts" in shown["prompted"]
    assert "not the published protocol" not in shown["plain"]
    assert all("their spread holds no variance of training" in text for text in shown.values())
    assert not paper_dna.is_published_protocol(paper_dna.Options(num_samples=100), [])


def test_an_agent_is_judged_with_the_noise_of_its_training(options: paper_dna.Options, tmp_path: Path) -> None:
    agent = REINFORCE(tasks.make("dna_enhancer", schedule="cosine"), device="cpu")
    agent.save(tmp_path / "run" / "agent")
    chosen = changed(options, checkpoint=str(tmp_path / "run" / "agent"))
    assert paper_dna.main(chosen, "") == 0
    assert "it denoises with the noise of its training" in (chosen.folder / "report.md").read_text()
    expected = agent.sample(6, num_steps=3, seed=0)
    assert list(pd.read_csv(chosen.folder / "seed-0.csv")["sequence"]) == expected
    other = changed(options, checkpoint=save(tmp_path / "other", schedule=Cosine(eps=0.5)), output=tmp_path / "o")
    with pytest.raises(CheckpointError, match=r"schedule=Cosine\(eps=0.5\)\), and known here are .*cosine"):
        paper_dna.main(other, "")


def test_each_has_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.1").mkdir()
    names = ["runs/a/agent", "runs/b.2/agent", "agent", "runs/a/checkpoint.pt", "a/best.ckpt", "b.1", "hub:me/it@v1"]
    found = [_candidate.name_of(name) for name in names]
    assert found == ["a", "b.2", tmp_path.name, "a", "best", "b.1", "me-it-v1"]
    assert _candidate.name_of(None) == "pretrained"
    assert paper_dna.Options(checkpoint="runs/a/agent").folder == Path("runs/paper-dna-a")


def test_a_model_on_the_hub_is_known_by_its_name_and_commit(
    options: paper_dna.Options, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(tiny, tmp_path / "0a1b2c")

    def snapshot(path: str, *, programs: bool = False) -> Path:
        return tmp_path / "0a1b2c" if path == "hub:me/it" else Path(path)

    monkeypatch.setattr("benchmarks._candidate.local_path", snapshot)
    monkeypatch.setattr("sepo_env.denoisers.checkpoint.local_path", snapshot)
    assert paper_dna.main(changed(options, checkpoint="hub:me/it"), "") == 0
    record = json.loads((options.folder / "seed-0.json").read_text())
    assert record["settings"]["checkpoint"] == "hub:me/it (0a1b2c)"


@pytest.mark.parametrize("text", ["[1]", "3", "{", '{"format": "agents.agent/1"}'])
def test_a_folder_that_is_no_agent_is_refused_by_name(options: paper_dna.Options, tmp_path: Path, text: str) -> None:
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="config.json"):
        paper_dna.main(changed(options, checkpoint=str(tmp_path / "agent")), "")
    assert not options.folder.exists()
