"""SEPO's three forms against numbers worked out by hand, and the published form against the law it estimates."""

import math
from itertools import product

import pytest
import torch
from tensordict import TensorDict

from agents.cost import CostMeter
from agents.objectives import NeighboursForm, SEPOLoss, SNISForm
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear, Uniform
from sepo_env.errors import InvalidArgumentError
from tests.comparisons import assert_same

MASK = 2
PROCESS = DiffusionProcess(Absorbing(2), LogLinear(eps=1e-3))
SEQUENCES = torch.tensor(list(product(range(2), repeat=3)))


def one_state(tokens, next_tokens, final_tokens, t, s, advantage) -> TensorDict:
    return TensorDict(
        {
            "tokens": torch.tensor([tokens]),
            "time": torch.tensor([[t]], dtype=torch.float64),
            "next": {"tokens": torch.tensor([next_tokens]), "time": torch.tensor([[s]], dtype=torch.float64)},
            "final_tokens": torch.tensor([final_tokens]),
            "advantage": torch.tensor([[advantage]], dtype=torch.float64),
            "trajectory": torch.tensor([0]),
        },
        batch_size=[1],
    )


def fair_table() -> TabularDenoiser:
    return TabularDenoiser(2, 3, 3).double()


def shifted(log_prob: torch.Tensor, *ratios: float) -> torch.Tensor:
    """Old log-probabilities such that the ratios of the positions are these."""
    return log_prob - torch.tensor([ratios], dtype=torch.float64).log()


# --- path and neighbours --------------------------------------------------------------------------------------------


def test_path_by_hand():
    """Positions 0 and 1 jump; token: 2 (1.2 + 0.9), step: 1.5 * 0.9 = 1.35 is cut to 1.2."""
    state = one_state([2, 2, 2], [0, 1, 2], [0, 1, 1], 0.75, 0.5, 2.0)
    token = SEPOLoss(fair_table(), PROCESS, form="path")
    step = SEPOLoss(fair_table(), PROCESS, form="path", clip_level="step")
    log_prob = token.log_probs(state)
    jump = math.log(0.5 * 0.25 / 0.75)  # half for the token, a third for the jump
    assert log_prob[0].tolist() == pytest.approx([jump, jump, 0.0])
    state["old_log_prob"] = shifted(log_prob, 1.5, 0.9, 1.0)
    assert token(state)["loss_objective"].item() == pytest.approx(-4.2)
    assert step(state)["loss_objective"].item() == pytest.approx(-2.4)
    assert token(state)["clip_fraction"].item() == pytest.approx(0.5)
    assert step(state)["clip_fraction"].item() == 1.0


def test_neighbours_by_hand():
    """All masks count, each with the probability 1/3 that it is filled: (1.2 + 0.9 + 1.1) / 3 * 2."""
    state = one_state([2, 2, 2], [0, 1, 2], [0, 1, 1], 0.75, 0.5, 2.0)
    loss = SEPOLoss(fair_table(), PROCESS, form="neighbours")
    log_prob = loss.log_probs(state)
    assert log_prob[0].tolist() == pytest.approx([math.log(0.5)] * 3)
    state["old_log_prob"] = shifted(log_prob, 1.5, 0.9, 1.1)
    assert loss(state)["loss_objective"].item() == pytest.approx(-2 * 3.2 / 3)


def test_neighbours_by_hand_per_step():
    """The ratio of a step is (1.5 * 0.9 * 1.1) ** (1/3)."""
    state = one_state([2, 2, 2], [0, 1, 2], [0, 1, 1], 0.75, 0.5, -2.0)
    loss = SEPOLoss(fair_table(), PROCESS, form="neighbours", clip_level="step", clip_epsilon=0.1)
    state["old_log_prob"] = shifted(loss.log_probs(state), 1.5, 0.9, 1.1)
    assert loss(state)["loss_objective"].item() == pytest.approx(2 * 1.485 ** (1 / 3))
    state["advantage"] = -state["advantage"]
    assert loss(state)["loss_objective"].item() == pytest.approx(-2 * 1.1)


def test_a_form_with_its_own_settings():
    assert isinstance(SEPOLoss(fair_table(), PROCESS).form, NeighboursForm)
    assert SEPOLoss(fair_table(), PROCESS, form=SNISForm(num_draws=5)).form == SNISForm(num_draws=5)


# --- snis -----------------------------------------------------------------------------------------------------------


def joint_law(seed: int = 0) -> torch.Tensor:
    return torch.randn(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).softmax(0)


def index(x: torch.Tensor) -> torch.Tensor:
    return (x * torch.tensor([4, 2, 1])).sum(-1)


def exact_network(graph: str, pi: torch.Tensor) -> tuple[TabularDenoiser, DiffusionProcess]:
    """The denoiser of a known law: its conditionals, or its scores."""
    if graph == "uniform":
        denoiser = TabularDenoiser(2, 3, 2, parameterisation="score").double()
        states = SEQUENCES
    else:
        denoiser = fair_table()
        states = torch.tensor(list(product(range(3), repeat=3)))
    with torch.no_grad():
        for row, x in enumerate(states):
            for i, v in product(range(3), range(2)):
                y = x.clone()
                y[i] = v
                agrees = ((y == SEQUENCES) | (y == MASK)).all(-1)
                scale = pi[index(x)] if graph == "uniform" else 1.0
                denoiser.logits[row, i, v] = (pi[agrees].sum() / scale).log()
    graph_object = Uniform(2) if graph == "uniform" else Absorbing(2)
    return denoiser, DiffusionProcess(graph_object, LogLinear())


def ends(trajectories: list[int] | None = None) -> TensorDict:
    """Every sequence as the end of one trajectory."""
    return TensorDict(
        {
            "tokens": SEQUENCES.clone(),
            "time": torch.full((8, 1), 0.1),
            "next": {"tokens": SEQUENCES.clone(), "time": torch.zeros(8, 1)},
            "final_tokens": SEQUENCES.clone(),
            "advantage": torch.linspace(-1, 1, 8)[:, None].double(),
            "trajectory": torch.arange(8) if trajectories is None else torch.tensor(trajectories),
        },
        batch_size=[8],
    )


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_snis_form_tends_to_the_share_of_the_ball(graph):
    """With many draws the estimate of pi(y) is pi(y) / pi(ball(y)), for every y."""
    pi = joint_law()
    denoiser, process = exact_network(graph, pi)
    loss = SEPOLoss(denoiser, process, form=SNISForm(num_draws=8000))
    log_prob = loss.log_probs(ends())
    for x, i in product(range(8), range(3)):
        y = SEQUENCES[x].clone()
        y[i] = 1 - y[i]
        ball = (y != SEQUENCES).sum(-1) <= 1
        log_score = (pi[index(y)] / pi[x]).log()
        estimate = (log_prob[x, i, y[i]] + log_score).exp().item()
        assert estimate == pytest.approx((pi[index(y)] / pi[ball].sum()).item(), rel=0.05)
        assert log_prob[x, i, SEQUENCES[x, i]].item() == 0.0  # x is not its own neighbour


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_gradient_of_snis_flows_through_the_scores_only(graph):
    """-sum_y w(y) A grad log s(x)_y with the scores of the exact law, written as a function of the table."""
    denoiser, process = exact_network(graph, joint_law())
    loss, states = SEPOLoss(denoiser, process, form="snis"), ends()
    log_prob = loss.log_probs(states)
    objective = torch.zeros((), dtype=torch.float64)
    for x, i in product(range(8), range(3)):
        v, u = 1 - SEQUENCES[x, i], SEQUENCES[x, i]
        noisy = SEQUENCES[x].clone()
        noisy[i] = u if graph == "uniform" else MASK
        row = denoiser.logits[denoiser.state_index(noisy[None])[0], i]
        log_score = row[v] - (row[u] if graph == "absorbing" else 0.0)
        weight = (log_prob[x, i, v] + log_score).exp().detach()
        objective = objective - weight * states["advantage"][x, 0] * log_score / 8
    expected = torch.autograd.grad(-objective, denoiser.logits)[0]
    ours = torch.autograd.grad(loss(states)["loss_objective"], denoiser.logits)[0]
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_snis_reads_the_last_step_only():
    denoiser, process = exact_network("absorbing", joint_law())
    loss, states = SEPOLoss(denoiser, process, form="snis"), ends()
    early = states.clone()
    early["next", "time"] = torch.full((8, 1), 0.05)
    both = torch.cat([states, early])
    both["num_trajectories"] = torch.full((16, 1), 8)
    torch.testing.assert_close(loss(both)["loss_objective"], loss(states)["loss_objective"])
    assert not loss.log_probs(both)[8:].any()
    assert loss(early)["loss_objective"].item() == 0.0


@pytest.mark.parametrize(("graph", "per_end"), [("absorbing", 3), ("uniform", 1)])
def test_evaluations_of_snis_are_counted(graph, per_end):
    """One end: its conditionals, and M evaluations for each of its L (V - 1) neighbours."""
    denoiser, process = exact_network(graph, joint_law())
    loss, meter = SEPOLoss(denoiser, process, form=SNISForm(num_draws=5)), CostMeter(denoiser)
    loss(ends())
    assert meter.nfe == 8 * (3 * per_end + 3 * 5)


def test_memory_of_snis_is_bounded():
    denoiser, process = exact_network("absorbing", joint_law())
    sizes = []
    denoiser.register_forward_hook(lambda module, args, out: sizes.append((len(args[0]), out.requires_grad)))
    whole = SEPOLoss(denoiser, process, form=SNISForm(num_draws=4))
    expected = whole.log_probs(ends())
    sizes.clear()
    chunked = SEPOLoss(denoiser, process, form=SNISForm(num_draws=4, chunk_size=10))
    assert_same(chunked.log_probs(ends()), expected)
    assert max(size for size, _ in sizes[1:]) <= 10


def test_draws_belong_to_trajectory_and_sequence():
    denoiser, process = exact_network("absorbing", joint_law())
    loss = SEPOLoss(denoiser, process, form="snis")
    log_prob = loss.log_probs(ends())
    torch.testing.assert_close(loss.log_probs(ends()), log_prob, rtol=0, atol=0)
    other = loss.log_probs(ends([10, 11, 12, 13, 14, 15, 16, 17]))
    assert (other != log_prob)[log_prob != 0].double().mean() > 0.3
    with pytest.raises(InvalidArgumentError, match="trajectory"):
        loss(ends().exclude("trajectory").set("num_trajectories", torch.full((8, 1), 8)))


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_draws_keep_the_prompt_and_stay_in_the_ball(graph):
    denoiser, process = exact_network(graph, joint_law())
    seen = []
    denoiser.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    states = ends()[3:4]  # x = 0 1 1
    states["prompt_mask"] = torch.tensor([[False, True, False]])
    log_prob = SEPOLoss(denoiser, process, form=SNISForm(num_draws=200)).log_probs(states)
    assert not log_prob[:, 1].any()
    drawn = torch.cat(seen[1:])
    assert (drawn[:, 1] == 1).all()
    distance = (drawn != states["final_tokens"]).sum(-1)
    assert distance.max() == 2  # a neighbour of a neighbour, or one with a mask
    assert set(drawn[:, 0].tolist()) >= {0, 1}


@pytest.mark.parametrize("settings", [{"num_draws": 0}, {"chunk_size": 0}, {"time": 0.0}, {"time": 1.0}])
def test_settings_of_snis_are_checked(settings):
    with pytest.raises(InvalidArgumentError, match=next(iter(settings)) if "time" not in settings else "small time"):
        SNISForm(**settings)


def test_snis_refuses_a_denoiser_that_rules_tokens_out():
    denoiser, process = exact_network("absorbing", joint_law())

    class RulesOut(type(denoiser)):
        def forward(self, tokens, time):
            output = super().forward(tokens, time)
            return output.masked_fill(torch.tensor([True, False]), -torch.inf).log_softmax(-1)

    denoiser.__class__ = RulesOut
    with pytest.raises(InvalidArgumentError, match="gives some of them no probability"):
        SEPOLoss(denoiser, process, form="snis")(ends())
