"""Safetensors are read whole or refused, and compared with what is expected of them."""

import pytest
import torch
from safetensors.torch import save_file

from sepo_env.errors import CheckpointError
from sepo_env.loading.tensorfile import check_finite, check_tensors, is_weight, read_tensors


def test_tensors_and_metadata_come_back_in_their_dtype(tmp_path):
    path = tmp_path / "a.safetensors"
    written = {"half": torch.ones(2, dtype=torch.float16), "long": torch.arange(3)}
    save_file(written, path, metadata={"format": "mine"})
    tensors, metadata = read_tensors(path)
    assert metadata == {"format": "mine"}
    assert {name: value.dtype for name, value in tensors.items()} == {"half": torch.float16, "long": torch.int64}
    assert all(torch.equal(tensors[name], written[name]) for name in written)
    save_file(written, path)
    assert read_tensors(path)[1] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "not a whole safetensors file"), (b"\x20" * 40, "not a whole safetensors file")],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "a.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*{message}"):
        read_tensors(path)


def test_differences_are_named_and_long_lists_cut():
    one = {"a": torch.ones(2), "b": torch.ones(3)}
    check_tensors("file", one, {"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"missing: \['b'\], not expected: \['c'\]; ask its author"):
        check_tensors("file", one, {"a": torch.ones(2), "c": torch.ones(1)}, "ask its author")
    with pytest.raises(CheckpointError, match=r"a expected \(2,\), found \(2, 1\); b expected \(3,\), found \(\)"):
        check_tensors("file", one, {"a": torch.ones(2, 1), "b": torch.ones(())})
    with pytest.raises(
        CheckpointError, match=r"a expected floats of 16 bits or more, found torch.int32; ask its author"
    ):
        check_tensors("file", one, {"a": torch.ones(2, dtype=torch.int32), "b": torch.ones(3)}, "ask its author")
    # Counters, which no output depends on, may be cast with the rest.
    check_tensors("file", {"n": torch.ones((), dtype=torch.int64)}, {"n": torch.ones(()).half()})
    many = {f"t{index:02d}": torch.ones(1) for index in range(20)}
    with pytest.raises(CheckpointError, match=r"'t07'\] and 12 more"):
        check_tensors("file", many, {})


def test_what_is_not_finite_is_named():
    check_finite("file", {"a": torch.ones(2), "n": torch.arange(2)})
    with pytest.raises(CheckpointError, match=r"file: tensors with NaN or infinity: \['b', 'c'\]; give"):
        check_finite("file", {"a": torch.ones(2), "c": torch.tensor([1.0, torch.inf]), "b": torch.tensor(torch.nan)})


def test_weights_are_floats_of_16_bits_or_more():
    accepted = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
    kinds = {kind for kind in vars(torch).values() if isinstance(kind, torch.dtype)}
    assert {kind for kind in kinds if is_weight(kind)} == accepted
