"""Prompts in training: groups that share one, what is given stays, counts for nothing, and is a run's own."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from agents import AGENTS, DDPO, SEPO, Agent, AgentConfig, agent_class, trainer
from agents.collect import collect, derived_seed
from agents.evaluation import Evaluator
from agents.losses import PathForm, ReinforceLoss, SEPOLoss, SNISForm
from agents.sampling import PolicySampler
from agents.train import AGENT_FOLDER, main
from sepo_env import TorchRLEnv
from sepo_env.denoisers import ClassifierFreeGuidance, TabularDenoiser
from sepo_env.diffusion.enumeration import all_states, ancestral_law, expected_reward, state_index, state_laws
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidPromptError
from sepo_env.tasks import Task, make

B, K = 6, 3
SMALL: dict[str, Any] = {
    "num_iterations": 2,
    "batch_size": B,
    "num_steps": K,
    "states_per_trajectory": 2,
    "eval_every": 2,
    "eval_samples": 6,
    "tensorboard": "off",
}
PROMPT = torch.tensor([1, -1, -1])


def prompted(**options: Any) -> Task:
    return make("toy", **{"num_tokens": 3, "length": 4, "prompted": True, **options})


def run(agent: Agent, **options: Any) -> list[dict[str, Any]]:
    return agent.train(progress=False, **options)


# -- every agent


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[TensorDict]:
    """The trajectories of every iteration that is trained on."""
    batches: list[TensorDict] = []
    rewards = trainer.trajectory_rewards

    def record(trajectories: TensorDict) -> torch.Tensor:
        batches.append(trajectories.clone())
        return rewards(trajectories)

    monkeypatch.setattr(trainer, "trajectory_rewards", record)
    return batches


EVERY = [(name, {}, graph) for name in AGENTS for graph in ("absorbing", "uniform")]
EVERY = [
    ("sepo", {"form": "path"}, graph) if (name, graph) == ("sepo", "uniform") else (name, options, graph)
    for name, options, graph in EVERY
]
EVERY += [
    ("sepo", {"form": "path", "corrector_steps": 1, "corrector_size": 1.0}, "absorbing"),
    ("sepo", {"form": "path", "corrector_steps": 1, "corrector_size": 1.0}, "uniform"),
    ("sepo", {"form": "snis", "num_steps": 2}, "absorbing"),
    ("sepo", {"advantage": "critic", "kl_coeff": 0.1, "entropy_coeff": 0.1}, "absorbing"),
]


@pytest.mark.parametrize(("name", "options", "graph"), EVERY)
def test_every_agent_trains_on_prompts_that_stay(
    name: str, options: dict[str, Any], graph: str, seen: list[TensorDict]
) -> None:
    agent = agent_class(name)(prompted(graph=graph), device="cpu", **(SMALL | {"group_size": 3} | options))
    before = {key: value.clone() for key, value in agent.denoiser.state_dict().items()}
    rows = run(agent)
    assert len(rows) == len(seen) == 2
    for batch, row in zip(seen, rows, strict=True):
        mask = batch["prompt_mask"]
        assert mask.sum(-1).eq(1).all()
        given_at_first = torch.where(mask[:, 0], batch["tokens"][:, 0], -1)
        for state in (batch["tokens"], batch["next", "tokens"]):
            assert torch.equal(torch.where(mask, state, -1), given_at_first[:, None].expand_as(state))
        groups = given_at_first.unflatten(0, (-1, 3))
        assert torch.equal(groups, groups[:, :1].expand_as(groups))
        assert row["lone_share"] == 0.0
        assert row["prompts"] in (1, 2)
    assert any(not torch.equal(value, before[key]) for key, value in agent.denoiser.state_dict().items())


# -- groups


def test_group_sizes_that_do_not_fit_are_refused() -> None:
    for wrong in (-1, 1, 4):
        with pytest.raises(InvalidArgumentError, match="group_size"):
            AgentConfig(batch_size=6, group_size=wrong)
    assert AgentConfig(batch_size=6, group_size=3).group_size == 3
    with pytest.raises(InvalidArgumentError, match="draws no prompts"):
        run(SEPO(make("toy"), device="cpu", **SMALL, group_size=3))


@given(st.sampled_from(["absorbing", "uniform"]), st.sampled_from([0, 2, 3, 6]), st.integers(0, 99), st.integers(0, 1))
@settings(max_examples=12)
def test_a_batch_with_groups_is_the_samplers_with_the_groups_prompts(
    graph: str, group_size: int, seed: int, corrector_steps: int
) -> None:
    """The prompt is the group's, the noise that of each trajectory: token by token what the sampler draws."""
    task = prompted(graph=graph)
    denoiser = task.load_denoiser()
    config = AgentConfig(
        batch_size=B, num_steps=K, seed=seed, group_size=group_size, corrector_steps=corrector_steps, corrector_size=1.0
    )
    env = TorchRLEnv(task, num_envs=B, num_steps=K, seed=7, prompt_repeats=max(1, group_size))
    batches = collect(env, denoiser, config, first_iteration=3)
    trajectories = next(batches)
    batches.close()
    repeats = max(1, group_size)
    first = derived_seed(seed, 3)
    own = torch.where(trajectories["prompt_mask"][:, 0], trajectories["tokens"][:, 0], -1)
    drawn = PolicySampler(task, K, 0, 0.1, B, torch.device("cpu"))
    start = next(next(drawn.paths(denoiser, B, first)))  # what each trajectory would start from alone
    alone_with = torch.where(start.prompt_mask, start.tokens, -1)
    assert torch.equal(own, alone_with[::repeats].repeat_interleave(repeats, dim=0))
    expected = sample(
        task.process,
        denoiser,
        B,
        4,
        num_steps=K,
        seed=first,
        prompt=own,
        corrector_steps=corrector_steps,
        corrector_size=1.0,
    )
    assert torch.equal(trajectories["next", "tokens"][:, -1], expected)


def test_a_run_with_groups_resumes_bit_for_bit(tmp_path: Path) -> None:
    options = SMALL | {"group_size": 2, "num_iterations": 4}
    whole = DDPO(prompted(), device="cpu", **options)
    rows = run(whole)
    folder = {"log_dir": str(tmp_path)}
    run(DDPO(prompted(), device="cpu", **(options | folder | {"num_iterations": 2})))
    parted = DDPO(prompted(), device="cpu", **options, **folder)
    again = run(parted, resume=True)
    assert [row["reward_mean"] for row in again] == [row["reward_mean"] for row in rows]
    assert torch.equal(parted.denoiser.logits, whole.denoiser.logits)
    with pytest.raises(CheckpointError, match="group_size"):
        run(DDPO(prompted(), device="cpu", **(options | folder | {"group_size": 3})), resume=True)


def test_a_run_on_other_prompts_is_another_run(tmp_path: Path) -> None:
    options = SMALL | {"log_dir": str(tmp_path)}

    def agent(prompt: str) -> Agent:
        task = make("toy")
        task.start_from(prompt)
        return DDPO(task, device="cpu", **options)

    run(agent("A???"))
    run(agent("A???"), resume=True)
    with pytest.raises(CheckpointError, match="prompts"):
        run(agent("B???"), resume=True)


# -- what is given counts for nothing


def paths(task: Task, denoiser: TabularDenoiser, num_steps: int) -> TensorDict:
    """Every visited state of every trajectory of the chain that PROMPT conditions, weighted by its probability."""
    process, graph = task.process, task.process.graph
    fixed = PROMPT >= 0
    states = all_states(graph.vocab_size, 3)
    states = states[(states[:, fixed] == PROMPT[fixed]).all(-1)]
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


def test_snis_is_told_the_prompt() -> None:
    """With one prompt, guidance is a table without guidance: both give the same terms."""
    task, scale = make("toy", num_tokens=2, length=3), 1.5
    denoiser = task.load_denoiser().double().requires_grad_(False)
    every = all_states(3, 3)
    hidden = every.clone()
    hidden[:, 0] = 2
    by_hand = task.load_denoiser().double()
    logits = (1 + scale) * denoiser(every, torch.ones(27)) - scale * denoiser(hidden, torch.ones(27))
    by_hand.load_state_dict({"logits": logits})
    states = paths(task, by_hand.requires_grad_(False), 1)
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
    returns = float(task.exact_return(policy, 3))
    assert figures["held_out_reward_mean"] == pytest.approx(returns, abs=4 * 0.5 / 6000**0.5)


# -- guidance and the command line


def test_a_guided_policy_is_trained_as_it_samples_at_twice_the_cost() -> None:
    plain = prompted()
    guided = prompted(denoiser=ClassifierFreeGuidance(plain.load_denoiser(), 1.5))
    options = SMALL | {"group_size": 3, "eval_every": 0, "kl_coeff": 0.1}
    rows, guided_rows = (run(SEPO(task, device="cpu", **options)) for task in (plain, guided))
    assert [row["nfe"] for row in guided_rows] == [2 * row["nfe"] for row in rows]
    assert guided_rows[0]["kl_reference"] == 0.0  # the first update starts at the guided reference itself
    agent = SEPO(guided, device="cpu", **(options | {"corrector_steps": 1}))
    run(agent)
    texts = agent.sample(5, seed=0, prompt="?B??")
    assert all(text[1] == "B" for text in texts)


def test_an_agent_is_asked_with_prompts_of_every_kind() -> None:
    agent = SEPO(prompted(), device="cpu", **(SMALL | {"micro_batch_size": 2}))
    own = agent.sample_tokens(5, seed=3)
    mixed = agent.sample_tokens(5, seed=3, prompt=["AB??", None, "???C", None, None])
    assert torch.equal(mixed[[1, 3, 4]], own[[1, 3, 4]])
    assert mixed[0, :2].tolist() == [0, 1]
    assert int(mixed[2, 3]) == 2
    with pytest.raises(InvalidPromptError, match="6 prompts for 5"):
        agent.sample(5, prompt=["A???"] * 6)


def test_a_prompt_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ddpo", "--task", "ToyCTMC-v0", "--device", "cpu", "--batch-size", "4", "--num-steps", "2"]
    command += ["--num-iterations", "1", "--tensorboard", "off", "--log-dir", str(tmp_path), "--prompt", "?BA?"]
    assert main(command) == 0
    samples = [line for line in capsys.readouterr().err.splitlines() if len(line) == 4 and set(line) <= set("ABC")]
    assert len(samples) == 4
    assert all(line[1:3] == "BA" for line in samples)
    assert (tmp_path / AGENT_FOLDER).exists()
    assert main([*command[:-1], "?XA?"]) == 1
