"""Names of models on the Hugging Face hub, turned into folders on the disk."""

from __future__ import annotations

from pathlib import Path

from sepo_env.arguments import PathArgument, checked
from sepo_env.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.loading.paths import as_path, is_folder

PREFIX = "hub:"
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Configurations, weights and tokenizers: neither programs nor the same weights in formats that can hold programs."""
_PICKLED = ["pytorch_model*.bin", "*.ckpt"]
"""Weights of repositories that have no others; they are read as tensors, and nothing in them is executed."""
_PROGRAMS = ["*.py"]
_LONE = ("*.safetensors", "*.ckpt", "*.pth", "*.pt", "*.bin")


@checked
def local_path(path: PathArgument, *, programs: bool = False) -> Path:
    """Return a path as it is, and the folder of a hub id, which is downloaded once and then read from the cache.

    Args:
        path: a path, or ``"hub:owner/name"``, or ``"hub:owner/name@revision"``. (A folder whose own name begins so is
            reached by a path that begins otherwise.)
        programs: whether Python files are downloaded, too; nothing is run here.

    Raises:
        InvalidArgumentError: a hub id that names nothing, or something else than a path.
        MissingExtraError: a hub id without ``huggingface_hub``.
        CheckpointError: the model cannot be had.

    >>> local_path("models/mdlm").name
    'mdlm'
    """
    local = as_path(path)
    given = str(local)
    if not given.startswith(PREFIX):
        return local
    name, _, revision = given.removeprefix(PREFIX).partition("@")
    if not name.strip("/"):
        raise InvalidArgumentError(f"{given!r} names no model; write 'hub:owner/name', or 'hub:owner/name@revision'.")
    wanted = _WANTED + (_PROGRAMS if programs else [])
    folder = _download(given, name, revision or None, wanted)
    if not any(folder.glob("*.safetensors")):
        folder = _download(given, name, revision or None, [*wanted, *_PICKLED])
    return folder


def _download(given: str, name: str, revision: str | None, patterns: list[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # no network, no such model, no right to it: each has a class of its own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            given,
            f"huggingface_hub cannot get it ({type(error).__name__}: {reason})",
            "check the name and the connection, or download the model elsewhere and give its folder",
        ) from error


def lone_file(path: Path) -> Path:
    """The file of weights in a folder that has one alone and no config.json to go with it; any other path as it is."""
    if not is_folder(path) or (path / "config.json").exists():
        return path
    found = [entry for pattern in _LONE for entry in path.glob(pattern)]
    return found[0] if len(found) == 1 else path
