"""Which files the published DNA artefacts are, where they lie in a folder, and by what they are known again."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath

from sepo_env.errors import ArtefactsError

_ROOT = "mdlm"
_NO_DATA = "__MACOSX"
"""Where an archive of a Mac keeps its own notes on each file, under the file's name."""
_DEPTH = 2
"""How far below the given folder the one that holds mdlm/ may lie."""
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Artefact:
    """One file of the folder.

    Attributes:
        path: its published place below the folder.
        purpose: what it is for.
        end: where it may lie elsewhere, the end of its place there; None where it may not.
    """

    path: PurePosixPath
    purpose: str
    end: PurePosixPath | None = None

    def __str__(self) -> str:
        return str(self.path)


def _oracle(name: str, purpose: str) -> Artefact:
    end = PurePosixPath("lightning_logs", name)
    return Artefact(PurePosixPath("mdlm/outputs_gosai") / end, purpose, end)


ARTEFACTS: dict[str, Artefact] = {
    "denoiser": Artefact(
        PurePosixPath("mdlm/outputs_gosai/pretrained.ckpt"), "the pretrained denoiser, which agents fine-tune"
    ),
    "training oracle": _oracle("reward_oracle_ft.ckpt", 'the reward "activity", which agents train on'),
    "held-out oracle": _oracle("reward_oracle_eval.ckpt", 'the judge "held_out_activity" (Pred-Activity)'),
    "accessibility oracle": Artefact(
        PurePosixPath("mdlm/gosai_data/binary_atac_cell_lines.ckpt"), 'the judge "accessibility" (ATAC-Acc)'
    ),
    "data": Artefact(
        PurePosixPath("mdlm/gosai_data/processed_data/gosai_all.csv"),
        "measured activities: the 3-mers of the most active sequences, the likelihoods of real ones",
    ),
}
"""What the folder must hold, by role."""


def resolve_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder that a user means, absolute: a later change of the working directory does not move it.

    Raises:
        ArtefactsError: nothing that names a folder.
    """
    try:
        name = os.fspath(folder)
        if not name.strip():
            raise ValueError("an empty name")
        return Path(name).expanduser().absolute()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtefactsError(
            f"artefacts={folder!r} names no folder ({error}); give the unpacked DRAKES data folder, or leave artefacts "
            "out to run on the shipped assets."
        ) from error


def find(folder: Path) -> dict[str, Path]:
    """The file of each artefact: at its published place if it is there, else, for an oracle, anywhere below the folder.

    The published places begin with ``mdlm/``. The folder is the one that holds it, one that has such a folder in it (as
    the published archive unpacks: ``DRAKES_data/data_and_model/mdlm``), or ``mdlm`` itself.

    Raises:
        ArtefactsError: files that are not there, or several for one place; one message lists all of them.
    """
    if not folder.is_dir():
        raise ArtefactsError(
            f"there is no folder {folder}; give the unpacked DRAKES data folder, which holds mdlm/, or leave artefacts "
            "out to run on the shipped assets."
        )
    bases = _bases(folder) or [folder]
    if len(bases) == 1:
        found = _search(folder, bases[0])
    else:
        whole = [found for base in bases if _is_whole(found := _search(base, base))]
        if len(whole) != 1:
            names = ", ".join(str(base.relative_to(folder)) for base in bases)
            raise ArtefactsError(
                f"the folder {folder} holds mdlm/ more than once, in {names}; give one of these as artefacts."
            )
        found = whole[0]
    if not _is_whole(found):
        raise ArtefactsError(_complaint(bases[0], found))
    return {key: paths[0] for key, paths in found.items()}


def _is_whole(found: Mapping[str, list[Path]]) -> bool:
    return all(len(paths) == 1 for paths in found.values())


def _bases(folder: Path) -> list[Path]:
    """The folders whose mdlm/ holds something published: the given one, else that around it, else those in it."""
    if _is_base(folder):
        return [folder]
    if folder.name == _ROOT and _is_base(folder.parent):
        return [folder.parent]
    level = [folder]
    for _ in range(_DEPTH):
        level = [child for parent in level for child in _folders(parent)]
        # A link and what it links to are one folder.
        if bases := {os.path.realpath(child): child for child in reversed(level) if _is_base(child)}:
            return sorted(bases.values())
    return []


def _is_base(folder: Path) -> bool:
    return any((folder / artefact.path).is_file() for artefact in ARTEFACTS.values())


def _folders(folder: Path) -> list[Path]:
    try:
        children = sorted(folder.iterdir())
    except OSError:  # not ours to read, so nothing of ours
        return []
    return [child for child in children if child.is_dir() and child.name not in (_ROOT, _NO_DATA)]


def _search(folder: Path, base: Path) -> dict[str, list[Path]]:
    """The files of each artefact: at its published place below the base, else by the end of its place in the folder."""
    found: dict[str, list[Path]] = {}
    for key, artefact in ARTEFACTS.items():
        if (base / artefact.path).is_file():
            found[key] = [base / artefact.path]
        else:
            found[key] = [] if artefact.end is None else sorted(_ending(folder, artefact.end))
    return found


def _ending(folder: Path, end: PurePosixPath) -> Iterator[Path]:
    """The files below a folder whose paths end so; links to folders are followed, once each."""
    seen: set[str] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(set(folders) - {_NO_DATA})
        if end.name in files and Path(root).parts[-len(end.parts) + 1 :] == end.parts[:-1]:
            yield Path(root, end.name)


def _complaint(base: Path, found: Mapping[str, list[Path]]) -> str:
    """There, missing and double files, one line each."""
    there, missing, double = [], [], []
    for key, artefact in ARTEFACTS.items():
        places = [os.path.relpath(path, base).replace(os.sep, "/") for path in found[key]]
        if len(places) == 1:
            there.append(f"  {places[0]}: {artefact.purpose}")
        elif places:
            double.append(f"  {artefact}: {artefact.purpose}; found {', '.join(places)}")
        else:
            missing.append(f"  {artefact}: {artefact.purpose}")
    lines = [f"the folder {base} is no whole DRAKES data folder."]
    for title, entries in (("There:", there), ("Missing:", missing), ("More than once:", double)):
        if entries:
            lines += [title, *entries]
    if missing:
        lines.append("Unpack the published archive there (docs/reproducing.md), or give the folder that holds mdlm/.")
    if double:
        lines.append("Put the one that is meant at its published place, or keep one of them.")
    return "\n".join([*lines, "Without artefacts, the task runs on the shipped assets."])


def fingerprint(path: Path) -> str:
    """A short hash of a file's content; computed once in a process, as long as the file stays as it is.

    Raises:
        ArtefactsError: a file that cannot be read.
    """
    try:
        state = path.stat()
        return _fingerprint(path, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise ArtefactsError(f"{path} cannot be read ({error}); check its permissions.") from error


@lru_cache(maxsize=64)
def _fingerprint(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    checksums = _checksums(path)
    if checksums is not None:
        digest.update(f"{size} {checksums}".encode())
        return digest.hexdigest()[:16]
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()[:16]


def _checksums(path: Path) -> list[tuple[str, int, int]] | None:
    """Name, size and checksum of each part of a zip archive, such as a checkpoint of torch: they stand at its end.

    None where it is no archive, or one that torch wrote without checksums: its content has to be read.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [(part.filename, part.file_size, part.CRC) for part in archive.infolist()]
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError):
        return None
    return parts if all(checksum or not size for _, size, checksum in parts) else None
