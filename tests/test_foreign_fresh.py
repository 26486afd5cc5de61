"""A crafted file leaves nothing behind and makes nothing up: what is read after it is what was read before."""

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sepo_env.denoisers import DNAConvConfig, DNAConvDenoiser, load_denoiser
from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import read_foreign
from tests import crafted
from tests.crafted import built, called, dictionary, named, number, program, storage, tensor, text, tuple_of

FOUR = storage("0", 4)
ROW = tensor(FOUR, (4,))
RECORDS = {"0": struct.pack("<4f", 1, 2, 3, 4), "1": b""}


def state_of_a_tensor(*entries: bytes) -> bytes:
    return dictionary(text("w"), built(ROW, tuple_of(*entries)))


def with_slots(**values: bytes) -> bytes:
    """A state whose second half is set as attributes."""
    return b"N" + dictionary(*(part for name, value in values.items() for part in (text(name), value))) + b"\x86"


POISONS = {
    **{
        f"the kind of a storage becomes {dtype}": built(
            named("torch", kind), dictionary(text("dtype"), named("torch", dtype))
        )
        for kind, dtype in (("FloatStorage", "float16"), ("FloatStorage", "int32"), ("BFloat16Storage", "float64"))
    },
    "attributes of the kind of a storage": built(
        named("torch", "FloatStorage"), with_slots(dtype=named("torch", "int8"))
    ),
    "a storage grows": tensor(built(FOUR, dictionary(text("num_bytes"), number(1 << 50))), (1 << 20,), offset=100),
    "an empty storage grows": tensor(
        built(storage("1", 0), dictionary(text("num_bytes"), number(1 << 50))), (1 << 20,)
    ),
    "a storage gets a class": built(FOUR, with_slots(__class__=named("os", "system"))),
    "a tensor gets a state": built(ROW, tuple_of(FOUR, number(0), tuple_of(number(1 << 34)), tuple_of(number(0)))),
    "a tensor gets hooks": built(ROW, tuple_of(b"\x88", b"N", dictionary(number(0), named("os", "system")))),
    "a tensor gets attributes": built(ROW, dictionary(text("data"), number(1))),
    "a dtype gets attributes": built(named("torch", "float32"), dictionary(text("itemsize"), number(1))),
    "a function of ours gets defaults": built(crafted.REBUILD, with_slots(__defaults__=tuple_of(number(1)))),
    "a class gets methods": built(named("collections", "OrderedDict"), with_slots(__setitem__=named("os", "system"))),
    "a dictionary gets methods": built(called(named("collections", "OrderedDict")), dictionary(text("items"), b"N")),
    "a class of ours gets methods": built(
        named("sepo_env.loading.inert", "Inert"), with_slots(__repr__=named("os", "system"))
    ),
    "one of its own gets a name": built(named("a", "b"), dictionary(text("described"), text("torch.FloatStorage"))),
    "the memo is written over": b"q\x00".join((ROW, named("os", "system"))) + b"0",
}


def sound_model() -> DNAConvDenoiser:
    """Weights in the precision of bfloat16, which a reader of the wrong kind would not notice."""
    model = DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16().float())
    return model


def kinds() -> Iterator[torch.Tensor]:
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int8, torch.bool):
        yield torch.tensor([0.0, 1.0, 2.0, 3.0]).to(dtype)


@pytest.mark.parametrize("poison", POISONS)
def test_the_files_after_it_are_read_as_before(poison: str, tmp_path: Path) -> None:
    model, written = sound_model(), dict(enumerate(kinds()))
    torch.save({f"backbone.{name}": value for name, value in model.state_dict().items()}, tmp_path / "model.ckpt")
    torch.save({"kinds": written}, tmp_path / "kinds.ckpt")
    path = crafted.archive(tmp_path / "poison.ckpt", program(dictionary(text("w"), POISONS[poison])), RECORDS)
    for _ in range(2):
        found = read_foreign(tmp_path / "kinds.ckpt")["kinds"]
        assert [(value.dtype, value.tolist()) for value in found.values()] == [
            (value.dtype, value.tolist()) for value in written.values()
        ]
        loaded = load_denoiser(tmp_path / "model.ckpt").state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
        for read in (read_foreign, load_denoiser):
            try:
                read(path)
            except CheckpointError:
                continue
            assert read is read_foreign  # where nothing is wrong with it but that it is no model


@pytest.mark.parametrize(
    "poison", [name for name in POISONS if name.startswith(("a storage", "an empty", "a tensor", "a dtype"))]
)
def test_what_would_change_a_tensor_is_refused(poison: str, tmp_path: Path) -> None:
    path = crafted.archive(tmp_path / "a.ckpt", program(dictionary(text("w"), POISONS[poison])), RECORDS)
    with pytest.raises(CheckpointError, match="restores the state of '(Tensor|_Storage|dtype)'"):
        read_foreign(path)


# Numbers out of nothing


def read_tensor(path: Path, content: bytes) -> torch.Tensor:
    found: torch.Tensor = read_foreign(crafted.archive(path, program(dictionary(text("w"), content)), RECORDS))["w"]
    return found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tensor(FOUR, (1 << 40,)), r"shape \(1099511627776,\) reaches beyond its storage of 16 bytes"),
        (tensor(FOUR, (1 << 20,), (0,)), "reaches beyond its storage of 16 bytes"),
        (tensor(FOUR, (1,), offset=4), "reaches beyond"),
        (tensor(FOUR, (0,), offset=5), "reaches beyond"),
        (tensor(FOUR, (2,), (4,)), "reaches beyond"),
        (tensor(storage("1", 0), (1,)), "reaches beyond its storage of 0 bytes"),
        (tensor(storage("0", 5), (1,)), "a storage of 20 bytes, of which the file holds 16"),
        (tensor(storage("0", 1 << 61), (1,)), "of which the file holds 16"),
        (tensor(storage("../../0", 4), (1,)), r"no item named 'archive/data/../../0'"),
        (tensor(FOUR, (4,), (0,)), r"shape \(4,\) with strides \(0,\) has one number in several places"),
        (tensor(FOUR, (2, 2), (1, 1)), "has one number in several places"),
        (tensor(FOUR, (2, 2), (0, 1)), "has one number in several places"),
        (tensor(FOUR, (4,), (1, 1)), "sizes that no file of weights has"),
        (called(crafted.REBUILD, FOUR, number(0), b"N", tuple_of(), b"\x89", b"N"), "sizes that no file"),
        (called(crafted.REBUILD, FOUR, number(0), text("ab"), text("cd"), b"\x89", b"N"), "sizes that no file"),
        (called(crafted.REBUILD, FOUR, b"I-1\n", tuple_of(number(1)), tuple_of(number(1)), b"\x89", b"N"), "sizes"),
        (called(crafted.REBUILD, ROW, number(0), tuple_of(), tuple_of(), b"\x89", b"N"), "AttributeError|storage"),
        (called(crafted.REBUILD, FOUR), "TypeError"),
    ],
)
def test_every_number_stands_in_the_file(content: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_tensor(tmp_path / "a.ckpt", content)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (ROW, [1.0, 2.0, 3.0, 4.0]),
        (tensor(FOUR, (2, 2), (1, 2)), [[1.0, 3.0], [2.0, 4.0]]),
        (tensor(FOUR, (2,), (3,)), [1.0, 4.0]),
        (tensor(FOUR, (1, 2), (0, 1), offset=2), [[3.0, 4.0]]),
        (tensor(FOUR, (), offset=3), 4.0),
        (tensor(FOUR, (0, 1 << 40)), []),
        (tensor(storage("1", 0), (0,)), []),
    ],
)
def test_views_within_a_storage_are_read(content: bytes, expected: object, tmp_path: Path) -> None:
    assert read_tensor(tmp_path / "a.ckpt", content).tolist() == expected


def test_a_small_file_becomes_no_large_model(tmp_path: Path) -> None:
    with torch.device("meta"):
        shapes = {
            name: tuple(value.shape)
            for name, value in DNAConvDenoiser(DNAConvConfig(channels=256)).state_dict().items()
        }
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) > 10_000_000

    def write(content) -> Path:
        pairs = [part for name, shape in shapes.items() for part in (text(f"backbone.{name}"), content(shape))]
        return crafted.archive(tmp_path / "a.ckpt", program(dictionary(*pairs)), RECORDS)

    def grown(shape: tuple[int, ...]) -> bytes:
        strides = tuple_of(*(number(0) for _ in shape))
        return built(ROW, tuple_of(FOUR, number(0), tuple_of(*map(number, shape)), strides))

    def uninitialised(shape: tuple[int, ...]) -> bytes:
        empty = storage("1", 0)
        strides = tuple_of(*(number(1) for _ in shape))
        return built(tensor(empty, (0,)), tuple_of(empty, number(0), tuple_of(*map(number, shape)), strides))

    for content in (
        grown,
        uninitialised,
        lambda shape: tensor(FOUR, shape),
        lambda shape: tensor(FOUR, shape, (0,) * len(shape)),
    ):
        with pytest.raises(CheckpointError, match="restores the state of 'Tensor'|reaches beyond its storage"):
            load_denoiser(write(content))
