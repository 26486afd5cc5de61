"""Where published models and their trainings say how a network is built: config.json, or the YAML of Hydra."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

from sepo_env.errors import CheckpointError, MissingExtraError
from sepo_env.loading.paths import is_folder
from sepo_env.textfile import read_json_object, read_text

CONFIG_FILE = "config.json"
HYDRA_FILE = Path(".hydra", "config.yaml")
LARGEST_YAML = 1 << 17
"""Bytes of a YAML document, which is read slowly."""


def find_config(place: Path) -> Path | None:
    """The configuration of a model's folder, or of a file: beside it, or in the folder of its training."""
    folders = (place,) if is_folder(place) else (place.parent, place.parent.parent)
    files = [folders[0] / CONFIG_FILE, *(folder / HYDRA_FILE for folder in folders)]
    return next((file for file in files if file.is_file()), None)


def read_config(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Read the configuration of a model's folder.

    Returns:
        Its file and its content.

    Raises:
        CheckpointError: no such folder, or no such file, or not an object.
        MissingExtraError: it is written in YAML, and there is no PyYAML.
    """
    if not is_folder(folder):
        raise CheckpointError(folder, "there is no such folder", "check the path")
    file = find_config(folder)
    if file is None:
        names = sorted(entry.name for entry in folder.iterdir())[:8]
        raise CheckpointError(folder, f"expected a {CONFIG_FILE} in it, found {names}", "give the model's own folder")
    return file, read_config_file(file)


def read_config_file(file: Path) -> dict[str, Any]:
    """Read a configuration.

    Raises:
        CheckpointError: no such file, or not an object.
        MissingExtraError: it is written in YAML, and there is no PyYAML.
    """
    return read_json_object(file) if file.suffix == ".json" else _read_yaml(file)


def _read_yaml(file: Path) -> dict[str, Any]:
    """Read YAML of plain values; what repeats parts of the document could unfold without end, and is refused."""
    yaml = _import_yaml()
    text = read_text(file, LARGEST_YAML)
    try:
        tokens = {type(token).__name__ for token in yaml.scan(text)}
        if tokens & {"AnchorToken", "AliasToken", "TagToken"}:
            raise ValueError("it has anchors or tags")
        found = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(file, f"no plain YAML ({reason})", "copy the file of the training again") from error
    if not isinstance(found, dict):
        raise CheckpointError(file, f"expected a mapping, found {type(found).__name__}", "copy the file again")
    return found


def _import_yaml() -> ModuleType:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("PyYAML", "hf") from error
    module: ModuleType = yaml
    return module
