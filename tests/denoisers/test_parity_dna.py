"""The DNA model of DRAKES and SEPO: our network and our kernel against numbers of the published code."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from sepo_env.denoisers import DNAConvDenoiser, load_drakes
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.diffusion import kernel as kernels

PROCESS = DiffusionProcess(Absorbing(4), LogLinear())
MASK = 4
WEIGHTS = ("raw", "ema", "finetuned")
NUM_STEPS = 5


@pytest.fixture
def folder(fixtures):
    return fixtures / "dna_cnn"


@pytest.fixture
def cases(folder) -> dict[str, Tensor]:
    with np.load(folder / "cases.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture
def load(folder):
    @cache
    def load(weights: str) -> DNAConvDenoiser:
        if weights == "finetuned":
            return load_drakes(folder / "finetuned.ckpt")
        return load_drakes(folder / "pretrained.ckpt", weights=weights)

    return load


def close(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0)


def conditioned(denoiser: DNAConvDenoiser) -> DNAConvDenoiser:
    """The same weights in a network that the noise enters."""
    model = DNAConvDenoiser(replace(denoiser.config, time_conditioned=True)).eval()
    model.load_state_dict(denoiser.state_dict())
    return model


@pytest.mark.parametrize(("dtype", "suffix", "atol"), [(torch.float32, "", 1e-5), (torch.float64, "__f64", 1e-6)])
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_forward(load, cases, weights, dtype, suffix, atol):
    denoiser, tokens, time = load(weights).to(dtype), cases["x"], cases["t"]
    logits = denoiser.logits(tokens, time)
    close(logits, cases[f"{weights}.logits{suffix}"], atol)
    close(logits.log_softmax(-1), cases[f"{weights}.log_p_full{suffix}"], atol)
    masked = tokens == MASK
    close(denoiser(tokens, time)[masked], cases[f"{weights}.log_p{suffix}"][masked][:, :MASK], atol)


@torch.no_grad()
def test_the_averages_are_another_model(load, cases):
    raw, ema = (load(weights).logits(cases["x"], cases["t"]) for weights in ("raw", "ema"))
    assert (raw - ema).abs().max() > 0.1


@torch.no_grad()
def test_forward_at_another_length(load, cases):
    denoiser, tokens = load("raw"), cases["x_long"]
    close(denoiser.logits(tokens, torch.ones(2)), cases["raw.logits_long"])
    masked = tokens == MASK
    close(denoiser(tokens, torch.ones(2))[masked], cases["raw.log_p_long"][masked][:, :MASK])


def test_forward_of_weighted_tokens_and_its_gradient(load, cases):
    denoiser, weights = load("raw"), cases["soft_x"].clone().requires_grad_()
    logits = denoiser.logits(weights, torch.ones(2))
    close(logits, cases["raw.soft_logits"])
    close(logits.log_softmax(-1), cases["raw.soft_log_p_full"])
    (gradient,) = torch.autograd.grad(logits.square().sum(), weights)
    assert (gradient != 0).all()
    tokens = cases["x"]
    one_hot = torch.nn.functional.one_hot(tokens, MASK + 1).float()
    assert torch.equal(denoiser.logits(one_hot, cases["t"]), denoiser.logits(tokens, cases["t"]))


@pytest.mark.parametrize(("dtype", "suffix", "atol"), [(torch.float32, "", 2e-4), (torch.float64, "__f64", 1e-6)])
@torch.no_grad()
def test_forward_with_the_noise_as_input(load, cases, dtype, suffix, atol):
    denoiser, tokens = conditioned(load("raw")).to(dtype), cases["x"]
    time = LogLinear().inverse_sigma(cases["sigma"].double())
    close(denoiser.logits(tokens, time), cases[f"raw.tc_logits{suffix}"], atol)
    masked = tokens == MASK
    close(denoiser(tokens, time)[masked], cases[f"raw.tc_log_p{suffix}"][masked][:, :MASK], atol)
    assert (load("raw").logits(tokens, time) - denoiser.logits(tokens, time)).abs().max() > 0.01


def test_the_schedule(cases):
    t = cases["noise_t"]
    torch.testing.assert_close(LogLinear().sigma(t), cases["noise_total"], atol=0, rtol=1e-4)
    torch.testing.assert_close(LogLinear().sigma_prime(t), cases["noise_rate"], atol=0, rtol=1e-4)
    torch.testing.assert_close(LogLinear().sigma(t.double()), cases["noise_total__f64"], atol=0, rtol=1e-12)
    torch.testing.assert_close(LogLinear().sigma_prime(t.double()), cases["noise_rate__f64"], atol=0, rtol=1e-12)


def steps(cases):
    """Present and next time of each step, as a batch."""
    for k in range(NUM_STEPS):
        t = cases["step_t"][k].expand(5)
        yield k, t, t - cases["step_dt"][k]


@pytest.mark.parametrize(("dtype", "suffix", "atol"), [(torch.float32, "", 1e-6), (torch.float64, "__f64", 1e-9)])
@pytest.mark.parametrize("weights", WEIGHTS)
@torch.no_grad()
def test_reverse_steps(load, cases, weights, dtype, suffix, atol):
    denoiser, tokens = load(weights).to(dtype), cases["x"]
    masked = tokens == MASK
    for k, t, s in steps(cases):
        law = PROCESS.step_law(denoiser(tokens, t), tokens, t, s, "posterior")
        probs = law.log_probs.exp()
        # The published weights are probabilities times that of being masked at t.
        unnormalised = probs * (1 - PROCESS.alpha(t))[:, None, None].to(dtype)
        found = cases.get(f"{weights}.q_xs{suffix}")
        if found is not None:
            close(unnormalised[masked], found[k][masked], atol)
        if weights == "raw" and not suffix:
            close(probs[masked], cases["raw.q_xs_norm"][k][masked], 1e-5)
            close(probs, cases["raw.soft_step"][k], 1e-5)
        # Visible tokens are copied.
        assert torch.equal(probs[~masked], torch.nn.functional.one_hot(tokens, MASK + 1)[~masked].to(dtype))


@torch.no_grad()
def test_reverse_steps_of_the_caching_sampler(load, cases):
    denoiser, tokens = load("raw"), cases["x"]
    masked = tokens == MASK
    for k, t, s in steps(cases):
        # It takes t itself for the share of masked positions.
        law = kernels.ancestral(PROCESS.graph, tokens, denoiser(tokens, t), 1 - t, 1 - s)
        unnormalised = law.log_probs.exp() * t[:, None, None].float()
        close(unnormalised[masked], cases["raw.q_xs_cached"][k][masked], 1e-6)


@torch.no_grad()
def test_the_last_step_leaves_no_mask(load, cases):
    denoiser, tokens = load("raw"), cases["x"]
    t = torch.full((5,), 1 / 128, dtype=torch.float64)
    probs = PROCESS.step_law(denoiser(tokens, t), tokens, t, torch.zeros_like(t), "posterior").log_probs.exp()
    masked = tokens == MASK
    assert (probs[..., MASK] == 0).all()
    close(probs[masked][:, :MASK], cases["raw.log_p"][masked][:, :MASK].exp())
