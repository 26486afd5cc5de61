"""Descriptions on disk: as they were written, or refused by name."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents import SEPO, Agent
from agents.sealed import MOST_BYTES, read_sealed, seal
from agents.storage import CONFIG_FILE
from sepo_env.errors import CheckpointError

DESCRIPTION = {"format": "x", "rate": 3e-05, "text": "é", "nested": {"a": [1, True, None]}}


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """The folder of a saved agent."""
    folder = tmp_path / "agent"
    SEPO("toy", device="cpu", learning_rate=3e-05).save(folder)
    return folder


def weights_of(folder: Path) -> Path:
    return next(folder.glob("denoiser-*.safetensors"))


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(seal(DESCRIPTION))
    assert read_sealed(path, "do", "x/0") == DESCRIPTION
    assert {name: value for name, value in json.loads(path.read_text()).items() if name != "sha256"} == DESCRIPTION


def test_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    """Every single one, those that would change no value, such as 3E-05 for 3e-05, included."""
    path, content = tmp_path / "x.json", seal(DESCRIPTION)
    path.write_bytes(content)
    assert read_sealed(path, "do", "x/0")
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match="x.json: "):
                read_sealed(path, "do", "x/0")


def test_flipped_bits_of_a_saved_agent_are_refused(agent: Path) -> None:
    """In config.json and in the weights alike."""
    draws = random.Random(0)
    for path in (agent / CONFIG_FILE, weights_of(agent)):
        content = path.read_bytes()
        for _ in range(40):
            place = draws.randrange(len(content))
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draws.randrange(8)]) + content[place + 1 :])
            with pytest.raises(CheckpointError, match=path.name):
                Agent.load(agent, device="cpu")
        path.write_bytes(content)
    assert Agent.load(agent, device="cpu").sample(1, seed=0)


def as_content(value: Any) -> bytes:
    return json.dumps(value).encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"[]", "a list, not a JSON object"),
        (b"3", "a int, not a JSON object"),
        (b"\xff{}", "no text file .*'utf-8'"),
        (b'{"format": NaN}', "its content has changed"),
        (b'{"format": "agents.agent/1", "config": {"learning_rate": NaN}}', "it lacks agent, task"),
        (b'{"a": ' * 100_000 + b"1" + b"}" * 100_000, "nested too deep"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "no JSON"),
        (b'{"a": "' + b" " * MOST_BYTES + b'"}', "more than 16,777,216 bytes"),
    ],
    ids=range(11),
)
def test_what_is_no_description_is_named(content: bytes, message: str, agent: Path) -> None:
    (agent / CONFIG_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        Agent.load(agent)
    assert "\n" not in str(caught.value)


def test_editors_may_put_a_mark_in_front(agent: Path) -> None:
    content = (agent / CONFIG_FILE).read_bytes()
    (agent / CONFIG_FILE).write_bytes(b"\xef\xbb\xbf" + content)
    assert Agent.load(agent, device="cpu").sample(1, seed=0)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_no_description(agent: Path) -> None:
    (agent / CONFIG_FILE).unlink()
    os.mkfifo(agent / CONFIG_FILE)
    with pytest.raises(CheckpointError, match="a device or a pipe"):
        Agent.load(agent)


def renamed(name: Any) -> Callable[[Path], None]:
    """Another entry for the weights, honestly sealed."""

    def change(folder: Path) -> None:
        description = read_sealed(folder / CONFIG_FILE, "do", "x/0")
        (folder / CONFIG_FILE).write_bytes(seal({**description, "weights": name}))

    return change


def linked_out(folder: Path) -> None:
    weights = weights_of(folder)
    outside = folder.parent / weights.name
    weights.rename(outside)
    weights.symlink_to(outside)


def cut_off(folder: Path) -> None:
    weights = weights_of(folder)
    weights.write_bytes(weights.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (renamed("/dev/zero"), "weights are '/dev/zero', which is no file of a saved agent"),
        (renamed("../denoiser-0123456789abcdef.safetensors"), "which is no file of a saved agent"),
        (renamed("denoiser-0123456789abcdef.safetensors/../../x"), "which is no file of a saved agent"),
        (renamed("denoiser-0123456789ABCDEF.safetensors"), "which is no file of a saved agent"),
        (renamed("denoiser-0123456789abcdef.safetensors\n"), "which is no file of a saved agent"),
        (renamed(CONFIG_FILE), "which is no file of a saved agent"),
        (renamed(None), "weights are None, which is no file"),
        (renamed(["x"]), "which is no file of a saved agent"),
        (renamed("denoiser-0123456789abcdef.safetensors"), "denoiser-0123456789abcdef.safetensors is missing"),
        (linked_out, "a link that leads out of the agent's folder"),
        (cut_off, "its content has changed"),
    ],
    ids=range(11),
)
def test_weights_are_a_file_of_the_folder(change: Callable[[Path], None], message: str, agent: Path) -> None:
    change(agent)
    with pytest.raises(CheckpointError, match=message) as caught:
        Agent.load(agent)
    assert "\n" not in str(caught.value)


def test_a_folder_may_be_reached_by_a_link(agent: Path) -> None:
    link = agent.parent / "link"
    link.symlink_to(agent, target_is_directory=True)
    assert Agent.load(link, device="cpu").sample(1, seed=0)


def test_an_agent_from_before_there_were_seals_is_read(agent: Path) -> None:
    description = read_sealed(agent / CONFIG_FILE, "do", "x/0")
    del description["task"]["denoiser"], description["task"]["settings"]
    (agent / CONFIG_FILE).write_text(json.dumps({**description, "format": "agents.agent/1"}))
    assert Agent.load(agent, device="cpu").sample(3, seed=0) == Agent.load(agent, device="cpu").sample(3, seed=0)
    (agent / CONFIG_FILE).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="its content has changed since it was written"):
        Agent.load(agent)
