"""What is given counts for nothing in any objective, divergence or entropy, and networks that read it are told it."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from agents.objectives import NeighboursForm, PathForm, ReinforceLoss, SEPOLoss, SNISForm
from agents.objectives.states import StateEvaluation
from agents.policies.sampling import PolicySampler
from agents.training.evaluation import Evaluator
from sepo_env.denoisers import ClassifierFreeGuidance, TabularDenoiser
from sepo_env.diffusion.enumeration import all_states, ancestral_law, expected_reward, state_index, state_laws
from sepo_env.diffusion.likelihood import elbo
from sepo_env.diffusion.process import DenoiserLike
from sepo_env.tasks import Task, make

PROMPT = torch.tensor([1, -1, -1])


def paths(task: Task, denoiser: DenoiserLike, num_steps: int, prompt: torch.Tensor = PROMPT) -> TensorDict:
    """Every visited state of every trajectory of the chain that a prompt conditions, weighted by its probability."""
    process, graph = task.process, task.process.graph
    fixed = prompt >= 0
    states = all_states(graph.vocab_size, 3)
    states = states[(states[:, fixed] == prompt[fixed]).all(-1)]
    grid = process.time_grid(num_steps)
    rows, weights = [], []
    for path in itertools.product(range(len(states)), repeat=num_steps + 1):
        x = states[list(path)]
        log_p = graph.log_prior(x[:1])[0][~fixed].sum()
        if log_p == -torch.inf:
            continue
        for k in range(num_steps):
            law = process.step_law(
                denoiser(x[k : k + 1], grid[k, None]), x[k : k + 1], grid[k, None], grid[k + 1, None], "posterior"
            )
            log_p = log_p + law.log_prob(x[k + 1 : k + 2])[0][~fixed].sum()
        if log_p > -torch.inf:
            rows.append(x)
            weights.append(log_p.detach().exp())
    x, weight = torch.stack(rows), torch.stack(weights)
    assert float(weight.sum()) == pytest.approx(1.0, abs=1e-10)
    flat = len(x) * num_steps
    reward = task.reward_table.double()[state_index(x[:, -1], 2)]
    time = grid.expand(len(x), -1)
    return TensorDict(
        {
            "tokens": x[:, :-1].reshape(flat, 3),
            "time": time[:, :-1].reshape(flat, 1),
            "next": {"tokens": x[:, 1:].reshape(flat, 3), "time": time[:, 1:].reshape(flat, 1)},
            "final_tokens": x[:, -1:].expand(-1, num_steps, -1).reshape(flat, 3),
            "prompt_mask": fixed.expand(flat, 3),
            "advantage": reward.repeat_interleave(num_steps)[:, None],
            "trajectory": torch.arange(len(x)).repeat_interleave(num_steps),
            "inclusion_weight": weight.repeat_interleave(num_steps)[:, None],
            "num_trajectories": torch.ones(flat, 1, dtype=torch.float64),
        },
        batch_size=[flat],
    )


def guided_by_hand(denoiser: TabularDenoiser, scale: float) -> TabularDenoiser:
    """With one prompt (the first position), guidance is a table without guidance."""
    every = all_states(3, 3)
    hidden = every.clone()
    hidden[:, 0] = 2
    by_hand = TabularDenoiser(2, 3, 3).double()
    logits = (1 + scale) * denoiser(every, torch.ones(27)) - scale * denoiser(hidden, torch.ones(27))
    by_hand.load_state_dict({"logits": logits})
    return by_hand.requires_grad_(False)


def test_snis_is_told_the_prompt() -> None:
    task, scale = make("toy", num_tokens=2, length=3), 1.5
    denoiser = task.load_denoiser().double().requires_grad_(False)
    by_hand = guided_by_hand(denoiser, scale)
    states = paths(task, by_hand, 1)
    losses = [
        SEPOLoss(policy, task.process, form=SNISForm(num_draws=3))
        for policy in (ClassifierFreeGuidance(denoiser, scale), by_hand, denoiser)
    ]
    guided, expected, plain = (loss.log_probs(states) for loss in losses)
    torch.testing.assert_close(guided, expected, rtol=0, atol=1e-10)
    assert float((guided - plain).abs().max()) > 0.01


# Guidance by the prompt needs a MASK to hide it behind.
@pytest.mark.parametrize(("graph", "guided"), [("absorbing", False), ("absorbing", True), ("uniform", False)])
def test_expected_gradient_kl_and_entropy_are_those_of_the_conditional_chain(graph: str, guided: bool) -> None:
    task = make("toy", num_tokens=2, length=3, graph=graph)
    denoiser, reference = (
        make("toy", num_tokens=2, length=3, graph=graph, seed=s).load_denoiser().double() for s in (0, 1)
    )
    policy = ClassifierFreeGuidance(denoiser, 1.0) if guided else denoiser
    reference = reference.requires_grad_(False)

    class Told:
        """The policy with the prompt's positions told, for chains written out by hand."""

        parameterisation = "posterior"

        def __call__(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
            return task.process.evaluate(policy, tokens, time, (PROMPT >= 0).expand_as(tokens))

    states = paths(task, Told(), 2)
    exact = expected_reward(ancestral_law(task.process, policy, 3, 2, prompt=PROMPT), task.reward_table.double())
    expected = torch.autograd.grad(exact, denoiser.logits)[0]
    for loss in (ReinforceLoss(policy, task.process), SEPOLoss(policy, task.process, form=PathForm())):
        parameter = next(p for p in loss.parameters() if p.requires_grad)
        gradient = torch.autograd.grad(loss(states)["loss_objective"], parameter)[0]
        torch.testing.assert_close(-gradient, expected, rtol=0, atol=1e-10)
    out = SEPOLoss(policy, task.process, form=PathForm(), reference=reference, kl_coeff=1.0)(states)
    kl, entropy = 0.0, 0.0
    for probs, t, s, law in list(state_laws(task.process, policy, 3, 2, prompt=PROMPT))[:-1]:
        every = all_states(task.process.graph.vocab_size, 3)
        other = task.process.step_law(
            reference(every, t.expand(len(every))), every, t.expand(len(every)), s.expand(len(every)), "posterior"
        )
        free = PROMPT < 0
        reached = probs > 0
        kl += float((probs * law.kl(other)[:, free].sum(-1))[reached].sum().detach())
        if graph == "uniform":
            entropy += float((probs * law.entropy()[:, free].sum(-1))[reached].sum().detach())
    assert kl > 0.01
    assert float(out["kl_reference"]) == pytest.approx(kl, abs=1e-10)
    if graph == "uniform":
        assert float(out["entropy"]) == pytest.approx(entropy, abs=1e-10)


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_the_evaluators_kl_is_that_of_the_conditional_chain(graph: str) -> None:
    task = make("toy", num_tokens=2, length=3, graph=graph, num_steps=3)
    task.start_from(["B??", "?A?"])
    policy, reference = (
        make("toy", num_tokens=2, length=3, graph=graph, seed=s).load_denoiser().requires_grad_(False) for s in (0, 1)
    )
    exact = 0.0
    every = all_states(task.process.graph.vocab_size, 3)
    for prompt in task.all_prompts():
        for probs, t, s, law in list(state_laws(task.process, policy, 3, 3, prompt=prompt))[:-1]:
            times = t.expand(len(every)), s.expand(len(every))
            other = task.process.step_law(reference(every, times[0]), every, *times, "posterior")
            divergence = law.kl(other)[:, prompt >= 2].sum(-1)
            exact += float((probs * divergence)[probs > 0].sum()) / 2
    sampler = PolicySampler(task, 3, 0, 0.1, 1000, torch.device("cpu"))
    evaluator = Evaluator(sampler, reference, task.make_reward(), task.judge(), 6000, 0)
    figures = evaluator.evaluate(policy)
    assert figures["kl"] == pytest.approx(exact, rel=0.05)
    law = task.exact_law(policy, 3)
    for column, table in (("eval_reward_mean", task.reward_table), ("held_out_reward_mean", task.held_out_table)):
        assert figures[column] == pytest.approx(float(expected_reward(law, table)), abs=4 * 0.5 / 6000**0.5)


def test_the_likelihood_bound_and_the_evaluators_kl_are_told_the_prompt() -> None:
    """Of a guided policy, and to a guided reference: each is the table that guidance is for this prompt."""
    task = make("toy", num_tokens=2, length=3, num_steps=3)
    task.start_from("B??")
    denoiser, policy = (
        make("toy", num_tokens=2, length=3, seed=s).load_denoiser().double().requires_grad_(False) for s in (0, 1)
    )
    guided, by_hand = ClassifierFreeGuidance(denoiser, 1.5), guided_by_hand(denoiser, 1.5)
    x_0 = torch.tensor([[1, 0, 1], [1, 1, 0]])
    mask = torch.tensor([[True, False, False]] * 2)
    bounds = [
        elbo(task.process, network, x_0, num_steps=3, prompt_mask=mask) for network in (guided, by_hand, denoiser)
    ]
    torch.testing.assert_close(bounds[0], bounds[1])
    assert float((bounds[0] - bounds[2]).abs().min()) > 0.01
    sampler = PolicySampler(task, 3, 0, 0.1, 32, torch.device("cpu"))
    reward, judge = task.make_reward(), task.judge()

    def kl(policy: DenoiserLike, reference: DenoiserLike) -> float:
        return float(Evaluator(sampler, reference, reward, judge, 64, 0).evaluate(policy)["kl"] or 0.0)

    assert kl(policy, guided) == pytest.approx(kl(policy, by_hand))
    assert kl(guided, policy) == pytest.approx(kl(by_hand, policy))
    assert kl(guided, by_hand) == pytest.approx(0.0, abs=1e-9)
    assert abs(kl(policy, guided) - kl(policy, denoiser)) > 0.01


# -- values


def test_neighbours_count_masks_alone_in_the_value() -> None:
    """At ratio 1 the objective is the advantage times the probability of a fill for each mask, and nothing else."""
    task = make("toy", num_tokens=2, length=3)
    loss = SEPOLoss(task.load_denoiser().double(), task.process, form=NeighboursForm())
    states = TensorDict(
        {
            "tokens": torch.tensor([[1, 2, 2], [1, 2, 0]]),
            "time": torch.full((2, 1), 0.75, dtype=torch.float64),
            "next": {"tokens": torch.tensor([[1, 0, 2], [1, 2, 0]]), "time": torch.full((2, 1), 0.5)},
            "final_tokens": torch.tensor([[1, 0, 1], [1, 1, 0]]),
            "prompt_mask": torch.tensor([[True, False, False]] * 2),
            "advantage": torch.tensor([[3.0], [-5.0]], dtype=torch.float64),
            "trajectory": torch.tensor([0, 1]),
        },
        batch_size=[2],
    )
    fill = float(task.process.unmask_prob(torch.tensor(0.75).double(), torch.tensor(0.5).double()))
    out = loss(states)
    assert float(out["loss_objective"].detach()) == pytest.approx(-fill * (2 * 3.0 - 5.0) / 2)


def test_snis_weights_are_shares_of_the_ball_that_the_prompt_leaves() -> None:
    """Of a joint law by enumeration: neighbours that change what is given belong to no ball."""
    joint = torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    joint /= joint.sum()
    clean = all_states(2, 3)
    task = make("toy", num_tokens=2, length=3)
    denoiser = TabularDenoiser(2, 3, 3).double().requires_grad_(False)
    for state in all_states(3, 3):
        fits = ((clean == state) | (state == 2)).all(-1)
        row = denoiser.state_index(state[None])[0]
        for site, token in itertools.product(range(3), range(2)):
            denoiser.logits[row, site, token] = (joint * (fits & (clean[:, site] == token))).sum().log()
    x = torch.tensor([1, 0, 1])
    states = TensorDict(
        {
            "tokens": x[None],
            "time": torch.tensor([[0.5]]),
            "next": {"tokens": x[None], "time": torch.tensor([[0.0]])},
            "final_tokens": x[None],
            "advantage": torch.ones(1, 1),
            "prompt_mask": torch.tensor([[True, False, False]]),
            "trajectory": torch.tensor([0]),
        },
        batch_size=[1],
    )
    form = SNISForm(num_draws=20_000, chunk_size=1_000_000)
    loss = SEPOLoss(denoiser, task.process, form=form)
    weight = form.terms(StateEvaluation(denoiser, task.process, loss._read(states))).weight[0]

    def flipped(sequence: torch.Tensor, site: int) -> torch.Tensor:
        return torch.where(torch.arange(3) == site, 1 - sequence, sequence)

    for site in (1, 2):
        y = flipped(x, site)
        ball = [y, flipped(y, 1), flipped(y, 2)]
        mass = [float(joint[state_index(member[None], 2)[0]]) for member in ball]
        assert float(weight[site, 1 - x[site]]) == pytest.approx(mass[0] / sum(mass), rel=0.03)
    assert not weight[0].any()


# -- for drawn prompts


@given(
    st.sampled_from(["absorbing", "uniform"]),
    st.lists(st.sampled_from([-1, 0, 1]), min_size=3, max_size=3),
    st.integers(0, 2),
    st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_path_is_the_exact_gradient_for_any_prompt(graph: str, letters: list[int], free: int, seed: int) -> None:
    prompt = torch.tensor(letters)
    prompt[free] = -1
    task = make("toy", num_tokens=2, length=3, graph=graph, seed=seed)
    policy = task.load_denoiser().double()
    states = paths(task, policy, 2, prompt)
    law = ancestral_law(task.process, policy, 3, 2, prompt=prompt)
    exact = torch.autograd.grad(expected_reward(law, task.reward_table.double()), policy.logits)[0]
    loss = SEPOLoss(policy, task.process, form=PathForm())
    parameter = next(p for p in loss.parameters() if p.requires_grad)
    gradient = torch.autograd.grad(loss(states)["loss_objective"], parameter)[0]
    torch.testing.assert_close(-gradient, exact, rtol=0, atol=1e-10)
