"""Denoisers by their names on the hub, with a stand-in for it."""

import sys
import types

import pytest

from sepo_env.denoisers import MDLMDenoiser, SEDDDenoiser, load_denoiser, load_mdlm, load_sedd
from sepo_env.errors import CheckpointError, InvalidArgumentError, MissingExtraError


@pytest.fixture
def hub(monkeypatch, fixtures):
    """A stand-in for huggingface_hub; what it was asked for is appended to the list."""
    asked: list[tuple] = []

    def snapshot_download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        if name == "nobody/nothing":
            raise OSError("404: no such repository\nand more lines")
        return str(fixtures / name.partition("/")[2].replace("-", "/"))

    module = types.ModuleType("huggingface_hub")
    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def test_a_hub_id_is_downloaded_and_read(hub, fixtures):
    assert type(load_denoiser("hub:someone/mdlm")) is MDLMDenoiser
    assert type(load_mdlm("hub:someone/mdlm")) is MDLMDenoiser
    assert type(load_sedd("hub:someone/sedd-uniform@v1")) is SEDDDenoiser
    assert [entry[:2] for entry in hub] == [("someone/mdlm", None)] * 2 + [("someone/sedd-uniform", "v1")]
    for _, _, patterns in hub:
        assert "*.safetensors" in patterns
        assert not any(pattern.endswith((".py", ".bin", ".ckpt")) for pattern in patterns)


def test_a_model_that_the_hub_has_not(hub):
    with pytest.raises(CheckpointError, match=r"hub:nobody/nothing: .*OSError: 404: no such repository\);"):
        load_denoiser("hub:nobody/nothing")
    with pytest.raises(InvalidArgumentError, match="names no model"):
        load_denoiser("hub:")


def test_without_huggingface_hub_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"huggingface_hub is not installed.*pip install -e '\.\[hub\]'"):
        load_denoiser("hub:someone/mdlm")
