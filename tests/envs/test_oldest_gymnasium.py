"""What Gymnasium below 1.4 lacks is not used: it is declared as enough, and RLlib pins 1.2.2."""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from sepo_env.errors import InvalidArgumentError

_WITHOUT_BRACKETS = """
from gymnasium import vector

def refuse(cls, parameters):
    raise TypeError(f"{cls} is not a generic class")

for name in ("VectorWrapper", "VectorActionWrapper", "VectorObservationWrapper", "VectorRewardWrapper"):
    getattr(vector, name).__class_getitem__ = classmethod(refuse)

import importlib, pkgutil, sepo_env.envs
for module in pkgutil.iter_modules(sepo_env.envs.__path__, "sepo_env.envs."):
    importlib.import_module(module.name)
"""


def test_all_environments_are_imported_where_vector_wrappers_take_no_types_in_brackets() -> None:
    done = subprocess.run([sys.executable, "-c", _WITHOUT_BRACKETS], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_environment_that_could_not_be_made_is_closed() -> None:
    """Gymnasium below 1.4 closes every vector environment that is thrown away, made or not."""
    with pytest.raises(InvalidArgumentError) as caught:
        gym.make_vec("ToyCTMC-v0", num_envs=2, autoreset_mode="NextStep")
    traceback = caught.value.__traceback__
    frames = []
    while traceback is not None:
        frames.append(traceback.tb_frame.f_locals)
        traceback = traceback.tb_next
    halfmade = next(local["self"] for local in frames if "autoreset_mode" in local and "self" in local)
    assert halfmade.closed
    halfmade.close()


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_gymnasiums_own_statistics_count_our_episodes(mode: str) -> None:
    """Below 1.4 they leave out the first step after an automatic reset: only there, lengths are one short."""
    envs = RecordEpisodeStatistics(gym.make_vec("ToyCTMC-v0", num_envs=2, num_steps=3, autoreset_mode=mode))
    skipped = int(mode == "SameStep" and tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4))
    envs.reset(seed=0)
    for episode in range(3):
        for _ in range(3):
            _, rewards, terminated, _, infos = envs.step(envs.unwrapped.pretrained_action())
        assert terminated.all()
        np.testing.assert_allclose(infos["episode"]["r"], rewards)  # only the last step has a reward
        assert infos["episode"]["l"].tolist() == [3 - skipped * (episode > 0)] * 2
        if mode == "Disabled":
            envs.reset(options={"reset_mask": terminated})
