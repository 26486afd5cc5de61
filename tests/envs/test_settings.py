"""What is given where an environment is made is checked there: in every environment, by its name, in one line."""

import copy
import json
import math
import pickle
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec

from sepo_env import TorchRLEnv, tasks
from sepo_env.denoisers import TabularDenoiser, save_denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, make_graph, make_schedule
from sepo_env.diffusion.enumeration import all_states, ancestral_law, first_hitting_law
from sepo_env.diffusion.likelihood import elbo
from sepo_env.diffusion.sampler import first_hitting, reverse_steps, sample
from sepo_env.envs.dynamics import Dynamics
from sepo_env.envs.episodes import Episodes
from sepo_env.errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidDenoiserError,
    InvalidPromptError,
    InvalidShapeError,
    SepoEnvError,
    UnknownNameError,
)
from sepo_env.registration import ENVIRONMENTS

SKINS = {
    "gymnasium": lambda env_id, **options: gym.make(env_id, **options),
    "vector": lambda env_id, **options: gym.make_vec(env_id, num_envs=2, **options),
    "torchrl": lambda env_id, **options: TorchRLEnv(env_id, num_envs=2, **options),
    "episodes": lambda env_id, **options: Episodes(ENVIRONMENTS[env_id], 2, **options),
}
NO_COUNTS = [0, -1, 4.5, math.nan, math.inf, "4", "four", True, [4], {}, object(), 10**12, b"4", 4j]
NO_FLAGS = [1, 0, "yes", [], object()]
NO_TEXTS = [3, 0.5, True, ["log-linear"], object(), b"linear"]
NO_PATHS = [3, 0.5, True, [], {}, object(), b"file"]
WRONG = {
    "num_steps": NO_COUNTS,
    "schedule": [*NO_TEXTS, "no such schedule", LogLinear],
    "sampler": [*NO_TEXTS, None, "no such sampler"],
    "denoiser": [*NO_PATHS, torch.nn.Linear(2, 2), TabularDenoiser],
    "device": [0.5, True, None, [], object(), "no such device"],
    "remask": [*NO_FLAGS, None],
    "conditional": NO_FLAGS,
    "prompt_repeats": [*NO_COUNTS, None],
    "workers": [-1, *NO_COUNTS[2:], None],
    "timeout": [0, -1.0, math.nan, math.inf, "1", True, [1.0]],
    "on_error": [*NO_TEXTS, None, "ignore"],
    "floor": [math.nan, math.inf, "0", [0.0], 1j],
    "cache": [-1, 1.5, "yes", None, []],
    "artefacts": [*NO_PATHS, "no/such/folder"],
    "trust_remote_code": [*NO_FLAGS, None],
    "prompt": [3, 0.5, object(), {}, ["A", 3], b"A"],
    "reward": [3, object(), "no such reward", {}, [], True],
}


@pytest.mark.parametrize("skin", sorted(SKINS))
@pytest.mark.parametrize("option", sorted(WRONG))
def test_what_no_environment_takes_is_named_where_it_is_made(env_id, skin, option):
    for value in WRONG[option]:
        with pytest.raises(SepoEnvError) as caught:
            SKINS[skin](env_id, **{option: value})
        said = str(caught.value)
        assert "\n" not in said
        assert option in said or (option in ("reward", "prompt", "artefacts") and len(said) > 20), said


@pytest.mark.parametrize("option", ["num_steps", "schedule", "denoiser", "trust_remote_code", "prompt"])
def test_tasks_name_them_too(env_id, option):
    for value in WRONG[option]:
        with pytest.raises(SepoEnvError, match=option):
            tasks.make(ENVIRONMENTS[env_id], **{option: value})


TOY_ONLY = {
    "num_tokens": [*NO_COUNTS, 1, 5, None],
    "length": [*NO_COUNTS, 1, 7, None],
    "seed": [-1, 0.5, 2**63, "0", None, True],
    "graph": [*NO_TEXTS, None, "no such graph"],
    "parameterisation": [3, None, "x", b"score", []],
    "prompted": [*NO_FLAGS, None],
}


@pytest.mark.parametrize("option", sorted(TOY_ONLY))
def test_the_toys_own_settings_are_named(option):
    for value in TOY_ONLY[option]:
        # A name of TorchRL's own there.
        for skin in sorted(SKINS.keys() - ({"torchrl"} if option == "seed" else set())):
            with pytest.raises(SepoEnvError, match=option):
                SKINS[skin]("ToyCTMC-v0", **{option: value})


@pytest.mark.parametrize("value", [4, 4.0, np.int64(4), np.uint8(4), np.float32(4)])
def test_whole_numbers_of_any_kind_are_numbers_of_steps(env_id, value):
    for skin in sorted(SKINS):
        env = SKINS[skin](env_id, num_steps=value, reward=lambda sequences: [0.0] * len(sequences))
        episodes = env if skin == "episodes" else getattr(env, "unwrapped", env).episodes
        assert episodes.dynamics.horizon == 4
        assert type(episodes.dynamics.horizon) is int
    assert tasks.make(ENVIRONMENTS[env_id], num_steps=value).num_steps == 4


@pytest.mark.parametrize("value", NO_COUNTS)
def test_numbers_of_environments_are_counts(value):
    for make in (
        lambda: gym.make_vec("ToyCTMC-v0", num_envs=value),
        lambda: TorchRLEnv("ToyCTMC-v0", num_envs=value),
        lambda: TorchRLEnv("ToyCTMC-v0", batch_size=[value]),
        lambda: Episodes("toy", value),
    ):
        with pytest.raises(InvalidArgumentError, match="^(num_envs|batch_size) is "):
            make()


def test_sizes_of_torchrl_are_counts():
    for size in (torch.Size([3]), [3], (3,), [3.0], [np.int64(3)]):
        assert TorchRLEnv("ToyCTMC-v0", batch_size=size).batch_size == torch.Size([3])
    for size in (3, "3", [], [1, 2], None, {3}):
        with pytest.raises(InvalidArgumentError, match=r"batch_size|num_envs=B"):
            TorchRLEnv("ToyCTMC-v0", batch_size=size)


@pytest.mark.parametrize("render_mode", ["humans", "rgb", 3, True, b"ansi", ["ansi"]])
def test_ways_of_rendering_are_names(render_mode):
    from sepo_env.envs.gym_env import DiffusionEnv
    from sepo_env.envs.vector_env import DiffusionVectorEnv

    for make in (
        lambda: DiffusionEnv("toy", render_mode=render_mode),
        lambda: DiffusionVectorEnv(2, "toy", render_mode=render_mode),
    ):
        with pytest.raises(SepoEnvError, match="render_mode"):
            make()


@pytest.mark.parametrize("mode", ["samestep", 3, True, None, ["SameStep"], "NextStep"])
def test_autoreset_modes_are_names(mode):
    with pytest.raises(SepoEnvError, match="autoreset_mode"):
        gym.make_vec("ToyCTMC-v0", num_envs=2, autoreset_mode=mode)


def test_a_task_is_a_name_or_a_task():
    for task in (3, None, ["toy"], b"toy", tasks.make):
        for make in (lambda task=task: TorchRLEnv(task, num_envs=1), lambda task=task: Episodes(task, 1)):
            with pytest.raises(InvalidArgumentError, match="^task is "):
                make()
        with pytest.raises(InvalidArgumentError, match="^name is "):
            tasks.make(task)
    with pytest.raises(UnknownNameError, match="did you mean 'toy'"):
        tasks.make("tyo")


# -- denoisers


@pytest.fixture
def files(tmp_path):
    """Paths that are no denoiser of a world, by what is wrong with them."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.txt").write_text("no denoiser")
    (tmp_path / "cut.safetensors").write_bytes(b"\xff\x00\x00\x00\x00\x00\x00\x00{")
    save_denoiser(TabularDenoiser(2, 2, 3), tmp_path / "other.safetensors")
    return {
        "missing": tmp_path / "typo.ckpt",
        "a folder": tmp_path / "folder",
        "empty": tmp_path / "empty",
        "text": tmp_path / "text.txt",
        "cut": tmp_path / "cut.safetensors",
        "another vocabulary": tmp_path / "other.safetensors",
    }


@pytest.mark.parametrize("skin", [*sorted(SKINS), "task"])
def test_a_denoiser_that_is_none_is_refused_where_it_is_given(env_id, skin, files):
    make = {**SKINS, "task": lambda env_id, **options: tasks.make(ENVIRONMENTS[env_id], **options)}[skin]
    for what, path in files.items():
        for given in (path, str(path)):
            wanted = InvalidArgumentError if what == "another vocabulary" else CheckpointError
            if what == "another vocabulary" and env_id == "TextRLHF-v0":
                continue  # whose vocabulary is the denoiser's
            with pytest.raises(wanted) as caught:
                make(env_id, denoiser=given)
            assert "\n" not in str(caught.value)
            if wanted is CheckpointError:
                assert str(path) in str(caught.value)


def test_a_live_denoiser_of_another_world_is_refused_where_it_is_given():
    for denoiser in (TabularDenoiser(2, 4, 3), TabularDenoiser(3, 5, 4), TabularDenoiser(3, 4, 3)):
        for skin in sorted(SKINS):
            with pytest.raises(InvalidArgumentError, match="the denoiser reads"):
                SKINS[skin]("ToyCTMC-v0", denoiser=denoiser)
    SKINS["gymnasium"]("ToyCTMC-v0", graph="uniform", denoiser=TabularDenoiser(3, 4, 3))


def test_a_denoisers_file_is_read_once_and_shared(tmp_path, monkeypatch):
    save_denoiser(tasks.make("toy", seed=7).denoiser, tmp_path / "mine.safetensors")
    read = []
    from sepo_env.tasks import base

    loader = base.load_denoiser
    monkeypatch.setattr(base, "load_denoiser", lambda *args, **kwargs: read.append(args) or loader(*args, **kwargs))
    env = gym.make("ToyCTMC-v0", denoiser=str(tmp_path / "mine.safetensors"))
    env.reset(seed=0)
    action = env.unwrapped.pretrained_action()
    assert len(read) == 1
    assert np.array_equal(action, _first_action(gym.make("ToyCTMC-v0", denoiser=tasks.make("toy", seed=7).denoiser)))
    (tmp_path / "mine.safetensors").unlink()
    assert env.unwrapped.task.denoiser is env.unwrapped.task.denoiser
    assert json.loads(env.spec.to_json())["kwargs"]["denoiser"] == str(tmp_path / "mine.safetensors")


def _first_action(env):
    env.reset(seed=0)
    return env.unwrapped.pretrained_action()


# -- options go through Gymnasium, copies and processes


def test_options_are_still_written_as_json(env_id):
    options = {"num_steps": 5.0, "sampler": "k-step", "remask": True, "conditional": True, "cache": 8, "workers": 0}
    env = gym.make(env_id, **options)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    for one in (env, again, copy.deepcopy(env), pickle.loads(pickle.dumps(again))):
        assert one.unwrapped.episodes.dynamics.horizon == 5
        assert one.action_space == env.action_space


# -- the diffusion below


def test_dynamics_processes_and_graphs_check_what_they_are_made_of():
    process = DiffusionProcess(Absorbing(3), LogLinear())
    for value in NO_COUNTS:
        for name, make in {
            "num_steps": lambda value=value: Dynamics(process, 4, value),
            "length": lambda value=value: Dynamics(process, value, 4),
            "num_tokens": lambda value=value: Absorbing(value),
        }.items():
            with pytest.raises(InvalidArgumentError, match=f"^{name} is "):
                make()
    for graph, schedule in (("absorbing", LogLinear()), (Absorbing(3), "log-linear"), (Absorbing, LogLinear())):
        with pytest.raises(InvalidArgumentError, match="^(graph|schedule) is "):
            DiffusionProcess(graph, schedule)
    for value in NO_TEXTS:
        with pytest.raises(InvalidArgumentError, match="^schedule is "):
            make_schedule(value)
        with pytest.raises(InvalidArgumentError, match="^name is "):
            make_graph(value, 3)
    assert DiffusionProcess(Absorbing(3.0), LogLinear()) == DiffusionProcess(Absorbing(np.int64(3)), LogLinear())


SAMPLER_SETTINGS = {
    "num_steps": NO_COUNTS,
    "num_samples": NO_COUNTS,
    "length": NO_COUNTS,
    "kernel": ["euler", 3, None],
    "corrector_steps": [-1, 0.5, "1", None],
    "corrector_size": [0, -0.1, math.nan, "1", None],
    "remask_prob": [-0.1, 1.1, math.nan, "0", None],
    "device": ["no such device", 0.5],
}


@pytest.mark.parametrize("name", sorted(SAMPLER_SETTINGS))
def test_samplers_check_their_settings(name):
    task = tasks.make("toy")
    good = {"num_samples": 2, "length": 4, "num_steps": 2}
    for value in SAMPLER_SETTINGS[name]:
        with pytest.raises(SepoEnvError, match=name):
            sample(task.process, task.denoiser, **{**good, name: value})
        if name in ("num_samples", "length", "device"):
            with pytest.raises(SepoEnvError, match=name):
                first_hitting(task.process, task.denoiser, **{"num_samples": 2, "length": 4, name: value})
        else:
            with pytest.raises(SepoEnvError, match=name):  # at the call, and not at the first step
                reverse_steps(
                    task.process,
                    task.denoiser,
                    torch.full((2, 4), 3),
                    **{"num_steps": 2, "keys": torch.zeros(2).long(), name: value},
                )


def test_exact_laws_check_their_settings():
    task = tasks.make("toy")
    for value in NO_COUNTS:
        for call in (
            lambda value=value: all_states(3, value),
            lambda value=value: ancestral_law(task.process, task.denoiser, value, 2),
            lambda value=value: ancestral_law(task.process, task.denoiser, 4, value),
            lambda value=value: first_hitting_law(task.process, task.denoiser, value),
        ):
            with pytest.raises(InvalidArgumentError, match="^(length|num_steps) is "):
                call()
    with pytest.raises(InvalidArgumentError, match=r"4 \*\* 200 sequences are too many"):
        all_states(4, 200)


def test_texts_and_tokens_of_tasks_are_checked(env_id):
    task = tasks.make(ENVIRONMENTS[env_id])
    for texts in (3, "ABCA", [3], [None], object(), None):
        with pytest.raises(SepoEnvError, match="encode takes a list of strings"):
            task.encode(texts)
    for tokens in (
        [[0, 1]],
        np.zeros((1, task.length), int),
        torch.zeros(1, task.length),
        torch.ones(1, 4).bool(),
        None,
    ):
        with pytest.raises(SepoEnvError, match="tokens are"):
            task.decode(tokens)
    for prompts in (3, [3], None, object(), {"A": 1}):
        with pytest.raises(SepoEnvError, match="^prompts is "):
            task.start_from(prompts)


@pytest.mark.parametrize(
    "options",
    [
        *({"flanks": value} for value in (3, "ACG", ("A", 3), ("A",), {"A": 1}, ("N", ""))),
        *({"motifs": value} for value in (5, {96: 5}, {"x": "A"}, {1e20: "A"}, [("a", "b", "c")], "abc", {96: None})),
        *({"motifs": value} for value in ([96, "A"], {-1: "A"}, {96.5: "A"}, object())),
        *({"prompt": value} for value in ([], "", " ", ["?" * 200, 3], "A" * 200, ["A" * 199], {"A": 1})),
    ],
)
def test_sites_of_dna_that_are_none_are_refused_where_they_are_given(options):
    with pytest.raises(SepoEnvError) as caught:
        gym.make("DNAEnhancer-v0", **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        *({"prompts": value} for value in (3, "missing.jsonl", "/", True)),
        *({"tokenizer": value} for value in ("missing", 3, "/")),
        *({"label": value} for value in (3.5, [1], True)),
        *({"held_out_label": value} for value in (3.5, [1])),
        *({"length": value} for value in (0, "4", 2.5, 10**9)),
        *({"reward_model": value} for value in ("missing", "/", 3)),
        # Read when a judge is asked for, which may be after days of training.
        *({"held_out_model": value} for value in ("missing", "/", 3)),
        *({"end_of_text": value} for value in ("x", 1, None)),
    ],
)
def test_files_of_text_that_are_none_are_refused_where_they_are_given(options):
    for make in (
        lambda: gym.make("TextRLHF-v0", **options),
        lambda: gym.make("TextRLHF-v0", reward="sentiment", **options),
        lambda: tasks.make("text_rlhf", **options),
    ):
        with pytest.raises(SepoEnvError) as caught:
            make()
        assert "\n" not in str(caught.value)


def test_what_is_no_denoiser_is_named_by_samplers():
    task = tasks.make("toy")
    for denoiser in (None, 3, "toy", lambda tokens, time: tokens):
        for call in (
            lambda denoiser=denoiser: sample(task.process, denoiser, 2, 4, num_steps=2),
            lambda denoiser=denoiser: first_hitting(task.process, denoiser, 2, 4),
            lambda denoiser=denoiser: task.exact_law(denoiser),
            lambda denoiser=denoiser: elbo(task.process, denoiser, torch.zeros(2, 4).long()),
        ):
            with pytest.raises(InvalidDenoiserError, match="the denoiser is"):
                call()


def test_laws_and_bounds_compare_shapes():
    task = tasks.make("toy")
    for sampler in ("k-step", "first-hitting"):
        with pytest.raises(InvalidShapeError, match="prompt has shape"):
            task.exact_law(task.denoiser, sampler=sampler, prompt=torch.tensor([0, 3]))
        with pytest.raises(InvalidPromptError, match="the prompt holds the id 9"):
            task.exact_law(task.denoiser, sampler=sampler, prompt=torch.tensor([0, 3, 3, 9]))
    with pytest.raises(UnknownNameError, match="sampler"):
        task.exact_law(task.denoiser, sampler="kstep")
    for mask in (torch.ones(4).bool(), torch.ones(2, 5).bool()):
        with pytest.raises(InvalidShapeError, match="prompt_mask"):
            task.log_likelihood(torch.zeros(2, 4).long(), prompt_mask=mask)
    with pytest.raises(InvalidArgumentError, match="prompt_mask has dtype torch.float32"):
        task.log_likelihood(torch.zeros(2, 4).long(), prompt_mask=torch.ones(2, 4))
    assert task.log_likelihood(torch.zeros(0, 4).long()).shape == (0,)
    for table in (torch.zeros(3), torch.zeros(3**4).long()):
        with pytest.raises(InvalidShapeError, match="the table"):
            task.reward_table = table


def test_paths_of_any_kind_are_paths(tmp_path):
    save_denoiser(tasks.make("toy").denoiser, tmp_path / "mine.safetensors")

    class Somewhere:
        def __fspath__(self):
            return str(tmp_path / "mine.safetensors")

    for path in (tmp_path / "mine.safetensors", str(tmp_path / "mine.safetensors"), Somewhere()):
        assert tasks.make("toy", denoiser=path).denoiser.num_tokens == 3
    with pytest.raises(CheckpointError):
        tasks.make("toy", denoiser=Path("/"))
