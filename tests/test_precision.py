"""Worlds and agents do not depend on torch's default dtype, and read networks of any precision."""

import functools

import gymnasium as gym
import pytest
import torch

from agents.registry import agent_class, learners
from agents.training.optimiser import PreciseAdamW
from sepo_env import TorchRLEnv, tasks
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, DNAConvConfig, DNAConvDenoiser
from sepo_env.errors import InvalidArgumentError, InvalidDenoiserError
from sepo_env.precision import float32_default, without_autocast
from sepo_env.registration import ENVIRONMENTS
from tests.comparisons import assert_same

OTHERS = [torch.float64, torch.bfloat16, torch.float16]
SHORT = {"num_iterations": 2, "batch_size": 8, "num_steps": 4, "states_per_trajectory": 0, "eval_every": 2}


@pytest.fixture(autouse=True)
def default_dtype():
    yield
    torch.set_default_dtype(torch.float32)


def gym_episode(env_id, **options):
    """Tokens and every term of the reward of one episode under the pretrained policy, from what is made in it."""
    env = gym.make(env_id, num_steps=2, **options)
    env.reset(seed=0)
    for _ in range(2):
        observation, _, _, _, info = env.step(env.unwrapped.pretrained_action())
    return observation["tokens"].tolist(), info["reward_terms"]


def torchrl_episodes(env_id, **options):
    env = TorchRLEnv(env_id, num_envs=3, num_steps=3, seed=0, **options)
    rollout = env.rollout(3, lambda td: td.set("action", env.pretrained_action()))
    numbers = rollout["next"].select("reward", "transition_log_prob", "time")
    assert {value.dtype for value in numbers.values()} == {torch.float32}
    return rollout["next", "tokens"].tolist(), {key: float(value.sum()) for key, value in numbers.items()}


def first_hitting(env_id):
    env = gym.make(env_id, sampler="first-hitting")
    env.reset(seed=0)
    over = False
    while not over:
        observation, _, over, _, info = env.step(env.unwrapped.pretrained_action())
    return observation["tokens"].tolist(), info["reward_terms"]


def figures_of(task, likelihood):
    made = tasks.make(task)
    tokens = torch.randint(made.num_tokens, (6, made.length), generator=torch.Generator().manual_seed(0))
    if likelihood:
        return tokens.tolist(), {"log_likelihood": float(made.log_likelihood(tokens[:2], num_steps=2).sum())}
    return tokens.tolist(), made.metrics(tokens)


def trained(name, task="ToyCTMC-v0", **options):
    agent = agent_class(name)(task, **{**SHORT, "eval_samples": 8, "learning_rate": 1e-2, **options})
    row = agent.train(progress=False)[-1]
    assert {parameter.dtype for parameter in agent.denoiser.parameters()} == {torch.float32}
    figures = {key: value for key, value in row.items() if isinstance(value, float) and key != "wall_time"}
    return agent.sample_tokens(5, seed=0).tolist(), figures


def sampled(name):
    agent = agent_class(name)("ToyCTMC-v0", num_steps=3)
    tokens = agent.sample_tokens(6, seed=0)
    return tokens.tolist(), {"reward": float(agent.reward(tokens).mean())}


JOBS = {
    **{f"{name} samples": functools.partial(sampled, name) for name in learners()},
    **{env_id: functools.partial(gym_episode, env_id) for env_id in ENVIRONMENTS},
    "torchrl": functools.partial(torchrl_episodes, "ToyCTMC-v0"),
    "uniform": functools.partial(torchrl_episodes, "ToyCTMC-v0", graph="uniform"),
    "score": functools.partial(torchrl_episodes, "ToyCTMC-v0", parameterisation="score"),
    "uniform score": functools.partial(torchrl_episodes, "ToyCTMC-v0", graph="uniform", parameterisation="score"),
    "prompted": functools.partial(torchrl_episodes, "ToyCTMC-v0", prompted=True),
    "first-hitting": functools.partial(first_hitting, "ToyCTMC-v0"),
    **{f"metrics {task}": functools.partial(figures_of, task, False) for task in ("toy", "dna_enhancer")},
    **{f"likelihood {task}": functools.partial(figures_of, task, True) for task in ("toy", "text_sentiment")},
    **{name: functools.partial(trained, name) for name in learners()},
    "critic": functools.partial(trained, "sepo", advantage="critic", kl_coeff=0.1, entropy_coeff=0.01),
    "snis": functools.partial(trained, "sepo", form="snis", inner_epochs=2),
    "corrector": functools.partial(trained, "sepo", form="path", corrector_steps=1),
    "adapters": functools.partial(trained, "ppo", "DNAEnhancer-v0", lora_rank=2, batch_size=4, num_steps=2),
}


@functools.cache
def in_float32(job):
    torch.set_default_dtype(torch.float32)
    return JOBS[job]()


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("job", JOBS)
def test_the_default_dtype_changes_nothing(job, dtype):
    tokens, figures = in_float32(job)
    torch.set_default_dtype(dtype)
    found_tokens, found = JOBS[job]()
    assert torch.get_default_dtype() == dtype
    assert found_tokens == tokens
    assert found == pytest.approx(figures, rel=1e-5, abs=1e-6, nan_ok=True)


def test_a_decorated_constructor_makes_float32_and_gives_the_default_back_even_if_it_fails():
    @float32_default()
    def make(fail):
        assert torch.zeros(1).dtype == torch.float32
        if fail:
            raise ValueError("no")

    torch.set_default_dtype(torch.float64)
    make(False)
    with pytest.raises(ValueError, match="no"):
        make(True)
    assert torch.get_default_dtype() == torch.float64


def test_within_without_autocast_there_is_none():
    square = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast():
            assert (square @ square).dtype == torch.float32
        assert (square @ square).dtype == torch.bfloat16


# Networks of other precisions -----------------------------------------------------------------------------------------


def small_denoiser(time_conditioned=False):
    """A network with layers that autocast knows, and a law that is not uniform."""
    config = ConvDenoiserConfig(
        num_tokens=3, vocab_size=4, length=4, channels=8, stem_size=3, kernel_size=3, dilations=(1,),
        time_conditioned=time_conditioned,
    )  # fmt: skip
    denoiser = ConvDenoiser(config)
    torch.nn.init.normal_(denoiser.head.weight)
    return denoiser


def posterior(task):
    env = TorchRLEnv(task, num_envs=4, num_steps=4, seed=0)
    env.reset()
    return env.pretrained_action()


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
@pytest.mark.parametrize("time_conditioned", [False, True])
def test_networks_of_any_precision_are_policies_of_environments(dtype, time_conditioned):
    denoiser = small_denoiser(time_conditioned)
    expected = posterior(tasks.make("toy", denoiser=denoiser))
    found = posterior(tasks.make("toy", denoiser=denoiser.to(dtype)))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)  # bfloat16 has 8 bits
    # What half precision rounds is a law all the same.
    torch.testing.assert_close(found.sum(-1), torch.ones(4, 4), rtol=0, atol=1e-6)


def test_autocast_is_for_the_network_alone():
    task = tasks.make("toy", denoiser=small_denoiser())
    tokens = torch.randint(3, (16, 4))
    judge = tasks.make("dna_enhancer").make_reward()
    sequences = torch.randint(4, (4, 200))
    expected, values, scores = posterior(task), task.make_reward()(tokens), judge(sequences)
    with torch.autocast("cpu", torch.bfloat16):
        found = posterior(task)
        assert torch.equal(task.make_reward()(tokens), values)
        torch.testing.assert_close(judge(sequences), scores, rtol=0, atol=1e-6)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", learners())
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16, "autocast"], ids=str)
def test_agents_train_networks_in_their_own_precision(name, precision):
    autocast = precision == "autocast"
    denoiser = small_denoiser().to(torch.float32 if autocast else precision)
    task = tasks.make("toy", denoiser=denoiser)
    agent = agent_class(name)(task, **SHORT, eval_samples=8, learning_rate=0.05)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        row = agent.train(progress=False)[-1]
        tokens = agent.sample_tokens(4, seed=0)
        within = agent.denoiser(tokens, torch.ones(4)).float()
    assert {parameter.dtype for parameter in agent.denoiser.parameters()} == {denoiser.head.weight.dtype}
    assert row["kl"] > 0, "the policy has moved"
    # Autocast remembers the weights that it has cast; those of before the last step would be forgotten too late.
    torch.testing.assert_close(within, agent.denoiser(tokens, torch.ones(4)).float(), rtol=0, atol=0.1)


def test_steps_that_bfloat16_cannot_tell_add_up():
    start = torch.full((8,), 0.1)
    settings = {"lr": 1e-5, "weight_decay": 0.0}
    exact, half, plain = (
        torch.nn.Parameter(start.to(dtype, copy=True)) for dtype in (torch.float32, *[torch.bfloat16] * 2)
    )
    optimisers = [torch.optim.AdamW([exact], **settings), PreciseAdamW([half], **settings)]
    optimisers.append(torch.optim.AdamW([plain], **settings))
    for _ in range(200):
        for optimiser, parameter in zip(optimisers, (exact, half, plain), strict=True):
            optimiser.zero_grad()
            parameter.float().sum().backward()
            optimiser.step()
    assert torch.equal(plain, start.bfloat16()), "which is why"
    torch.testing.assert_close(half.float(), exact, rtol=2**-8, atol=0)
    assert half.grad is None


def test_a_run_in_bfloat16_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    def agent(**options):
        task = tasks.make("toy", denoiser=small_denoiser().bfloat16())
        return agent_class("ppo")(task, **{**SHORT, "num_iterations": 4, "learning_rate": 1e-3, **options})

    torch.manual_seed(3)
    whole = agent()
    whole.train(progress=False)

    def stop(row):
        if row["iteration"] == 2:
            raise KeyboardInterrupt

    torch.manual_seed(3)
    halted = agent(log_dir=str(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        halted.train(progress=False, callbacks=[stop])
    torch.manual_seed(3)
    resumed = agent(log_dir=str(tmp_path))
    resumed.train(progress=False, resume=True)
    for (name, one), other in zip(whole.denoiser.named_parameters(), resumed.denoiser.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_training_in_float16_is_refused_by_name_and_sampling_is_not():
    agent = agent_class("sepo")(tasks.make("toy", denoiser=small_denoiser().half()), **SHORT)
    assert agent.sample_tokens(2, seed=0).shape == (2, 4)
    with pytest.raises(InvalidArgumentError, match=r"weights \(stem.weight\) are float16, .* give denoiser.bfloat16"):
        agent.train(progress=False)
    agent = agent_class("sepo")(tasks.make("toy", denoiser=small_denoiser()), **SHORT)
    with (
        torch.autocast("cpu", torch.float16),
        pytest.raises(InvalidArgumentError, match=r"torch.autocast is on with float16, .* bfloat16"),
    ):
        agent.train(progress=False)


@pytest.mark.parametrize("name", learners())
def test_frozen_networks_are_not_trained(name):
    agent = agent_class(name)(tasks.make("toy", denoiser=small_denoiser().requires_grad_(False)), **SHORT)
    with pytest.raises(InvalidArgumentError, match="all of the denoiser's weights are frozen"):
        agent.train(progress=False)


def test_random_frequencies_keep_their_precision_in_a_cast_network():
    network = DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=1, time_conditioned=True))
    features = network.time_embedder[0]
    frequencies = features.W.clone()
    expected = features(torch.tensor([0.7]))
    network.bfloat16()
    assert torch.equal(features.W, frequencies)
    assert network.linear.weight.dtype == torch.bfloat16
    torch.testing.assert_close(features(torch.tensor([0.7])), expected, rtol=0, atol=0)
    assert network(torch.full((2, 10), 4), torch.full((2,), 0.5)).dtype == torch.bfloat16


# Wrappers of torch ----------------------------------------------------------------------------------------------------

WRAPPERS = {
    "compile": lambda denoiser: torch.compile(denoiser, backend="eager"),
    "data parallel": torch.nn.DataParallel,
    "averaged": torch.optim.swa_utils.AveragedModel,
    "both": lambda denoiser: torch.nn.DataParallel(torch.compile(denoiser, backend="eager")),
}


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapped_networks_are_the_networks_within(wrap):
    denoiser = small_denoiser()
    wrapped = WRAPPERS[wrap](denoiser)
    assert_same(posterior(tasks.make("toy", denoiser=wrapped)), posterior(tasks.make("toy", denoiser=denoiser)))
    agents = [agent_class("sepo")(tasks.make("toy", denoiser=given), **SHORT) for given in (wrapped, denoiser)]
    for agent in agents:
        agent.train(progress=False)
    assert agents[0].sample(4, seed=0) == agents[1].sample(4, seed=0)


class Doubled(torch.nn.Module):
    """A user's module around a denoiser, which does something of its own with it."""

    def __init__(self, module):
        super().__init__()
        self.module = module


@pytest.mark.parametrize("network", [Doubled(small_denoiser()), torch.nn.Linear(2, 2)], ids=["user's", "linear"])
def test_other_modules_are_refused_by_name_where_they_are_given(network):
    with pytest.raises(InvalidDenoiserError, match=f"the denoiser is a {type(network).__name__}, but must be"):
        gym.make("ToyCTMC-v0", denoiser=network)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda tokens: torch.zeros(*tokens.shape, 7), r"returned the shape \(1, 4, 7\), expected \(1, 4, 3\)"),
        (lambda tokens: torch.zeros(*tokens.shape, 3).long(), "returned torch.int64"),
        (lambda tokens: None, "returned NoneType"),
    ],
)
def test_a_network_that_returns_something_else_is_named(output, message):
    class Odd(ConvDenoiser):
        def forward(self, tokens, time):
            return output(tokens)

    denoiser = Odd(small_denoiser().config)
    env = gym.make("ToyCTMC-v0", denoiser=denoiser)
    env.reset(seed=0)
    with pytest.raises(InvalidDenoiserError, match=rf"the denoiser \(Odd\) {message}"):
        env.unwrapped.pretrained_action()
