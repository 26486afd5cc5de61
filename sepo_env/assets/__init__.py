"""Shipped weights and tables, each with a model card beside it, and their checksums.

Neither safetensors nor JSON notices a flipped bit, so `checksums.json` holds the SHA-256 of each asset, which is
compared whenever one is asked for.
"""

import hashlib
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sepo_env.arguments import checked
from sepo_env.errors import CheckpointError, UnknownNameError
from sepo_env.textfile import read_json_object

FOLDER = Path(str(files(__name__)))
MANIFEST = "checksums.json"
SUFFIXES = (".safetensors", ".npz", ".json", ".jsonl")
"""Of what is compared; the cards are for people."""
_BLOCK = 1 << 20
_CURE = "reinstall sepo-env; or if you changed it on purpose, run python -m sepo_env.assets.checksums"


@checked
def asset_path(name: str) -> Path:
    """Return the path of a shipped file, after a look whether it still is what was shipped.

    Raises:
        UnknownNameError: no file of that name is shipped.
        CheckpointError: its content has changed, or it is gone.

    Example:
        >>> asset_path("dna_denoiser.safetensors").name
        'dna_denoiser.safetensors'
    """
    path = FOLDER / name
    known = recorded(FOLDER)
    cards = {card.name for card in FOLDER.glob("*.md")}
    if name in cards:
        return path
    found = [entry.name for entry in assets(FOLDER)]
    if name not in known and name not in found:
        raise UnknownNameError("asset", name, {*known, *cards, *found})
    if name not in found:
        raise CheckpointError(path, "this shipped file is missing", _CURE)
    if name not in known:
        raise CheckpointError(path, f"{MANIFEST} does not know it", _CURE)
    state = path.stat()
    if _sha256(path, state.st_size, state.st_mtime_ns) != known[name]:
        raise CheckpointError(path, "its content has changed since it was shipped (SHA-256)", _CURE)
    return path


def assets(folder: Path) -> list[Path]:
    """The files of a folder of assets that have checksums."""
    return sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.name != MANIFEST)


def recorded(folder: Path) -> dict[str, Any]:
    """The SHA-256 of each asset by its name, as the manifest has it.

    Raises:
        CheckpointError: there is no manifest, or it is none.
    """
    try:
        return read_json_object(folder / MANIFEST)
    except CheckpointError as error:
        raise CheckpointError(
            folder / MANIFEST, f"the checksums of the assets cannot be read ({error})", _CURE
        ) from error


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    """Once in a process, as long as the file stays as it is."""
    return sha256_of(path)
