"""The oracle of the other tests, itself checked by conservation, by finite differences and by refusal."""

import pytest
import torch

from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.enumeration import (
    all_states,
    ancestral_law,
    expected_reward,
    first_hitting_law,
    state_index,
    state_laws,
)
from sepo_env.errors import InvalidArgumentError


@pytest.mark.parametrize(("num_values", "length"), [(2, 1), (3, 4), (5, 3)])
def test_states_and_indices_are_inverse(num_values, length):
    states = all_states(num_values, length)
    assert states.shape == (num_values**length, length)
    assert torch.equal(state_index(states, num_values), torch.arange(num_values**length))


@pytest.mark.parametrize("graph", [Absorbing(3), Uniform(3)], ids=str)
def test_probability_is_conserved_at_every_step(graph):
    process = DiffusionProcess(graph, LogLinear())
    denoiser = (
        TabularDenoiser(3, 3, graph.vocab_size, generator=torch.Generator().manual_seed(2))
        .double()
        .requires_grad_(False)
    )
    laws = [probs for probs, *_ in state_laws(process, denoiser, 3, 5)]
    assert len(laws) == 6
    for probs in laws:
        assert float(probs.sum()) == pytest.approx(1.0, abs=1e-12)


def test_gradient_of_the_expected_reward_by_finite_differences():
    process = DiffusionProcess(Absorbing(2), LogLinear())
    denoiser = TabularDenoiser(2, 2, 3, generator=torch.Generator().manual_seed(3)).double()
    rewards = torch.tensor([0.0, 1.0, -0.5, 2.0], dtype=torch.float64)

    def objective():
        return expected_reward(ancestral_law(process, denoiser, 2, 3), rewards)

    objective().backward()
    gradient = denoiser.logits.grad.clone()
    for index in [(8, 0, 0), (6, 1, 1), (2, 0, 1)]:
        with torch.no_grad():
            denoiser.logits[index] += 1e-6
            above = float(objective())
            denoiser.logits[index] -= 2e-6
            below = float(objective())
            denoiser.logits[index] += 1e-6
        assert float(gradient[index]) == pytest.approx((above - below) / 2e-6, abs=1e-8)


def test_spaces_too_large_and_wrong_graphs_are_refused():
    process = DiffusionProcess(Absorbing(4), LogLinear())
    denoiser = TabularDenoiser(4, 2, 5)
    with pytest.raises(InvalidArgumentError, match="too many to enumerate"):
        ancestral_law(process, denoiser, 12, 2)
    with pytest.raises(InvalidArgumentError, match="absorbing"):
        first_hitting_law(DiffusionProcess(Uniform(2), LogLinear()), denoiser, 2)
