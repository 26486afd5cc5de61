"""A shipped file that is no longer what was shipped is noticed when it is opened, whichever bit has changed."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.build_assets.oracle_files import save_oracle
from sepo_env import assets, tasks
from sepo_env.assets import FOLDER, MANIFEST, asset_path, recorded
from sepo_env.assets.checksums import record, write_checksums
from sepo_env.denoisers import load_denoiser
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.rewards.oracles import load_oracle

NAMES = sorted(path.name for path in assets.assets(FOLDER))
CURE = r"reinstall sepo-env; or .* run python -m sepo_env.assets.checksums"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the assets that a test may change, in their place."""
    copy = shutil.copytree(FOLDER, tmp_path / "assets", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(assets, "FOLDER", copy)
    return copy


def flip(path: Path, place: int, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)


def test_every_asset_is_in_the_manifest_and_the_manifest_is_true() -> None:
    assert len(NAMES) >= 11
    assert {path.suffix for path in FOLDER.iterdir() if path.is_file()} <= {*assets.SUFFIXES, ".md", ".py"}
    assert recorded(FOLDER) == {name: assets.sha256_of(FOLDER / name) for name in NAMES}
    assert [asset_path(name).name for name in NAMES] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_flipped_bit_is_noticed(name: str, folder: Path) -> None:
    whole = (folder / name).read_bytes()
    assert asset_path(name) == folder / name
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 1.0):
        place = round(share * (len(whole) - 1))
        flip(folder / name, place, place % 8)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: its content has changed.*{CURE}"):
            asset_path(name)
        (folder / name).write_bytes(whole)
        assert asset_path(name) == folder / name


@pytest.mark.parametrize("name", NAMES)
def test_files_that_are_cut_off_or_gone_are_noticed(name: str, folder: Path) -> None:
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: its content has changed.*{CURE}"):
        asset_path(name)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: this shipped file is missing; {CURE}"):
        asset_path(name)


def test_whoever_opens_an_asset_is_told(folder: Path) -> None:
    opened = {
        "dna_denoiser.safetensors": lambda: tasks.make("dna_enhancer").load_denoiser(),
        "dna_activity_training.safetensors": lambda: tasks.make("dna_enhancer").make_reward(),
        "dna_activity_held_out.safetensors": lambda: tasks.make("dna_enhancer").judge(),
        "dna_enhancer_tables.npz": lambda: tasks.make("dna_enhancer").reference,
        "dna_accessibility.safetensors": lambda: tasks.make("dna_enhancer").make_reward("accessibility"),
        "text_sentiment_tables.npz": lambda: tasks.make("text_sentiment").reference,
        "text_denoiser.safetensors": lambda: tasks.make("text_sentiment").load_denoiser(),
        "text_sentiment.safetensors": lambda: tasks.make("text_sentiment").make_reward(),
        "text_codec.json": lambda: tasks.make("text_sentiment"),
        "text_rlhf_prompts.jsonl": lambda: tasks.make("text_rlhf"),
    }
    for name, use in opened.items():
        flip(folder / name, 100, 3)
        with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: its content has changed"):
            use()
        flip(folder / name, 100, 3)


def test_the_manifest_itself_may_be_damaged(folder: Path) -> None:
    name, text = NAMES[0], (folder / MANIFEST).read_text()
    for content in ("", "{", "[]", text.replace('"', "'"), text[:-40]):
        (folder / MANIFEST).write_text(content)
        with pytest.raises(CheckpointError, match=rf"checksums.json: the checksums .* cannot be read.*{CURE}"):
            asset_path(name)
    (folder / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=f"checksums.json: the checksums .* no such file.*{CURE}"):
        asset_path(name)
    (folder / MANIFEST).write_text("{}")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)}: checksums.json does not know it; {CURE}"):
        asset_path(name)
    (folder / MANIFEST).write_text(json.dumps({other: 5 for other in NAMES}))
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}: its content has changed"):
        asset_path(name)


def test_other_names_are_refused() -> None:
    for name in ("dna_denoisr.safetensors", "", "../__init__.py", "__init__.py", MANIFEST, "/etc/passwd"):
        with pytest.raises(UnknownNameError):
            asset_path(name)
    with pytest.raises(InvalidArgumentError, match="name is 3, but must be text"):
        asset_path(3)


def test_a_file_is_read_once_as_long_as_it_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    monkeypatch.setattr(assets, "sha256_of", lambda path: read.append(path) or "")
    for _ in range(3):
        with pytest.raises(CheckpointError):
            asset_path(NAMES[0])
    assert read == [folder / NAMES[0]]


# How the manifest is written


def test_the_manifest_is_written_by_a_command(folder: Path) -> None:
    before = (folder / MANIFEST).read_bytes()
    flip(folder / NAMES[0], 0, 0)
    assert write_checksums(folder) == folder / MANIFEST
    assert (folder / MANIFEST).read_bytes() != before
    assert asset_path(NAMES[0]) == folder / NAMES[0]
    flip(folder / NAMES[0], 0, 0)
    write_checksums(folder)
    assert (folder / MANIFEST).read_bytes() == before
    command = [sys.executable, "-c", "import sepo_env.assets.checksums as c; print(c.write_checksums.__defaults__[0])"]
    assert Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()) == FOLDER


def test_scripts_that_make_an_asset_record_it(folder: Path, tmp_path: Path, project_root: Path) -> None:
    oracle = load_oracle(asset_path("dna_accessibility.safetensors"))
    oracle.quantity = "something else"
    save_oracle(oracle, folder / "dna_accessibility.safetensors", {})
    assert load_oracle(asset_path("dna_accessibility.safetensors")).quantity == "something else"
    # Elsewhere nothing is written beside the file.
    save_oracle(oracle, tmp_path / "mine.safetensors", {})
    record(tmp_path / "mine.safetensors")
    assert not (tmp_path / MANIFEST).exists()
    for path in (project_root / "benchmarks" / "build_assets").glob("*.py"):
        writes = re.search(r"savez|save_denoiser\(|save_sentiment\(|codec\.save\(|save_file\(", path.read_text())
        assert bool(writes) is ("record(" in path.read_text()), path.name


def test_weights_that_are_no_assets_are_not_compared(folder: Path, tmp_path: Path) -> None:
    mine = shutil.copy(folder / "dna_denoiser.safetensors", tmp_path / "mine.safetensors")
    assert all(torch.isfinite(value).all() for value in load_denoiser(mine).state_dict().values())
