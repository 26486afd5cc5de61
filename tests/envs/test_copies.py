"""What environments hand out is the caller's: who writes into it changes no episode, no task and no other caller."""

from collections.abc import Mapping, Sequence

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import data_equivalence
from tensordict import TensorDictBase

from sepo_env import TorchRLEnv, tasks
from sepo_env.denoisers import Denoiser, TabularDenoiser
from sepo_env.diffusion.enumeration import all_states
from sepo_env.envs.wrappers import LogitAction, TokenAction, VectorLogitAction, VectorTokenAction
from sepo_env.tasks.motifs import MotifCollection, shipped_motifs
from sepo_env.tasks.prompts import PromptSet


def scribble(found) -> int:
    """Write into every array and tensor that can be reached, and count them; what is read-only is as good as a copy."""
    if isinstance(found, torch.Tensor):
        with torch.no_grad():
            found.copy_(torch.ones_like(found))
        return 1
    if isinstance(found, np.ndarray):
        if found.dtype == object:
            return sum(scribble(entry) for entry in found.ravel() if entry is not None)
        if found.flags.writeable:
            found[...] = np.ones_like(found)
        return 1
    if isinstance(found, TensorDictBase):
        return sum(scribble(found[key]) for key in found.keys(include_nested=True, leaves_only=True))
    if isinstance(found, Mapping):
        count = sum(scribble(value) for value in found.values())
        if isinstance(found, dict):
            found.clear()
        return count
    if isinstance(found, (list, tuple)):
        return sum(scribble(value) for value in found)
    return 0


def snapshot(found):
    if isinstance(found, Mapping):
        return {key: snapshot(value) for key, value in found.items()}
    if isinstance(found, np.ndarray) and found.dtype == object:
        return [snapshot(entry) for entry in found]
    if isinstance(found, torch.Tensor):
        return found.detach().numpy().copy()
    if isinstance(found, np.ndarray):
        return found.copy()
    if isinstance(found, Sequence) and not isinstance(found, str):
        return [snapshot(entry) for entry in found]
    return found


def walk(env, actions, write, reset_options=None):
    """All that an environment says in three resets and their steps; every bit of it is written over at once."""
    seen, count = [], 0
    for episode in range(3):
        said = [env.reset(seed=5 if episode == 0 else None, options=reset_options if episode < 2 else None)]
        for action in actions:
            mine = action.copy()
            said += [env.unwrapped.pretrained_action(), env.render(), env.step(mine)]
            assert np.array_equal(mine, action)  # nor does an environment write into what is the caller's
            over = bool(np.all(said[-1][2]))
            seen += [snapshot(entry) for entry in said]
            if write:
                count += sum(scribble(entry) for entry in said)
                scribble(mine)
            said = []
            if over:
                break
    assert not write or count > 20
    return seen


def random_actions(env, number=5):
    env.action_space.seed(0)
    return [env.action_space.sample() for _ in range(number)]


def compare(make, reset_options=None):
    actions = random_actions(make())
    expected = walk(make(), actions, False, reset_options)
    assert data_equivalence(walk(make(), actions, True, reset_options), expected, exact=True)


@pytest.mark.parametrize("render_mode", ["ansi", "rgb_array"])
def test_one_environment(env_id, few_steps, render_mode):
    compare(lambda: gym.make(env_id, render_mode=render_mode, **few_steps))


@pytest.mark.parametrize("mode", ["SameStep", "Disabled"])
def test_a_vector(env_id, few_steps, mode):
    compare(lambda: gym.make_vec(env_id, num_envs=3, render_mode="rgb_array", autoreset_mode=mode, **few_steps))


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("prompt", [None, "A???"])
def test_any_kind_of_toy(toy_options, conditional, prompt):
    options = {"conditional": conditional, "render_mode": "rgb_array", **toy_options}
    reset_options = None if prompt is None else {"prompt": prompt}
    compare(lambda: gym.make("ToyCTMC-v0", **options), reset_options)
    compare(lambda: gym.make_vec("ToyCTMC-v0", num_envs=3, **options), reset_options)


@pytest.mark.parametrize("wrapper", [TokenAction, LogitAction])
def test_a_wrapped_environment(wrapper):
    compare(lambda: wrapper(gym.make("ToyCTMC-v0", render_mode="ansi")))


@pytest.mark.parametrize("wrapper", [VectorTokenAction, VectorLogitAction])
def test_a_wrapped_vector(wrapper):
    compare(lambda: wrapper(gym.make_vec("ToyCTMC-v0", num_envs=2, render_mode="ansi")))


@pytest.mark.parametrize("conditional", [True, False])
def test_torchrl(toy_options, conditional):
    def walk_torchrl(write):
        env = TorchRLEnv("ToyCTMC-v0", num_envs=3, seed=5, **{"conditional": conditional, **toy_options})
        generator = torch.Generator().manual_seed(0)
        seen = []
        for _ in range(2):
            td = env.reset(**({"prompt": "A???"} if env.episodes.conditional else {}))
            for _ in range(4):
                shown = td.clone()
                action = torch.rand(env.action_spec.shape, generator=generator) + 0.1
                pretrained = env.pretrained_action()
                seen += [snapshot(dict(shown.items())), snapshot(pretrained)]
                if write:
                    scribble(pretrained)
                    assert scribble(td) > 3
                td["done"] = td["terminated"] = shown["done"]
                td = env.step(td.set("action", action.clone()))["next"]
                if bool(td["done"].any()):
                    break
            seen.append(snapshot(dict(td.items())))
        return seen

    assert data_equivalence(walk_torchrl(True), walk_torchrl(False), exact=True)


def test_spaces_and_specs_belong_to_one_environment():
    first, second = (gym.make("ToyCTMC-v0", disable_env_checker=True) for _ in range(2))
    first.action_space.low[...] = 7.0
    first.action_space.high[...] = 7.0
    first.observation_space["tokens"].nvec[...] = 1
    assert second.action_space == gym.make("ToyCTMC-v0").action_space
    assert second.observation_space == gym.make("ToyCTMC-v0").observation_space
    first.reset(seed=0), second.reset(seed=0)
    action = np.ones((4, 3), dtype=np.float32)
    assert data_equivalence(first.step(action), second.step(action), exact=True)
    one, other = TorchRLEnv("ToyCTMC-v0", num_envs=2), TorchRLEnv("ToyCTMC-v0", num_envs=2)
    one.action_spec.space.low[0, 0, 0] = 7.0
    assert float(other.action_spec.space.low.max()) == 0.0


def test_tables_and_prompts_of_tasks_are_copies():
    task, untouched = tasks.make("toy", prompt=["A???", "?B??"]), tasks.make("toy", prompt=["A???", "?B??"])
    rewards = task.make_reward(), task.judge()
    for table in (task.reward_table, task.held_out_table, task.prompt_set.tokens, task.all_prompts()):
        table.fill_(1)
    tokens = all_states(3, 4)
    assert torch.equal(task.make_reward()(tokens), untouched.make_reward()(tokens))
    assert torch.equal(task.judge()(tokens), untouched.judge()(tokens))
    assert torch.equal(rewards[0](tokens), untouched.reward_table)
    assert task.best_return == untouched.best_return
    assert torch.equal(task.prompt(torch.arange(50)), untouched.prompt(torch.arange(50)))
    assert task.prompt_set.fingerprint == untouched.prompt_set.fingerprint
    mine = torch.tensor([[0, 3, 3, 3]])
    kept = PromptSet(mine)
    mine.fill_(1)
    assert kept.tokens.tolist() == [[0, 3, 3, 3]]


def test_motifs_are_read_only():
    """The shipped collection is one for the whole process."""
    with pytest.raises(ValueError, match="read-only"):
        shipped_motifs().probabilities[0][0, 0] = 1.0
    matrix = np.full((2, 4), 0.25)
    own = MotifCollection(("mine",), (matrix,))
    matrix[...] = 1.0
    assert own.probabilities[0].max() == 0.25


def test_tables_of_real_sequences_are_copies():
    task = tasks.make("dna_enhancer")
    expected = {name: table.copy() for name, table in task.reference.items()}
    scribble(task.reference)
    assert data_equivalence(task.reference, expected, exact=True)


class Writes(Denoiser):
    """A network that writes into what it reads."""

    num_tokens, length, parameterisation, time_conditioned = 3, 4, "posterior", False

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.table = TabularDenoiser(3, 4, vocab_size, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens, time):
        said = self.table(tokens, time)
        tokens.fill_(0)
        time.fill_(0.5)
        return said


@pytest.mark.parametrize("options", [{}, {"graph": "uniform"}, {"sampler": "first-hitting"}])
def test_a_denoiser_that_writes_into_what_it_reads_changes_no_episode(options):
    writes = Writes(3 if "graph" in options else 4)
    rude, polite = (gym.make("ToyCTMC-v0", denoiser=denoiser, **options) for denoiser in (writes, writes.table))
    rude.reset(seed=1), polite.reset(seed=1)
    for _ in range(4):
        rude.unwrapped.pretrained_action()
        action = polite.unwrapped.pretrained_action()
        assert data_equivalence(rude.step(action), polite.step(action), exact=True)
