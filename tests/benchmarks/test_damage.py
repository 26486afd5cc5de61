"""Whatever becomes of a comparison's files, the next call ends in a line that names the file, or as if nothing was."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import compare
from benchmarks.comparison.runs import plan
from sepo_env.errors import SepoEnvError
from sepo_env.files import LOCK_FILE

SMOKE = compare.Options(
    task="ToyCTMC-v0", smoke=True, agents=("pretrained", "ddpo"), seeds=(0,), workers=1, device="cpu"
)
RUN_FILES = ("config.json", "run.json", "curve.csv", "samples.csv")
OTHER_SHAPES = ("[]", "3", '"text"', "null", "{}", '{"figures": 3}', '{"figures": {}, "files": []}', '{"nfe": "many"}')


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that has ended well."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert compare.main(dataclasses.replace(SMOKE, output=output), "command") == 0
    return output


@pytest.fixture
def options(finished: Path, tmp_path: Path) -> compare.Options:
    shutil.copytree(finished, tmp_path / "out")
    return dataclasses.replace(SMOKE, output=tmp_path / "out")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def truncated(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(500))


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(bytes(content))


def another_table(path: Path) -> None:
    path.write_text("a,b\n1,2\n")


def longer_rows(path: Path) -> None:
    path.write_text("iteration,held_out_reward,sequence\n1,2,A,4,5,6\n")


def text_for_numbers(path: Path) -> None:
    path.write_text("iteration,held_out_reward,sequence\nfew,little,A\n")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "something").touch()


DAMAGES = [empty, truncated, noise, flipped, another_table, longer_rows, text_for_numbers, folder]


def is_one_line_with(error: pytest.ExceptionInfo[SepoEnvError], path: Path) -> bool:
    return str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", RUN_FILES)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_result_is_named_before_anything_runs(
    options: compare.Options, name: str, damage: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = options.folder / "runs" / "ddpo" / "seed-0" / name
    damage(path)
    monkeypatch.setattr(compare, "run_all", None)
    with pytest.raises(SepoEnvError, match="delete") as error:
        compare.main(options, "command")
    # A flipped bit of config.json may be another setting: then the run's folder is named.
    assert is_one_line_with(error, path) or (name == "config.json" and is_one_line_with(error, path.parent))


@pytest.mark.parametrize("shape", OTHER_SHAPES)
@pytest.mark.parametrize("name", ["config.json", "run.json"])
def test_json_of_another_shape_is_refused(options: compare.Options, name: str, shape: str) -> None:
    path = options.folder / "runs" / "pretrained" / "seed-0" / name
    path.write_text(shape)
    with pytest.raises(SepoEnvError, match="delete") as error:
        compare.main(options, "command")
    assert is_one_line_with(error, path) or (name == "config.json" and is_one_line_with(error, path.parent))


@pytest.mark.parametrize("name", ["run.json", "curve.csv", "samples.csv"])
def test_no_flipped_bit_passes(options: compare.Options, name: str) -> None:
    """Figures and scores with another digit would be results like any others."""
    (_, run) = plan(options.make_suite())
    path = run.folder(options.folder) / name
    whole, chosen = path.read_bytes(), random.Random(1)
    for _ in range(100):
        content = bytearray(whole)
        content[chosen.randrange(len(content))] ^= 1 << chosen.randrange(8)
        path.write_bytes(bytes(content))
        try:
            figures = run.load_results(options.folder)
            run.check(options.folder)
        except SepoEnvError:
            continue
        path.write_bytes(whole)
        assert run.load_results(options.folder) == figures  # such as a blank that is a tab now
    path.write_bytes(whole)
    run.check(options.folder)


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_file_that_may_not_be_read_is_named(
    options: compare.Options, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == name:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SepoEnvError, match=f"{name}.*Permission denied.*delete"):
        compare.main(options, "command")


def test_all_damaged_runs_are_named(options: compare.Options) -> None:
    for run in plan(options.make_suite()):
        empty(run.folder(options.folder) / "run.json")
    with pytest.raises(SepoEnvError, match="pretrained.*is empty") as error:
        compare.main(options, "command")
    (note,) = error.value.__notes__
    assert "ddpo" in note


def test_a_result_that_is_missing_is_made_again(options: compare.Options) -> None:
    before = (options.folder / "runs.csv").read_bytes()
    (options.folder / "runs" / "ddpo" / "seed-0" / "run.json").unlink()
    assert compare.main(options, "command") == 0
    assert (options.folder / "runs.csv").read_bytes() == before


def other_files(output: Path) -> list[Path]:
    results = {*RUN_FILES, LOCK_FILE}
    return sorted(path for path in output.rglob("*") if path.is_file() and path.name not in results)


@pytest.mark.parametrize("damage", [empty, noise, folder], ids=lambda damage: damage.__name__)
def test_files_that_are_written_anew_do_not_matter(options: compare.Options, damage: Callable[[Path], None]) -> None:
    """Tables, pictures, logs of finished runs: all but the results themselves."""
    files = other_files(options.folder)
    assert {"report.md", "runs.csv", "violins.png", "metrics.csv", "checkpoint.pt"} <= {path.name for path in files}
    table = (options.folder / "runs.csv").read_bytes()
    for path in files:
        damage(path)
        if damage is folder and path.parent == options.folder:
            with pytest.raises(SepoEnvError) as error:
                compare.main(options, "command")
            assert is_one_line_with(error, path)
            shutil.rmtree(path)
    assert compare.main(options, "command") == 0
    assert (options.folder / "runs.csv").read_bytes() == table


@pytest.mark.parametrize("damage", [empty, truncated, noise, flipped], ids=lambda damage: damage.__name__)
def test_an_unfinished_run_that_cannot_be_resumed_says_so(
    options: compare.Options, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = options.folder / "runs" / "ddpo" / "seed-0"
    (run / "run.json").unlink()
    damage(run / "log" / "checkpoint.pt")
    assert compare.main(options, "command") == 1
    said = capsys.readouterr()
    assert "THE COMPARISON IS INCOMPLETE" in said.out
    (line,) = [line for line in said.err.splitlines() if line.startswith("ddpo/seed-0 FAILED")]
    assert "checkpoint.pt" in line
    assert f"delete the folder {run}" in line


def test_results_from_before_there_were_digests_are_read(options: compare.Options) -> None:
    for run in plan(options.make_suite()):
        path = run.folder(options.folder) / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text())["figures"]))
    table = (options.folder / "runs.csv").read_bytes()
    assert compare.main(options, "command") == 0
    assert (options.folder / "runs.csv").read_bytes() == table
