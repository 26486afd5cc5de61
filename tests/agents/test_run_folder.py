"""The folder of a run: one for all that is written, one run at a time, and what becomes of it when it breaks."""

import errno
import os
import resource
import shutil
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import SEPO, Agent, agent_class
from agents.registry import learners
from agents.train import main
from agents.training.checkpoint import load_checkpoint
from agents.training.events import Events
from agents.training.logs import METRICS_FILE, TENSORBOARD_FOLDER, Row, read_metrics
from agents.training.recovery import AGENT_FOLDER, checkpoint_path
from sepo_env.errors import FolderError, FolderInUseError, InvalidArgumentError
from sepo_env.files import LOCK_FILE, UNFINISHED, ClaimedFolder
from tests.agents.events import read_events

SMALL: dict[str, Any] = {"num_iterations": 4, "batch_size": 4, "num_steps": 2, "eval_every": 3, "eval_samples": 4}
FILES = {"checkpoint.pt", METRICS_FILE, TENSORBOARD_FOLDER, LOCK_FILE}
FLAGS = ["sepo", "--task", "ToyCTMC-v0", "--device", "cpu", "--batch-size", "4", "--num-steps", "2", "--quiet"]


def small(folder: str | Path | None, kind: type[Agent] = SEPO, **settings: Any) -> Agent:
    return kind("ToyCTMC-v0", device="cpu", log_dir=folder, **(SMALL | settings))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def timeless(rows: list[Row]) -> list[Row]:
    return [{name: value for name, value in row.items() if name != "wall_time"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    """A run that nothing happened to."""
    agent = small(tmp_path_factory.mktemp("whole") / "run")
    agent.train(progress=False)
    return agent


def assert_whole(folder: Path, agent: Agent, whole: Agent) -> None:
    """All is there, and it is what a run that nothing happened to has."""
    assert names(folder) == FILES
    assert timeless(agent.history) == timeless(whole.history)
    assert read_metrics(folder) == agent.history
    assert_events_agree(folder)
    assert all(torch.equal(v, whole.denoiser.state_dict()[n]) for n, v in agent.denoiser.state_dict().items())
    parts, _ = load_checkpoint(checkpoint_path(folder), ["progress"])
    assert parts["progress"]["iteration"] == len(whole.history)


def assert_events_agree(folder: Path) -> None:
    rows, events = read_metrics(folder), read_events(folder / TENSORBOARD_FOLDER)
    for name in rows[0].keys() - {"iteration"}:
        expected = [(row["iteration"], row[name]) for row in rows if row[name] is not None]
        found = sorted(events.get(name, []))
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-6), name


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of its own, and another present folder."""
    home, present = tmp_path / "home", tmp_path / "present"
    home.mkdir()
    present.mkdir()
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.chdir(present)
    return home


@pytest.mark.parametrize("name", learners())
def test_a_home_is_filled_in_for_all_that_is_written(name: str, home: Path) -> None:
    agent = small("~/runs/a", agent_class(name))
    agent.train(progress=False)
    assert names(home / "runs" / "a") == FILES
    agent.save("~/saved")
    assert Agent.load("~/saved", device="cpu").sample(2, seed=0) == agent.sample(2, seed=0)
    assert names(home) == {"runs", "saved"}
    assert list(Path.cwd().iterdir()) == []


def test_the_command_line_fills_in_a_home(home: Path) -> None:
    assert main([*FLAGS, "--num-iterations", "1", "--log-dir", "~/run"]) == 0
    assert names(home / "run") == FILES | {AGENT_FOLDER, "samples.csv"}
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("name", learners())
def test_a_folder_may_be_a_path(name: str, tmp_path: Path) -> None:
    small(tmp_path / "run", agent_class(name)).train(progress=False)
    assert names(tmp_path / "run") == FILES
    assert names(tmp_path) == {"run"}


def test_a_run_stays_in_its_folder_when_somebody_changes_the_present_one(home: Path, whole: Agent) -> None:
    present = Path.cwd()
    agent = small("run", checkpoint_every=1)
    agent.train(progress=False, callbacks=[lambda row: os.chdir(home)])
    assert_whole(present / "run", agent, whole)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("name", learners())
def test_shares_that_cannot_sync_a_folder_are_trained_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def refuse(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    agent = small(tmp_path / "run", agent_class(name))
    agent.train(progress=False)
    agent.save(tmp_path / "agent")
    assert names(tmp_path / "run") == FILES
    assert Agent.load(tmp_path / "agent", device="cpu").sample(2, seed=0) == agent.sample(2, seed=0)


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_is_refused_at_once_and_harms_nothing(tmp_path: Path, whole: Agent, resume: bool) -> None:
    refused: list[FolderInUseError] = []

    def begin(row: Row) -> None:
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        if resume and not checkpoint_path(tmp_path).exists():
            return
        with pytest.raises(FolderInUseError, match="another run .* writes there") as caught:
            small(tmp_path).train(progress=False, resume=resume)
        refused.append(caught.value)
        assert main([*FLAGS, "--log-dir", str(tmp_path), *(["--resume"] if resume else [])]) == 1
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before

    agent = small(tmp_path, checkpoint_every=1 if resume else 100)
    agent.train(progress=False, callbacks=[begin])
    assert len(refused) >= 3
    assert_whole(tmp_path, agent, whole)


def test_what_killed_runs_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / AGENT_FOLDER, tmp_path / "mine"):
        folder.mkdir(exist_ok=True)
        (folder / f"{UNFINISHED}abcd1234").mkdir()
        (folder / f"{UNFINISHED}abcd1234" / "checkpoint.pt").write_text("half")
        (folder / ".checkpoint.pt.abcd1234").write_text("mine")
    small(tmp_path).train(progress=False)
    mine = {".checkpoint.pt.abcd1234"}
    assert names(tmp_path) == FILES | mine | {AGENT_FOLDER, "mine"}
    assert names(tmp_path / AGENT_FOLDER) == mine
    assert names(tmp_path / "mine") == mine | {f"{UNFINISHED}abcd1234"}


@pytest.mark.parametrize("checkpoint_every", [1, 100])
@pytest.mark.parametrize("when", [1, 3, 4])
@pytest.mark.parametrize("what", ["all", METRICS_FILE, TENSORBOARD_FOLDER, "checkpoint.pt"])
def test_what_is_removed_from_a_running_run_is_written_again(
    tmp_path: Path, whole: Agent, what: str, when: int, checkpoint_every: int
) -> None:
    folder = tmp_path / "run"

    def remove(row: Row) -> None:
        path = folder if what == "all" else folder / what
        if row["iteration"] == when and path.exists():
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    agent = small(folder, checkpoint_every=checkpoint_every)
    agent.train(progress=False, callbacks=[remove])
    assert_whole(folder, agent, whole)


def test_a_folder_that_another_run_has_taken_is_not_written_to(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(FolderInUseError) as caught, _taken(folder) as take:
        small(folder, checkpoint_every=1).train(progress=False, callbacks=[take])
    assert names(folder) == {LOCK_FILE}
    assert "its state could not be written" in caught.value.__notes__[-1]


@contextmanager
def _taken(folder: Path) -> Iterator[Any]:
    """Give a callback after which another run has a folder of the same name."""
    others: list[ClaimedFolder] = []

    def take(row: Row) -> None:
        if row["iteration"] == 2:
            shutil.rmtree(folder)
            others.append(ClaimedFolder(folder).__enter__())

    try:
        yield take
    finally:
        for other in others:
            other.__exit__(None, None, None)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Let no file become larger: what a full disk is to a writer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize(("size", "checkpoint_every"), [(20_000, 1), (20_000, 100), (100, 1), (100, 100)])
def test_a_full_disk_costs_no_checkpoint(tmp_path: Path, whole: Agent, size: int, checkpoint_every: int) -> None:
    settings: dict[str, Any] = {"checkpoint_every": checkpoint_every}
    small(tmp_path, num_iterations=1, **settings).train(progress=False)
    before = checkpoint_path(tmp_path).read_bytes()
    agent = small(tmp_path, **settings)
    with files_of_at_most(size), pytest.raises(FolderError, match="cannot be written") as caught:
        agent.train(progress=False, resume=True)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert f"An older state is in {checkpoint_path(tmp_path)}" in caught.value.__notes__[-1]
    assert checkpoint_path(tmp_path).read_bytes() == before
    assert names(tmp_path) == FILES
    agent = small(tmp_path, **settings)
    agent.train(progress=False, resume=True)
    assert_whole(tmp_path, agent, whole)


def test_a_full_disk_ends_the_command_line_with_one_and_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(20_000):
        assert main([*FLAGS, "--num-iterations", "2", "--log-dir", str(tmp_path)]) == 1
    first, *notes = capsys.readouterr().err.splitlines()
    assert first.startswith(f"FolderError: {checkpoint_path(tmp_path)}: cannot be written (")
    assert len(notes) == 1
    assert notes[0].startswith("The last whole iteration is 2; its state could not be written")


def test_ctrl_c_on_a_full_disk_is_still_ctrl_c(tmp_path: Path) -> None:
    def interrupt(row: Row) -> None:
        raise KeyboardInterrupt

    with files_of_at_most(20_000), pytest.raises(KeyboardInterrupt) as caught:
        small(tmp_path).train(progress=False, callbacks=[interrupt])
    assert "The last whole iteration is 1; its state could not be written" in caught.value.__notes__[-1]


@pytest.mark.parametrize("place", ["file", "file/below", "link"])
def test_places_that_cannot_be_folders_are_refused_before_anything_is_trained(
    tmp_path: Path, place: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    seen: list[Row] = []
    with pytest.raises(FolderError, match="cannot be written"):
        small(tmp_path / place).train(progress=False, callbacks=[seen.append])
    assert seen == []
    assert main([*FLAGS, "--log-dir", str(tmp_path / place)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("FolderError: ")
    assert names(tmp_path) == {"file", "link"}
    with pytest.raises(FolderError, match="cannot be written"):
        small(None).save(tmp_path / place)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_missing_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(FolderError, match="choose a folder that you may write to"):
        small(tmp_path / "run").train(progress=False)


def test_a_folder_needs_a_name() -> None:
    for wrong in ("", "a\0b", 3, b"run"):
        with pytest.raises(InvalidArgumentError, match="log_dir is "):
            small(wrong)  # type: ignore[arg-type]


INTERRUPTED = {
    "before the row": "agents.training.logs.RunLog.update",
    "in the table": "agents.training.logs.RunLog._write_rows",
    "in the events": "agents.training.events.Events.add",
    "after the row": "agents.training.progress.ProgressBar.update",
    "in the checkpoint": "agents.training.recovery.save_checkpoint",
    "in the copy": "agents.training.recovery.RunCheckpoint.hold",
    "in an evaluation": "agents.training.evaluation.Evaluator.evaluate",
    "in an update": "agents.training.update.Updater.update",
}


@pytest.mark.parametrize("where", INTERRUPTED)
def test_table_and_events_agree_wherever_ctrl_c_comes(
    tmp_path: Path, whole: Agent, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def interrupt(*_: object, **__: object) -> None:
        nonlocal calls
        calls += 1
        if calls == (1 if where == "in an evaluation" else 3):
            raise KeyboardInterrupt
        return original(*_, **__)

    with monkeypatch.context() as patch:
        module, _, name = INTERRUPTED[where].rpartition(".")
        owner = _find(module)
        original = getattr(owner, name)
        patch.setattr(owner, name, interrupt)
        agent = small(tmp_path, checkpoint_every=1)
        with pytest.raises(KeyboardInterrupt):
            agent.train(progress=False)
    assert read_metrics(tmp_path) == agent.history
    assert_events_agree(tmp_path)
    parts, _ = load_checkpoint(checkpoint_path(tmp_path), ["progress"])
    assert parts["progress"]["iteration"] == len(agent.history) >= 1
    resumed = small(tmp_path, checkpoint_every=1)
    resumed.train(progress=False, resume=True)
    assert_whole(tmp_path, resumed, whole)


def _find(path: str) -> Any:
    """A module, or a class in one."""
    import importlib

    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def test_events_that_a_killed_run_lost_are_written_when_it_goes_on(tmp_path: Path, whole: Agent) -> None:
    small(tmp_path, num_iterations=2).train(progress=False)
    (file,) = (tmp_path / TENSORBOARD_FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:-7])  # in the middle of the last row
    agent = small(tmp_path, num_iterations=3)
    agent.train(progress=False, resume=True)
    assert_events_agree(tmp_path)
    # Rows later than the checkpoint, which the run will make again.
    surplus = Events(tmp_path / TENSORBOARD_FOLDER, agent.history)
    surplus.add(agent.history[-1] | {"iteration": 4, "reward_mean": 99.0})
    surplus.close()
    agent = small(tmp_path)
    agent.train(progress=False, resume=True)
    assert_whole(tmp_path, agent, whole)


def test_events_may_be_asked_for_later(tmp_path: Path, whole: Agent) -> None:
    small(tmp_path, num_iterations=2, tensorboard="off").train(progress=False)
    agent = small(tmp_path, tensorboard="on")
    agent.train(progress=False, resume=True)
    assert_whole(tmp_path, agent, whole)


@pytest.mark.parametrize("name", learners())
def test_a_run_goes_on_with_smaller_micro_batches(name: str, tmp_path: Path) -> None:
    """Rounding is all that differs, 1e-5 at most."""
    kind = agent_class(name)
    whole = small(tmp_path / "whole", kind, batch_size=8)
    whole.train(progress=False)
    small(tmp_path / "parted", kind, batch_size=8, num_iterations=2).train(progress=False)
    parted = small(tmp_path / "parted", kind, batch_size=8, micro_batch_size=2)
    parted.train(progress=False, resume=True)
    for row, other in zip(whole.history, parted.history, strict=True):
        for column in ("iteration", "nfe", "reward_calls", "reward_mean", "held_out_reward"):
            assert other[column] == row[column], column
    ours, theirs = (dict(agent.denoiser.state_dict()) for agent in (parted, whole))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
