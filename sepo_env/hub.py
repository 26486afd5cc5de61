"""Names of models on the Hugging Face hub, turned into folders on the disk."""

from __future__ import annotations

import os
from pathlib import Path

from sepo_env.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.paths import as_path

PREFIX = "hub:"
_WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]
"""Configurations, weights and tokenizers: neither programs nor the same weights in formats that can hold programs."""


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return a path as it is, and the folder of a hub id, which is downloaded once and then read from the cache.

    Args:
        path: a path, or ``"hub:owner/name"``, or ``"hub:owner/name@revision"``.

    Raises:
        InvalidArgumentError: a hub id that names nothing, or something else than a path.
        MissingExtraError: a hub id without ``huggingface_hub``.
        CheckpointError: the model cannot be had.

    >>> local_path("models/mdlm").name
    'mdlm'
    """
    if not (isinstance(path, str) and path.startswith(PREFIX)):
        return as_path(path)
    name, _, revision = path.removeprefix(PREFIX).partition("@")
    if not name.strip("/"):
        raise InvalidArgumentError(f"{path!r} names no model; write 'hub:owner/name', or 'hub:owner/name@revision'.")
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise MissingExtraError("huggingface_hub", "hub") from error
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_WANTED))
    except Exception as error:  # no network, no such model, no right to it: each has a class of its own
        reason = (str(error).strip().splitlines() or [""])[0]
        raise CheckpointError(
            path,
            f"huggingface_hub cannot get it ({type(error).__name__}: {reason})",
            "check the name and the connection, or download the model elsewhere and give its folder",
        ) from error
