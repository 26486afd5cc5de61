"""Language models of MDLM and SEDD: our networks, graphs and kernels against numbers of the published code.

Every array of the fixtures is compared (`test_every_array_is_compared`), some in part, for ours computes less:

- MDLM's `log_p`, `tc_log_p`, `short_log_p`, `score`: at masked positions and visible tokens. Published code copies
  visible tokens here, ours in the step, and gives MASK -1e6 or a score of its own, where ours has no column.
- SEDD's `log_score`, `short_log_score`, `score`: without the column of MASK, which no reverse step uses.
- `staggered_score` alone is nothing of ours: its product with `transp_transition` is the weights of an analytic step.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sepo_env.denoisers import MDLMDenoiser, SEDDDenoiser, load_mdlm, load_sedd
from sepo_env.diffusion import Absorbing, DiffusionProcess, Geometric, Graph, LogLinear, Uniform
from sepo_env.diffusion import kernel as kernels
from sepo_env.diffusion.likelihood import score_entropy

NUM_TOKENS = 12
SCORE_RTOL = 3e-5
"""Float32 noise near t = 1 is known to 1e-5 of itself, and enters the scores."""
SCHEDULES = {"loglinear": LogLinear(), "geometric": Geometric()}
GRAPHS: dict[str, Graph] = {"absorb": Absorbing(NUM_TOKENS), "uniform": Uniform(NUM_TOKENS)}
OWN = {"absorb": "loglinear", "uniform": "geometric"}
PRECISIONS = [(torch.float32, ""), (torch.float64, "__f64")]
ENDS = ("", "__f64")
# Float64 numbers are there for each model's own schedule only.
PAIRS = [(name, schedule, *PRECISIONS[0]) for name in GRAPHS for schedule in SCHEDULES] + [
    (name, schedule, *PRECISIONS[1]) for name, schedule in OWN.items()
]
MDLM_ARRAYS = {
    *("x", "x_short", "t", "sigma", "noise_t", "step_t", "step_dt"),
    *(f"noise_{name}{end}" for name in ("total", "rate") for end in ENDS),
    *(f"{kind}{name}{end}" for kind in ("", "short_", "tc_") for name in ("logits", "log_p") for end in ENDS),
    *(f"{name}{end}" for name in ("q_xs", "q_xs_cached", "tc_q_xs", "score") for end in ENDS),
    *(f"{name}_probs{end}" for name in ("analytic", "denoise") for end in ENDS),
}
SEDD_ARRAYS = {
    *("sigma", "noise_t", "step_t", "step_dt"),
    *(f"noise_{schedule}_{name}{end}" for schedule in SCHEDULES for name in ("total", "rate") for end in ENDS),
    *(f"{graph}.{name}" for graph in GRAPHS for name in ("x", "x0", "x_short", "dsigma", "rate", "transp_rate")),
    *(f"{graph}.{name}{end}" for graph in GRAPHS for name in ("log_score", "short_log_score") for end in ENDS),
    *(f"{graph}.{name}{end}" for graph in GRAPHS for name in ("score_entropy", "reverse_rate") for end in ENDS),
    *(f"{graph}.{name}{end}" for graph in GRAPHS for name in ("staggered_score", "transp_transition") for end in ENDS),
    *(f"{graph}.{schedule}.score" for graph in GRAPHS for schedule in SCHEDULES),
    *(
        f"{graph}.{schedule}.{kind}_probs{end}"
        for graph, schedule, _, end in PAIRS
        for kind in ("analytic", "denoise", "euler")
    ),
}


def read(path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file}


@pytest.fixture
def mdlm_cases(fixtures):
    return read(fixtures / "mdlm" / "cases.npz")


@pytest.fixture
def sedd_cases(fixtures):
    return read(fixtures / "sedd" / "cases.npz")


@pytest.fixture
def mdlm(fixtures) -> MDLMDenoiser:
    return load_mdlm(fixtures / "mdlm")


@pytest.fixture
def sedd(fixtures):
    def load(graph: str, schedule: str, dtype: torch.dtype = torch.float32) -> SEDDDenoiser:
        """The model on another schedule than its own, if one is asked for."""
        denoiser = load_sedd(fixtures / "sedd" / graph)
        assert denoiser.config.schedule == SCHEDULES[OWN[graph]]
        model = SEDDDenoiser(replace(denoiser.config, schedule=SCHEDULES[schedule])).eval()
        model.load_state_dict(denoiser.state_dict())
        return model.to(dtype)

    return load


def close(found: Tensor, expected: Tensor, atol: float = 1e-5, rtol: float = 0.0) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=rtol)


def steps(cases, batch):
    """Present and next time of each step, as a batch."""
    for k in range(5):
        t = cases["step_t"][k].expand(batch)
        yield k, t, t - cases["step_dt"][k]


def conditioned(denoiser: MDLMDenoiser) -> MDLMDenoiser:
    """The same weights in a network that the noise enters."""
    model = MDLMDenoiser(replace(denoiser.config, time_conditioned=True)).eval()
    model.load_state_dict(denoiser.state_dict())
    return model


def test_every_array_is_compared(mdlm_cases, sedd_cases):
    assert set(mdlm_cases) == MDLM_ARRAYS
    assert set(sedd_cases) == SEDD_ARRAYS


def test_mdlm_schedule(mdlm_cases):
    schedule, t = LogLinear(), mdlm_cases["noise_t"]
    for name, function in (("total", schedule.sigma), ("rate", schedule.sigma_prime)):
        close(function(t), mdlm_cases[f"noise_{name}"], 0.0, 1e-4)
        close(function(t.double()), mdlm_cases[f"noise_{name}__f64"], 0.0, 1e-12)
    close(schedule.sigma(mdlm_cases["t"].double()).float(), mdlm_cases["sigma"], 0.0, 1e-5)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@torch.no_grad()
def test_mdlm_forward(mdlm, mdlm_cases, dtype, suffix):
    atol = 1e-6 if suffix else 1e-5
    time = LogLinear().inverse_sigma(mdlm_cases["sigma"].double())
    mdlm = mdlm.to(dtype)
    for tokens, model, at, names in (
        (mdlm_cases["x"], mdlm, time, ("logits", "log_p")),
        (mdlm_cases["x_short"], mdlm, torch.ones(3), ("short_logits", "short_log_p")),
        (mdlm_cases["x"], conditioned(mdlm).to(dtype), time, ("tc_logits", "tc_log_p")),
    ):
        masked = tokens == NUM_TOKENS
        close(model.logits(tokens, at), mdlm_cases[names[0] + suffix], atol)
        close(model(tokens, at)[masked], mdlm_cases[names[1] + suffix][masked][:, :NUM_TOKENS], atol)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@torch.no_grad()
def test_mdlm_reverse_steps(mdlm, mdlm_cases, dtype, suffix):
    process = DiffusionProcess(Absorbing(NUM_TOKENS), LogLinear())
    tokens = mdlm_cases["x"]
    masked = tokens == NUM_TOKENS
    copies = F.one_hot(tokens, NUM_TOKENS + 1)[~masked].to(dtype)
    # With the noise as input, the float32 table of frequencies shows in float64.
    for model, name, atol in ((mdlm, "q_xs", 1e-9 if suffix else 1e-6), (conditioned(mdlm), "tc_q_xs", 1e-6)):
        model = model.to(dtype)
        for k, t, s in steps(mdlm_cases, len(tokens)):
            probs = process.step_law(model(tokens, t), tokens, t, s, "posterior").log_probs.exp()
            share = (1 - process.alpha(t))[:, None, None].to(dtype)
            close((probs * share)[masked], mdlm_cases[name + suffix][k][masked], atol)
            assert torch.equal(probs[~masked], copies)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@torch.no_grad()
def test_mdlm_scores_and_analytic_steps(mdlm, mdlm_cases, dtype, suffix):
    process = DiffusionProcess(Absorbing(NUM_TOKENS), LogLinear())
    mdlm, tokens = mdlm.to(dtype), mdlm_cases["x"]
    masked = tokens == NUM_TOKENS
    tight = bool(suffix)
    for k, t, s in steps(mdlm_cases, len(tokens)):
        output = mdlm(tokens, t)
        score = process.log_score(output, tokens, t, "posterior").exp()
        expected = mdlm_cases["score" + suffix][k][masked][:, :NUM_TOKENS]
        close(score[masked].to(dtype), expected, 0.0, 1e-6 if tight else SCORE_RTOL)
        probs = process.step_law(output, tokens, t, s, "posterior", "analytic").log_probs.exp()
        close(probs[masked].to(dtype), mdlm_cases["analytic_probs" + suffix][k][masked], 1e-6 if tight else 1e-5)
        last = process.step_law(output, tokens, t, torch.zeros_like(t), "posterior", "analytic").log_probs.exp()
        close(last[masked].to(dtype), mdlm_cases["denoise_probs" + suffix][k][masked], 1e-6 if tight else 1e-5)
        cached = kernels.ancestral(process.graph, tokens, output, 1 - t, 1 - s).log_probs.exp()
        found = (cached * t[:, None, None])[masked].to(dtype)
        close(found, mdlm_cases["q_xs_cached" + suffix][k][masked], 1e-6)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_sedd_forward(sedd, sedd_cases, graph, dtype, suffix):
    denoiser = sedd(graph, OWN[graph], dtype)
    time = denoiser.config.schedule.inverse_sigma(sedd_cases["sigma"].double())
    atol = 1e-6 if suffix else 1e-5
    # The noise of the short sequences is that of the first three.
    for tokens, at, name in ((f"{graph}.x", time, "log_score"), (f"{graph}.x_short", time[:3], "short_log_score")):
        expected = sedd_cases[f"{graph}.{name}{suffix}"][..., :NUM_TOKENS]
        close(denoiser(sedd_cases[tokens], at), expected, atol)


@pytest.mark.parametrize("graph", GRAPHS)
@torch.no_grad()
def test_sedd_score_is_zero_at_the_current_token(sedd, sedd_cases, graph):
    tokens = sedd_cases[f"{graph}.x"]
    log_score = sedd(graph, OWN[graph])(tokens, torch.full((4,), 0.5))
    visible = tokens < NUM_TOKENS
    assert (log_score[visible].gather(-1, tokens[visible][:, None]) == 0).all()
    assert (log_score == 0).sum() == visible.sum()


@pytest.mark.parametrize("name", SCHEDULES)
def test_sedd_schedules(sedd_cases, name):
    schedule, t = SCHEDULES[name], sedd_cases["noise_t"]
    for kind, function in (("total", schedule.sigma), ("rate", schedule.sigma_prime)):
        close(function(t), sedd_cases[f"noise_{name}_{kind}"], 0.0, 1e-4)
        # The published constants are rounded to float32.
        close(function(t.double()), sedd_cases[f"noise_{name}_{kind}__f64"], 0.0, 1e-7)


@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_sedd_graphs(sedd_cases, name):
    graph, tokens = GRAPHS[name], sedd_cases[f"{name}.x"]
    current = F.one_hot(tokens, graph.vocab_size).bool()
    forward = graph.forward_rates(tokens, torch.float32)
    close(forward, sedd_cases[f"{name}.rate"].masked_fill(current, 0.0))
    backward = kernels.full_rates(graph, tokens, graph.reverse_rates(torch.zeros(4, 10, NUM_TOKENS), tokens))
    close(backward, sedd_cases[f"{name}.transp_rate"].masked_fill(current, 0.0))
    # e^{dQ}[v, x_i] for each v: the forward law of every token, read at the current one.
    alpha = torch.exp(-sedd_cases[f"{name}.dsigma"][:, 0].double())
    columns = []
    for token in range(graph.vocab_size):
        if token == graph.mask_token:  # MASK stays
            columns.append((tokens == token).double())
            continue
        law = graph.log_forward(torch.full_like(tokens, token), alpha).exp()
        columns.append(law.gather(-1, tokens[..., None])[..., 0])
    close(torch.stack(columns, -1), sedd_cases[f"{name}.transp_transition__f64"], 1e-7)
    close(torch.stack(columns, -1).float(), sedd_cases[f"{name}.transp_transition"], 1e-6)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_sedd_analytic_weights_are_staggered_scores_times_transitions(sedd, sedd_cases, name, dtype, suffix):
    graph, denoiser, tokens = GRAPHS[name], sedd(name, OWN[name], dtype), sedd_cases[f"{name}.x"]
    time = denoiser.config.schedule.inverse_sigma(sedd_cases["sigma"].double())
    step = sedd_cases[f"{name}.dsigma"][:, 0].to(dtype)
    probs = kernels.analytic(graph, tokens, denoiser(tokens, time), step).log_probs.exp()
    weights = sedd_cases[f"{name}.staggered_score{suffix}"] * sedd_cases[f"{name}.transp_transition{suffix}"]
    close(probs, drawn(weights), 1e-6 if suffix else 1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_sedd_scores(sedd, sedd_cases, name, schedule):
    denoiser, tokens = sedd(name, schedule), sedd_cases[f"{name}.x"]
    for k, t, _ in steps(sedd_cases, len(tokens)):
        expected = sedd_cases[f"{name}.{schedule}.score"][k][..., :NUM_TOKENS]
        close(denoiser(tokens, t).exp(), expected, 0.0, SCORE_RTOL)


@pytest.mark.parametrize(("dtype", "suffix"), PRECISIONS)
@pytest.mark.parametrize("name", GRAPHS)
@torch.no_grad()
def test_sedd_reverse_rates_and_score_entropy(sedd, sedd_cases, name, dtype, suffix):
    graph, denoiser, tokens = GRAPHS[name], sedd(name, OWN[name], dtype), sedd_cases[f"{name}.x"]
    schedule = denoiser.config.schedule
    time = schedule.inverse_sigma(sedd_cases["sigma"].double())
    log_score = denoiser(tokens, time)
    current = F.one_hot(tokens, graph.vocab_size).bool()
    tolerance = (1e-6, 1e-6) if suffix else (1e-4, 1e-4)
    rates = kernels.full_rates(graph, tokens, graph.reverse_rates(log_score, tokens))
    close(rates, sedd_cases[f"{name}.reverse_rate{suffix}"].masked_fill(current, 0.0), *tolerance)
    entropy = score_entropy(DiffusionProcess(graph, schedule), log_score, tokens, sedd_cases[f"{name}.x0"], time)
    per_sigma = (entropy / schedule.sigma_prime(time)[:, None]).to(dtype)
    close(per_sigma, sedd_cases[f"{name}.score_entropy{suffix}"], *tolerance)


def drawn(weights: Tensor) -> Tensor:
    """What published weights amount to: negative ones are never drawn."""
    weights = weights.clamp(min=0.0)
    return weights / weights.sum(-1, keepdim=True)


@pytest.mark.parametrize(("name", "schedule", "dtype", "suffix"), PAIRS)
@torch.no_grad()
def test_sedd_reverse_steps(sedd, sedd_cases, name, schedule, dtype, suffix):
    graph, denoiser, tokens = GRAPHS[name], sedd(name, schedule, dtype), sedd_cases[f"{name}.x"]
    process = DiffusionProcess(graph, SCHEDULES[schedule])
    # On another schedule than its own the absorbing model's scores sum to nearly what would leave no mask.
    denoise = 1e-6 if suffix else 1e-5
    analytic = 2e-4 if (name, schedule) == ("absorb", "geometric") else denoise
    for k, t, s in steps(sedd_cases, len(tokens)):
        log_score = denoiser(tokens, t)
        for kind, end, tolerance in (("analytic", s, analytic), ("denoise", torch.zeros_like(t), denoise)):
            expected = sedd_cases[f"{name}.{schedule}.{kind}_probs{suffix}"][k]
            probs = process.step_law(log_score, tokens, t, end, "score", "analytic").log_probs.exp()
            if kind == "denoise" and graph.mask_token is not None:
                assert (probs[..., graph.mask_token] == 0).all()
                probs = probs[..., :NUM_TOKENS]
            close(probs.to(dtype), drawn(expected), tolerance)


@pytest.mark.parametrize(("name", "schedule", "dtype", "suffix"), PAIRS)
@torch.no_grad()
def test_sedd_euler_steps(sedd, sedd_cases, name, schedule, dtype, suffix):
    graph, denoiser, tokens = GRAPHS[name], sedd(name, schedule, dtype), sedd_cases[f"{name}.x"]
    for k, t, s in steps(sedd_cases, len(tokens)):
        rates = kernels.full_rates(graph, tokens, graph.reverse_rates(denoiser(tokens, t), tokens))
        jumps = rates * (SCHEDULES[schedule].sigma_prime(t) * (t - s))[:, None, None]
        probs = jumps.scatter(-1, tokens[..., None], 1 - jumps.sum(-1, keepdim=True))
        tolerance = (1e-6, 1e-6) if suffix else (1e-5, SCORE_RTOL)
        close(probs.to(dtype), sedd_cases[f"{name}.{schedule}.euler_probs{suffix}"][k], *tolerance)
