"""The transition against hand-computed numbers, exact laws and the sampler; the actions that are refused."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform, make_schedule
from sepo_env.diffusion.kernel import equivalent_rates
from sepo_env.diffusion.random import keys_from_seed, uniforms
from sepo_env.diffusion.sampler import first_hitting, reverse_steps, sample
from sepo_env.envs.dynamics import Dynamics, State
from sepo_env.errors import InvalidActionError, InvalidArgumentError, InvalidPromptError, UnknownNameError

MASK = 4


def dna(num_steps=4, length=3, **options):
    if options.get("sampler") == "first-hitting":
        num_steps = None
    return Dynamics(DiffusionProcess(Absorbing(4), LogLinear()), length, num_steps, alphabet="ACGT", **options)


def start(dynamics, batch=2, prompt=None):
    return dynamics.initial(keys_from_seed(torch.arange(batch)), prompt)


def ones(state, columns=4):
    return torch.ones(*state.tokens.shape, columns)


def walk(dynamics, state, policy):
    while not bool(dynamics.terminal(state).all()):
        rates = policy(state)
        dynamics.validate_action(state, rates)
        state, _ = dynamics.transition(state, rates)
    return state


# -- the law


def test_a_masked_position_stays_with_the_exponential_of_its_total_rate():
    dynamics = dna(num_steps=4, length=1)
    state = start(dynamics, 1)
    rates = torch.tensor([[[0.5, 1.0, 0.0, 0.5]]])
    # The clock is log(1 - alpha) = log((1 - 1e-3) t): from t = 1 to 3/4 it advances by log(4/3), whatever eps is.
    stay = math.exp(-math.log(4 / 3) * 2.0)
    expected = [(1 - stay) * share for share in (0.25, 0.5, 0.0, 0.25)] + [stay]
    law = dynamics.law(state, rates).log_probs.exp()[0, 0]
    torch.testing.assert_close(law, torch.tensor(expected, dtype=torch.float64))


def test_a_posterior_as_rates_unmasks_at_the_ancestral_pace():
    dynamics = dna(num_steps=10, length=2000)
    state = start(dynamics, 1)
    state, _ = dynamics.transition(state, torch.full((1, 2000, 4), 0.25))
    # alpha_s - alpha_t over 1 - alpha_t is a tenth.
    share = float((state.tokens != MASK).double().mean())
    assert abs(share - 0.1) < 4 * math.sqrt(0.1 * 0.9 / 2000)


def test_a_uniform_chain_moves_by_its_clock_sigma():
    dynamics = Dynamics(DiffusionProcess(Uniform(3), make_schedule("linear")), 1, 5)
    state = start(dynamics, 1)
    rates = torch.ones(1, 1, 3)  # two of them count, the diagonal does not; sigma advances by 10/5
    law = dynamics.law(state, rates).log_probs.exp()[0, 0]
    stay = math.exp(-2.0 * 2.0)
    assert law[state.tokens[0, 0]].item() == pytest.approx(stay)
    torch.testing.assert_close(law.sum(), torch.ones((), dtype=torch.float64))


def test_the_log_probability_is_that_of_what_happened():
    dynamics = dna(num_steps=3, length=50)
    state = start(dynamics, 8)
    rates = torch.rand(8, 50, 4)
    after, log_prob = dynamics.transition(state, rates)
    expected = dynamics.law(state, rates).log_prob(after.tokens)
    torch.testing.assert_close(log_prob, expected.float())
    second, log_prob = dynamics.transition(after, rates)
    visible = after.tokens != MASK
    assert bool((log_prob[visible] == 0).all())
    assert bool((log_prob[~visible] < 0).all())
    assert bool((second.tokens[visible] == after.tokens[visible]).all())


def test_random_numbers_are_those_of_the_step():
    dynamics = dna(num_steps=3, length=20)
    state = start(dynamics, 4)
    rates = torch.rand(4, 20, 4)
    after, _ = dynamics.transition(state, rates)
    again, _ = dynamics.transition(after, rates)
    law = dynamics.law(after, rates)
    assert torch.equal(again.tokens, law.sample(uniforms(after.keys, 2, 20)))


@pytest.mark.parametrize("graph", [Absorbing(3), Uniform(3)])
@pytest.mark.parametrize("schedule", ["log-linear", "cosine", "geometric", "linear"])
def test_episodes_are_the_samplers_sequences_seed_by_seed(graph, schedule):
    process = DiffusionProcess(graph, make_schedule(schedule))
    denoiser = TabularDenoiser(3, 4, graph.vocab_size, generator=torch.Generator().manual_seed(3)).double()
    dynamics = Dynamics(process, 4, 6)
    # The rates are cast to float32 on the way: that changes no draw here, and the law by one part in 10^7.
    end = walk(
        dynamics,
        start(dynamics, 200),
        lambda s: process.rates(denoiser, s.tokens, s.time, dynamics.next_time(s)).detach().float(),
    )
    assert torch.equal(end.tokens, sample(process, denoiser, 200, 4, num_steps=6, seed=0))
    assert bool((end.time == 0).all())


def test_first_hitting_episodes_are_the_samplers_sequences():
    dynamics = dna(length=4, sampler="first-hitting")
    denoiser = TabularDenoiser(4, 4, 5, generator=torch.Generator().manual_seed(3)).double()
    end = walk(
        dynamics,
        start(dynamics, 100),
        lambda s: dynamics.process.rates(denoiser, s.tokens, s.time).detach().float(),
    )
    assert torch.equal(end.tokens, first_hitting(dynamics.process, denoiser, 100, 4, seed=0))


def test_first_hitting_makes_one_jump_a_step_and_waits_as_long_as_masks_are_few():
    dynamics = dna(length=6, sampler="first-hitting")
    state = start(dynamics, 3000)
    posterior = torch.full((3000, 6, 4), 0.25)
    for jumps in range(1, 7):
        before, state = state, dynamics.transition(state, posterior)[0]
        assert bool(((state.tokens != MASK).sum(-1) == jumps).all())
        if jumps < 6:
            # 1 - alpha shrinks by U^(1/n) with n masks left, whose mean is n / (n + 1).
            n = 7 - jumps
            ratio = (1 - dynamics.process.alpha(state.time)) / (1 - dynamics.process.alpha(before.time))
            deviation = math.sqrt(n / ((n + 2) * (n + 1) ** 2) / 3000)
            assert abs(float(ratio.mean()) - n / (n + 1)) < 4 * deviation
    assert bool((state.time == 0).all())
    assert bool(dynamics.terminal(state).all())
    rested, log_prob = dynamics.transition(state, posterior)
    assert torch.equal(rested.tokens, state.tokens)
    assert torch.equal(rested.step, state.step)
    assert not bool(log_prob.any())


def test_any_factorised_law_is_an_action():
    process = DiffusionProcess(Uniform(3), LogLinear())
    denoiser = TabularDenoiser(3, 4, 3, "score", torch.Generator().manual_seed(0))
    tokens = process.graph.prior(uniforms(keys_from_seed(torch.arange(5)), 0, 4))
    step = next(reverse_steps(process, denoiser, tokens, num_steps=3, keys=torch.arange(5), kernel="analytic"))
    dynamics = Dynamics(process, 4, 3)
    state = State(tokens, torch.zeros(5, dtype=torch.int64), step.t, torch.arange(5), torch.zeros(5, 4).bool())
    rates = equivalent_rates(process.graph, tokens, step.law, dynamics.clock_step(state))
    law = dynamics.law(state, rates.detach().float())
    torch.testing.assert_close(law.log_probs.exp(), step.law.log_probs.exp().double(), rtol=1e-5, atol=1e-6)


# -- re-masking


def test_remask_rates_return_visible_tokens_to_mask_but_not_on_the_last_step():
    dynamics = dna(num_steps=3, length=2000, remask=True)
    state = start(dynamics, 1)
    rates = torch.zeros(1, 2000, 5)
    rates[..., 0] = 50.0
    state, _ = dynamics.transition(state, rates)
    assert bool((state.tokens == 0).all())
    rates = torch.zeros(1, 2000, 5)
    rates[..., MASK] = 1.0
    # From t = 2/3 to 1/3 the clock advances by log 2.
    state, log_prob = dynamics.transition(state, rates)
    share = float((state.tokens == MASK).double().mean())
    assert abs(share - 0.5) < 4 * math.sqrt(0.25 / 2000)
    torch.testing.assert_close(log_prob, torch.full((1, 2000), math.log(0.5)))
    rates[..., 2] = 1.0
    before = state
    state, _ = dynamics.transition(state, rates)
    expected = torch.where(before.tokens == MASK, 2, before.tokens)
    assert torch.equal(state.tokens, expected)


# -- prompts


@pytest.mark.parametrize("remask", [False, True])
def test_prompted_positions_never_change(remask):
    dynamics = dna(num_steps=5, length=4, remask=remask)
    prompt = torch.tensor([MASK, 2, -1, 0])
    state = start(dynamics, 50, prompt)
    assert state.prompt_mask[0].tolist() == [False, True, False, True]
    for _ in range(5):
        state, log_prob = dynamics.transition(state, 3 * ones(state, dynamics.num_actions))
        assert bool((state.tokens[:, [1, 3]] == torch.tensor([2, 0])).all())
        assert not bool(log_prob[:, [1, 3]].any())


def test_a_prompt_holds_in_a_uniform_chain():
    dynamics = Dynamics(DiffusionProcess(Uniform(4), LogLinear()), 3, 4)
    state = start(dynamics, 20, torch.tensor([[1, 4, 4]] * 20))
    for _ in range(4):
        state, _ = dynamics.transition(state, 10 * ones(state))
        assert bool((state.tokens[:, 0] == 1).all())


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (torch.tensor([0, 1, 2]), "nothing is left"),
        (torch.tensor([0, 4]), "shape"),
        (torch.tensor([0.0, 4.0, 4.0]), "float32"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(prompt, words):
    with pytest.raises(InvalidPromptError, match=words):
        start(dna(), 2, prompt)


# -- actions


@pytest.mark.parametrize(("value", "word"), [(math.nan, "nan"), (-0.5, "-0.5"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_a_bad_rate_is_named_by_environment_position_and_token(value, word):
    dynamics = dna()
    state = start(dynamics, 3)
    rates = ones(state)
    rates[2, 1, 3] = rates[2, 2, 0] = value  # the first one is named
    with pytest.raises(InvalidActionError, match=rf"environment 2, position 1, token 'T': the rate is {word},"):
        dynamics.validate_action(state, rates)


def test_the_last_step_needs_a_rate_at_every_mask_and_says_where_it_is_missing():
    dynamics = dna(num_steps=2, length=3)
    state = start(dynamics, 2)
    nothing = torch.zeros(2, 3, 4)
    dynamics.validate_action(state, nothing)  # waiting is allowed before
    state, _ = dynamics.transition(state, nothing)
    rates = ones(state)
    rates[1, 2] = 0.0
    with pytest.raises(InvalidActionError, match=r"environment 1, position 2: .*'A', 'C', 'G', 'T'.*last step"):
        dynamics.validate_action(state, rates)
    visible = dataclasses.replace(state, tokens=torch.tensor([[0, 1, MASK], [2, MASK, 3]]))
    dynamics.validate_action(visible, rates)  # position 2 is visible there


def test_first_hitting_needs_a_rate_somewhere():
    dynamics = dna(length=3, sampler="first-hitting")
    state = start(dynamics, 2)
    rates = torch.zeros(2, 3, 4)
    rates[0, 1, 0] = 1.0
    with pytest.raises(InvalidActionError, match="environment 1, position 0: .*no other masked position"):
        dynamics.validate_action(state, rates)
    rates[1, 2, 2] = 1e-20
    dynamics.validate_action(state, rates)
    after, _ = dynamics.transition(state, rates)
    assert after.tokens.tolist() == [[MASK, 0, MASK], [MASK, MASK, 2]]


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        (torch.ones(2, 3, 5), r"shape \(2, 3, 5\), expected \(2, 3, 4\)"),
        (torch.ones(3, 4), r"shape \(3, 4\)"),
        (torch.ones(2, 3, 4, dtype=torch.float64), "float64, expected float32"),
        (torch.ones(2, 3, 4, dtype=torch.int64), "int64, expected float32"),
    ],
)
def test_actions_of_another_shape_or_dtype_are_refused(rates, words):
    dynamics = dna()
    with pytest.raises(InvalidActionError, match=words):
        dynamics.validate_action(start(dynamics), rates)


@given(
    scale=st.sampled_from([0.0, 1e-38, 1.0, 1e10, 3.4e38]),
    graph=st.sampled_from([Absorbing(4), Uniform(4)]),
    num_steps=st.integers(1, 4),
    seed=st.integers(0, 100),
)
def test_every_rate_that_passes_gives_a_proper_law(scale, graph, num_steps, seed):
    dynamics = Dynamics(DiffusionProcess(graph, LogLinear()), 5, num_steps)
    state = start(dynamics, 3)
    for _ in range(num_steps):
        rates = scale * torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(seed))
        rates = rates.clamp(max=3.4e38)
        rates[..., 0] += bool(dynamics.clock_step(state).isinf().all())
        dynamics.validate_action(state, rates)
        law = dynamics.law(state, rates).log_probs.exp()
        torch.testing.assert_close(law.sum(-1), torch.ones(3, 5, dtype=torch.float64))
        state, log_prob = dynamics.transition(state, rates)
        assert bool(torch.isfinite(log_prob).all())
    assert bool((state.tokens < 4).all())


def test_forbidden_rates_change_nothing():
    dynamics = dna(num_steps=4, length=30)
    state = start(dynamics, 4)
    state, _ = dynamics.transition(state, ones(state))
    rates = torch.rand(4, 30, 4)
    cleaned = rates.masked_fill((state.tokens != MASK)[..., None], 0.0)
    assert torch.equal(dynamics.transition(state, rates)[0].tokens, dynamics.transition(state, cleaned)[0].tokens)


# -- settings


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"sampler": "first-hitting", "num_steps": 3}, InvalidArgumentError),
        ({"sampler": "k-step", "num_steps": None}, InvalidArgumentError),
        ({"sampler": "first-hitting", "num_steps": None, "remask": True}, InvalidArgumentError),
        ({"sampler": "kstep", "num_steps": 3}, UnknownNameError),
        ({"num_steps": 0}, InvalidArgumentError),
    ],
)
def test_settings_that_exclude_each_other_are_refused(options, error):
    with pytest.raises(error):
        Dynamics(DiffusionProcess(Absorbing(4), LogLinear()), 3, **options)


@pytest.mark.parametrize("options", [{"remask": True, "num_steps": 3}, {"sampler": "first-hitting", "num_steps": None}])
def test_a_uniform_graph_has_no_masks_to_ask_for(options):
    with pytest.raises(InvalidArgumentError, match="absorbing"):
        Dynamics(DiffusionProcess(Uniform(4), LogLinear()), 3, **options)


def test_rows_are_picked_by_where():
    dynamics = dna()
    old, new = start(dynamics, 3), start(dynamics, 3, torch.tensor([1, MASK, MASK]))
    mixed = new.where(torch.tensor([True, False, True]), old)
    assert mixed.tokens[:, 0].tolist() == [1, MASK, 1]
    assert mixed.prompt_mask[:, 0].tolist() == [True, False, True]
