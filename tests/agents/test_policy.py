"""The actor is the ancestral sampler; the critic is small, and reads what it says it reads."""

import pytest
import torch
from tensordict import TensorDict

from agents.policies.rates import Critic, RatePolicy, ValueNetwork
from sepo_env.denoisers import ConvDenoiser, ConvDenoiserConfig, TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.kernel import held_rates
from sepo_env.errors import InvalidArgumentError
from tests.comparisons import assert_same

ABSORBING, UNIFORM = DiffusionProcess(Absorbing(2), LogLinear()), DiffusionProcess(Uniform(2), LogLinear())


def observation(vocab_size: int, t: float, batch: tuple[int, ...] = (16,)) -> TensorDict:
    return TensorDict(
        {"tokens": torch.randint(vocab_size, (*batch, 3)), "time": torch.full((*batch, 1), t)}, batch_size=batch
    )


@pytest.mark.parametrize("process", [ABSORBING, UNIFORM], ids=["absorbing", "uniform"])
@pytest.mark.parametrize("k", range(7))
def test_held_actions_give_the_ancestral_kernel(process, k):
    """On a grid whose times are not exact in float32; the action is float32, as environments take it."""
    num_steps = 7
    grid = process.time_grid(num_steps)
    denoiser = TabularDenoiser(2, 3, process.graph.vocab_size, generator=torch.Generator().manual_seed(0)).double()
    td = observation(process.graph.vocab_size, float(grid[k]))
    action = RatePolicy(denoiser, process, num_steps=num_steps)(td)["action"]
    t, s = grid[k].expand(16), grid[k + 1].expand(16)
    acted = held_rates(process.graph, td["tokens"], action.double(), process.clock_step(t, s))
    ancestral = process.step_law(denoiser(td["tokens"], t), td["tokens"], t, s, denoiser.parameterisation)
    torch.testing.assert_close(acted.log_probs.exp(), ancestral.log_probs.exp(), atol=1e-6, rtol=0)


def test_action_of_an_absorbing_policy_is_the_posterior_at_masks():
    denoiser = TabularDenoiser(2, 3, 3, generator=torch.Generator().manual_seed(0))
    td = TensorDict({"tokens": torch.tensor([[2, 0, 2]]), "time": torch.ones(1, 1)}, batch_size=[1])
    action = RatePolicy(denoiser, ABSORBING)(td)["action"]
    expected = denoiser(td["tokens"], torch.ones(1)).exp()
    torch.testing.assert_close(action[0, [0, 2]], expected[0, [0, 2]])
    assert not action[0, 1].any()
    assert action.dtype == torch.float32


@pytest.mark.parametrize("batch", [(), (5,), (2, 4)])
def test_any_batch_shape_and_nested_keys(batch):
    td = observation(3, 0.5, batch).rename_key_("tokens", ("obs", "x"))
    keys = {"tokens_key": ("obs", "x"), "time_key": "time"}
    policy = RatePolicy(TabularDenoiser(2, 3, 3), ABSORBING, action_key=("agent", "rates"), **keys)
    critic = Critic(ValueNetwork(ABSORBING), value_key=("agent", "value"), **keys)
    td = critic(policy(td))
    assert td["agent", "rates"].shape == (*batch, 3, 2)
    assert td["agent", "value"].shape == (*batch, 1)


def test_uniform_noise_needs_the_grid():
    with pytest.raises(InvalidArgumentError, match="num_steps"):
        RatePolicy(TabularDenoiser(2, 3, 2), UNIFORM)


def test_policy_has_the_parameters_of_the_denoiser():
    denoiser = TabularDenoiser(2, 3, 3)
    assert [id(p) for p in RatePolicy(denoiser, ABSORBING).parameters()] == [id(denoiser.logits)]


@pytest.mark.parametrize("process", [ABSORBING, UNIFORM], ids=["absorbing", "uniform"])
def test_value_reads_tokens_and_time(process):
    critic, td = Critic(ValueNetwork(process)), observation(2, 0.5)
    value = critic(td.clone())["state_value"]
    later, other = td.clone(), td.clone()
    later["time"] = later["time"] / 2
    other["tokens"] = 1 - other["tokens"]
    assert value.shape == (16, 1)
    assert (critic(later)["state_value"] != value).all()
    assert (critic(other)["state_value"] != value).all()
    assert_same(critic.value(td), value)


def test_value_network_can_count():
    """The share of token 0 among 6 positions is learnt in a second."""
    network = ValueNetwork(ABSORBING)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
    tokens = torch.randint(3, (256, 6))
    target, time = (tokens == 0).float().mean(-1, keepdim=True), torch.rand(256, 1)
    for _ in range(60):
        optimiser.zero_grad()
        error = (network(tokens, time) - target).square().mean()
        error.backward()
        optimiser.step()
    assert error < 0.05 * target.var()


def test_a_conditional_critic_sees_what_is_given() -> None:
    """And starts from the weights of the one without, which an unconditional task keeps bit for bit."""
    networks = []
    for conditional in (False, True):
        torch.manual_seed(3)
        networks.append(ValueNetwork(UNIFORM, conditional=conditional))
    plain, conditional = (network.state_dict() for network in networks)
    assert set(conditional) - set(plain) == {"given.weight"}
    assert all(torch.equal(conditional[name], value) for name, value in plain.items())
    td = observation(2, 1.0)
    td["prompt_mask"] = torch.tensor([True, True, False]).expand(16, 3)
    critic = Critic(networks[1], prompt_key="prompt_mask")
    assert critic.in_keys == ["tokens", "time", "prompt_mask"]
    value = critic(td.clone())["state_value"]
    free = td.clone().set("prompt_mask", torch.zeros(16, 3, dtype=torch.bool))
    assert (critic(free)["state_value"] != value).all()
    torch.testing.assert_close(critic.value(free), networks[0](td["tokens"], td["time"]))
    whole_numbers = td.clone().set("prompt_mask", td["prompt_mask"].to(torch.int8))  # as Gymnasium shows them
    assert_same(critic.value(whole_numbers), value)
    for network, mask in ((networks[0], td["prompt_mask"]), (networks[1], None)):
        with pytest.raises(InvalidArgumentError, match="conditional=task.conditional"):
            network(td["tokens"], td["time"], mask)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_large_vocabulary_is_read_without_its_table(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same values and gradients as the convolution over one-hot tokens, which need not exist."""
    process = DiffusionProcess(Absorbing(400), LogLinear())
    network, tokens = ValueNetwork(process).double(), torch.randint(401, (3, length))
    features = torch.nn.functional.one_hot(tokens, 401).double().transpose(1, 2)
    expected = network.first(features)
    weights = torch.randn_like(expected)
    gradients = torch.autograd.grad((expected * weights).sum(), list(network.first.parameters()))
    monkeypatch.setattr(torch.nn.functional, "one_hot", None)
    found = network._read_tokens(tokens)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad((found * weights).sum(), list(network.first.parameters())), gradients
    )
    assert network(tokens, torch.rand(3, 1)).shape == (3, 1)


def test_critic_is_cheap_beside_the_denoiser():
    """A position costs about as many multiplications as there are weights."""
    process = DiffusionProcess(Absorbing(4), LogLinear())
    weights = [
        sum(p.numel() for p in net.parameters()) for net in (ValueNetwork(process), ConvDenoiser(ConvDenoiserConfig()))
    ]
    assert weights[0] < 0.1 * weights[1]
