"""Runs that leave the range of numbers end as a divergence, and what they leave can be used."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import SEPO, Agent, agent_class
from agents.registry import learners
from agents.training import recovery as recovery_module
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.health import LARGEST_WEIGHT, WeightCheck, sound_outputs
from agents.training.logs import read_metrics
from agents.training.recovery import checkpoint_path
from sepo_env.denoisers import TabularDenoiser
from sepo_env.envs.dynamics import Dynamics
from sepo_env.errors import CheckpointError, DivergenceError, InvalidActionError, InvalidArgumentError
from sepo_env.tasks import Task, make

SMALL: dict[str, Any] = {"batch_size": 4, "num_steps": 2, "eval_every": 0, "tensorboard": "off", "checkpoint_every": 1}
PARTS = ["denoiser", "optimiser", "progress", "rows"]


def small(kind: type[Agent], task: str | Task, folder: Path | None = None, **settings: Any) -> Agent:
    return kind(task, device="cpu", log_dir=folder, **(SMALL | settings))


def iteration_on_disk(folder: Path) -> int:
    return load_checkpoint(checkpoint_path(folder), PARTS)[0]["progress"]["iteration"]


TOO_LARGE = [("ToyCTMC-v0", rate) for rate in (1e8, 1e30, 1e38)] + [("DNAEnhancer-v0", 1e8)]


@pytest.mark.parametrize("name", learners())
@pytest.mark.parametrize(("task", "rate"), TOO_LARGE)
def test_steps_that_are_too_large_end_as_a_divergence(name: str, task: str, rate: float, tmp_path: Path) -> None:
    kind = agent_class(name)
    agent = small(kind, task, tmp_path, learning_rate=rate, num_iterations=2)
    with pytest.raises(DivergenceError, match=r"^iteration 1: .*optimiser step.*lower learning_rate") as caught:
        agent.train(progress=False)
    message = str(caught.value)
    assert f"The last whole iteration is 0; its state is in {checkpoint_path(tmp_path)}" in message
    assert "\n" not in message
    assert agent.history == read_metrics(tmp_path) == []
    untrained = small(kind, task)
    fresh = untrained.sample(3, seed=0)
    assert agent.sample(3, seed=0) == fresh, "the policy is that of the last whole iteration"
    # As the message says: other settings from here, the same ones to the same end.
    cured = Agent.load(checkpoint_path(tmp_path), device="cpu", learning_rate=1e-3)
    assert cured.sample(3, seed=0) == fresh
    with pytest.raises(DivergenceError, match=r"^iteration 1: .*optimiser step"):
        small(kind, task, tmp_path, learning_rate=rate, num_iterations=2).train(progress=False, resume=True)
    with pytest.raises(InvalidArgumentError, match="learning_rate is inf"):
        small(kind, task, learning_rate=math.inf)


def test_the_parameter_is_named() -> None:
    with pytest.raises(DivergenceError, match=r"the parameter policy\.logits is as large as 1e\+30, where 1.68e\+07"):
        small(agent_class("ppo"), "ToyCTMC-v0", learning_rate=1e30).train(progress=False)


class Steep(TabularDenoiser):
    """Answers NaN once its weights are beyond a limit: as a deep network does whose activations overflow."""

    limit = math.inf

    def size(self) -> float:
        return float(self.logits.detach().norm())

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        output = super().forward(tokens, time)
        return output * math.nan if self.size() > self.limit else output


def steep_task() -> Task:
    denoiser = Steep(2, 3, vocab_size=3)
    nn.init.zeros_(denoiser.logits)
    return make("toy", num_tokens=2, length=3, denoiser=denoiser)


STEEP: dict[str, Any] = {"learning_rate": 0.05, "kl_coeff": 0.0, "batch_size": 64, "inner_epochs": 1}


def limit_between(kind: type[Agent], settings: dict[str, Any]) -> float:
    """A limit that the weights of the third iteration are beyond, and those before are not."""
    agent = small(kind, steep_task(), **settings | {"num_iterations": 3, "eval_every": 0})
    sizes: list[float] = []
    agent.train(progress=False, callbacks=[lambda row: sizes.append(agent.denoiser.size())])
    assert sizes[2] > 1.1 * max(sizes[:2])
    return (sizes[2] + max(sizes[:2])) / 2


@pytest.mark.parametrize("name", learners())
@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"num_iterations": 9}, "its rates are not finite"),
        ({"num_iterations": 3}, "of the next sequences, its network answers NaN"),
        ({"num_iterations": 9, "eval_every": 1, "eval_samples": 4}, "of an evaluation, its network answers NaN"),
        ({"num_iterations": 9, "corrector_steps": 1}, "its rates are not finite"),
    ],
    ids=["next batch", "the end", "evaluation", "corrector"],
)
def test_a_policy_that_cannot_be_sampled_from_is_a_divergence(
    name: str, settings: dict[str, Any], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, settings = agent_class(name), STEEP | settings
    monkeypatch.setattr(Steep, "limit", limit_between(kind, settings))
    task = steep_task()
    written: list[int] = []

    def record(path: Path, parts: Any, metadata: Any) -> None:
        written.append(parts["progress"]["iteration"])
        save_checkpoint(path, parts, metadata)

    monkeypatch.setattr(recovery_module, "save_checkpoint", record)
    agent = small(kind, task, tmp_path, **settings)
    with pytest.raises(DivergenceError, match=rf"^iteration 3: the policy cannot be sampled from any more: .*{found}"):
        agent.train(progress=False)
    assert set(written) == {1, 2}, "at no time is a state on the disk that cannot be sampled from"
    assert [row["iteration"] for row in agent.history] == [1, 2]
    assert read_metrics(tmp_path) == agent.history
    assert iteration_on_disk(tmp_path) == 2
    assert "?" not in "".join(agent.sample(4, seed=0))
    loaded = Agent.load(checkpoint_path(tmp_path), task=task, device="cpu")
    assert loaded.sample(4, seed=0) == agent.sample(4, seed=0)
    # To the same end: so the second iteration's policy was sampled from.
    with pytest.raises(DivergenceError, match="^iteration 3: the policy cannot be sampled from any more"):
        small(kind, task, tmp_path, **settings).train(progress=False, resume=True)


def test_a_policy_that_never_could_be_sampled_from_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = steep_task()
    monkeypatch.setattr(Steep, "limit", -1.0)
    with pytest.raises(DivergenceError, match=r"^iteration 1: .*The last whole iteration is 0; nothing is written"):
        small(SEPO, task, tmp_path).train(progress=False)
    assert not checkpoint_path(tmp_path).exists()


def test_actions_that_are_refused_for_another_reason_are_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise InvalidActionError("mine")

    monkeypatch.setattr(Dynamics, "validate_action", refuse)
    with pytest.raises(InvalidActionError, match="^mine\n"):
        small(SEPO, "ToyCTMC-v0").train(progress=False)


def test_weights_that_are_no_numbers_are_not_trained(tmp_path: Path) -> None:
    agent = small(SEPO, "ToyCTMC-v0", tmp_path)
    with torch.no_grad():
        next(agent.denoiser.parameters())[0, 0] = math.nan
    with pytest.raises(DivergenceError, match=r"before the first step the parameter policy\.logits is as large as nan"):
        agent.train(progress=False)
    assert not checkpoint_path(tmp_path).exists()


@pytest.mark.parametrize("part", ["denoiser", "critic", "optimiser"])
def test_what_is_no_number_is_not_read_from_a_checkpoint(tmp_path: Path, part: str) -> None:
    kind = agent_class("ppo")
    small(kind, "ToyCTMC-v0", tmp_path, num_iterations=1).train(progress=False)
    parts, metadata = load_checkpoint(checkpoint_path(tmp_path), [*PARTS, "critic", "scheduler", "random", "prompts"])
    state = parts["optimiser"]["state"][0] if part == "optimiser" else parts[part]
    tensor = next(value for value in state.values() if value.numel() > 1)
    tensor.view(-1)[0] = math.inf
    save_checkpoint(checkpoint_path(tmp_path), parts, metadata)
    with pytest.raises(CheckpointError, match=r"(the parameter|the optimiser remembers of the parameter) \w+\."):
        small(kind, "ToyCTMC-v0", tmp_path, num_iterations=2).train(progress=False, resume=True)


def check_of(*tensors: Tensor) -> tuple[WeightCheck, list[nn.Parameter]]:
    parameters = [nn.Parameter(tensor) for tensor in tensors]
    optimiser = torch.optim.AdamW(parameters, betas=(0.9, 0.5), eps=1e-4)
    return WeightCheck(((f"p{i}", p) for i, p in enumerate(parameters)), optimiser), parameters


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 2 * LARGEST_WEIGHT, -2 * LARGEST_WEIGHT])
def test_each_number_of_each_tensor_is_looked_at(value: float) -> None:
    check, parameters = check_of(
        torch.zeros(3), torch.zeros(0), torch.zeros(5000, 7), torch.zeros(2, dtype=torch.float64)
    )
    check()
    for index in (0, 2, 3):
        with torch.no_grad():
            parameters[index].view(-1)[-1] = value
        with pytest.raises(DivergenceError, match=f"the parameter p{index} is as large as"):
            check()
        with torch.no_grad():
            parameters[index].zero_()
    check()


def test_what_the_optimiser_remembers_is_looked_at() -> None:
    """In half precision squared gradients overflow before gradients do, and the weight would never move again."""
    check, (parameter,) = check_of(torch.zeros(3, dtype=torch.float16))
    parameter.grad = torch.tensor([0.0, 0.0, 3e4], dtype=torch.float16)
    check.optimiser.step()
    with pytest.raises(DivergenceError, match="what the optimiser remembers of the parameter p0 is not finite"):
        check()


def test_a_large_number_that_was_there_before_is_no_divergence() -> None:
    check, parameters = check_of(torch.tensor([-1e9, 0.0]))
    check()
    with torch.no_grad():
        parameters[0] *= 1.5
    check()
    with torch.no_grad():
        parameters[0] *= 2
    with pytest.raises(DivergenceError):
        check()


def watched(*values: float, error: BaseException | None = None) -> None:
    network = nn.Identity()
    with sound_outputs(network, "here"):
        for value in values:
            network(torch.tensor([0.0, value]))
        if error is not None:
            raise error
    network(torch.tensor(math.nan))  # nobody looks any more


def test_outputs_are_watched_while_a_network_is_sampled_from() -> None:
    watched(0.0, -math.inf)
    with pytest.raises(DivergenceError, match="here, its network answers NaN"):
        watched(0.0, math.nan, 0.0)
    with pytest.raises(DivergenceError) as caught:
        watched(math.nan, error=ValueError("masks are left"))
    assert isinstance(caught.value.__cause__, ValueError)
    for error in (KeyboardInterrupt(), ValueError()):
        with pytest.raises(type(error)):
            watched(math.nan if isinstance(error, KeyboardInterrupt) else 0.0, error=error)
