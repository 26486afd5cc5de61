"""The DNA model of DRAKES and SEPO: our network and our kernel against numbers of the published code.

Every array of the fixture is compared (`test_every_array_is_compared`), some in part, for ours computes less:

- `log_p`, `log_p_long`, `tc_log_p`: at masked positions and visible tokens. Published code copies visible tokens here,
  ours in the step, and gives MASK -1e6, where ours has no column.
- `soft_log_p`: in rows whose likeliest token is MASK. Published code copies the likeliest token of the others; our
  network has no copying, and weighted tokens are its input alone.
"""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from sepo_env.denoisers import DNAConvDenoiser, load_drakes
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.diffusion import kernel as kernels
from tests.comparisons import assert_same

PROCESS = DiffusionProcess(Absorbing(4), LogLinear())
MASK = 4
WEIGHTS = ("raw", "ema", "finetuned")
NUM_STEPS = 5
PRECISIONS = [(torch.float32, ""), (torch.float64, "__f64")]
INPUTS = {"x", "x_long", "soft_x", "t", "sigma", "noise_t", "step_t", "step_dt"}
COMPARED = {
    *(f"{weights}.{name}" for weights in WEIGHTS for name in ("q_xs", "q_xs_full")),
    *("raw.q_xs__f64", "raw.q_xs_full__f64", "raw.q_xs_norm", "raw.q_xs_cached", "raw.soft_step"),
    *(
        f"{weights}.{name}{end}"
        for weights in WEIGHTS
        for name in ("logits", "log_p", "log_p_full")
        for end in ("", "__f64")
    ),
    *(f"raw.{name}_long{end}" for name in ("logits", "log_p") for end in ("", "__f64")),
    *(f"raw.soft_{name}{end}" for name in ("logits", "log_p", "log_p_full") for end in ("", "__f64")),
    *(f"raw.tc_{name}{end}" for name in ("logits", "log_p") for end in ("", "__f64")),
    *(f"noise_{name}{end}" for name in ("total", "rate") for end in ("", "__f64")),
}


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


def test_every_array_is_compared(cases):
    assert set(cases) == INPUTS | COMPARED


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


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@torch.no_grad()
def test_forward_at_another_length(load, cases, dtype, suffix):
    denoiser, tokens, atol = load("raw").to(dtype), cases["x_long"], 1e-6 if suffix else 1e-5
    close(denoiser.logits(tokens, torch.ones(2)), cases[f"raw.logits_long{suffix}"], atol)
    masked = tokens == MASK
    close(denoiser(tokens, torch.ones(2))[masked], cases[f"raw.log_p_long{suffix}"][masked][:, :MASK], atol)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@torch.no_grad()
def test_forward_of_weighted_tokens(load, cases, dtype, suffix):
    denoiser, weights, atol = load("raw").to(dtype), cases["soft_x"].to(dtype), 1e-6 if suffix else 1e-5
    logits = denoiser.logits(weights, torch.ones(2))
    close(logits, cases[f"raw.soft_logits{suffix}"], atol)
    close(logits.log_softmax(-1), cases[f"raw.soft_log_p_full{suffix}"], atol)
    masked = weights.argmax(-1) == MASK
    assert masked.any()
    expected = cases[f"raw.soft_log_p{suffix}"][masked][:, :MASK]
    close(logits[..., :MASK].log_softmax(-1)[masked], expected, atol)


def test_gradients_flow_through_weighted_tokens(load, cases):
    denoiser, weights = load("raw"), cases["soft_x"].clone().requires_grad_()
    logits = denoiser.logits(weights, torch.ones(2))
    (gradient,) = torch.autograd.grad(logits.square().sum(), weights)
    assert (gradient != 0).all()
    tokens = cases["x"]
    one_hot = torch.nn.functional.one_hot(tokens, MASK + 1).float()
    assert_same(denoiser.logits(one_hot, cases["t"]), denoiser.logits(tokens, cases["t"]))


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


# Float64 numbers of the steps are there for the raw weights only.
@pytest.mark.parametrize(
    ("weights", "dtype", "suffix"), [*((w, *PRECISIONS[0]) for w in WEIGHTS), ("raw", *PRECISIONS[1])]
)
@torch.no_grad()
def test_reverse_steps(load, cases, weights, dtype, suffix):
    denoiser, tokens, atol = load(weights).to(dtype), cases["x"], 1e-9 if suffix else 1e-6
    masked = tokens == MASK
    for k, t, s in steps(cases):
        law = PROCESS.step_law(denoiser(tokens, t), tokens, t, s, "posterior")
        probs = law.log_probs.exp()
        # The published weights are probabilities times that of being masked at t.
        unnormalised = probs * (1 - PROCESS.alpha(t))[:, None, None].to(dtype)
        close(unnormalised[masked], cases[f"{weights}.q_xs{suffix}"][k][masked], atol)
        if weights == "raw" and not suffix:
            close(probs[masked], cases["raw.q_xs_norm"][k][masked], 1e-5)
            close(probs, cases["raw.soft_step"][k], 1e-5)
        # Visible tokens are copied.
        assert torch.equal(probs[~masked], torch.nn.functional.one_hot(tokens, MASK + 1)[~masked].to(dtype))


@pytest.mark.parametrize(
    ("weights", "dtype", "suffix"), [*((w, *PRECISIONS[0]) for w in WEIGHTS), ("raw", *PRECISIONS[1])]
)
@torch.no_grad()
def test_steps_with_mask_among_the_predictions(load, cases, weights, dtype, suffix):
    # Published code lets the softmax include MASK, and nobody copy: our logits and our schedule give the same weights.
    denoiser, tokens, atol = load(weights).to(dtype), cases["x"], 1e-9 if suffix else 1e-6
    for k, t, s in steps(cases):
        expected = cases[f"{weights}.q_xs_full{suffix}"][k]
        moved, still = ((PROCESS.alpha(s) - PROCESS.alpha(t)), 1 - PROCESS.alpha(s))
        probs = denoiser.logits(tokens, t).softmax(-1)[..., :MASK] * moved[:, None, None].to(dtype)
        close(probs, expected[..., :MASK], atol)
        close(still[:, None].expand(tokens.shape).to(dtype), expected[..., MASK], atol)
        # What is left without MASK is our posterior, everywhere.
        visible = expected[..., :MASK] / expected[..., :MASK].sum(-1, keepdim=True)
        close(denoiser(tokens, t).exp(), visible, 1e-6 if suffix else 1e-5)


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
