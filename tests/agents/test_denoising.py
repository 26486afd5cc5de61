"""The denoising objective: its noise, its bound and its minimum, on laws small enough to list."""

from itertools import product

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from agents.functional.denoising import denoising_loss, draw_noise, per_sequence
from agents.functional.weights import tilted_log_weights
from agents.objectives.denoising import DenoisingLoss
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, Linear, LogLinear, Uniform
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.errors import InvalidArgumentError

V, L = 2, 3
SEQUENCES = torch.tensor(list(product(range(V), repeat=L)))
GRAPHS = [Absorbing(V), Uniform(V)]


def process_of(graph) -> DiffusionProcess:
    return DiffusionProcess(graph, LogLinear(eps=1e-3))


def joint(seed: int = 0) -> Tensor:
    return torch.randn(V**L, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).softmax(0)


class ExactDenoiser(torch.nn.Module):
    """The x0-posterior of a joint law at every state and time, by Bayes' rule over all sequences."""

    parameterisation = "posterior"

    def __init__(self, process: DiffusionProcess, law: Tensor) -> None:
        super().__init__()
        self.process, self.law = process, law

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        log_joint = self.law.log()[None, :].repeat(len(tokens), 1)
        for n, x_0 in enumerate(SEQUENCES):
            forward = self.process.graph.log_forward(x_0.expand_as(tokens), self.process.schedule.alpha(time.double()))
            log_joint[:, n] += forward.gather(-1, tokens[..., None])[..., 0].sum(-1)
        posterior = log_joint.softmax(-1)
        one_hot = torch.nn.functional.one_hot(SEQUENCES, V).double()
        return torch.einsum("bx,xlv->blv", posterior, one_hot).clamp(min=1e-300).log()


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
@pytest.mark.parametrize("stratified", [True, False])
@pytest.mark.parametrize("coupled", [True, False])
def test_the_bound_of_exact_conditionals_is_the_log_likelihood(graph, stratified, coupled):
    process, law = process_of(graph), joint()
    keys = keys_from_seed(torch.arange(len(SEQUENCES)))
    states = draw_noise(process, SEQUENCES, keys, 2000, stratified=stratified, coupled=coupled)
    denoiser = ExactDenoiser(process, law)
    losses = denoising_loss(process, process.evaluate(denoiser, states.tokens, states.t), states, "posterior")
    found, error = per_sequence(losses, 2000), losses.reshape(-1, 2000).std(dim=1) / 2000**0.5
    # Tight on an absorbing graph, whose masks are filled in any order; on a uniform one up to the noise at both ends.
    slack = 0.0 if graph.mask_token is not None else 0.02
    assert ((found + law.log()).abs() <= 5 * error + slack).all()


@pytest.mark.parametrize("graph", GRAPHS, ids=str)
def test_each_draw_alone_has_the_law_of_the_noise(graph):
    process = DiffusionProcess(graph, Linear())
    x_0 = torch.zeros(20_000, 1, dtype=torch.int64)
    states = draw_noise(process, x_0, keys_from_seed(torch.arange(20_000)), 4, coupled=True)
    alpha = process.schedule.alpha(states.t)
    stays = alpha if graph.mask_token is not None else alpha + (1 - alpha) / V
    kept = (states.tokens[:, 0] == 0).double()
    for draw in range(4):
        rows = slice(draw, None, 4)
        residual = (kept - stays)[rows]
        assert residual.mean().abs() < 5 * residual.std() / 20_000**0.5


def test_coupled_draws_mask_each_position_once():
    process = process_of(Absorbing(V))
    x_0 = torch.zeros(500, 16, dtype=torch.int64)
    states = draw_noise(process, x_0, keys_from_seed(torch.arange(500)), 2, coupled=True)
    masked = (states.tokens == V).reshape(500, 2, 16)
    # All but the sliver of time that is never drawn.
    assert (masked[:, 0] ^ masked[:, 1]).double().mean() > 0.995
    assert torch.allclose(states.t.reshape(500, 2).sum(1), torch.tensor(1.0, dtype=torch.float64), atol=2e-3)


def test_stratified_times_stand_in_their_parts():
    process = process_of(Absorbing(V))
    states = draw_noise(process, SEQUENCES, keys_from_seed(torch.arange(8)), 5)
    times = states.t.reshape(8, 5)
    assert ((times * 5).floor() == torch.arange(5)).double().mean() > 0.9
    assert (times.diff(dim=1) > 0).all()


def test_the_noise_is_that_of_its_key_and_never_touches_what_is_given():
    process = process_of(Uniform(V))
    keys, given = keys_from_seed(torch.arange(8)), torch.tensor([True, False, False]).expand(8, 3)
    whole = draw_noise(process, SEQUENCES, keys, 6, prompt_mask=given)
    part = draw_noise(process, SEQUENCES[5:6], keys[5:6], 6, prompt_mask=given[:1])
    assert torch.equal(whole.tokens[30:36], part.tokens)
    assert torch.equal(whole.tokens[:, 0], SEQUENCES[:, 0].repeat_interleave(6))
    losses = denoising_loss(process, torch.zeros(48, L, V).log_softmax(-1), whole, "posterior")
    free = denoising_loss(
        process, torch.zeros(48, L, V).log_softmax(-1), draw_noise(process, SEQUENCES, keys, 6), "posterior"
    )
    assert (losses <= free).all()


def test_an_odd_number_of_coupled_draws_is_refused():
    with pytest.raises(InvalidArgumentError, match="even, got 3"):
        draw_noise(process_of(Absorbing(V)), SEQUENCES, torch.arange(8), 3, coupled=True)


def samples_of(weight: Tensor, seed: int = 0) -> TensorDict:
    return TensorDict(
        {
            "final_tokens": SEQUENCES,
            "weight": weight[:, None],
            "noise_key": keys_from_seed(torch.arange(len(SEQUENCES)), seed),
            "num_trajectories": torch.ones(len(SEQUENCES), 1),
        },
        batch_size=[len(SEQUENCES)],
    )


def conditionals_of(law: Tensor) -> TabularDenoiser:
    denoiser = TabularDenoiser(V, L, V + 1).double()
    states = torch.tensor(list(product(range(V + 1), repeat=L)))
    agrees = ((states[:, None] == SEQUENCES) | (states[:, None] == V)).all(-1)
    counts = torch.einsum("sx,xlv->slv", agrees * law, torch.nn.functional.one_hot(SEQUENCES, V).double())
    with torch.no_grad():
        denoiser.logits.copy_(counts.clamp(min=1e-300).log())
    return denoiser


def gradient(denoiser: TabularDenoiser, weight: Tensor, num_draws: int) -> Tensor:
    loss = DenoisingLoss(denoiser, process_of(Absorbing(V)), num_draws=num_draws)
    loss(samples_of(weight))["loss_objective"].backward()
    found, denoiser.logits.grad = denoiser.logits.grad, None
    return found


def test_tilted_weights_are_at_rest_at_the_tilted_law():
    law, reward = joint(), torch.randn(V**L, generator=torch.Generator().manual_seed(1)).double()
    weight = (law.log() + reward / 0.5).softmax(0)  # all sequences, each as often as the reference draws it
    assert torch.allclose(tilted_log_weights(reward, 0.5, log_ratio=law.log()).exp(), weight)
    at_rest = gradient(conditionals_of(weight), weight, 10_000)
    elsewhere = gradient(conditionals_of(law), weight, 10_000)
    # What is left is the noise of the draws.
    assert at_rest.norm() < 0.1 * elsewhere.norm()


def test_micro_batches_add_up_and_weights_scale():
    denoiser, weight = conditionals_of(joint()), torch.rand(V**L).double()
    loss = DenoisingLoss(denoiser, process_of(Absorbing(V)), num_draws=4)
    whole = samples_of(weight)
    parts = sum(loss(part)["loss_objective"] for part in whole.split(3))
    assert torch.allclose(loss(whole)["loss_objective"], parts)
    doubled = samples_of(2 * weight)
    assert torch.allclose(loss(doubled)["loss_objective"], 2 * parts)
    assert not loss(whole)["bound"].requires_grad
    assert set(loss(whole).keys()) == set(loss.out_keys)
