"""Pickles written against the reader: none runs anything, leaves anything behind, or passes for a model."""

import collections
import io
import os
import pickle
import zipfile

import pytest
import torch

from sepo_env.denoisers import load_denoiser
from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import Inert, read_foreign


def archive(path, program: bytes):
    """A checkpoint of torch whose pickle is a hand-written program."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return path


def call(module: str, name: str, argument: str) -> bytes:
    """The opcodes that call ``module.name(argument)``."""
    return f"c{module}\n{name}\n(V{argument}\ntR".encode()


CALLS = ("os", "system"), ("posix", "system"), ("nt", "system"), ("subprocess", "call"), ("builtins", "exec")
MORE_CALLS = ("builtins", "eval"), ("__builtin__", "eval"), ("builtins", "__import__"), ("torch", "load")


@pytest.mark.parametrize(("module", "name"), [*CALLS, *MORE_CALLS])
def test_no_function_is_called(tmp_path, module, name):
    canary = tmp_path / "canary"
    command = f"touch {canary}" if name in ("system", "call") else f"open({str(canary)!r}, 'w')"
    program = b"\x80\x02}Vtrap\n" + call(module, name, command) + b"s."
    found = read_foreign(archive(tmp_path / "trap.ckpt", program))
    assert isinstance(found["trap"], Inert)
    assert not canary.exists()


def test_the_programs_are_programs(tmp_path):
    # The same opcodes, read by pickle itself, do run.
    canary = tmp_path / "canary"
    program = b"\x80\x02}Vtrap\n" + call("os", "mkdir", str(canary)) + b"s."
    read_foreign(archive(tmp_path / "trap.ckpt", program))
    assert not canary.exists()
    pickle.loads(program)
    assert canary.exists()


def test_a_trap_in_a_lightning_file_does_not_go_off(tmp_path, fixtures_folder):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "canary"),)

    state = dict(read_foreign(fixtures_folder / "dna_cnn" / "finetuned.ckpt"))
    torch.save({"state_dict": state, "hyper_parameters": {"config": Trap()}, "callbacks": Trap()}, tmp_path / "a.ckpt")
    denoiser = load_denoiser(tmp_path / "a.ckpt")
    assert torch.equal(denoiser.linear.bias, state["backbone.linear.bias"])
    # Where a tensor should be, it is found out.
    torch.save({"backbone.linear.weight": Trap()}, tmp_path / "b.ckpt")
    with pytest.raises(CheckpointError, match="expected tensors by name, found 1 entries"):
        load_denoiser(tmp_path / "b.ckpt")
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "function", ["torch._utils\n_rebuild_tensor_v2", "torch._utils\n_rebuild_parameter", "collections\nOrderedDict"]
)
def test_functions_of_ours_keep_their_attributes(tmp_path, function):
    # BUILD with (None, {name: value}) sets attributes of whatever stands on the stack.
    program = b"\x80\x02c" + function.encode() + b"\n(N}V__defaults__\n(I1\ntsV__doc__\nVchanged\nstb."
    targets = (torch._utils._rebuild_tensor_v2, torch._utils._rebuild_parameter)
    before = [(target.__defaults__, target.__doc__) for target in targets]
    with pytest.raises(CheckpointError):
        read_foreign(archive(tmp_path / "trap.ckpt", program))
    assert [(target.__defaults__, target.__doc__) for target in targets] == before
    assert collections.OrderedDict.__doc__ != "changed"


def test_a_tensor_reaches_no_further_than_its_storage(tmp_path):
    buffer = io.BytesIO()
    torch.save({"w": torch.arange(4.0)}, buffer)
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(tmp_path / "a.ckpt", "w") as changed:
        for name in whole.namelist():
            content = whole.read(name)
            # The size (4,) becomes (100,), written as one byte each.
            changed.writestr(
                name, content.replace(b"K\x04\x85", b"K\x64\x85") if name.endswith("data.pkl") else content
            )
    with pytest.raises(CheckpointError, match="not a whole checkpoint of torch"):
        read_foreign(tmp_path / "a.ckpt")


def test_a_program_of_torchscript_is_refused(tmp_path):
    with zipfile.ZipFile(archive(tmp_path / "a.ckpt", b"\x80\x02}."), "a") as file:
        file.writestr("archive/constants.pkl", b"\x80\x02).")
    with pytest.raises(CheckpointError, match="a TorchScript program, no checkpoint"):
        load_denoiser(tmp_path / "a.ckpt")


def test_the_configuration_in_a_lightning_file_is_kept_unread(fixtures_folder):
    config = read_foreign(fixtures_folder / "dna_cnn" / "pretrained.ckpt")["hyper_parameters"]["config"]
    assert repr(config) == "<omegaconf.dictconfig.DictConfig, not loaded>"
    batch_size = config.state["_content"]["loader"].state["_content"]["batch_size"].state["_val"]
    assert batch_size.startswith("${div_up:")


@pytest.fixture
def fixtures_folder(project_root):
    return project_root / "tests" / "fixtures"
