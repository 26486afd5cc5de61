"""Foreign checkpoints are data: what they hold is read, what they would run is not."""

import collections
import gc
import os
import pathlib
import pickle
import weakref

import pytest
import torch

from sepo_env.errors import CheckpointError
from sepo_env.loading.foreign import Inert, read_foreign


class Marker:
    """Runs code when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class Configuration:
    """An object with a state, as Lightning files hold them."""

    def __init__(self):
        self.sizes = [1, 2]


def save(value, path):
    torch.save(value, path)
    return path


def test_tensors_and_containers_come_back(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    written = {
        "state_dict": collections.OrderedDict(a=weight, b=weight.T, c=torch.nn.Parameter(weight.double())),
        "numbers": [1, 2.5, None, True, "text", (3, 4), {5}],
        "dtype": torch.bfloat16,
        "size": weight.shape,
    }
    found = read_foreign(save(written, tmp_path / "a.ckpt"))
    assert found["numbers"] == written["numbers"]
    assert found["dtype"] == torch.bfloat16
    assert found["size"] == (2, 3)
    for name, value in written["state_dict"].items():
        assert torch.equal(found["state_dict"][name], value)
        assert found["state_dict"][name].dtype == value.dtype


def test_nothing_in_the_file_runs(tmp_path):
    canary = tmp_path / "ran"
    path = save({"weights": torch.ones(2), "trap": Marker(canary)}, tmp_path / "trap.ckpt")
    found = read_foreign(path)
    assert not canary.exists()
    assert torch.equal(found["weights"], torch.ones(2))
    assert isinstance(found["trap"], Inert)
    # The trap is real: the plain reader walks into it.
    torch.load(path, weights_only=False)
    assert canary.exists()


def test_objects_become_inert_and_say_what_they_were(tmp_path):
    path = save({"config": Configuration(), "folder": pathlib.PurePosixPath("/a")}, tmp_path / "a.ckpt")
    found = read_foreign(path)
    assert "Configuration, not loaded" in repr(found["config"])
    assert not hasattr(found["config"], "sizes")
    assert isinstance(found["folder"], Inert)


@pytest.mark.parametrize("kind", ["absent", "text", "truncated", "old format", "list"])
def test_other_files_are_refused_by_name(tmp_path, kind):
    path = tmp_path / "a.ckpt"
    if kind == "text":
        path.write_text("seq,hepg2\n")
    elif kind == "truncated":
        save({"a": torch.ones(1000)}, path)
        path.write_bytes(path.read_bytes()[:-600])
    elif kind == "old format":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "list":
        save([1, 2], path)
    with pytest.raises(CheckpointError, match=r"a\.ckpt"):
        read_foreign(path)


def test_attributes_of_tensors_are_let_go(tmp_path):
    weight, parameter = torch.arange(3.0), torch.nn.Parameter(torch.ones(2))
    weight.note, parameter.sharded = Configuration(), True
    found = read_foreign(save({"w": weight, "p": parameter}, tmp_path / "a.ckpt"))
    assert torch.equal(found["w"], weight)
    assert torch.equal(found["p"], parameter)
    assert isinstance(found["p"], torch.nn.Parameter)
    assert not hasattr(found["w"], "note")
    assert not hasattr(found["p"], "sharded")


def test_nothing_is_held_when_a_file_has_been_read(tmp_path):
    path = save({"a": torch.ones(1000), "config": Configuration()}, tmp_path / "a.ckpt")
    gc.collect()
    gc.disable()
    try:
        kept = weakref.ref(read_foreign(path)["a"])
        assert kept() is None
    finally:
        gc.enable()
