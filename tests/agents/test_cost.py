"""Network evaluations and reward calls, counted where they happen."""

import copy
import inspect
import pickle

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule

from agents.cost import CostMeter
from agents.objectives import SEPOLoss
from sepo_env.denoisers import ClassifierFreeGuidance, Denoiser, TabularDenoiser
from sepo_env.denoisers.dna_cnn import DNAConvConfig, DNAConvDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.metering import is_marked, unmarked
from sepo_env.rewards import OracleEnsemble, OracleReward, Reward, as_reward

PROCESS = DiffusionProcess(Absorbing(2), LogLinear())
TOKENS, TIME = torch.full((7, 3), 2), torch.ones(7)


@pytest.fixture
def denoiser() -> TabularDenoiser:
    return TabularDenoiser(2, 3, 3)


class Scores:
    """A reward that has been called before."""

    calls = 100


def test_forward_counts_one_and_a_gradient_two_more(denoiser):
    meter = CostMeter(denoiser)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    assert meter.nfe == 7
    denoiser(TOKENS, TIME)
    assert meter.nfe == 7 + 21


def test_frozen_network_has_no_backward_pass(denoiser):
    meter = CostMeter(denoiser.requires_grad_(False))
    denoiser(TOKENS, TIME)
    assert meter.nfe == 7


@pytest.mark.parametrize(("needs_grad", "cost"), [(True, 21), (False, 7)])
def test_functional_parameters(denoiser, needs_grad, cost):
    """What counts is what the call can be differentiated by, not what the module holds."""
    meter = CostMeter(denoiser)
    logits = denoiser.logits.detach().clone().requires_grad_(needs_grad)
    torch.func.functional_call(denoiser, {"logits": logits}, (TOKENS, TIME))
    assert meter.nfe == cost


def test_through_tensordict_modules_and_losses(denoiser):
    reference = copy.deepcopy(denoiser)
    meter = CostMeter(denoiser, reference)
    states = TensorDict(
        {
            "tokens": TOKENS,
            "time": torch.ones(7, 1),
            "next": {"tokens": torch.zeros_like(TOKENS), "time": torch.zeros(7, 1)},
            "final_tokens": torch.zeros_like(TOKENS),
            "advantage": torch.ones(7, 1),
            "trajectory": torch.arange(7),
        },
        batch_size=[7],
    )
    TensorDictModule(denoiser, in_keys=["tokens", "t"], out_keys=["out"])(states.clone().set("t", TIME))
    assert meter.nfe == 21
    loss = SEPOLoss(denoiser, PROCESS, reference=reference, kl_coeff=0.1)
    loss(states)
    assert meter.nfe == 21 + 21 + 7
    loss.log_probs(states)
    assert meter.nfe == 21 + 21 + 7 + 7


def test_a_network_given_twice_counts_once(denoiser):
    meter = CostMeter(denoiser, denoiser)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    assert meter.nfe == 7


def test_reward_calls_from_now_on():
    reward = Scores()
    meter = CostMeter(reward=reward)
    assert meter.reward_calls == 0
    reward.calls += 12
    assert meter.reward_calls == 12
    assert CostMeter().reward_calls == 0


def test_counts_continue_from_a_checkpoint(denoiser):
    reward = Scores()
    meter = CostMeter(denoiser, reward=reward)
    meter.load_state_dict({"nfe": 1000, "reward_calls": 50})
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    reward.calls += 5
    assert meter.state_dict() == {"nfe": 1007, "reward_calls": 55}


def test_closed_meter_counts_no_more(denoiser):
    meter = CostMeter(denoiser)
    meter.close()
    denoiser(TOKENS, TIME)
    assert meter.nfe == 0


def test_hooked_network_can_be_copied_and_pickled(denoiser):
    """Copies go to other processes; what they do is theirs to count."""
    meter = CostMeter(denoiser)
    for clone in (copy.deepcopy(denoiser), pickle.loads(pickle.dumps(denoiser))):
        clone(TOKENS, TIME)
    assert meter.nfe == 0


class Ways(TabularDenoiser):
    """Evaluated by more methods than forward."""

    def __init__(self, vocab_size: int = 3) -> None:
        super().__init__(2, 3, vocab_size)
        self.head = torch.nn.Linear(2, 2)

    def scores(self, tokens, time):
        return self.head(super().forward(tokens, time))

    def forward(self, tokens, time):
        return self.scores(tokens, time).log_softmax(-1)

    def estimate(self, tokens, time):
        return sum(self(tokens, time) for _ in range(4)) / 4

    def chances(self, tokens, time):
        return {"p": self._hidden(tokens, time)}

    def _hidden(self, tokens, time):
        return self.forward(tokens, time).exp()

    def count_masks(self, tokens):
        return (tokens == 2).sum(-1)


WAYS = {
    "called": lambda d: d(TOKENS, TIME),
    "forward": lambda d: d.forward(TOKENS, TIME),
    "by keywords": lambda d: d(tokens=TOKENS, time=TIME),
    "another method": lambda d: d.scores(TOKENS, TIME),
    "several": lambda d: d.estimate(TOKENS, TIME),
    "a dictionary": lambda d: d.chances(TOKENS, TIME),
    "functional": lambda d: torch.func.functional_call(d, dict(d.named_parameters()), (TOKENS, TIME)),
    "a part": lambda d: d.head(torch.rand(7, 3, 2)),
    "no evaluation": lambda d: d.count_masks(TOKENS),
    "class": lambda d: Ways.forward(d, TOKENS, TIME),
}


@pytest.mark.parametrize("guidance", [False, True])
@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_a_network_is_called(way, differentiable, guidance):
    denoiser = Ways()
    meter = CostMeter(ClassifierFreeGuidance(denoiser, 1.0) if guidance else denoiser)
    with torch.set_grad_enabled(differentiable):
        WAYS[way](denoiser)
    times = {"several": 4, "no evaluation": 0}.get(way, 1)
    assert meter.nfe == 7 * times * (3 if differentiable else 1)
    meter.close()
    WAYS[way](denoiser)
    assert meter.nfe == 7 * times * (3 if differentiable else 1)


class Mixed:
    """A network of somebody else's, made a denoiser by inheritance."""

    def forward(self, tokens, time):
        return self.logits[self.state_index(tokens)].log_softmax(-1)


class FromElsewhere(Mixed, TabularDenoiser):
    pass


class Further(Ways):
    def forward(self, tokens, time):
        return super().forward(tokens, time) + 0.0


@pytest.mark.parametrize("kind", [FromElsewhere, Further])
def test_methods_that_are_inherited(kind):
    denoiser = FromElsewhere(2, 3, 3) if kind is FromElsewhere else Further()
    meter = CostMeter(denoiser)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
        denoiser.forward(TOKENS, TIME)
    assert meter.nfe == 14


def test_gradients_with_respect_to_the_input_count_as_well():
    denoiser = DNAConvDenoiser(DNAConvConfig(channels=4, num_stacks=1)).requires_grad_(False)
    meter = CostMeter(denoiser)
    one_hot = torch.nn.functional.one_hot(torch.randint(5, (2, 12)), 5).float()
    denoiser.logits(one_hot, torch.ones(2))
    assert meter.nfe == 2
    denoiser.logits(one_hot.requires_grad_(), torch.ones(2)).sum().backward()
    assert meter.nfe == 2 + 6


def test_two_meters_look_at_one_network_and_one_meter_at_two(denoiser):
    other = copy.deepcopy(denoiser)
    one, both = CostMeter(denoiser), CostMeter(denoiser, other)
    with torch.no_grad():
        denoiser(TOKENS, TIME)
        other(TOKENS, TIME)
    assert (one.nfe, both.nfe) == (7, 14)
    one.close()
    with torch.no_grad():
        denoiser(TOKENS, TIME)
    assert (one.nfe, both.nfe) == (7, 21)


def test_a_network_of_somebody_elses_counts_by_its_calls():
    network = torch.nn.Sequential(torch.nn.Embedding(3, 2))
    meter = CostMeter(network)
    network(TOKENS)
    assert meter.nfe == 21


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("given", ["inner", "outer", "in place"])
def test_compiled_networks(denoiser, given):
    if given == "in place":
        denoiser.compile(backend="eager")
    compiled = denoiser if given == "in place" else torch.compile(denoiser, backend="eager")
    meter = CostMeter(compiled if given == "outer" else denoiser)
    with torch.no_grad():
        for _ in range(3):
            compiled(TOKENS, TIME)
    assert meter.nfe == 21


def concrete(kind):
    """All classes of a kind that can be made."""
    below = [found for subclass in kind.__subclasses__() for found in concrete(subclass)]
    return below if inspect.isabstract(kind) else [kind, *below]


@pytest.mark.parametrize("kind", sorted(set(concrete(Denoiser)), key=str))
def test_every_denoiser_is_looked_at(kind):
    assert is_marked(kind)
    assert unmarked(kind.forward) is not kind.forward


# -- rewards


class Weights(torch.nn.Module):
    """The share of the first token, for tokens or their weights."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, tokens):
        weights = torch.nn.functional.one_hot(tokens, 4).float() if tokens.dtype == torch.int64 else tokens
        return self.scale * weights[..., 0].mean(-1)


class NetworkReward(Reward):
    name = "network"

    def __init__(self):
        self.network = Weights()

    def score(self, tokens):
        return self.network(tokens)


def oracle():
    class Member(torch.nn.Module):
        def forward(self, weights):
            return weights[..., 0].mean(1, keepdim=True)

    return OracleReward(
        OracleEnsemble([Member(), Member()], None, quantity="a", units="1", role="training", both_strands=False)
    )


SEQUENCES = torch.zeros(5, 8, dtype=torch.int64)
SOFT = torch.full((5, 8, 4), 0.25)


@pytest.mark.parametrize("make_reward", [NetworkReward, oracle], ids=["network", "oracle"])
def test_a_gradient_through_a_reward_counts_as_three_calls(make_reward):
    reward = make_reward()
    meter = CostMeter(reward=reward)
    reward(SEQUENCES)
    assert meter.reward_calls == 5
    network = reward.network if isinstance(reward, NetworkReward) else reward.ensemble
    differentiate = network if isinstance(reward, NetworkReward) else network.predict_weights
    differentiate(SOFT.clone().requires_grad_()).sum().backward()
    assert meter.reward_calls == 5 + 15
    with torch.no_grad():
        differentiate(SOFT)
        network(SEQUENCES)
    assert meter.reward_calls == 5 + 15 + 10
    assert reward.calls == 5
    meter.close()
    differentiate(SOFT)
    assert meter.reward_calls == 30


def test_scoring_past_the_call_is_not_free():
    reward = NetworkReward()
    meter = CostMeter(reward=reward)
    reward.score(SEQUENCES)
    assert (reward.calls, meter.reward_calls) == (15, 15)
    with torch.no_grad():
        reward.score(SEQUENCES)
    assert (reward.calls, meter.reward_calls) == (20, 20)


def test_a_score_that_is_inherited_counts():
    class Scores:
        def score(self, tokens):
            return (tokens == 0).float().sum(-1)

    class Mine(Scores, Reward):
        name = "mine"

    reward = Mine()
    reward(SEQUENCES)
    reward.score(SEQUENCES)
    assert reward.calls == 10


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("options", [{}, {"cache": True}])
def test_modules_and_sums_count_once(options, weighted):
    module = Weights()
    kinds = {"decode": lambda tokens: [], "registry": {"zero": lambda: NetworkReward()}}
    reward = as_reward({module: 1.0, "zero": 0.5} if weighted else module, **kinds, **options)
    meter = CostMeter(reward=reward)
    tokens = torch.arange(20).reshape(5, 4) % 3
    reward(tokens)
    once = 3 if options else 5
    assert (meter.reward_calls, reward.calls) == (once, once)
    reward(tokens)
    assert (meter.reward_calls, reward.calls) == ((3, 3) if options else (10, 10))
    before = meter.reward_calls
    module(SOFT)
    assert meter.reward_calls == before + 15
