"""Archives written against the reader: one reader sees them, and what it does not know it refuses."""

import importlib.util
import io
import os
import struct
import tarfile
import warnings
import zipfile

import pytest
import torch

from sepo_env.denoisers import load_denoiser, load_drakes
from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import read_foreign

PROGRAM = """
import torch
from typing import Tuple

class Trap(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.w = torch.ones(2)

    @torch.jit.export
    def __getstate__(self):
        return (self.w, self.training)

    @torch.jit.export
    def __setstate__(self, state: Tuple[torch.Tensor, bool]):
        self.w = state[0]
        self.training = state[1]
        torch.save(self.w, CANARY)

    def forward(self, x):
        return x
"""


def with_two_directories(program: bytes) -> bytes:
    """An archive of TorchScript with a second central directory, harmless and of the same size, behind its own.

    Python's reader counts back from the end of the file and finds the second, torch's finds the first at its offset.
    """
    end = program.rfind(b"PK\x05\x06")
    first = program.rfind(b"PK\x06\x06")  # torch writes the sizes in 64 bits
    count, size, offset = struct.unpack("<QQQ", program[first + 32 : first + 56])
    assert end > first
    names = [b"archive/data.pkl", *(b"archive/data/%d" % index for index in range(count - 1))]
    padding = size - sum(46 + len(name) for name in names)
    assert padding >= 0
    directory = b""
    for index, name in enumerate(names):
        comment = b"c" * padding if index == 0 else b""
        fields = struct.pack("<4B4HL2L5H2L", 20, 0, 20, 0, 0, 0, 0, 0, 0, 4, 4, len(name), 0, len(comment), *[0] * 4)
        directory += b"PK\x01\x02" + fields + name + comment
    ending = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, size, offset, 0)
    return program[: offset + size] + directory + ending


def test_a_program_behind_a_second_directory_does_not_run(tmp_path):
    canary, source = tmp_path / "canary", tmp_path / "trap_module.py"
    source.write_text(PROGRAM.replace("CANARY", repr(str(canary))))
    spec = importlib.util.spec_from_file_location("trap_module", source)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module.Trap()).save(str(tmp_path / "program.pt"))
        canary.unlink(missing_ok=True)
        torch.jit.load(str(tmp_path / "program.pt"))  # the trap is real
    assert canary.exists()
    canary.unlink()
    path = tmp_path / "a.ckpt"
    path.write_bytes(with_two_directories((tmp_path / "program.pt").read_bytes()))
    assert "archive/data.pkl" in zipfile.ZipFile(path).namelist()
    assert "constants.pkl" in torch._C.PyTorchFileReader(str(path)).get_all_records()
    for read in (load_denoiser, load_drakes, read_foreign):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.load would warn before it hands the file to TorchScript
            with pytest.raises(CheckpointError):
                read(path)
        assert not canary.exists()


def test_an_archive_behind_a_tar_file_is_no_checkpoint(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("a file of the user's")
    victim.chmod(0o600)
    tar, archive = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.PAX_FORMAT) as file:
        link = tarfile.TarInfo("storages")
        link.type, link.linkname, link.mode, link.mtime = tarfile.LNKTYPE, str(victim), 0o777, 1
        file.addfile(link)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", b"x")
    (tmp_path / "a.ckpt").write_bytes(tar.getvalue() + archive.getvalue())
    before = os.stat(victim)
    with pytest.raises(CheckpointError):
        read_foreign(tmp_path / "a.ckpt")
    assert (os.stat(victim).st_mode, os.stat(victim).st_mtime) == (before.st_mode, before.st_mtime)


@pytest.mark.parametrize("appended", [b"", b"PK\x05\x06" + bytes(18)])
def test_a_file_of_before_torch_1_6_is_refused_with_its_cure(tmp_path, appended):
    path = tmp_path / "old.ckpt"
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes() + appended)
    for read in (read_foreign, load_denoiser):
        with pytest.raises(CheckpointError, match=r"old\.ckpt: .*re-save with torch.save of torch 1.6 or newer"):
            read(path)


def saved(value) -> dict[str, bytes]:
    """The records that torch writes."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as file:
        return {name: file.read(name) for name in file.namelist()}


def write(path, records, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, content in records.items():
            file.writestr(name, content)
    return path


def test_compressed_records_are_refused(tmp_path):
    path = write(tmp_path / "a.ckpt", saved({"a": torch.zeros(1 << 20)}), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 14
    with pytest.raises(CheckpointError, match="compressed records"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda records: records.pop("archive/data.pkl"), "expected one record .*, found 0"),
        (lambda records: records.update({"other/data.pkl": b"\x80\x02}."}), "expected one record .*, found 2"),
        (lambda records: records.update({"archive/byteorder": b"big"}), "byte order little, found b'big'"),
        (lambda records: records.pop("archive/data/0"), "no item named 'archive/data/0'"),
        (
            lambda records: records.update({"archive/data/0": b"short"}),
            "a storage of 16 bytes, of which the file holds 5",
        ),
    ],
)
def test_archives_with_other_records_are_refused(tmp_path, change, message):
    records = saved({"a": torch.arange(4.0)})
    change(records)
    with pytest.raises(CheckpointError, match=message):
        read_foreign(write(tmp_path / "a.ckpt", records))


def test_the_byte_order_may_be_left_out(tmp_path):
    records = saved({"a": torch.arange(4.0)})
    del records["archive/byteorder"]
    assert torch.equal(read_foreign(write(tmp_path / "a.ckpt", records))["a"], torch.arange(4.0))


def test_two_records_of_one_name_are_refused(tmp_path):
    path = write(tmp_path / "a.ckpt", saved({"a": torch.arange(4.0)}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(path, "a") as file:
            file.writestr("archive/data/0", bytes(16))
    with pytest.raises(CheckpointError, match="several records of one name"):
        read_foreign(path)


def test_a_changed_byte_is_noticed(tmp_path):
    path = write(tmp_path / "a.ckpt", saved({"a": torch.arange(1000.0)}))
    content = path.read_bytes()
    value = struct.pack("<f", 500.0)
    path.write_bytes(content.replace(value, struct.pack("<f", 501.0), 1))
    with pytest.raises(CheckpointError, match="Bad CRC-32"):
        read_foreign(path)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(1).expand(1000, 1000), r"a tensor of shape \(1000, 1000\) reaches beyond its storage of 4 bytes"),
        (torch.arange(11.0).as_strided((6, 6), (1, 1)), r"a tensor of shape \(6, 6\)"),
    ],
)
def test_tensors_larger_than_their_storage_are_refused(tmp_path, tensor, message):
    torch.save({"a": tensor}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=message):
        read_foreign(tmp_path / "a.ckpt")


def test_many_views_of_one_storage_are_refused(tmp_path):
    base = torch.zeros(1 << 20)
    torch.save({str(index): base[index:] for index in range(100)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="share their storages too often"):
        read_foreign(tmp_path / "a.ckpt")


def test_views_come_back_with_their_strides(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    written = {
        "slice": base[1:3, 2:5],
        "turned": base.T,
        "none": base[:0],
        "scalar": base[2, 3],
        "empty": torch.ones(0),
    }
    torch.save(written, tmp_path / "a.ckpt")
    found = read_foreign(tmp_path / "a.ckpt")
    for name, value in written.items():
        assert torch.equal(found[name], value)
        assert found[name].stride() == value.stride()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.uint16, torch.bfloat16, torch.complex64, torch.bool])
def test_every_dtype_is_read_as_it_is(tmp_path, dtype):
    written = torch.tensor([0.0, 1.0, 2.0]).to(dtype)
    torch.save({"a": written}, tmp_path / "a.ckpt")
    found = read_foreign(tmp_path / "a.ckpt")["a"]
    assert found.dtype == dtype
    assert torch.equal(found.view(torch.uint8), written.view(torch.uint8))


def test_the_kind_of_an_odd_storage_is_named(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantised tensors are deprecated
        torch.save({"a": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"tensors of the kind torch.QInt8Storage cannot be read"):
        read_foreign(tmp_path / "a.ckpt")


def test_torch_is_not_asked_to_load(tmp_path, monkeypatch):
    torch.save({"a": torch.ones(2)}, tmp_path / "a.ckpt")
    monkeypatch.setattr(torch, "load", None)
    assert torch.equal(read_foreign(tmp_path / "a.ckpt")["a"], torch.ones(2))
