"""Wrong input of every program's command line ends in one line that names it, before anything is computed."""

from __future__ import annotations

import errno
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks import compare, language, paper_dna, readme_picture, speed, tune
from benchmarks._program import run_program
from sepo_env import files
from sepo_env.files import ClaimedFolder

PROGRAMS = (compare, language, paper_dna, readme_picture, speed, tune)


def call(program: ModuleType, arguments: list[str]) -> int:
    try:
        return run_program(
            program.Options, program.main, file="program.py", description=program.__doc__, arguments=arguments
        )
    except SystemExit as end:
        return int(end.code or 0)


COMMON = [
    ["--output="],
    ["--output", "~nobody-of-that-name/x"],
    ["--task-options", "[1]"],
    ["--task-options", "{"],
    ["--task-options", '{"colour": 1}'],
    ["--task", "nope"],
    ["--task="],
    ["--device", "foo"],
    ["--device="],
    ["--nonsense"],
    ["positional"],
]
RUNS = [
    *COMMON,
    ["--budget", "1.5"],
    ["--budget", "0"],
    ["--budget", "-1"],
    ["--budget", "1"],
    ["--budget", "99999999999"],
    ["--workers", "0"],
    ["--workers", "-1"],
    ["--workers", "two"],
    ["--suite", "x"],
    ["--artefacts="],
    ["--artefacts", "no/such/folder"],
]
WRONG: list[tuple[ModuleType, list[str]]] = [
    *((compare, arguments) for arguments in RUNS),
    (compare, ["--seeds", "-1"]),
    (compare, ["--seeds", "1", "1"]),
    (compare, ["--seeds", "1.0"]),
    (compare, ["--seeds", "9999999999"]),
    (compare, ["--agents", "nobody"]),
    (compare, ["--agents", "ddpo", "ddpo"]),
    (compare, ["--agents", ""]),
    (compare, ["--prompt", ""]),
    (compare, ["--prompt", "ACGT"]),
    (compare, ["--guidance-scale", "nan"]),
    (compare, ["--guidance-scale", "-1"]),
    (compare, ["--guidance-scale", "inf"]),
    (compare, ["--guidance-scale", "2"]),
    *((tune, arguments) for arguments in RUNS),
    (tune, ["--study", "nope"]),
    (tune, ["--seed", "-1"]),
    (tune, ["--seed", "0"]),
    (tune, ["--tables="]),
    *((language, arguments) for arguments in COMMON),
    *(
        (language, [f"--{name}", value])
        for name in ("steps", "num-samples", "batch-size")
        for value in ("0", "-1", "x")
    ),
    (language, ["--steps"]),
    (language, ["--steps", "4", "4"]),
    (language, ["--num-samples", "1"]),
    (language, ["--num-samples", "10000000000"]),
    (language, ["--seed", "-1"]),
    (language, ["--agents", "no/such/folder"]),
    (language, ["--agents", ""]),
    (language, ["--judge", "nobody.py:ask"]),
    (language, ["--judge="]),
    (language, ["--judge-model="]),
    (language, ["--judge-model", "no/such/folder"]),
    (language, ["--perplexity-model", "no/such/folder"]),
    (language, ["--judge", "a.py:b", "--judge-model", "c"]),
    *(
        (paper_dna, [f"--{name}", value])
        for name in ("num-samples", "batch-size", "num-steps", "num-likelihood-steps")
        for value in ("0", "-1", "x", "10000000000")
    ),
    (paper_dna, ["--num-samples", "1"]),
    (paper_dna, ["--seeds"]),
    (paper_dna, ["--seeds", "-1"]),
    (paper_dna, ["--seeds", "1", "1"]),
    (paper_dna, ["--checkpoint="]),
    (paper_dna, ["--checkpoint", "no/such/file.ckpt"]),
    (paper_dna, ["--artefacts", "no/such/folder"]),
    (paper_dna, ["--device", "foo"]),
    (paper_dna, ["--output="]),
    *((speed, [f"--{name}", value]) for name in ("repeats", "num-envs", "num-steps") for value in ("0", "-1", "x")),
    (speed, ["--repeats", "1"]),
    (speed, ["--threads", "0"]),
    (speed, ["--threads", "10000000000"]),
    (speed, ["--only", "nope"]),
    (speed, ["--json="]),
    (speed, ["--device", "foo"]),
    (readme_picture, ["--curves="]),
    (readme_picture, ["--curves", "no/such/file.csv"]),
    (readme_picture, ["--curves", "."]),
    (readme_picture, ["--output="]),
    (readme_picture, ["--seed", "-1"]),
    (readme_picture, ["--num-steps", "0"]),
]


def label(value: object) -> str:
    return value.__name__.rpartition(".")[2] if isinstance(value, ModuleType) else " ".join(map(str, value))  # type: ignore[call-overload]


@pytest.mark.parametrize(("program", "arguments"), WRONG, ids=label)
def test_a_wrong_command_line_is_refused_by_name(
    program: ModuleType,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(program, arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.strip().splitlines()
    # What the parser of the flags cannot read, it tells in a box.
    assert (len(lines) == 1 and "Error: " in lines[0]) or "For full helptext" in said.err
    assert "Traceback" not in said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("program", PROGRAMS, ids=label)
def test_help_teaches_by_examples(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(program, ["--help"]) == 0
    said = capsys.readouterr().out
    name = program.__name__.rpartition(".")[2]
    assert f"    python benchmarks/{name}.py --" in said
    assert "Exit status: 0" in said


WRONG_FIELDS: list[tuple[type, dict[str, Any]]] = [
    *(
        (program.Options, {name: value})
        for program, name in [(compare, "budget"), (compare, "workers"), (tune, "seed"), (speed, "repeats")]
        for value in ("3", 1.5, True, [1], b"3")
    ),
    *((compare.Options, {"seeds": value}) for value in ("0", 0, [0.5], (None,), {0})),
    *((compare.Options, {"agents": value}) for value in ("sepo", [1], 3)),
    *(
        (program.Options, {"output": value})
        for program in (compare, tune, language, paper_dna)
        for value in (3, b"x", "")
    ),
    (compare.Options, {"smoke": "yes"}),
    (compare.Options, {"suite": "fulll"}),
    (paper_dna.Options, {"checkpoint": 3}),
    (language.Options, {"agents": "one"}),
]


@pytest.mark.parametrize(("kind", "fields"), WRONG_FIELDS, ids=str)
def test_wrong_fields_are_refused_by_name(kind: type, fields: dict[str, Any]) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=name) as error:
        kind(**fields)
    assert type(error.value).__module__ == "sepo_env.errors"


@pytest.mark.parametrize("program", [compare, tune, language, paper_dna], ids=label)
def test_a_folder_is_taken_as_text_or_path_from_home(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for given in ("~/x", Path("~/x")):
        assert program.Options(output=given).output == tmp_path / "x"


TOY = ["--task", "ToyCTMC-v0", "--device", "cpu"]
SMALL: dict[ModuleType, list[str]] = {
    compare: [*TOY, "--smoke", "--agents", "pretrained", "--seeds", "0", "--workers", "1"],
    tune: [*TOY, "--suite", "smoke", "--workers", "1"],
    language: [*TOY, "--steps", "2", "--num-samples", "4"],
    paper_dna: ["--num-samples", "2", "--num-steps", "1", "--num-likelihood-steps", "1", "--seeds", "0"],
}


@pytest.mark.parametrize("program", SMALL, ids=label)
def test_a_folder_is_not_shared_with_a_second_process(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    held = output / "ToyCTMC-v0" / "agents" if program is tune else output
    with ClaimedFolder(held):
        assert call(program, [*SMALL[program], "--output", str(output)]) == 2
    assert f"FolderInUseError: {held}: another run" in capsys.readouterr().err
    assert [path.name for path in held.iterdir()] == ["run.lock"]


@pytest.mark.parametrize("program", [compare, language, paper_dna], ids=label)
def test_a_full_disk_is_told_and_what_is_done_is_kept(
    program: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full, arguments = {"now": True}, [*SMALL[program], "--output", str(tmp_path / "out")]
    sync = files.sync

    def fail(handle: int) -> None:
        if full["now"] and any(path.name == "report.md" or path.suffix == ".png" for path in tmp_path.rglob("*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(files, "sync", fail)
    assert call(program, arguments) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "Error" in line]
    assert "No space left on device" in line
    kept = {path.name for path in (tmp_path / "out").rglob("*")}
    assert {compare: "run.json", language: "language.csv", paper_dna: "seed-0.json"}[program] in kept
    full["now"] = False
    assert call(program, arguments) == 0


@pytest.mark.parametrize("program", [compare, language, paper_dna], ids=label)
def test_a_file_in_the_place_of_the_folder_is_named(
    program: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").touch()
    assert call(program, [*SMALL[program], "--output", str(tmp_path / "out")]) == 2
    assert "a file stands where a folder is wanted" in capsys.readouterr().err
