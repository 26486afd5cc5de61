"""Ids, entry points and what importing the package costs."""

import json
import subprocess
import sys

import gymnasium as gym
import pytest

import sepo_env
from sepo_env.envs.gym_env import DiffusionEnv
from sepo_env.envs.vector_env import DiffusionVectorEnv
from sepo_env.registration import ENVIRONMENTS, register_environments
from sepo_env.tasks import TASKS


def run(code: str, cwd: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_every_id_is_registered_with_string_entry_points_and_plain_kwargs(env_id):
    spec = gym.spec(env_id)
    assert spec.entry_point == "sepo_env.envs.gym_env:DiffusionEnv"
    assert spec.vector_entry_point == "sepo_env.envs.vector_env:DiffusionVectorEnv"
    assert spec.additional_wrappers == ()
    assert not spec.nondeterministic
    assert json.loads(json.dumps(spec.kwargs)) == spec.kwargs
    assert spec.kwargs["task"] in TASKS
    assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("env_id", sorted(ENVIRONMENTS))
def test_every_id_is_made_single_and_as_a_vector(env_id):
    env = gym.make(env_id)
    assert isinstance(env.unwrapped, DiffusionEnv)
    assert env.spec.id == env_id
    assert env.unwrapped.episodes.dynamics.horizon == env.unwrapped.task.num_steps
    envs = gym.make_vec(env_id, num_envs=2)
    assert isinstance(envs, DiffusionVectorEnv)
    assert envs.spec.id == env_id
    env.close(), envs.close()


def test_every_task_has_an_id():
    assert set(ENVIRONMENTS.values()) == set(TASKS)


def test_registering_twice_warns_of_nothing():
    register_environments()


def test_a_module_prefix_is_enough_and_torchrl_is_not_imported(project_root):
    code = (
        "import sys, gymnasium as gym\n"
        "import sepo_env\n"
        "assert 'torch' not in sys.modules\n"
        "env = gym.make('sepo_env:ToyCTMC-v0')\n"
        "env.reset(seed=0)\n"
        "import sepo_env.envs.wrappers\n"
        "assert sepo_env.tasks.make('toy').length == 4\n"
        "print(env.spec.id, *(name for name in ('torchrl', 'tensordict', 'pandas') if name in sys.modules))\n"
    )
    assert run(code, str(project_root)).split() == ["ToyCTMC-v0"]


def test_unknown_names_of_the_package_are_refused():
    with pytest.raises(AttributeError, match="TorchRlEnv"):
        sepo_env.TorchRlEnv  # noqa: B018
