"""What may happen to the training of a reward model: divergence, a second run, a removed folder, a full disk."""

import errno
import json
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.reward_model import main
from agents.reward_modelling import RewardModelConfig, train_reward_model
from agents.reward_modelling.run_folder import RUN_FILE, find_checkpoint
from agents.reward_modelling.training import METRICS_FILE, MODEL_FOLDER
from sepo_env.errors import CheckpointError, DivergenceError, FolderError, FolderInUseError
from sepo_env.files import LOCK_FILE, UNFINISHED, ClaimedFolder
from tests.agents.test_reward_model import make_pairs, small, stop_at, weights, write_pairs
from tests.agents.test_run_folder import files_of_at_most
from tests.hf_models import transformers

FILES = {LOCK_FILE, RUN_FILE, METRICS_FILE, MODEL_FOLDER, "checkpoints"}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", make_pairs(40))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def after_step(step: int, act: Any) -> Any:
    class After(transformers().TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                act()

    return After()


@pytest.mark.parametrize("rate", [1e8, 1e30, 1e38])
def test_steps_that_are_too_large_end_as_a_divergence(
    pairs: Path, tmp_path: Path, rate: float, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(pairs, tmp_path / "run", learning_rate=rate, save_every=1, warmup_share=0.0)
    with pytest.raises(DivergenceError, match="optimiser step .*lower learning_rate") as caught:
        train_reward_model(config, progress=False)
    assert caught.value.__notes__[-1] == "No checkpoint has been written yet."
    assert names(tmp_path / "run") <= FILES - {MODEL_FOLDER}
    assert find_checkpoint(tmp_path / "run")[0] is None
    flags = ["--pairs", str(pairs), "--log-dir", str(tmp_path / "other"), "--learning-rate", str(rate), "--quiet"]
    assert main([*flags, "--warmup-share", "0", "--width", "16", "--vocab-size", "270", "--max-length", "64"]) == 3
    assert capsys.readouterr().err.startswith("DivergenceError: ")


def test_a_divergence_leaves_the_last_sound_checkpoint(pairs: Path, tmp_path: Path) -> None:
    def break_it() -> None:
        with torch.no_grad():
            next(iter(stepping.model.parameters()))[0] = 1e9

    class Stepping(transformers().TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
            self.model = model
            if state.global_step == 4:
                break_it()

    stepping = Stepping()
    config = small(pairs, tmp_path / "run")
    with pytest.raises(DivergenceError, match=r"the parameter transformer\.\S+ is as large as 1e\+09") as caught:
        train_reward_model(config, progress=False, callbacks=[stepping])
    assert "that of step 3" in caught.value.__notes__[-1]
    assert train_reward_model(config, progress=False, resume=True).num_steps == 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_is_not_read_from_a_checkpoint(pairs: Path, tmp_path: Path, value: float) -> None:
    config = small(pairs, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(config, progress=False, callbacks=[stop_at(4)])
    file = tmp_path / "run" / "checkpoints" / "checkpoint-3" / "model.safetensors"
    tensors = load_file(file)
    tensors["score.weight"][0, 0] = value
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(
        CheckpointError, match=r"the base or the checkpoint: the parameter score\.weight is as large as"
    ):
        train_reward_model(config, progress=False, resume=True)


def test_a_loss_that_is_no_number_is_not_an_accuracy(
    pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agents.reward_modelling import pair_trainer

    monkeypatch.setattr(pair_trainer.PairTrainer, "compute_loss", lambda self, model, inputs, *_, **__: _zero(model))
    monkeypatch.setattr(pair_trainer, "margins", lambda *_: torch.tensor([float("nan")]))
    with pytest.raises(DivergenceError, match="the loss of the held-out pairs is nan"):
        train_reward_model(small(pairs, tmp_path / "run"), progress=False)
    assert not (tmp_path / "run" / MODEL_FOLDER).exists()


def _zero(model: Any) -> torch.Tensor:
    return sum(parameter.sum() * 0.0 for parameter in model.parameters())


def test_a_second_run_is_refused_and_harms_nothing(pairs: Path, tmp_path: Path) -> None:
    config = small(pairs, tmp_path / "run")
    left = tmp_path / "run" / f"{UNFINISHED}abcd1234"
    left.mkdir(parents=True)
    refused: list[Exception] = []

    def begin() -> None:
        assert not left.exists()
        left.mkdir()
        with pytest.raises(FolderInUseError, match="another run") as caught:
            train_reward_model(config, progress=False, resume=True)
        refused.append(caught.value)
        assert left.exists()
        left.rmdir()

    outcome = train_reward_model(config, progress=False, callbacks=[after_step(4, begin)])
    assert len(refused) == 1
    assert outcome.num_steps == 10
    assert names(tmp_path / "run") == FILES


@pytest.mark.parametrize("when", [2, 4, 10])
def test_a_removed_folder_is_written_again(pairs: Path, tmp_path: Path, when: int) -> None:
    whole = train_reward_model(small(pairs, tmp_path / "whole"), progress=False)
    config = small(pairs, tmp_path / "run")
    callback = after_step(when, lambda: shutil.rmtree(tmp_path / "run"))
    outcome = train_reward_model(config, progress=False, callbacks=[callback])
    assert names(tmp_path / "run") >= FILES - {"checkpoints"}
    ours, theirs = weights(outcome.folder), weights(whole.folder)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert len((tmp_path / "run" / METRICS_FILE).read_text().splitlines()) == 3
    assert train_reward_model(config, progress=False, resume=True).accuracy == outcome.accuracy


def test_a_folder_that_another_run_has_taken_is_not_written_to(pairs: Path, tmp_path: Path) -> None:
    folder, others = tmp_path / "run", []

    def take() -> None:
        shutil.rmtree(folder)
        others.append(ClaimedFolder(folder).__enter__())

    with pytest.raises(FolderInUseError):
        train_reward_model(small(pairs, folder), progress=False, callbacks=[after_step(2, take)])
    assert names(folder) == {LOCK_FILE}
    others[0].__exit__(None, None, None)


def test_a_full_disk_costs_no_checkpoint(pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = small(pairs, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(config, progress=False, callbacks=[stop_at(4)])
    with files_of_at_most(10_000), pytest.raises(FolderError, match="checkpoint-6: cannot be written") as caught:
        train_reward_model(config, progress=False, resume=True)
    assert "\n" not in str(caught.value)
    assert "that of step 3" in caught.value.__notes__[-1]
    assert names(tmp_path / "run" / "checkpoints") == {"checkpoint-3"}
    assert train_reward_model(config, progress=False, resume=True).num_steps == 10
    with files_of_at_most(10_000):
        flags = ["--pairs", str(pairs), "--log-dir", str(tmp_path / "other"), "--num-epochs", "1", "--quiet"]
        assert main([*flags, "--width", "16", "--vocab-size", "270", "--max-length", "64"]) == 1
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith(f"FolderError: {tmp_path / 'other' / 'checkpoints'}")


def test_shares_homes_and_paths(pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    present = tmp_path / "present"
    present.mkdir()
    monkeypatch.chdir(present)
    for log_dir in ("~/text", Path("~") / "path"):
        settings = {"width": 16, "depth": 1, "heads": 2, "vocab_size": 270, "max_length": 64, "num_epochs": 1}
        config = RewardModelConfig(Path("~") / pairs.name, log_dir, device="cpu", **settings)
        outcome = train_reward_model(config, progress=False)
        assert outcome.folder == tmp_path / Path(log_dir).name / MODEL_FOLDER
        assert json.loads((outcome.folder / "reward_model.json").read_text())["settings"]["log_dir"] == str(
            tmp_path / Path(log_dir).name
        )
    assert list(present.iterdir()) == []


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_places_that_cannot_be_folders_are_refused(pairs: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FolderError, match="a file stands where a folder is wanted"):
        train_reward_model(small(pairs, tmp_path / place), progress=False)
    assert (tmp_path / "file").read_text() == "mine"
