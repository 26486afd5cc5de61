"""Samplers against exactly enumerated laws (chi-square), and the discretisation error's rate."""

from itertools import pairwise

import pytest
import torch
from scipy import stats

from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.enumeration import all_states, ancestral_law, first_hitting_law, state_index
from sepo_env.diffusion.random import keys_from_seed, uniforms
from sepo_env.diffusion.sampler import first_hitting, first_jump, initial_tokens, reverse_steps, sample
from sepo_env.errors import InvalidArgumentError, InvalidPromptError, InvalidShapeError

PROCESSES = [DiffusionProcess(Absorbing(2), LogLinear()), DiffusionProcess(Uniform(2), LogLinear())]


def table(process, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TabularDenoiser(2, 3, process.graph.vocab_size, generator=generator).double().requires_grad_(False)


def chi_square_p(samples, law):
    counts = torch.bincount(state_index(samples, 2), minlength=len(law))
    possible = law > 1e-12
    assert counts[~possible].sum() == 0
    return stats.chisquare(
        counts[possible].numpy(), (law[possible] / law[possible].sum() * len(samples)).numpy()
    ).pvalue


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
@pytest.mark.parametrize("kernel", ["ancestral", "tau-leaping", "analytic"])
def test_samples_have_the_exact_law(process, kernel):
    denoiser = table(process)
    law = ancestral_law(process, denoiser, 3, 4, kernel).detach()
    assert law.sum() == pytest.approx(1.0)
    assert chi_square_p(sample(process, denoiser, 20_000, 3, num_steps=4, kernel=kernel), law) > 1e-3


def test_unmasking_steps_are_independent_of_tokens():
    """pi_K(x) = E_c prod_i p(x_i | x_{j: c_j < c_i}) with P(c_i = k) = alpha_s - alpha_t, written out over all c."""
    process = PROCESSES[0]
    denoiser = table(process)
    grid = process.time_grid(4)
    alpha = process.alpha(grid)
    step_probs = alpha.diff() / (alpha[-1] - alpha[0])
    clean, orders = all_states(2, 3), all_states(4, 3)
    law = torch.zeros(8, dtype=torch.float64)
    for c in orders:
        weight = step_probs[c].prod()
        likelihood = torch.ones(8, dtype=torch.float64)
        for i in range(3):
            context = torch.where(c < c[i], clean, torch.tensor(2))
            likelihood *= denoiser(context, torch.zeros(8)).exp().gather(-1, clean[..., None])[:, i, 0]
        law += weight * likelihood
    torch.testing.assert_close(ancestral_law(process, denoiser, 3, 4), law, rtol=1e-10, atol=1e-10)


def test_first_hitting_is_exact_and_the_limit_of_many_steps():
    process = PROCESSES[0]
    denoiser = table(process)
    law = first_hitting_law(process, denoiser, 3).detach()
    assert chi_square_p(first_hitting(process, denoiser, 20_000, 3), law) > 1e-3
    gaps = [float((ancestral_law(process, denoiser, 3, k) - law).abs().sum()) for k in (16, 32, 64)]
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.1)
    assert gaps[1] / gaps[2] == pytest.approx(2.0, rel=0.1)


def consistent(process, seed=1):
    """A data law over {0,1}^3 and the table of its true x0-posteriors, for masked states."""
    generator = torch.Generator().manual_seed(seed)
    data = torch.rand(8, generator=generator, dtype=torch.float64)
    data /= data.sum()
    denoiser = table(process)
    clean, states = all_states(2, 3), all_states(3, 3)
    for row, state in enumerate(states):
        fits = ((clean == state) | (state == 2)).all(-1)
        for i in range(3):
            mass = torch.stack([data[fits & (clean[:, i] == v)].sum() for v in range(2)])
            denoiser.logits.data[row, i] = mass.clamp(min=1e-300).log()
    return data, denoiser


@pytest.mark.parametrize("kernel", ["tau-leaping", "analytic"])
def test_error_to_the_data_law_halves_when_steps_double(kernel):
    process = PROCESSES[0]
    data, denoiser = consistent(process)
    gaps = [float((ancestral_law(process, denoiser, 3, k, kernel) - data).abs().sum()) for k in (32, 64, 128)]
    assert gaps[-1] < 0.05
    assert gaps[0] / gaps[1] == pytest.approx(2.0, rel=0.25)
    assert gaps[1] / gaps[2] == pytest.approx(2.0, rel=0.25)


def test_first_hitting_of_a_consistent_denoiser_is_the_data_law():
    process = PROCESSES[0]
    data, denoiser = consistent(process)
    torch.testing.assert_close(first_hitting_law(process, denoiser, 3), data, rtol=1e-10, atol=1e-10)


def test_waiting_time_of_the_first_jump():
    """1 - alpha_next = (1 - alpha_now) U^(1/n) with n masks left."""
    process = PROCESSES[0]
    tokens = torch.tensor([[2, 2, 1]]).repeat(500, 1)
    t = torch.full((500,), 0.8, dtype=torch.float64)
    u = uniforms(keys_from_seed(torch.arange(500)), 1, 3)
    rates = torch.full((500, 3, 2), 0.5, dtype=torch.float64)
    moved, s, log_prob = first_jump(process, tokens, rates, t, u)
    expected = (1 - process.alpha(t)) * u[:, 0] ** 0.5
    torch.testing.assert_close(1 - process.alpha(s), expected, rtol=1e-9, atol=0)
    assert ((moved != tokens).sum(-1) == 1).all()
    torch.testing.assert_close(log_prob.sum(-1).exp(), torch.full((500,), 0.25, dtype=torch.float64))
    last, s, _ = first_jump(process, torch.tensor([[2, 0, 1]]), rates[:1], t[:1], u[:1])
    assert s == 0.0
    again, same, log_prob = first_jump(process, last, rates[:1], s, u[:1])
    assert torch.equal(again, last)
    assert same == 0.0
    assert log_prob.sum() == 0.0


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
@pytest.mark.parametrize("bad", [[1, -1, 7], [-2, -1, 0], [9, 9, 9], [[1, -1, -1], [1, -1, 3]]])
def test_ids_of_another_vocabulary_are_no_free_positions(process, bad):
    keys = keys_from_seed(torch.arange(2))
    with pytest.raises(InvalidPromptError, match="the prompt holds the id"):
        initial_tokens(process, keys, 3, torch.tensor(bad))
    for dtype in (torch.float32, torch.int32, torch.bool):
        with pytest.raises(InvalidPromptError, match="dtype"):
            initial_tokens(process, keys, 3, torch.zeros(3, dtype=dtype))
    assert initial_tokens(process, keys, 3, torch.tensor([1, 2, -1]))[1].tolist() == [[True, False, False]] * 2


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: str(p.graph))
def test_prompts_are_clamped_and_condition_the_law(process):
    denoiser = table(process)
    prompt = torch.tensor([1, -1, 2])
    law = ancestral_law(process, denoiser, 3, 4, prompt=prompt).detach()
    assert law.sum() == pytest.approx(1.0)
    samples = sample(process, denoiser, 20_000, 3, num_steps=4, prompt=prompt)
    assert (samples[:, 0] == 1).all()
    assert chi_square_p(samples, law) > 1e-3
    corrected = sample(process, denoiser, 200, 3, num_steps=4, prompt=prompt, corrector_steps=2, corrector_size=1.0)
    assert (corrected[:, 0] == 1).all()


def test_a_sequence_does_not_depend_on_its_batch():
    process, denoiser = PROCESSES[0], table(PROCESSES[0])
    batch = sample(process, denoiser, 10, 3, num_steps=4, seed=5)
    alone = sample(process, denoiser, 1, 3, num_steps=4, seed=8)
    assert torch.equal(batch[3:4], alone)


@pytest.mark.parametrize("option", [{"corrector_steps": 3, "corrector_size": 0.3}, {"remask_prob": 0.4}])
def test_correctors_and_remasking_bring_a_coarse_sampler_closer_to_the_data(option):
    """Two steps fill correlated positions at once; looking again must repair part of that."""
    process = PROCESSES[0]
    data, denoiser = consistent(process)
    option = {"num_steps": 8, **option}

    def gap(**settings):
        samples = sample(process, denoiser, 40_000, 3, **settings)
        return float((torch.bincount(state_index(samples, 2), minlength=8) / len(samples) - data).abs().sum())

    assert gap(**option) < gap(num_steps=2)
    assert not (sample(process, denoiser, 50, 3, **option) == 2).any()


def test_bad_settings_are_named():
    process, denoiser = PROCESSES[0], table(PROCESSES[0])
    keys = keys_from_seed(torch.arange(2))
    with pytest.raises(InvalidShapeError, match="prompt"):
        initial_tokens(process, keys, 3, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(InvalidPromptError, match="nothing is left"):
        initial_tokens(process, keys, 3, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InvalidArgumentError, match="corrector_steps"):
        sample(process, denoiser, 2, 3, num_steps=2, corrector_steps=-1)
    with pytest.raises(InvalidArgumentError, match="kernel of its own"):
        sample(process, denoiser, 2, 3, num_steps=2, remask_prob=0.5, kernel="analytic")
    with pytest.raises(InvalidArgumentError, match="absorbing"):
        first_hitting(PROCESSES[1], table(PROCESSES[1]), 2, 3)


def test_steps_chain():
    process, denoiser = PROCESSES[0], table(PROCESSES[0])
    keys = keys_from_seed(torch.arange(6))
    tokens, _ = initial_tokens(process, keys, 3)
    steps = list(reverse_steps(process, denoiser, tokens, num_steps=5, keys=keys))
    assert [step.step for step in steps] == [0, 1, 2, 3, 4]
    for before, after in pairwise(steps):
        assert torch.equal(before.next_tokens, after.tokens)
        assert torch.equal(before.s, after.t)
