"""The tensors of a folder, however the program that wrote it cut and packed them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sepo_env.errors import CheckpointError
from sepo_env.foreign import read_foreign
from sepo_env.inert import outline, shown
from sepo_env.paths import is_folder
from sepo_env.tensorfile import read_tensors
from sepo_env.textfile import read_json

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"


def read_weights(folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """Read the tensors of a folder: one safetensors file, several with an index, or else a pickle, which is not run.

    Returns:
        The file that stands for them in messages, and the tensors by name.

    Raises:
        CheckpointError: none of these files, or a damaged one; the message says what was found.
    """
    if (file := folder / WEIGHTS_FILE).is_file():
        return file, read_tensors(file)[0]
    if (file := folder / INDEX_FILE).is_file():
        return file, _read_shards(file)
    if (file := folder / PICKLED_FILE).is_file():
        return file, named_tensors(file, read_foreign(file))
    found = sorted(entry.name for entry in folder.iterdir())[:8] if is_folder(folder) else "no folder"
    raise CheckpointError(
        folder,
        f"expected {WEIGHTS_FILE}, {INDEX_FILE} or {PICKLED_FILE} in it, found {found}",
        "give the whole folder of the model",
    )


def named_tensors(path: Path, found: object) -> dict[str, Tensor]:
    """What was read, if it is tensors by name.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(found, dict):
        raise CheckpointError(path, f"expected tensors by name, found {outline(found)}", "give a file of weights")
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                path,
                f"expected tensors by name, found {outline(found)}, among them {shown(key)} with {outline(value)}",
                "give a file of weights",
            )
    return found


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors that an index names, each from the file that it names."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(index, "expected a weight_map from tensors to files", "copy or download it again")
    tensors: dict[str, Tensor] = {}
    for place in sorted(set(places.values())):
        # A path would lead out of the folder.
        if Path(place).name != place or not place.endswith(".safetensors"):
            raise CheckpointError(
                index, f"expected names of safetensors files, found {shown(place)}", "download it again"
            )
        shard = read_tensors(index.parent / place)[0]
        expected = {name for name, where in places.items() if where == place}
        if shard.keys() != expected:
            differing = sorted(shard.keys() ^ expected)[:8]
            raise CheckpointError(
                index.parent / place, f"it and the index do not agree about {differing}", "download the folder again"
            )
        tensors.update(shard)
    return tensors
