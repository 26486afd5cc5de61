"""The tensors of a file or a folder, however the program that wrote it cut, packed and named them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from torch import Tensor, nn

from sepo_env.denoisers.base import Denoiser
from sepo_env.denoisers.layouts import OTHER_FILE, blank_model, fill_model, plain
from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import read_foreign
from sepo_env.loading.inert import Inert, outline, shown
from sepo_env.loading.paths import check_file, is_folder
from sepo_env.loading.tensorfile import bare_name, check_tensors, find_prefixes, read_tensors
from sepo_env.textfile import read_json

LONGEST_NAME = 1 << 10
"""Letters of the name of a tensor."""
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_FILE = "pytorch_model.bin"
PICKLED_INDEX_FILE = "pytorch_model.bin.index.json"
_TRAINING_FILE = Path("checkpoints-meta", "checkpoint.pth")
"""Where the training of a SEDD keeps its last checkpoint."""
_TORCH = b"PK\x03\x04", b"\x80\x02\x8a\x0al\xfc\x9cF\xf9"
"""How a checkpoint of torch begins: an archive, and before torch 1.6 a magic number, which is refused with a cure."""
_SAFETENSORS = b"{"
"""What stands in safetensors behind the eight bytes of the header's size."""
_PICKLED = ("*.ckpt", "*.pth", "*.pt")
_STATES = ("state_dict", "model_state_dict", "model", "module")
"""Under which names trainings keep the tensors of the network: Lightning, many loops, SEDD, DeepSpeed."""

Weights = Literal["raw", "ema"]
_Config = TypeVar("_Config")
_Model = TypeVar("_Model", bound=Denoiser)


@dataclass(frozen=True)
class StoredWeights:
    """What a file or a folder holds of a network.

    Attributes:
        path: the file that stands for it in messages.
        tensors: by the names that they have there.
        averages: what a training keeps of running averages, as it stands there; None where there is nothing.
        settings: the configuration among the arguments of Lightning's model, plain; None where there is none.
    """

    path: Path
    tensors: dict[str, Tensor]
    averages: Any = None
    settings: dict[str, Any] | None = None

    def named_as(self, known: Collection[str], prefix: str = "") -> dict[str, Tensor]:
        """The tensors by the names that they have in a network, without what was wrapped around it.

        Args:
            known: some names of tensors of the network; under what prefix they stand there is found out.
            prefix: put in front of the names in its place.

        Raises:
            CheckpointError: several networks in one file, or two tensors for one place.
        """
        if (longest := max(map(len, self.tensors), default=0)) > LONGEST_NAME:
            raise CheckpointError(
                self.path, f"a tensor's name of {longest:,} letters", "save the tensors by short names"
            )
        found = find_prefixes(map(bare_name, self.tensors), known)
        if len(found) > 1:
            raise CheckpointError(
                self.path,
                f"several networks in one file, under {' and '.join(map(shown, found[:8]))}",
                "save the tensors of one of them, alone or under one name",
            )
        outer = found[0] if found else ""
        names: dict[str, str] = {}
        for name in self.tensors:
            bare = bare_name(name)
            place = prefix + bare.removeprefix(outer) if bare.startswith(outer) else bare
            if place in names:
                raise CheckpointError(
                    self.path,
                    f"two tensors for one place: {shown(names[place])} and {shown(name)}",
                    "take one of them out, or save the network's own state_dict",
                )
            names[place] = name
        return {place: self.tensors[name] for place, name in names.items()}


def fill_stored(
    stored: StoredWeights,
    kind: Callable[[_Config], _Model],
    config: _Config,
    tensors: Mapping[str, Tensor],
    weights: Weights,
) -> _Model:
    """Return ``kind(config)`` with the tensors of a file, or with the averages of these tensors.

    Raises:
        CheckpointError: other tensors than those of the model, such that are not finite, or no averages.
    """
    if weights == "ema":
        blank = blank_model(stored.path, kind, config, len(tensors))
        check_tensors(stored.path, blank.state_dict(), tensors, OTHER_FILE)
        tensors = {**tensors, **_averages(stored, blank)}
    return fill_model(stored.path, kind, config, tensors)


def _averages(stored: StoredWeights, model: nn.Module) -> dict[str, Tensor]:
    """The running averages by name; the file has a list without names, in the order of the network's parameters."""
    cure = "give weights='raw'"
    found = stored.averages
    averages = found.get("shadow_params") if isinstance(found, dict) else None
    if not isinstance(averages, list):
        what = "none" if found is None else outline(found)
        raise CheckpointError(stored.path, f"expected averages (ema), found {what}", cure)
    # The random frequencies of a time embedding are never trained, and a buffer of ours.
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    if len(averages) != len(trained) or not all(isinstance(average, Tensor) for average in averages):
        raise CheckpointError(
            stored.path, f"expected {len(trained)} averages, one a trained tensor, found {len(averages)}", cure
        )
    named: dict[str, Tensor] = dict(zip(trained, averages, strict=True))
    check_tensors(stored.path, trained, named, cure)
    return named


def kind_of(path: Path) -> Literal["safetensors", "torch"]:
    """What kind of file of weights it is, by how it begins.

    Raises:
        CheckpointError: no such file, or of another kind.
    """
    file = check_file(path)
    try:
        with file.open("rb") as opened:
            start = opened.read(9)
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read ({error})", "check its permissions") from error
    if start.startswith(_TORCH):
        return "torch"
    if start.endswith(_SAFETENSORS) and len(start) == 9:
        return "safetensors"
    found = f"a file that begins with {start!r}" if start else "an empty file"
    raise CheckpointError(
        path, f"expected safetensors or a checkpoint of torch, found {found}", "give a file of one of these kinds"
    )


def read_file(path: Path) -> StoredWeights:
    """Read a file of weights.

    Raises:
        CheckpointError: no such file, or not a whole one of a known kind.
    """
    return read_pickled(path) if kind_of(path) == "torch" else StoredWeights(path, read_tensors(path)[0])


def read_weights(folder: Path) -> StoredWeights:
    """Read the tensors of a folder: one file or several with an index, safetensors or else pickles, which are not run.

    Raises:
        CheckpointError: none of these files, or a damaged one; the message says what was found.
    """
    if (file := folder / WEIGHTS_FILE).is_file():
        return StoredWeights(file, read_tensors(file)[0])
    if (file := folder / INDEX_FILE).is_file():
        return StoredWeights(file, _read_shards(file, ".safetensors"))
    if (file := folder / PICKLED_FILE).is_file():
        return read_pickled(file)
    if (file := folder / PICKLED_INDEX_FILE).is_file():
        return StoredWeights(file, _read_shards(file, ".bin"))
    if (file := folder / _TRAINING_FILE).is_file():
        return read_pickled(file)
    pickled = [path for pattern in _PICKLED for path in folder.glob(pattern)]
    if len(pickled) == 1:
        return read_pickled(pickled[0])
    found = sorted(entry.name for entry in folder.iterdir())[:8] if is_folder(folder) else "no folder"
    raise CheckpointError(
        folder,
        f"expected {WEIGHTS_FILE}, {PICKLED_FILE}, an index of either, or one checkpoint in it, found {found}",
        "give the whole folder of the model",
    )


def read_pickled(path: Path) -> StoredWeights:
    """Read a checkpoint of torch: tensors by name, or what a training keeps beside them.

    Raises:
        CheckpointError: no checkpoint, or one that holds something else.
    """
    checkpoint = read_foreign(path)
    place = next((name for name in _STATES if isinstance(checkpoint.get(name), (dict, Inert))), None)
    state = checkpoint if place is None else checkpoint[place]
    if isinstance(state, Inert):
        raise CheckpointError(
            path,
            f"its entry {place!r} is an object, {state!r}, and no tensors by name",
            "save the tensors: torch.save(model.state_dict(), path)",
        )
    parameters = checkpoint.get("hyper_parameters")
    settings = plain(parameters.get("config")) if isinstance(parameters, dict) else None
    return StoredWeights(
        path,
        named_tensors(path, state),
        averages=None if place is None else checkpoint.get("ema"),
        settings=settings if isinstance(settings, dict) else None,
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


def _read_shards(index: Path, suffix: str) -> dict[str, Tensor]:
    """The tensors that an index names, each from the file that it names."""
    content = read_json(index)
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(place, str) for place in places.values()):
        raise CheckpointError(index, "expected a weight_map from tensors to files", "copy or download it again")
    tensors: dict[str, Tensor] = {}
    expected: dict[str, set[str]] = {}
    for name, place in places.items():
        expected.setdefault(place, set()).add(name)
    for place, names in sorted(expected.items()):
        file = index.parent / place
        # A path would lead out of the folder.
        if Path(place).name != place or not place.endswith(suffix):
            raise CheckpointError(
                index, f"expected names of {suffix[1:]} files, found {shown(place)}", "download it again"
            )
        shard = read_tensors(file)[0] if suffix == ".safetensors" else named_tensors(file, read_foreign(file))
        if shard.keys() != names:
            differing = sorted(shard.keys() ^ names)[:8]
            raise CheckpointError(file, f"it and the index do not agree about {differing}", "download the folder again")
        tensors.update(shard)
    return tensors
