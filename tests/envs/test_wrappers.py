"""Wrappers: the exact translation of choices and logits, stock algorithms that learn through them, the penalty."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import data_equivalence
from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.envs import GymWrapper, check_env_specs
from torchrl.modules import IndependentNormal, NormalParamExtractor, ProbabilisticActor, ValueOperator
from torchrl.objectives import ClipPPOLoss

from sepo_env.diffusion.likelihood import path_kl, path_log_prob
from sepo_env.diffusion.sampler import ReverseStep
from sepo_env.envs.wrappers import (
    KLPenalty,
    LogitAction,
    TokenAction,
    VectorKLPenalty,
    VectorLogitAction,
    VectorTokenAction,
    choices_to_rates,
)
from sepo_env.errors import InvalidActionError, InvalidArgumentError

WAIT = 3


def toy(**options):
    return gym.make("ToyCTMC-v0", **options)


def toys(num_envs=3, **options):
    return gym.make_vec("ToyCTMC-v0", num_envs=num_envs, **options)


# -- token choices


def test_a_chosen_token_gets_the_ancestral_rate_and_waiting_none():
    env = toy().unwrapped
    env.reset(seed=0)
    rates = choices_to_rates(np.array([[0, 2, WAIT, 1]]), env.episodes)[0]
    assert rates.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_a_chosen_token_appears_with_the_ancestral_probability():
    envs = VectorTokenAction(toys(2000, num_steps=4))
    envs.reset(seed=0)
    choices = np.tile(np.array([0, 1, 2, WAIT]), (2000, 1))
    tokens = envs.step(choices)[0]["tokens"]
    for position in range(3):
        # One of four steps of a log-linear chain: a quarter.
        assert abs((tokens[:, position] == position).mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 2000)
        assert set(tokens[:, position]) == {position, 3}
    assert (tokens[:, 3] == 3).all()


def test_on_the_last_step_a_waiting_mask_becomes_a_uniformly_random_token():
    envs = VectorTokenAction(toys(3000, num_steps=1, autoreset_mode="Disabled"))
    envs.reset(seed=0)
    tokens = envs.step(np.full((3000, 4), WAIT))[0]["tokens"]
    for token in range(3):
        assert abs((tokens == token).mean() - 1 / 3) < 4 * math.sqrt(2 / 9 / 12000)


def test_where_every_mask_waits_first_hitting_fills_one_at_random():
    env = TokenAction(toy(sampler="first-hitting"))
    env.reset(seed=0)
    for filled in range(1, 5):
        observation, _, terminated, _, _ = env.step(np.full(4, WAIT))
        assert (observation["tokens"] != 3).sum() == filled
    assert terminated
    env.reset(seed=1)
    observation, *_ = env.step(np.array([WAIT, WAIT, 1, WAIT]))
    assert observation["tokens"].tolist() == [3, 3, 1, 3]


def test_with_remasking_the_last_but_one_choice_is_mask():
    env = TokenAction(toy(remask=True, num_steps=3))
    assert env.action_space.nvec.tolist() == [5] * 4
    env.reset(seed=0)
    base = env.unwrapped
    assert choices_to_rates(np.array([[3, 4, 0, 3]]), base.episodes)[0].tolist() == [
        [0, 0, 0, 1],
        [0, 0, 0, 0],
        [1, 0, 0, 0],
        [0, 0, 0, 1],
    ]
    for choice in (0, 3):
        env.step(np.full(4, choice))
    observation, _, terminated, _, _ = env.step(np.full(4, 3))  # MASK is no choice for a mask on the last step
    assert terminated
    assert (observation["tokens"] < 3).all()


@pytest.mark.parametrize("choices", [np.array([0, 1, 2, 4]), np.array([0, -1, 2, 1]), np.zeros(3, int), np.zeros(4)])
def test_choices_outside_of_the_space_are_refused(choices):
    env = TokenAction(toy())
    env.reset(seed=0)
    with pytest.raises(InvalidActionError):
        env.step(choices)


# -- logits


def test_logits_are_normalised_over_the_tokens_of_masked_positions():
    env = LogitAction(toy())
    env.reset(options={"prompt": "?B??"})
    logits = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    rates = env.action(logits)
    weights = np.exp(logits)
    expected = weights / weights.sum(-1, keepdims=True)
    np.testing.assert_allclose(rates[[0, 2, 3]], expected[[0, 2, 3]], rtol=1e-6)
    assert not rates[1].any()


def test_the_pretrained_log_posterior_as_logits_is_the_ancestral_sampler():
    plain, wrapped = toy(), LogitAction(toy())
    plain.reset(seed=4), wrapped.reset(seed=4)
    task = plain.unwrapped.task
    for _ in range(task.num_steps):
        state = plain.unwrapped.episodes.running_state()
        one = plain.step(plain.unwrapped.pretrained_action())
        other = wrapped.step(task.denoiser(state.tokens, state.time)[0].detach().numpy() + 5.0)
        assert data_equivalence(one, other, exact=False)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(value):
    env = LogitAction(toy())
    env.reset(seed=0)
    logits = np.zeros((4, 3), dtype=np.float32)
    logits[2, 1] = value
    with pytest.raises(InvalidActionError, match="environment 0, position 2, token 'B'"):
        env.step(logits)


def test_logits_leave_no_way_back_to_mask():
    with pytest.raises(InvalidArgumentError, match="remask"):
        LogitAction(toy(remask=True))


@pytest.mark.parametrize(("options", "bound"), [({}, 10.0), ({"bound": 3}, 3.0), ({"bound": None}, math.inf)])
def test_the_space_of_logits_has_the_bounds_that_agents_of_continuous_actions_ask_for(options, bound):
    env, envs = LogitAction(toy(), **options), VectorLogitAction(toys(2), **options)
    assert env.action_space == envs.single_action_space == gym.spaces.Box(-bound, bound, (4, 3), np.float32)
    assert envs.action_space == gym.spaces.Box(-bound, bound, (2, 4, 3), np.float32)
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert again.action_space == env.action_space


@pytest.mark.parametrize("bound", [0, -1.0, math.nan, math.inf, 1e40, "10", True, [10.0]])
def test_bounds_that_are_none_are_refused_by_name(bound):
    for make in (lambda: LogitAction(toy(), bound=bound), lambda: VectorLogitAction(toys(), bound=bound)):
        with pytest.raises(InvalidArgumentError, match="^bound is "):
            make()


def test_within_the_bounds_one_token_gets_all_the_probability_that_float32_can_say():
    env = LogitAction(toy())
    env.reset(seed=0)
    logits = env.action_space.low.copy()
    logits[:, 1] = env.action_space.high[:, 1]
    rates = env.action(logits)
    assert (rates[:, 1] == np.float32(1)).all()
    # Beyond the bounds logits count as they are.
    assert np.array_equal(env.action(3 * logits)[:, 1], rates[:, 1])
    logits[:, 0] = 20.0
    assert (env.action(logits)[:, 0] > 0.9999).all()


# -- both, single and vector


@pytest.mark.parametrize(("single", "vector"), [(TokenAction, VectorTokenAction), (LogitAction, VectorLogitAction)])
def test_the_vector_wrapper_is_the_single_one_b_times(single, vector):
    loop = gym.vector.SyncVectorEnv([lambda: single(toy())] * 3, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    batch = vector(toys(3))
    assert batch.single_action_space == loop.single_action_space
    loop.reset(seed=3), batch.reset(seed=3)
    batch.action_space.seed(0)
    for _ in range(10):
        action = batch.action_space.sample()
        one, other = loop.step(action), batch.step(action)
        assert np.array_equal(one[0]["tokens"], other[0]["tokens"])
        np.testing.assert_allclose(one[1], other[1], rtol=1e-5)


@pytest.mark.parametrize("wrapper", [TokenAction, LogitAction])
def test_wrapped_environments_are_made_again_from_their_spec(wrapper):
    env = wrapper(toy(num_steps=2))
    again = gym.make(EnvSpec.from_json(env.spec.to_json()))
    assert isinstance(again, wrapper)
    assert again.action_space == env.action_space


@pytest.mark.parametrize(
    "env",
    [
        lambda: TokenAction(toy()),
        lambda: LogitAction(toy()),
        lambda: VectorTokenAction(toys()),
        lambda: VectorLogitAction(toys()),
        lambda: KLPenalty(toy(), 0.1),
        lambda: VectorKLPenalty(toys(), 0.1),
        lambda: VectorLogitAction(VectorKLPenalty(toys(), 0.1)),
    ],
)
def test_torchrl_takes_the_wrapped_environments(env):
    check_env_specs(GymWrapper(env()))


@pytest.mark.parametrize("wrapper", [TokenAction, LogitAction, lambda env: KLPenalty(env, 1.0)])
def test_other_environments_are_refused(wrapper):
    with pytest.raises(InvalidArgumentError, match="CartPole"):
        wrapper(gym.make("CartPole-v1"))


@pytest.mark.parametrize("wrapper", [VectorTokenAction, VectorLogitAction, lambda envs: VectorKLPenalty(envs, 1.0)])
def test_loops_of_single_environments_are_refused(wrapper):
    with pytest.raises(InvalidArgumentError, match="wrap the single ones"):
        wrapper(gym.make_vec("ToyCTMC-v0", num_envs=2, vectorization_mode="sync"))


# -- stock algorithms


def features(num_tokens, length):
    """A stock network's input: one-hot tokens and the time, flattened."""

    class Features(nn.Module):
        def forward(self, tokens, time):
            one_hot = nn.functional.one_hot(tokens, num_tokens + 1).flatten(-2).float()
            return torch.cat([one_hot, time], -1)

    return Features(), length * (num_tokens + 1) + 1


def test_torchrls_own_clipped_ppo_learns_through_logits():
    env = GymWrapper(VectorLogitAction(toys(128, num_tokens=2, length=3, num_steps=3, autoreset_mode="Disabled")))
    env.set_seed(0)
    embed, width = features(2, 3)
    body = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 12), nn.Unflatten(-1, (3, 4)))
    actor = ProbabilisticActor(
        TensorDictSequential(
            TensorDictModule(embed, ["tokens", "time"], ["features"]),
            TensorDictModule(nn.Sequential(body, NormalParamExtractor()), ["features"], ["loc", "scale"]),
        ),
        in_keys=["loc", "scale"],
        distribution_class=IndependentNormal,
        distribution_kwargs={"event_dim": 2},
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    critic = ValueOperator(nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, 1)), in_keys=["features"])
    loss = ClipPPOLoss(actor, critic, entropy_bonus=False, normalize_advantage=True)
    optimiser = torch.optim.Adam(loss.parameters(), lr=1e-2)
    returns = []
    for _ in range(40):
        with torch.no_grad():
            batch = env.rollout(3, actor)
            returns.append(float(batch["next", "reward"].sum(1).mean()))
            actor[0](batch["next"])
            loss.value_estimator(
                batch, params=loss.critic_network_params, target_params=loss.target_critic_network_params
            )
        for _ in range(4):
            losses = loss(batch.reshape(-1))
            optimiser.zero_grad()
            (losses["loss_objective"] + losses["loss_critic"]).backward()
            optimiser.step()
    assert np.mean(returns[:3]) < 0.7
    assert np.mean(returns[-3:]) > 0.9


def test_a_discrete_policy_gradient_learns_through_token_choices():
    torch.manual_seed(0)
    envs = VectorTokenAction(toys(128, num_tokens=2, length=3, num_steps=3))
    embed, width = features(2, 3)
    policy = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 9), nn.Unflatten(-1, (3, 3)))
    optimiser = torch.optim.Adam(policy.parameters(), lr=2e-2)
    observation, _ = envs.reset(seed=0)
    returns = []
    for _ in range(50):
        log_prob, total = torch.zeros(128), torch.zeros(128)
        for _ in range(3):
            seen = {name: torch.from_numpy(values) for name, values in observation.items()}
            law = torch.distributions.Categorical(logits=policy(embed(seen["tokens"], seen["time"])))
            choice = law.sample()
            log_prob = log_prob + law.log_prob(choice).sum(-1)
            observation, reward, *_ = envs.step(choice.numpy())
            total += torch.from_numpy(reward).float()
        optimiser.zero_grad()
        (-(total - total.mean()) / (total.std() + 1e-6) * log_prob).mean().backward()
        optimiser.step()
        returns.append(float(total.mean()))
    assert np.mean(returns[:3]) < 0.7
    assert np.mean(returns[-3:]) > 0.9


# -- the penalty


def test_the_pretrained_action_costs_nothing():
    env = KLPenalty(toy(), 3.0)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, _, info = env.step(env.unwrapped.pretrained_action())
        assert info["kl"] == pytest.approx(0.0, abs=1e-6)
    assert reward == pytest.approx(info["reward_terms"]["reward"], abs=1e-5)


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_an_episodes_penalties_add_up_to_the_path_divergence(graph):
    envs = VectorKLPenalty(toys(4, graph=graph, num_steps=3, autoreset_mode="Disabled"), 0.5)
    base = envs.unwrapped
    plain = toys(4, graph=graph, num_steps=3, autoreset_mode="Disabled")
    envs.reset(seed=0), plain.reset(seed=0)
    rng = np.random.default_rng(0)
    steps, divergence, penalised, unpenalised = [], 0.0, 0.0, 0.0
    for k in range(3):
        action = rng.exponential(size=(4, 4, 3)).astype(np.float32)
        state, dynamics = base.episodes.running_state(), base.episodes.dynamics
        law, s = dynamics.law(state, torch.from_numpy(action)), dynamics.next_time(state)
        _, rewards, _, _, infos = envs.step(action)
        unpenalised = unpenalised + plain.step(action)[1]
        divergence, penalised = divergence + infos["kl"], penalised + rewards
        after = base.episodes.running_state().tokens
        steps.append(ReverseStep(k, state.time, s, state.tokens, law, after))
    np.testing.assert_allclose(penalised, unpenalised - 0.5 * divergence)
    expected = path_kl(base.task.process, base.task.denoiser, steps).detach().numpy()
    np.testing.assert_allclose(divergence, expected, rtol=1e-4)
    assert bool(torch.isfinite(path_log_prob(steps)).all())
    assert (divergence > 0).all()


def test_a_bad_action_is_refused_before_it_is_charged():
    env = KLPenalty(toy(), 0.1)
    env.reset(seed=0)
    bad = np.ones((4, 3), dtype=np.float32)
    bad[1, 0] = np.nan
    with pytest.raises(InvalidActionError, match="position 1"):
        env.step(bad)


@pytest.mark.parametrize("coefficient", [-0.1, math.nan, math.inf, "0.1", None])
def test_a_coefficient_is_a_number_of_at_least_zero(coefficient):
    for make in (lambda: KLPenalty(toy(), coefficient), lambda: VectorKLPenalty(toys(), coefficient)):
        with pytest.raises(InvalidArgumentError, match="^coefficient is "):
            make()


def test_a_penalty_on_jump_times_is_refused():
    with pytest.raises(InvalidArgumentError, match="k-step"):
        KLPenalty(toy(sampler="first-hitting"), 0.1)
