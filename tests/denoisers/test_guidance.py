"""Classifier-free guidance: by hand, against an enumerated chain, and at scale 0 the conditional model itself."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from agents.cost import CostMeter
from sepo_env.denoisers import ClassConditionalDenoiser, ClassifierFreeGuidance, TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.diffusion.enumeration import all_states, ancestral_law, first_hitting_law, state_index
from sepo_env.diffusion.guided import temper_law
from sepo_env.diffusion.sampler import first_hitting, sample
from sepo_env.errors import InvalidArgumentError
from tests.comparisons import assert_same

ABSORBING, UNIFORM = (DiffusionProcess(graph(2), LogLinear()) for graph in (Absorbing, Uniform))
MASK = 2


def table(seed=0, length=3, vocab_size=3, parameterisation="posterior"):
    generator = torch.Generator().manual_seed(seed)
    return TabularDenoiser(2, length, vocab_size, parameterisation, generator).double().requires_grad_(False)


class ClassTables(ClassConditionalDenoiser):
    """A table for each class, and one more for none."""

    num_tokens, length, parameterisation, time_conditioned, num_classes = 2, 3, "posterior", False, 2

    def __init__(self, vocab_size=3, parameterisation="posterior"):
        super().__init__()
        self.parameterisation = parameterisation
        self.tables = torch.nn.ModuleList(table(seed, 3, vocab_size, parameterisation) for seed in (3, 4, 5))

    def forward(self, tokens, time, labels=None):
        labels = torch.full(tokens.shape[:1], 2) if labels is None else labels
        outputs = torch.stack([one(tokens, time) for one in self.tables])
        return outputs[labels, torch.arange(len(tokens))]


def test_by_hand():
    """p(v | c) = (3/4, 1/4), p(v) = (1/2, 1/2); w = 2 gives odds 3^3 / 1: 27/28."""
    denoiser = TabularDenoiser(2, 2, vocab_size=3).double().requires_grad_(False)
    denoiser.logits[denoiser.state_index(torch.tensor([[0, MASK]])), 1] = torch.log(torch.tensor([3.0, 1.0]).double())
    guided = ClassifierFreeGuidance(denoiser, scale=2.0)
    tokens, mask = torch.tensor([[0, MASK]]), torch.tensor([[True, False]])
    out = guided(tokens, torch.ones(1), mask)[0, 1].exp()
    torch.testing.assert_close(out, torch.tensor([27 / 28, 1 / 28], dtype=torch.float64))


def test_what_only_the_condition_allows_takes_all_and_what_it_forbids_stays_forbidden():
    conditional = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]]).log()
    unconditional = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.0]]).log()
    expected = torch.tensor([[1 / 3, 2 / 3, 0.0], [0.0, 0.0, 1.0]])
    torch.testing.assert_close(temper_law(conditional, unconditional, 1.0).exp(), expected)
    conditional.requires_grad_()
    gradient = torch.autograd.grad(temper_law(conditional, unconditional, 1.0)[0, :2].sum(), conditional)[0]
    assert bool(torch.isfinite(gradient).all())


@given(st.integers(0, 20), st.lists(st.booleans(), min_size=3, max_size=3), st.floats(0.0, 4.0))
def test_it_is_the_formula(seed, given_positions, scale):
    denoiser = table(seed)
    states = all_states(3, 3)
    mask = torch.tensor(given_positions).expand_as(states) & (states != MASK)
    time = torch.full((len(states),), 0.5)
    guided = ClassifierFreeGuidance(denoiser, scale)(states, time, mask)
    with_prompt = denoiser(states, time)
    without = denoiser(torch.where(mask, MASK, states), time)
    weights = with_prompt.exp() ** (1 + scale) / without.exp() ** scale
    torch.testing.assert_close(guided.exp(), weights / weights.sum(-1, keepdim=True))
    unprompted = ~mask.any(-1)
    assert_same(guided[unprompted], with_prompt[unprompted])


@pytest.mark.parametrize("parameterisation", ["posterior", "score"])
def test_scale_0_is_the_conditional_model(parameterisation):
    states, time = all_states(3, 3), torch.ones(27)
    prompted = table(parameterisation=parameterisation)
    mask = states != MASK
    assert_same(ClassifierFreeGuidance(prompted, 0.0)(states, time, mask), prompted(states, time))
    classes = ClassTables(parameterisation=parameterisation)
    expected = classes(states, time, torch.ones(27).long())
    assert_same(ClassifierFreeGuidance(classes, 0.0, label=1)(states, time, mask), expected)
    # Where nobody tells what was given there is nothing to guide.
    assert_same(ClassifierFreeGuidance(prompted, 3.0)(states, time), prompted(states, time))


def test_the_sampled_law_is_the_enumerated_one():
    """By hand: the table of the guided posterior, for the one prompt, is a denoiser without guidance."""
    denoiser, prompt, scale = table(7), torch.tensor([1, -1, -1]), 1.5
    states, time = all_states(3, 3), torch.ones(27)
    by_hand = copy.deepcopy(denoiser)
    hidden = states.clone()
    hidden[:, 0] = MASK
    by_hand.logits.copy_((1 + scale) * denoiser(states, time) - scale * denoiser(hidden, time))
    guided = ClassifierFreeGuidance(denoiser, scale)
    expected = ancestral_law(ABSORBING, by_hand, 3, 4, prompt=prompt)
    torch.testing.assert_close(ancestral_law(ABSORBING, guided, 3, 4, prompt=prompt), expected)
    assert float((expected - ancestral_law(ABSORBING, denoiser, 3, 4, prompt=prompt)).abs().sum()) > 0.05
    limit = first_hitting_law(ABSORBING, by_hand, 3, prompt)
    torch.testing.assert_close(first_hitting_law(ABSORBING, guided, 3, prompt), limit)
    samples = {
        "k-step": (sample(ABSORBING, guided, 6000, 3, num_steps=4, prompt=prompt), expected),
        "first-hitting": (first_hitting(ABSORBING, guided, 6000, 3, prompt=prompt), limit),
    }
    for tokens, law in samples.values():
        found = torch.bincount(state_index(tokens, 2), minlength=8) / 6000
        torch.testing.assert_close(found.double(), law, rtol=0, atol=4 * (0.25 / 6000) ** 0.5)


def test_correctors_are_guided_too():
    prompt = torch.tensor([1, -1, -1])
    options = {"num_steps": 3, "prompt": prompt, "corrector_steps": 1, "corrector_size": 1.0}
    denoiser, scale = table(7), 1.5
    hidden = all_states(3, 3)
    hidden[:, 0] = MASK
    by_hand = copy.deepcopy(denoiser)
    by_hand.logits.copy_((1 + scale) * denoiser(all_states(3, 3), None) - scale * denoiser(hidden, None))
    drawn = sample(ABSORBING, ClassifierFreeGuidance(denoiser, scale), 300, 3, **options)
    assert torch.equal(drawn, sample(ABSORBING, by_hand, 300, 3, **options))


@pytest.mark.parametrize("process", [ABSORBING, UNIFORM], ids=lambda p: str(p.graph))
def test_guidance_by_class(process):
    vocab_size = process.graph.vocab_size
    classes = ClassTables(vocab_size)
    states = all_states(vocab_size, 3)
    time = torch.ones(len(states))
    with_class, without = (classes.tables[i](states, time).exp() for i in (0, 2))
    guided = ClassifierFreeGuidance(classes, 1.0, label=0)
    weights = with_class**2 / without
    torch.testing.assert_close(guided(states, time).exp(), weights / weights.sum(-1, keepdim=True))
    prompt = torch.tensor([1, -1, -1])
    assert bool((sample(process, guided, 50, 3, num_steps=3, prompt=prompt)[:, 0] == 1).all())
    score = ClassifierFreeGuidance(ClassTables(vocab_size, "score"), 1.0, label=0)(states, time)
    own = states.clamp(max=1)[..., None]
    assert not score.gather(-1, own)[..., 0][states < 2].any()  # s of staying is 1


def test_both_evaluations_are_counted():
    tokens, mask = torch.tensor([[0, MASK, MASK]]).repeat(5, 1), torch.tensor([[True, False, False]]).repeat(5, 1)
    for scale, expected in ((1.0, 10), (0.0, 5)):
        guided = ClassifierFreeGuidance(table(), scale)
        meter = CostMeter(guided)
        guided(tokens, torch.ones(5), mask)
        assert meter.nfe == expected
    guided = ClassifierFreeGuidance(ClassTables(), 1.0, label=0)
    meter = CostMeter(guided)
    guided(tokens, torch.ones(5))
    assert meter.nfe == 10
    # Where nothing is given there is nothing to guide, and nothing to pay for.
    for process, vocab_size in ((ABSORBING, 3), (UNIFORM, 2)):
        guided = ClassifierFreeGuidance(table(vocab_size=vocab_size), 1.0)
        meter = CostMeter(guided)
        process.rates(guided, tokens.clamp(max=1), torch.ones(5), torch.zeros(5), torch.zeros_like(mask))
        assert meter.nfe == 5
    trained = ClassifierFreeGuidance(table().requires_grad_(True), 1.0)
    meter = CostMeter(trained)
    trained(tokens, torch.ones(5), mask)
    assert meter.nfe == 30


def test_what_cannot_be_guided_is_refused():
    for scale in (-0.1, float("nan"), float("inf")):
        with pytest.raises(InvalidArgumentError, match="scale"):
            ClassifierFreeGuidance(table(), scale)
    with pytest.raises(InvalidArgumentError, match="guided already"):
        ClassifierFreeGuidance(ClassifierFreeGuidance(table(), 1.0), 1.0)
    with pytest.raises(InvalidArgumentError, match="knows no classes"):
        ClassifierFreeGuidance(table(), 1.0, label=0)
    with pytest.raises(InvalidArgumentError, match="0 to 1"):
        ClassifierFreeGuidance(ClassTables(), 1.0, label=2)
    guided = ClassifierFreeGuidance(table(vocab_size=2), 1.0)
    with pytest.raises(InvalidArgumentError, match="has no MASK"):
        sample(UNIFORM, guided, 2, 3, num_steps=2, prompt=torch.tensor([1, -1, -1]))
    assert sample(UNIFORM, guided, 2, 3, num_steps=2).shape == (2, 3)
