"""One place that knows what a device is, wherever a user writes one."""

import subprocess
import sys

import gymnasium as gym
import pytest
import torch

import sepo_env
from sepo_env.device import find_device
from sepo_env.errors import InvalidArgumentError

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
DEVICES = [
    ("foo", "is no device"),
    (3.5, "device is 3.5"),
    (None, "device is None"),
    pytest.param("cuda", "there is no GPU", marks=NO_GPU),
]


@pytest.mark.parametrize(("device", "words"), DEVICES)
def test_what_cannot_compute_is_refused_everywhere(device, words):
    with pytest.raises(InvalidArgumentError, match=words):
        find_device(device)
    with pytest.raises(InvalidArgumentError, match=words):
        gym.make("ToyCTMC-v0", device=device)
    with pytest.raises(InvalidArgumentError, match=words):
        gym.make_vec("ToyCTMC-v0", num_envs=2, device=device)
    with pytest.raises(InvalidArgumentError, match=words):
        sepo_env.TorchRLEnv("ToyCTMC-v0", num_envs=2, device=device)


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="says what happens without that backend")
def test_a_backend_that_torch_was_not_built_with():
    with pytest.raises(InvalidArgumentError, match="cannot use the device 'mps'"):
        find_device("mps")


def test_auto_is_the_gpu_where_there_is_one():
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert find_device("auto").type == expected
    assert gym.make("ToyCTMC-v0", device="auto").unwrapped.episodes.device.type == expected
    assert gym.make("ToyCTMC-v0").unwrapped.episodes.device == torch.device("cpu")


@pytest.mark.parametrize("script", ["compare", "tune", "paper_dna", "language", "speed"])
def test_the_scripts_say_it_in_a_line(script, project_root, tmp_path):
    command = [sys.executable, str(project_root / "benchmarks" / f"{script}.py"), "--device", "foo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("InvalidArgumentError: 'foo' is no device")
    assert list(tmp_path.iterdir()) == []
