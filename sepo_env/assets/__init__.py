"""Shipped weights and tables, each with a model card beside it."""

from importlib.resources import files
from pathlib import Path

from sepo_env.errors import UnknownNameError


def asset_path(name: str) -> Path:
    """Return the path of a shipped file.

    Raises:
        UnknownNameError: no file of that name is shipped.

    Example:
        >>> asset_path("dna_denoiser.safetensors").name
        'dna_denoiser.safetensors'
    """
    folder = Path(str(files(__name__)))
    suffixes = (".safetensors", ".npz", ".json", ".jsonl", ".md")
    shipped = [entry.name for entry in folder.iterdir() if entry.suffix in suffixes]
    if name not in shipped:
        raise UnknownNameError("asset", name, shipped)
    return folder / name
