"""Guided laws against enumeration: every graph, parameterisation and kernel, at any scale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.denoisers import ClassConditionalDenoiser, ClassifierFreeGuidance, Denoiser, TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion import kernel as kernels
from sepo_env.diffusion.enumeration import all_states, ancestral_law, state_index
from sepo_env.diffusion.guided import temper_law, temper_score
from sepo_env.diffusion.process import KERNELS
from sepo_env.diffusion.sampler import sample
from tests.comparisons import assert_same

V, L = 3, 2
PROCESSES = {graph.__name__.lower(): DiffusionProcess(graph(V), LogLinear()) for graph in (Absorbing, Uniform)}
GRAPHS = st.sampled_from(sorted(PROCESSES))
PARAMETERISATIONS = ("posterior", "score")
T, S = 0.6, 0.35


def table(process, seed):
    generator = torch.Generator().manual_seed(seed)
    return TabularDenoiser(V, L, process.graph.vocab_size, "posterior", generator).double()


class Scores(Denoiser):
    """The concrete scores of a network that gives x0-posteriors: the same model in the other parameterisation."""

    num_tokens, length, parameterisation, time_conditioned = V, L, "score", True

    def __init__(self, process, posterior):
        super().__init__()
        self.process, self.posterior = process, posterior

    def forward(self, tokens, time):
        return self.process.log_score(self.posterior(tokens, time), tokens, time.double(), "posterior")


class Classes(ClassConditionalDenoiser):
    """A network for class 0, and one for no class."""

    num_tokens, length, time_conditioned, num_classes = V, L, True, 1

    def __init__(self, given, free):
        super().__init__()
        self.parameterisation = given.parameterisation
        self.given, self.free = given, free

    def forward(self, tokens, time, labels=None):
        return (self.free if labels is None else self.given)(tokens, time)


def model(process, parameterisation, seed):
    denoiser = table(process, seed)
    return Scores(process, denoiser) if parameterisation == "score" else denoiser


def everywhere(process, t=T, s=S):
    states = all_states(process.graph.vocab_size, L)
    return states, *(torch.full((len(states),), time, dtype=torch.float64) for time in (t, s))


def law_of(process, denoiser, kernel="ancestral", prompt_mask=None, s=S):
    states, t, s = everywhere(process, s=s)
    output = process.evaluate(denoiser, states, t, prompt_mask)
    return process.step_law(output, states, t, s, denoiser.parameterisation, kernel, prompt_mask).log_probs.exp()


def tempered(process, given, free, scale):
    """By hand: the law of the step, or on an absorbing graph that of what a mask becomes."""
    if process.graph.mask_token is None:
        weights = given ** (1 + scale) / free**scale
        return weights / weights.sum(-1, keepdim=True)
    masked = everywhere(process)[0] == process.graph.mask_token
    weights = given[..., :V] ** (1 + scale) / free[..., :V] ** scale
    filled = weights / weights.sum(-1, keepdim=True) * given[..., :V].sum(-1, keepdim=True)
    return torch.where(masked[..., None], torch.cat([filled, given[..., V:]], dim=-1), given)


# -- laws


@given(GRAPHS, st.sampled_from(PARAMETERISATIONS), st.sampled_from(KERNELS), st.floats(0.0, 3.0), st.integers(0, 50))
def test_guidance_by_class_tempers_the_law_of_every_kernel(name, parameterisation, kernel, scale, seed):
    process = PROCESSES[name]
    given_class, no_class = (model(process, parameterisation, s).requires_grad_(False) for s in (seed, seed + 1))
    guided = law_of(process, ClassifierFreeGuidance(Classes(given_class, no_class), scale, label=0), kernel)
    given_law, free_law = (law_of(process, one, kernel) for one in (given_class, no_class))
    if scale == 0:
        assert_same(guided, given_law)
    torch.testing.assert_close(guided, tempered(process, given_law, free_law, scale), rtol=1e-7, atol=1e-10)


@given(
    st.sampled_from(PARAMETERISATIONS),
    st.sampled_from(KERNELS),
    st.floats(0.0, 3.0),
    st.lists(st.booleans(), min_size=L, max_size=L),
    st.integers(0, 50),
)
def test_guidance_by_prompt_tempers_the_law_of_every_kernel(parameterisation, kernel, scale, positions, seed):
    process = PROCESSES["absorbing"]
    denoiser = model(process, parameterisation, seed).requires_grad_(False)
    states, t, s = everywhere(process)
    mask = torch.tensor(positions) & (states != V)
    plain = law_of(process, denoiser, kernel)
    hidden = states.masked_fill(mask, V)
    without = process.step_law(denoiser(hidden, t), hidden, t, s, parameterisation, kernel).log_probs.exp()
    guided = law_of(process, ClassifierFreeGuidance(denoiser, scale), kernel, mask)
    free = (states == V) | ~mask.any(-1, keepdim=True)
    expected = tempered(process, plain, without, scale)
    torch.testing.assert_close(guided[free], torch.where(mask.any(-1)[:, None, None], expected, plain)[free])
    alone = ~mask.any(-1)
    assert_same(guided[alone], plain[alone])
    if scale == 0:
        assert_same(guided, plain)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_on_a_uniform_graph_it_is_d_cfg(scale):
    """From the forward process alone: Bayes' rule over x_0, in both networks, then their powers."""
    process = PROCESSES["uniform"]
    states, t, s = everywhere(process)
    alpha_t, alpha_s = process.alpha(t)[0], process.alpha(s)[0]

    def forward(alpha):
        return alpha * torch.eye(V, dtype=torch.float64) + (1 - alpha) / V

    def back(posterior):
        law = torch.zeros(len(states), L, V, dtype=torch.float64)
        for row, position in torch.cartesian_prod(torch.arange(len(states)), torch.arange(L)):
            x_t = states[row, position]
            for x_0 in range(V):
                joint = forward(alpha_s)[x_0] * forward(alpha_t / alpha_s)[:, x_t]
                law[row, position] += posterior[row, position, x_0] * joint / joint.sum()
        return law

    networks = [table(process, seed).requires_grad_(False) for seed in (0, 1)]
    given_law, free_law = (back(one(states, t).exp()) for one in networks)
    guided = law_of(process, ClassifierFreeGuidance(Classes(*networks), scale, label=0))
    torch.testing.assert_close(guided, tempered(process, given_law, free_law, scale), rtol=0, atol=1e-12)


def test_a_chain_samples_the_tempered_law():
    process, networks, scale = PROCESSES["uniform"], [table(PROCESSES["uniform"], seed) for seed in (0, 1)], 1.5
    guided = ClassifierFreeGuidance(Classes(*networks).requires_grad_(False), scale, label=0)
    states, grid = all_states(V, L), process.time_grid(3)
    probs = torch.full((V**L,), 1 / V**L, dtype=torch.float64)
    for t, s in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        _, times, following = everywhere(process, t, s)
        given_law, free_law = (
            process.step_law(one(states, times), states, times, following, "posterior").log_probs.exp().detach()
            for one in networks
        )
        step = tempered(process, given_law, free_law, scale)
        moves = step[:, 0, :, None] * step[:, 1, None, :]  # (states, first, second)
        probs = torch.einsum("x,xab->ab", probs, moves).flatten()
    torch.testing.assert_close(ancestral_law(process, guided, L, 3), probs)
    drawn = torch.bincount(state_index(sample(process, guided, 6000, L, num_steps=3), V), minlength=V**L) / 6000
    torch.testing.assert_close(drawn.double(), probs, rtol=0, atol=4 * (0.25 / 6000) ** 0.5)


# -- rates, posteriors, correctors


@pytest.mark.parametrize("scale", [0.0, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("by", ["prompt", "class"])
def test_both_parameterisations_of_one_masked_model_are_guided_alike(scale, by):
    process = PROCESSES["absorbing"]
    states, t, _ = everywhere(process)
    mask = torch.tensor([True, False]) & (states != V)
    size = torch.full_like(t, 0.5)
    laws = {}
    for parameterisation in PARAMETERISATIONS:
        networks = [model(process, parameterisation, seed).requires_grad_(False) for seed in (0, 1)]
        if by == "class":
            guided = ClassifierFreeGuidance(Classes(*networks), scale, label=0)
        else:
            guided = ClassifierFreeGuidance(networks[0], scale)
        found = [law_of(process, guided, kernel, mask, s) for kernel in KERNELS for s in (S, 0.0)]
        log_score = process.log_score(process.evaluate(guided, states, t, mask), states, t, parameterisation)
        free = kernels.corrector(process.graph, states, log_score, size).clamped(states, mask)
        laws[parameterisation] = [*found, free.log_probs.exp(), process.rates(guided, states, t, prompt_mask=mask)]
    for ours, theirs in zip(*laws.values(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_uniform_rates_are_tempered_and_are_the_limit_of_the_steps(parameterisation):
    process, scale = PROCESSES["uniform"], 1.5
    networks = [model(process, parameterisation, seed).requires_grad_(False) for seed in (0, 1)]
    guided = ClassifierFreeGuidance(Classes(*networks), scale, label=0)
    states, t, s = everywhere(process, s=T - 1e-6)
    rates = process.rates(guided, states, t)
    given_rates, free_rates = (process.rates(one, states, t) for one in networks)
    expected = torch.where(given_rates > 0, given_rates ** (1 + scale) / free_rates**scale, 0.0)
    torch.testing.assert_close(rates, expected)
    short = law_of(process, guided, s=T - 1e-6).scatter(-1, states[..., None], 0.0)
    torch.testing.assert_close(short / process.clock_step(t, s)[:, None, None], rates, rtol=1e-4, atol=1e-4)
    held = process.rates(guided, states, t, everywhere(process)[2])
    step = kernels.held_rates(process.graph, states, held, process.clock_step(t, everywhere(process)[2]))
    torch.testing.assert_close(step.log_probs.exp(), law_of(process, guided))
    # A step to t = 0 is a draw from the posterior.
    posterior = process.log_posterior(process.evaluate(guided, states, t), states, t, parameterisation).exp()
    torch.testing.assert_close(posterior, law_of(process, guided, s=0.0))


# -- exactness


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 50.0])
def test_what_only_the_condition_allows_takes_all_at_any_scale(scale, dtype):
    conditional = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=dtype).log()
    unconditional = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=dtype).log()
    guided = temper_law(conditional, unconditional, scale)
    expected = torch.tensor([[0.0, 0.5, 0.5, 0.0], [0.5, 0.5, 0.0, 0.0]], dtype=dtype)
    assert guided.dtype == dtype
    torch.testing.assert_close(guided.exp(), expected)
    score = temper_score(conditional, unconditional, scale)
    assert bool(torch.isfinite(score.exp().sum(-1)).all())
    assert (score == -torch.inf).tolist() == [[False, False, False, True], [False, False, True, True]]


def test_half_precision_has_room_for_large_differences():
    conditional = torch.tensor([[-12.0, -6e-6]], dtype=torch.float16)
    unconditional = torch.tensor([[-20000.0, 0.0]], dtype=torch.float16)
    assert temper_law(conditional, unconditional, 5.0).exp().tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("name", sorted(PROCESSES))
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
def test_the_gradient_flows_through_both_evaluations(name, parameterisation):
    """Against finite differences of each weight; the network without the condition is one of its own."""
    process = PROCESSES[name]
    networks = [model(process, parameterisation, seed) for seed in (0, 1)]
    guided = ClassifierFreeGuidance(Classes(*networks), 1.5, label=0)
    _differences_fit(guided, lambda: ancestral_law(process, guided, L, 2))


def test_the_gradient_of_prompt_guidance_flows_through_both_evaluations():
    process = PROCESSES["absorbing"]
    denoiser = table(process, 4)
    guided, prompt = ClassifierFreeGuidance(denoiser, 0.5), torch.tensor([1, -1])
    gradient = _differences_fit(guided, lambda: ancestral_law(process, guided, L, 2, prompt=prompt))["denoiser.logits"]
    with_prompt, without = (denoiser.state_index(torch.tensor([x])) for x in ([1, V], [V, V]))
    assert float(gradient[with_prompt, 1].abs().max()) > 1e-3
    assert float(gradient[without, 1].abs().max()) > 1e-3


def _differences_fit(guided, law):
    weights = torch.linspace(0, 20, V**L, dtype=torch.float64).sin()
    parameters = dict(guided.named_parameters())
    found = torch.autograd.grad((law() * weights).sum(), list(parameters.values()))
    for (name, parameter), gradient in zip(parameters.items(), found, strict=True):
        assert float(gradient.abs().max()) > 1e-4, name
        flat = parameter.detach().view(-1)  # shares its memory
        for index in range(0, len(flat), 5):
            values = []
            for step in (1e-5, -1e-5):
                flat[index] += step
                values.append(float((law().detach() * weights).sum()))
                flat[index] -= step
            assert float(gradient.view(-1)[index]) == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-8)
    return dict(zip(parameters, found, strict=True))
