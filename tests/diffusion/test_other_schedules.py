"""A network that reads the noise is told the noise there is, whatever schedule the process has."""

import pytest
import torch

from sepo_env.denoisers import (
    ClassifierFreeGuidance,
    DNAConvConfig,
    DNAConvDenoiser,
    MDLMConfig,
    MDLMDenoiser,
    SEDDDenoiser,
    load_sedd,
)
from sepo_env.diffusion import Cosine, DiffusionProcess, Geometric, Linear, LogLinear, make_graph
from sepo_env.diffusion.sampler import sample
from sepo_env.tasks import make

SCHEDULES = [LogLinear(), LogLinear(0.1), Cosine(), Geometric(), Linear()]
GRAPHS = {"absorb": "absorbing", "uniform": "uniform"}


@pytest.fixture(params=GRAPHS)
def sedd(request, project_root) -> SEDDDenoiser:
    return load_sedd(project_root / "tests" / "fixtures" / "sedd" / request.param)


def inputs(vocab_size: int, rows: int) -> torch.Tensor:
    return torch.randint(vocab_size, (rows, 5), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@torch.no_grad()
def test_scores_depend_on_the_noise_and_not_on_who_counts_the_time(sedd, schedule):
    own = DiffusionProcess(make_graph(sedd.config.graph, sedd.num_tokens), sedd.config.schedule)
    other = DiffusionProcess(own.graph, schedule)
    sigma = torch.tensor([0.01, 0.3, 1.0, 2.2], dtype=torch.float64)
    tokens = inputs(sedd.config.vocab_size, len(sigma))
    expected = own.evaluate(sedd, tokens, own.schedule.inverse_sigma(sigma))
    found = other.evaluate(sedd, tokens, schedule.inverse_sigma(sigma))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    # The network is not asked for the time of the process.
    assert schedule == sedd.config.schedule or not torch.allclose(
        sedd(tokens, schedule.inverse_sigma(sigma)), expected, atol=1e-3
    )


@pytest.mark.parametrize("kernel", ["ancestral", "tau-leaping", "analytic"])
@torch.no_grad()
def test_noise_beyond_the_networks_own_scales_the_scores_of_masks(kernel, project_root):
    sedd = load_sedd(project_root / "tests" / "fixtures" / "sedd" / "absorb")
    process = DiffusionProcess(make_graph("absorbing", sedd.num_tokens), Geometric())
    t = torch.ones(1, dtype=torch.float64)  # sigma is 20, and 6.9 at most on the network's own schedule
    tokens = torch.full((1, 5), sedd.num_tokens)
    log_score = process.evaluate(sedd, tokens, t)
    at_its_last = sedd(tokens, t)
    torch.testing.assert_close(
        log_score - at_its_last, torch.full_like(log_score, -20.0 - torch.logit(sedd.config.schedule.alpha(t)).item())
    )
    law = process.step_law(log_score, tokens, t, torch.tensor([0.9], dtype=torch.float64), "score", kernel)
    assert bool((law.log_probs[..., -1].exp() > 0.99).all())  # almost all of them stay masks


def test_networks_say_what_they_were_trained_on():
    sizes = {"width": 8, "depth": 1, "heads": 2, "cond_width": 4}
    for conditioned in (False, True):
        expected = Cosine() if conditioned else None
        mdlm = MDLMDenoiser(MDLMConfig(num_tokens=6, time_conditioned=conditioned, schedule=Cosine(), **sizes))
        dna = DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=1, time_conditioned=conditioned, schedule=Cosine()))
        assert mdlm.own_schedule == dna.own_schedule == expected
        assert ClassifierFreeGuidance(mdlm, 1.0).own_schedule == expected
    bare = make("toy").denoiser
    assert ClassifierFreeGuidance(bare, 1.0).own_schedule is None


@torch.no_grad()
def test_samplers_ask_at_the_networks_own_time(sedd):
    process = DiffusionProcess(make_graph(sedd.config.graph, sedd.num_tokens), Linear(0.0, 5.0))
    seen = []
    sedd.register_forward_pre_hook(lambda module, given: seen.append(given[1][0].item()))
    tokens = sample(process, sedd, 2, 4, num_steps=4, seed=0)
    assert bool((tokens < sedd.num_tokens).all())
    sigma = 5.0 * process.time_grid(4)[:-1]
    expected = sedd.config.schedule.inverse_sigma(sigma).clamp(0, 1)
    torch.testing.assert_close(torch.tensor(seen[:4], dtype=torch.float64), expected)
