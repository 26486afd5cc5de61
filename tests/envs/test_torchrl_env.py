"""The TorchRL environment: TorchRL's own checks, parity with Gymnasium, log-probabilities, partial resets."""

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch
from torchrl.collectors import Collector
from torchrl.envs import GymEnv, GymWrapper, check_env_specs

import sepo_env
from sepo_env import tasks
from sepo_env.diffusion.sampler import initial_tokens, reverse_steps
from sepo_env.envs.torchrl_env import TorchRLEnv
from sepo_env.errors import InvalidActionError, InvalidArgumentError
from tests.comparisons import assert_same


def toys(num_envs=3, **options):
    return TorchRLEnv("ToyCTMC-v0", num_envs=num_envs, **{"seed": 0, **options})


def rollout(env, max_steps, **options):
    return env.rollout(max_steps, lambda td: td.set("action", env.pretrained_action()), **options)


# -- TorchRL's contract, over the registry


def test_specs_hold_natively(env_id, few_steps):
    check_env_specs(TorchRLEnv(env_id, num_envs=2, **few_steps))


def test_specs_hold_in_any_kind_of_toy(toy_options):
    check_env_specs(toys(**toy_options))
    check_env_specs(GymWrapper(gym.make("ToyCTMC-v0", **toy_options)))
    check_env_specs(GymWrapper(gym.make_vec("ToyCTMC-v0", num_envs=3, **toy_options)))


def test_specs_hold_through_gymnasium(env_id, few_steps):
    check_env_specs(GymEnv(env_id, **few_steps))
    check_env_specs(GymWrapper(gym.make(env_id, **few_steps)))
    for mode in ("SameStep", "Disabled"):
        check_env_specs(GymWrapper(gym.make_vec(env_id, num_envs=2, autoreset_mode=mode, **few_steps)))


def test_a_wrapped_vector_environment_keeps_the_end_of_each_episode():
    for mode in ("SameStep", "Disabled"):
        env = GymWrapper(gym.make_vec("ToyCTMC-v0", num_envs=3, num_steps=4, autoreset_mode=mode))
        env.set_seed(0)
        td = env.rollout(10, break_when_any_done=False)
        ends = td["next", "done"][..., 0]
        assert ends.sum(1).tolist() == [2, 2, 2]
        rewards = tasks.make("toy").make_reward()(td["next", "tokens"][ends])
        torch.testing.assert_close(td["next", "reward"][ends][:, 0].float(), rewards)
        assert not bool(td["next", "time"][ends].any())
        assert bool((td["tokens"][:, 4] == 3).all())  # masked again where the next episode starts


# -- parity


def test_the_same_seed_and_actions_give_the_same_trajectory_in_all_three(toy_options):
    single = gym.make("ToyCTMC-v0", **toy_options)
    vector = gym.make_vec("ToyCTMC-v0", num_envs=3, **toy_options)
    native = toys(3, seed=40, **toy_options)
    one, _ = single.reset(seed=42)
    many, _ = vector.reset(seed=40)
    td = native.reset()
    rng = np.random.default_rng(0)
    for _ in range(4):
        for name in one:
            assert np.array_equal(one[name], many[name][2])
            assert np.array_equal(many[name], td[name].numpy())
        action = rng.exponential(size=vector.action_space.shape).astype(np.float32)
        one, reward, terminated, _, _ = single.step(action[2])
        many, rewards, terminations, _, _ = vector.step(action)
        td = native.step(td.set("action", torch.from_numpy(action)))["next"]
        np.testing.assert_allclose(rewards, td["reward"][:, 0].numpy(), rtol=1e-5)
        assert np.array_equal(terminations, td["terminated"][:, 0].numpy())
        assert reward == pytest.approx(rewards[2], rel=1e-5)
        assert terminated == terminations[2]
        if terminated:
            break


def test_rollouts_under_the_pretrained_action_are_the_samplers_paths():
    env = toys(5, num_steps=6)
    task = env.task
    td = rollout(env, 6)
    keys = env.episodes.running_state().keys
    start, _ = initial_tokens(task.process, keys, task.length)
    path = list(reverse_steps(task.process, task.denoiser, start, num_steps=6, keys=keys))
    for k, step in enumerate(path):
        assert torch.equal(td["tokens"][:, k], step.tokens)
        assert torch.equal(td["next", "tokens"][:, k], step.next_tokens)
        torch.testing.assert_close(
            td["next", "transition_log_prob"][:, k], step.law.log_prob(step.next_tokens), rtol=1e-4, atol=1e-6
        )
    torch.testing.assert_close(td["next", "reward"][:, -1, 0], task.make_reward()(td["next", "tokens"][:, -1]))
    assert not bool(td["next", "reward"][:, :-1].any())


def test_an_episodes_log_probability_agrees_with_the_exact_law():
    # With one position the sum over an episode's steps is the log-probability of its path, whose end has p_theta.
    env = toys(2000, num_steps=3, num_tokens=2, length=2)
    td = rollout(env, 3)
    paths = torch.cat([td["next", "tokens"][:, k] for k in range(3)], dim=1)
    log_prob = td["next", "transition_log_prob"].double().sum((1, 2))
    for path in torch.unique(paths, dim=0):
        rows = (paths == path).all(1)
        p = float(log_prob[rows][0].exp())
        torch.testing.assert_close(log_prob[rows], log_prob[rows][:1].expand(int(rows.sum())))
        deviation = (p * (1 - p) / 2000) ** 0.5
        assert abs(float(rows.double().mean()) - p) < 5 * deviation


# -- TorchRL's habits


def test_names_ids_and_tasks_make_the_same_environment():
    task = tasks.make("toy")
    for spec in ("ToyCTMC-v0", "toy", task):
        td = rollout(TorchRLEnv(spec, num_envs=2, seed=1), 20)
        assert td.shape == (2, 8)
        assert td["next", "tokens"][0, -1].tolist() == rollout(toys(2, seed=1), 20)["next", "tokens"][0, -1].tolist()
    assert sepo_env.TorchRLEnv is TorchRLEnv
    assert TorchRLEnv("toy", batch_size=[2]).batch_size == (2,)


@pytest.mark.parametrize("size", [{}, {"num_envs": 2, "batch_size": [2]}, {"batch_size": [2, 3]}, {"num_envs": 0}])
def test_one_batch_size_is_given_once(size):
    with pytest.raises(InvalidArgumentError):
        TorchRLEnv("toy", **size)


def test_seeds_restart_the_streams():
    env = toys(seed=None)
    env.set_seed(5)
    first = rollout(env, 8)["next", "tokens"]
    second = rollout(env, 8)["next", "tokens"]
    env.set_seed(5)
    assert torch.equal(rollout(env, 8)["next", "tokens"], first)
    assert torch.equal(rollout(env, 8)["next", "tokens"], second)
    assert not torch.equal(first, second)


def test_finished_rows_start_anew_while_others_go_on():
    env = toys(4, sampler="first-hitting", length=5, conditional=True)
    td = env.reset(prompt=["AB?C?", "?????", "A????", "?????"])
    for step in range(6):
        td = env.step_and_maybe_reset(td.set("action", env.pretrained_action()))[1]
        masks = (td["tokens"] == 3).sum(-1).tolist()
        # Rows start with 2, 5, 4 and 5 masks; those that end begin again with 5.
        expected = [[1, 4, 3, 4], [5, 3, 2, 3], [4, 2, 1, 2], [3, 1, 5, 1], [2, 5, 4, 5], [1, 4, 3, 4]][step]
        assert masks == expected


def test_prompts_clamp_and_conditional_environments_show_them():
    env = toys(2, conditional=True)
    td = env.reset(prompt="A??B")
    assert td["prompt_mask"].tolist() == [[True, False, False, True]] * 2
    td = rollout(env, 8, auto_reset=False, tensordict=td)
    assert bool((td["next", "tokens"][..., 0] == 0).all())
    assert not bool(td["next", "transition_log_prob"][..., [0, 3]].any())
    assert not bool(env.reset()["prompt_mask"].any())
    # Elsewhere nothing would tell a loss, or a baseline, what was given.
    with pytest.raises(InvalidArgumentError, match="conditional=True"):
        toys(2).reset(prompt="A??B")


def test_a_bad_action_changes_nothing():
    env, twin = toys(), toys()
    td, other = env.reset(), twin.reset()
    bad = env.pretrained_action()
    bad[1, 2, 0] = float("nan")
    with pytest.raises(InvalidActionError, match="environment 1, position 2, token 'A'"):
        env.step(td.clone().set("action", bad))
    good = env.pretrained_action()
    one, two = (e.step(t.set("action", good)) for e, t in ((env, td), (twin, other)))
    assert torch.equal(one["next", "tokens"], two["next", "tokens"])


def test_gradients_end_at_the_environment():
    env = toys()
    action = env.reset()["tokens"].new_ones(3, 4, 3).float().requires_grad_()
    td = env.step(env.reset().set("action", action))
    assert not any(value.requires_grad for value in td["next"].values())


def test_a_collector_gathers_whole_episodes():
    env = toys(4, num_steps=5)
    collector = Collector(
        env,
        lambda td: td.set("action", env.pretrained_action()),
        frames_per_batch=40,
        total_frames=80,
        use_buffers=False,
    )
    for batch in collector:
        assert batch.shape == (4, 10)
        assert batch["next", "done"][..., 0].sum(1).tolist() == [2] * 4
        assert bool((batch["next", "tokens"][:, [4, 9]] < 3).all())
    collector.shutdown()


def test_the_two_kinds_of_end_share_no_memory():
    """Who marks an episode as cut off, as time limits do, says nothing about its termination."""
    env = toys(num_steps=1)
    td = env.step(env.reset().set("action", env.pretrained_action()))["next"]
    td["done"].zero_()
    assert bool(td["terminated"].all())


def test_it_is_pickled_in_mid_episode():
    env = toys()
    td = env.reset()
    td = env.step_mdp(env.step(td.set("action", env.pretrained_action())))
    twin = pickle.loads(pickle.dumps(env))
    rest = rollout(env, 20, auto_reset=False, tensordict=td.clone())
    again = rollout(twin, 20, auto_reset=False, tensordict=td.clone())
    assert_same(again, rest)


def test_a_finished_episode_rests_and_is_rewarded_once():
    env = toys(2, sampler="first-hitting", conditional=True)
    td = env.reset(prompt=["ABC?", "????"])
    td = rollout(env, 10, auto_reset=False, tensordict=td, break_when_any_done=False, break_when_all_done=True)
    assert td.shape == (2, 4)
    assert env.episodes.reward.calls == 2
    td = env.reset(prompt=["ABC?", "????"])
    for step in range(4):
        td = env.step(td.set("action", env.pretrained_action()))["next"]
        assert td["done"][:, 0].tolist() == [True, step == 3]
        assert (td["reward"][0, 0] != 0) == (step == 0)
    assert env.episodes.reward.calls == 4


def test_the_reward_counts_its_calls():
    env = toys(6, num_steps=2)
    rollout(env, 2)
    assert env.episodes.reward.calls == 6
