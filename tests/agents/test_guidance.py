"""Guided agents: trained, sampled from, saved, loaded and resumed as one that was guided by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from agents import DDPO, REINFORCE, SEPO, Agent
from agents.storage import CONFIG_FILE
from agents.train import AGENT_FOLDER, main
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.recovery import CHECKPOINT_FILE
from sepo_env import TorchRLEnv
from sepo_env.denoisers import (
    ClassConditionalDenoiser,
    ClassifierFreeGuidance,
    TabularDenoiser,
    load_denoiser,
    save_denoiser,
)
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import CheckpointError, InvalidArgumentError
from sepo_env.tasks import make
from sepo_env.tasks.toy import ToyTask

SMALL: dict[str, Any] = {
    "num_iterations": 2,
    "batch_size": 6,
    "group_size": 3,
    "num_steps": 3,
    "states_per_trajectory": 0,
    "learning_rate": 0.2,
    "kl_coeff": 0.1,
    "eval_every": 1,
    "eval_samples": 6,
    "tensorboard": "off",
}
PROMPTS = ["A???", "?BA?"]


def task_of(scale: float | None = None, **options: Any) -> ToyTask:
    task = make("toy", prompt=PROMPTS, **options)
    if scale is not None:
        task = make("toy", prompt=PROMPTS, denoiser=ClassifierFreeGuidance(task.load_denoiser(), scale), **options)
    return task


def small(task: Any, kind: type[Agent] = SEPO, **overrides: Any) -> Agent:
    return kind(task, device="cpu", **(SMALL | overrides))


def test_the_config_guides_policy_reference_evaluation_and_samples() -> None:
    by_hand, by_config, plain = small(task_of(1.5)), small(task_of(), guidance_scale=1.5), small(task_of())
    histories = [agent.train(progress=False) for agent in (by_hand, by_config, plain)]
    for ours, theirs in zip(*histories[:2], strict=True):
        assert {**ours, "wall_time": 0} == pytest.approx({**theirs, "wall_time": 0}, rel=1e-4, abs=1e-5)
    assert [row["nfe"] for row in histories[1]] == [2 * row["nfe"] for row in histories[2]]
    assert [row["eval_nfe"] for row in histories[1]] == [2 * row["eval_nfe"] for row in histories[2]]
    # The first update starts at the guided reference itself.
    assert histories[1][0]["kl_reference"] == pytest.approx(0.0, abs=1e-6)
    assert histories[1][0]["held_out_reward_mean"] != histories[2][0]["held_out_reward_mean"]
    prompt = torch.tensor([0, -1, -1, -1])
    drawn = by_config.sample_tokens(50, seed=3, prompt=prompt)
    assert torch.equal(drawn, by_hand.sample_tokens(50, seed=3, prompt=prompt))
    guided = ClassifierFreeGuidance(by_config.denoiser.core, 1.5)
    assert torch.equal(drawn, sample(by_config.task.process, guided, 50, 4, num_steps=3, seed=3, prompt=prompt))
    assert not torch.equal(
        drawn, sample(by_config.task.process, guided.core, 50, 4, num_steps=3, seed=3, prompt=prompt)
    )


@pytest.mark.parametrize("live", [False, True])
def test_a_guided_agent_is_saved_and_loaded_as_one(live: bool, tmp_path: Path) -> None:
    agent = small(task_of(2.0)) if live else small(task_of(), guidance_scale=2.0)
    agent.train(progress=False)
    agent.save(tmp_path)
    expected = agent.sample(20, seed=1)
    assert json.loads((tmp_path / CONFIG_FILE).read_text())["guidance"] == {"scale": 2.0, "label": None}
    loaded = Agent.load(tmp_path, device="cpu")
    assert loaded.sample(20, seed=1) == expected
    assert loaded.config.guidance_scale == 2.0
    loaded.save(tmp_path / "again")
    assert Agent.load(tmp_path / "again", device="cpu").sample(20, seed=1) == expected
    # Another scale is an agent of another kind, unless it is asked for by name.
    assert Agent.load(tmp_path, device="cpu", guidance_scale=0.5).sample(20, seed=1) != expected
    assert type(Agent.load(tmp_path, device="cpu", guidance_scale=0.0).denoiser) is TabularDenoiser
    if live:
        assert Agent.load(tmp_path, task=task_of(2.0), device="cpu").sample(20, seed=1) == expected
        for other in (task_of(0.5), task_of()):
            with pytest.raises(CheckpointError, match=r"saved with the guidance \{'scale': 2.0, 'label': None\}"):
                Agent.load(tmp_path, task=other, device="cpu")


def test_an_unguided_agent_is_not_loaded_into_a_guided_task(tmp_path: Path) -> None:
    small(task_of()).save(tmp_path)
    with pytest.raises(CheckpointError, match="with the guidance None, the task's denoiser has {'scale': 0.5"):
        Agent.load(tmp_path, task=task_of(0.5), device="cpu")
    assert type(Agent.load(tmp_path, device="cpu").denoiser) is TabularDenoiser


@pytest.mark.parametrize("live", [False, True])
def test_resumption_is_exact_and_keeps_the_scale(live: bool, tmp_path: Path) -> None:
    def agent(name: str, scale: float, iterations: int) -> Agent:
        options = {"num_iterations": iterations, "log_dir": str(tmp_path / name)}
        return small(task_of(scale), **options) if live else small(task_of(), guidance_scale=scale, **options)

    whole, parted = agent("whole", 2.0, 3), agent("parted", 2.0, 3)
    whole.train(progress=False)
    agent("parted", 2.0, 2).train(progress=False)
    with pytest.raises(CheckpointError, match=r"guidance[._]scale was .*2.0.*, is .*0.5"):
        agent("parted", 0.5, 3).train(progress=False, resume=True)
    parted.train(progress=False, resume=True)
    assert parted.sample(20, seed=1) == whole.sample(20, seed=1)
    taken_over = Agent.load(tmp_path / "parted" / CHECKPOINT_FILE, device="cpu")
    assert taken_over.sample(20, seed=1, prompt="A???") == whole.sample(20, seed=1, prompt="A???")


def test_a_checkpoint_from_before_a_setting_existed_goes_on(tmp_path: Path) -> None:
    options = {"log_dir": str(tmp_path)}
    small(task_of(), **options).train(progress=False)
    path = tmp_path / CHECKPOINT_FILE
    names = ("denoiser", "optimiser", "scheduler", "progress", "rows", "random")
    parts, metadata = load_checkpoint(path, names)
    del metadata["config"]["guidance_scale"], metadata["config"]["guidance_label"], metadata["guidance"]
    save_checkpoint(path, parts, metadata)
    assert len(small(task_of(), num_iterations=3, **options).train(progress=False, resume=True)) == 3
    guided = small(task_of(), num_iterations=4, guidance_scale=1.0, **options)
    with pytest.raises(CheckpointError, match="guidance_scale was 0.0, is 1.0"):
        guided.train(progress=False, resume=True)


def test_adapters_are_guided_too(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    options = {"num_steps": 2, "batch_size": 2, "num_iterations": 1, "eval_every": 0, "tensorboard": "off"}
    task = make("dna_enhancer", prompt="ACGT" + "?" * 196)
    agent = REINFORCE(task, device="cpu", lora_rank=2, guidance_scale=1.0, reward="gc", **options)
    agent.train(progress=False)
    agent.save(tmp_path)
    assert Agent.load(tmp_path, reward="gc", device="cpu").sample(2, seed=0) == agent.sample(2, seed=0)


# -- classes


class Classes(ClassConditionalDenoiser):
    """A table for each class, and one for none."""

    num_tokens, length, parameterisation, time_conditioned, num_classes = 3, 4, "posterior", False, 2

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        generators = (torch.Generator().manual_seed(seed) for seed in range(3))
        self.tables = torch.nn.ModuleList(TabularDenoiser(3, 4, vocab_size, generator=g) for g in generators)

    def forward(self, tokens: Any, time: Any, labels: Any = None) -> Any:
        return self.tables[2 if labels is None else int(labels[0])](tokens, time)


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_a_class_is_a_setting(graph: str, tmp_path: Path) -> None:
    task = make("toy", graph=graph, denoiser=Classes(3 if graph == "uniform" else 4))
    options = {"group_size": 0, "guidance_label": 1}
    agent, plain, told = (small(task, REINFORCE, **options, guidance_scale=w) for w in (1.0, 0.0, 0.0))
    rows, plain_rows = agent.train(progress=False), plain.train(progress=False)
    assert [row["nfe"] for row in rows] == [2 * row["nfe"] for row in plain_rows]
    first = sample(task.process, task.denoiser.tables[1], 9, 4, num_steps=3)
    assert torch.equal(told.sample_tokens(9, seed=0), first)  # scale 0: the model of the class itself
    agent.save(tmp_path)
    assert Agent.load(tmp_path, task=task, device="cpu").sample(9, seed=0) == agent.sample(9, seed=0)


def test_what_does_not_go_together_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="knows no classes"):
        small(task_of(), guidance_label=0)
    with pytest.raises(InvalidArgumentError, match="guided already; leave guidance_scale"):
        small(task_of(1.0), guidance_scale=1.0)
    for wrong in ({"guidance_scale": -1.0}, {"guidance_scale": float("inf")}, {"guidance_label": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
            small(task_of(), **wrong)


# -- nothing to guide


@pytest.mark.parametrize("graph", ["absorbing", "uniform"])
def test_without_prompts_guidance_costs_and_changes_nothing(graph: str) -> None:
    plain = make("toy", graph=graph)
    live = make("toy", graph=graph, denoiser=ClassifierFreeGuidance(plain.load_denoiser(), 1.0))
    env = TorchRLEnv(live, num_envs=2, seed=0)
    env.reset()
    assert env.pretrained_action().shape == (2, 4, 3)
    options = {"group_size": 0}
    agents = [
        small(plain, REINFORCE, **options),
        small(live, REINFORCE, **options),
        small(plain, REINFORCE, **options, guidance_scale=1.0),
    ]
    first, *others = ([{**row, "wall_time": 0} for row in agent.train(progress=False)] for agent in agents)
    assert all(rows == first for rows in others)


# -- the way there


def test_a_guided_file_makes_a_guided_task(tmp_path: Path) -> None:
    save_denoiser(task_of(2.0).load_denoiser(), tmp_path / "guided.safetensors")
    assert isinstance(load_denoiser(tmp_path / "guided.safetensors"), ClassifierFreeGuidance)
    agent = small(make("toy", prompt=PROMPTS, denoiser=tmp_path / "guided.safetensors"))
    assert agent.sample(20, seed=0) == small(task_of(), guidance_scale=2.0).sample(20, seed=0)


def test_the_toy_takes_prompts_as_other_tasks_do() -> None:
    one, several = make("toy", prompt="A???"), make("toy", prompt=PROMPTS)
    assert (len(one.all_prompts()), len(several.all_prompts())) == (1, 2)
    assert one.conditional
    row = small(several, DDPO, num_iterations=1).train(progress=False)[0]
    assert row["prompts"] <= 2


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ddpo", "--task", "ToyCTMC-v0", "--device", "cpu", "--batch-size", "4", "--group-size", "2"]
    command += ["--num-steps", "2", "--num-iterations", "1", "--tensorboard", "off", "--log-dir", str(tmp_path)]
    command += ["--guidance-scale", "1.5", "--samples", "20", "--prompt", *PROMPTS]
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    samples = [line.split()[-1] for line in lines if line.startswith(("before", "after"))]
    assert len(samples) == 40
    assert all(line[0] == "A" or line[1:3] == "BA" for line in samples)
    assert not all(line[0] == "A" for line in samples)
    agent = Agent.load(tmp_path / AGENT_FOLDER, device="cpu")
    assert agent.config.guidance_scale == 1.5
    assert agent.sample(20, seed=0) == samples[20:]
