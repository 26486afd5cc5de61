"""Prompts in training: groups that share one, what is given stays, and is a run's own."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict

from agents import DDPO, SEPO, Agent, PolicyGradientConfig, agent_class
from agents.policies.sampling import PolicySampler
from agents.registry import learners
from agents.train import AGENT_FOLDER, main
from agents.training import trainer
from agents.training.collect import collect, derived_seed
from agents.training.logs import read_metrics
from sepo_env import TorchRLEnv
from sepo_env.denoisers import ClassifierFreeGuidance
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
    rewards = trainer.collected_rewards

    def record(trajectories: TensorDict) -> torch.Tensor:
        batches.append(trajectories.clone())
        return rewards(trajectories)

    monkeypatch.setattr(trainer, "collected_rewards", record)
    return batches


EVERY = [(name, {}, graph) for name in learners() for graph in ("absorbing", "uniform")]
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
            PolicyGradientConfig(batch_size=6, group_size=wrong)
    assert PolicyGradientConfig(batch_size=6, group_size=3).group_size == 3
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
    config = PolicyGradientConfig(
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
    lines = capsys.readouterr().err.splitlines()
    samples = [line.split()[-1] for line in lines if line.startswith(("before", "after"))]
    assert len(samples) == 8
    assert all(line[1:3] == "BA" for line in samples)
    assert (tmp_path / AGENT_FOLDER).exists()
    assert [row["prompts"] for row in read_metrics(tmp_path)] == [1]  # trained on it, not only asked with it
    assert main([*command[:-1], "?XA?"]) == 1
