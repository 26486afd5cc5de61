"""What a run is: it goes on as itself, and as no other."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchrl.checkpoint import Checkpoint

from agents import REINFORCE, SEPO, Agent, agent_class
from agents.registry import learners
from agents.training.checkpoint import load_checkpoint, save_checkpoint
from agents.training.recovery import checkpoint_path
from sepo_env.denoisers import TabularDenoiser, save_denoiser
from sepo_env.diffusion import LogLinear, Schedule
from sepo_env.errors import CheckpointError, InvalidArgumentError, UnknownNameError
from sepo_env.rewards import LetterContent, Reward
from sepo_env.tasks import make
from sepo_env.tasks.toy import ToyTask

SMALL: dict[str, Any] = {
    "batch_size": 4,
    "num_steps": 4,
    "states_per_trajectory": 2,
    "kl_coeff": 0.1,
    "eval_every": 1,
    "eval_samples": 4,
    "tensorboard": "off",
    "device": "cpu",
}

every_agent = pytest.mark.parametrize("name", learners())


def trained(folder: Path, kind: type[Agent] = REINFORCE, task: Any = None, **options: Any) -> Agent:
    """One iteration of a new run."""
    agent = kind(task or make("toy"), log_dir=str(folder), num_iterations=1, **(SMALL | options))
    agent.train(progress=False)
    return agent


def resumed(folder: Path, kind: type[Agent] = REINFORCE, task: Any = None, **options: Any) -> Agent:
    """A second iteration of the run in the folder."""
    agent = kind(task or make("toy"), log_dir=str(folder), num_iterations=2, **(SMALL | options))
    agent.train(progress=False, resume=True)
    assert [row["iteration"] for row in agent.history] == [1, 2]
    return agent


def count(sequences: list[str]) -> list[float]:
    return [float(sequence.count("A")) for sequence in sequences]


def of_the_same_name() -> Callable[[list[str]], list[float]]:
    def count(sequences: list[str]) -> list[float]:
        return [-float(sequence.count("A")) for sequence in sequences]

    return count


def weighing(weight: float) -> Callable[[list[str]], list[float]]:
    def weighed(sequences: list[str]) -> list[float]:
        return [weight * sequence.count("A") for sequence in sequences]

    return weighed


class Network(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((1,), scale))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.weight * (tokens == 0).float().mean(-1)


class Weighed(Reward):
    name = "weighed"

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.left = 3

    def score(self, tokens: Tensor) -> Tensor:
        self.left -= 1
        return self.weight * (tokens == 0).float().mean(-1)


class OtherJudge(ToyTask):
    held_out_reward = "share_of_a"


@dataclass(frozen=True, repr=False)
class Slow(LogLinear):
    factor: float = 1.0


def other_denoiser(tmp_path: Path) -> str:
    path = tmp_path / "other.safetensors"
    save_denoiser(make("toy", seed=7).denoiser, path)
    return str(path)


@every_agent
def test_another_pretrained_denoiser_is_another_run(name: str, tmp_path: Path) -> None:
    kind = agent_class(name)
    trained(tmp_path / "run", kind)
    with pytest.raises(CheckpointError, match=r"task.denoiser.weights was '\w{16}', is '\w{16}'"):
        resumed(tmp_path / "run", kind, make("toy", denoiser=other_denoiser(tmp_path)))
    resumed(tmp_path / "run", kind)


@every_agent
def test_another_weight_of_a_sum_is_another_run(name: str, tmp_path: Path) -> None:
    kind = agent_class(name)
    trained(tmp_path, kind, reward={"share_of_a": 1.0})
    with pytest.raises(CheckpointError, match=r"reward was {'share_of_a': 1.0}, is {'share_of_a': -100.0}"):
        resumed(tmp_path, kind, reward={"share_of_a": -100.0})
    resumed(tmp_path, kind, reward={"share_of_a": 1.0})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ({"seed": 0}, {"seed": 3}, "task.settings.seed was 0, is 3"),
        ({"parameterisation": "posterior"}, {"parameterisation": "score"}, "was 'posterior', is 'score'"),
        ({"graph": "absorbing"}, {"graph": "uniform"}, "task.process was .*Absorbing.*, is .*Uniform"),
        ({"schedule": "log-linear"}, {"schedule": "cosine"}, "task.process was .*LogLinear.*, is .*Cosine"),
        (
            {"schedule": Slow()},
            {"schedule": Slow(factor=2.0)},
            "task.own code.schedule.attributes.factor was 1.0, is 2.0",
        ),
        ({"prompt": "A???"}, {"prompt": "B???"}, r"prompts was '\w+', is '\w+'"),
        ({"length": 4}, {"length": 3}, "task.length was 4, is 3"),
    ],
)
def test_another_world_is_another_run(old: Any, new: Any, message: str, tmp_path: Path) -> None:
    trained(tmp_path, task=make("toy", **old))
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, task=make("toy", **new))
    resumed(tmp_path, task=make("toy", **old))


def test_steps_of_the_task_are_none_of_the_run(tmp_path: Path) -> None:
    """An agent has its own."""
    trained(tmp_path)
    resumed(tmp_path, task=make("toy", num_steps=5))


def test_a_live_denoiser_with_other_weights_is_another_run(tmp_path: Path) -> None:
    denoiser = TabularDenoiser(3, 4, vocab_size=4)
    trained(tmp_path, task=make("toy", denoiser=denoiser))
    resumed(tmp_path, task=make("toy", denoiser=TabularDenoiser(3, 4, vocab_size=4)))
    with torch.no_grad():
        denoiser.logits[0, 0, 0] += 1.0
    with pytest.raises(CheckpointError, match="task.denoiser.weights was"):
        resumed(tmp_path, task=make("toy", denoiser=denoiser))


def test_another_judge_is_another_run(tmp_path: Path) -> None:
    trained(tmp_path)
    other = OtherJudge()
    with pytest.raises(CheckpointError, match="judge was 'held_out_table', is 'share_of_a'"):
        resumed(tmp_path, task=other)


def test_code_of_the_task_is_part_of_the_run(tmp_path: Path) -> None:
    class Mine(ToyTask):
        def decode(self, tokens: Tensor) -> list[str]:
            return super().decode(tokens)

    def other() -> type[ToyTask]:
        class Mine(ToyTask):
            def decode(self, tokens: Tensor) -> list[str]:
                return [text[::-1] for text in super().decode(tokens)]

        return Mine

    trained(tmp_path, task=Mine())
    with pytest.raises(CheckpointError, match="task.own code.task.decode.code was"):
        resumed(tmp_path, task=other()())
    resumed(tmp_path, task=Mine())


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (count, of_the_same_name(), r"reward.function.code was 'cpython-\d+ \w+', is 'cpython-\d+ \w+'"),
        (weighing(1.0), weighing(2.0), "reward.function.closure.weight was 1.0, is 2.0"),
        (Network(1.0), Network(2.0), r"reward.function.weights was '\w+', is '\w+'"),
        (Weighed(1.0), Weighed(2.0), "reward.attributes.weight was 1.0, is 2.0"),
        ({count: 1.0}, {of_the_same_name(): 1.0}, "reward.terms.count.function.code was"),
        ({"table": 1.0}, {"table": 1.0, "share_of_a": 0.0}, "reward was {'table': 1.0}, is {.*'share_of_a': 0.0.*}"),
        ("table", "share_of_a", "reward was 'table', is 'share_of_a'"),
        ("table", {"table": 1.0}, "reward was 'table', is {'table': 1.0}"),
        (count, lambda sequences: [0.0] * len(sequences), "reward was 'count', is '<lambda>'"),
    ],
)
def test_another_reward_is_another_run(old: Any, new: Any, message: str, tmp_path: Path) -> None:
    trained(tmp_path, reward=old)
    with pytest.raises(CheckpointError, match=message):
        resumed(tmp_path, reward=new)
    resumed(tmp_path, reward=old)  # without a warning


def test_of_many_weights_those_that_differ_are_named(tmp_path: Path) -> None:
    weights = {
        Weighed(1.0): 1.0,
        **{LetterContent("A", "ABC", name=f"the letter A, number {n}"): 1.0 for n in range(9)},
    }
    trained(tmp_path, reward=weights)
    last = list(weights)[-1]
    with pytest.raises(CheckpointError, match="reward was {'the letter A, number 8': 1.0}, is {.* 8': 2.0}"):
        resumed(tmp_path, reward=weights | {last: 2.0})


def test_another_table_of_a_reward_is_another_run(tmp_path: Path) -> None:
    task = make("toy")
    trained(tmp_path)
    task.reward_table = task.reward_table.flip(0)
    with pytest.raises(CheckpointError, match=r"reward.attributes.table was 'tensor \w+ .*', is 'tensor \w+ .*'"):
        resumed(tmp_path, task=task)


def test_what_changes_a_value_is_part_of_the_run_and_speed_is_not(tmp_path: Path) -> None:
    trained(tmp_path, reward=count)
    with resumed(tmp_path, reward=count, workers=1, timeout=60.0, cache=True):
        pass
    with pytest.raises(CheckpointError, match="reward.on_error was None, is 'floor'; reward.floor was None, is -1.0"):
        resumed(tmp_path, reward=count, on_error="floor", floor=-1.0)
    trained(tmp_path / "named")
    resumed(tmp_path / "named", cache=True)
    with pytest.raises(CheckpointError, match=r"reward.floor was None, is -1.0"):
        resumed(tmp_path / "named", on_error="floor", floor=-1.0)


class Scorer:
    def __call__(self, sequences: list[str]) -> list[float]:
        return count(sequences)


def over_a_list() -> Callable[[list[str]], list[float]]:
    seen: list[int] = []

    def score(sequences: list[str]) -> list[float]:
        seen.append(len(sequences))
        return count(sequences)

    return score


@pytest.mark.parametrize(
    ("reward", "reason"),
    [
        (lambda sequences: count(sequences), r"reward.function.lambda \(a lambda\)"),
        (Scorer(), r"reward.function.object \(a live Scorer\)"),
        (Scorer().__call__, r"reward.function.object \(a bound method of a live Scorer\)"),
        (over_a_list(), r"reward.function.closure.seen \(a list, which may change; was \[\], is \[4\]\)"),
        ({count: 1.0, Scorer(): 1.0}, r"reward.terms.Scorer.function.object \(a live Scorer\)"),
    ],
)
def test_what_cannot_be_told_is_one_warning_and_the_run_goes_on(reward: Any, reason: str, tmp_path: Path) -> None:
    trained(tmp_path, reward=reward, eval_every=0)
    with pytest.warns(UserWarning, match=f"the run that was begun cannot be told: {reason}") as caught:
        resumed(tmp_path, reward=reward, eval_every=0)
    assert len(caught) == 1


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Write a checkpoint again with another description."""
    names = Checkpoint.manifest(path)["components"]
    parts, metadata = load_checkpoint(path, names)
    change(metadata)
    save_checkpoint(path, parts, {key: value for key, value in metadata.items() if key != "format"})


def test_code_that_another_python_compiled_is_a_warning(tmp_path: Path) -> None:
    trained(tmp_path, reward=count)

    def compiled_elsewhere(metadata: dict[str, Any]) -> None:
        metadata["reward"]["function"]["code"] = "cpython-399 0123456789abcdef"

    rewritten(checkpoint_path(tmp_path), compiled_elsewhere)
    with pytest.warns(UserWarning, match="compiled by cpython-399, and here by"):
        resumed(tmp_path, reward=count)


def test_a_checkpoint_from_before_identities_is_resumed_with_a_warning(tmp_path: Path) -> None:
    """What it does say is compared."""

    def before(metadata: dict[str, Any]) -> None:
        metadata["reward"] = metadata["reward"]["name"]
        del metadata["judge"], metadata["own code"], metadata["task"]["denoiser"], metadata["task"]["settings"]

    trained(tmp_path)
    rewritten(checkpoint_path(tmp_path), before)
    with pytest.raises(CheckpointError, match="reward was 'table', is 'share_of_a'"):
        resumed(tmp_path, reward="share_of_a")
    with pytest.raises(CheckpointError, match="task.length was 4, is 3"):
        resumed(tmp_path, task=make("toy", length=3))
    with pytest.warns(UserWarning, match="reward, judge and pretrained denoiser .not recorded by the version"):
        resumed(tmp_path)


def test_an_agent_of_ones_own_is_told_by_its_code(tmp_path: Path) -> None:
    class Mine(SEPO):
        def make_method(self, reference: Any) -> Any:
            return super().make_method(reference)

    def other() -> type[SEPO]:
        class Mine(SEPO):
            def make_method(self, reference: Any) -> Any:
                return SEPO.make_method(self, reference)

        return Mine

    trained(tmp_path, Mine)
    with pytest.raises(CheckpointError, match="own code.make_method.code was"):
        resumed(tmp_path, other())
    with pytest.raises(CheckpointError, match="own code was .*, is None"):
        resumed(tmp_path, SEPO)
    resumed(tmp_path, Mine)


def test_a_schedule_of_ones_own_is_known_again(tmp_path: Path) -> None:
    class Half(Schedule):
        def __init__(self, eps: float) -> None:
            self.inner = LogLinear(eps)

        def sigma(self, t: Tensor) -> Tensor:
            return self.inner.sigma(t)

        def sigma_prime(self, t: Tensor) -> Tensor:
            return self.inner.sigma_prime(t)

        def inverse_sigma(self, sigma: Tensor) -> Tensor:
            return self.inner.inverse_sigma(sigma)

    trained(tmp_path, task=make("toy", schedule=Half(1e-3)))
    resumed(tmp_path, task=make("toy", schedule=Half(1e-3)))
    with pytest.raises(CheckpointError, match=r"Half\(inner=LogLinear\(eps=0.001\)\).*, is .*eps=0.01"):
        resumed(tmp_path, task=make("toy", schedule=Half(1e-2)))


SCRIPT = """
import sys
from agents import SEPO
{source}
agent = SEPO("ToyCTMC-v0", reward={{score: 1.0}}, num_iterations=int(sys.argv[2]), log_dir=sys.argv[1], batch_size=4,
             num_steps=4, states_per_trajectory=0, eval_every=0, tensorboard="off", device="cpu")
agent.train(progress=False, resume=sys.argv[2] == "2")
"""
SOURCE = """
def score(sequences):
    return [float(sum(letter in {"A", "B"} for letter in text)) for text in sequences]
"""


def run_script(path: Path, source: str, seed: str, iterations: int, root: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(SCRIPT.format(source=source))
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root), "PATH": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "error::UserWarning", str(path), str(path.parent / "run"), str(iterations)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=200)


def test_a_run_is_known_again_in_another_process(tmp_path: Path, project_root: Path) -> None:
    assert run_script(tmp_path / "a.py", SOURCE, "1", 1, project_root).returncode == 0
    other = SOURCE.replace("float(", "-float(")
    refused = run_script(tmp_path / "b.py", other, "3", 2, project_root)
    assert "CheckpointError" in refused.stderr
    assert "reward.terms.score.function.code was" in refused.stderr
    again = run_script(tmp_path / "b.py", "# moved\n\n" + SOURCE, "2", 2, project_root)
    assert again.returncode == 0, again.stderr


@every_agent
def test_an_agent_is_loaded_for_its_own_pretrained_denoiser(name: str, tmp_path: Path) -> None:
    """The reference that a further training is held to is the task's."""
    kind = agent_class(name)
    task = make("toy", denoiser=other_denoiser(tmp_path))
    agent = kind(task, log_dir=str(tmp_path / "run"), num_iterations=1, **SMALL)
    agent.train(progress=False)
    agent.save(tmp_path / "agent")
    for path in (tmp_path / "agent", checkpoint_path(tmp_path / "run")):
        with pytest.raises(
            CheckpointError, match=r"denoiser.weights: '\w{16}' there, '\w{16}' here.*load\(..., task=...\)"
        ):
            Agent.load(path, device="cpu")
        loaded = Agent.load(path, task=make("toy", denoiser=other_denoiser(tmp_path)), device="cpu")
        assert loaded.sample(5, seed=0) == agent.sample(5, seed=0)


def test_an_agent_is_loaded_for_its_own_settings_of_the_task(tmp_path: Path) -> None:
    small: dict[str, Any] = {"device": "cpu", "num_steps": 4}
    SEPO(make("toy", seed=3), **small).save(tmp_path)
    with pytest.raises(CheckpointError, match="settings.seed: 3 there, 0 here"):
        Agent.load(tmp_path, device="cpu")
    assert Agent.load(tmp_path, task=make("toy", seed=3), reward="share_of_a", device="cpu").sample(3, seed=0)


def test_a_description_is_json(tmp_path: Path) -> None:
    """Without absolute paths, so that a run can be moved."""
    agent = SEPO(make("toy", denoiser=other_denoiser(tmp_path)), log_dir=str(tmp_path), device="cpu")
    told = json.dumps(agent._describe_run(agent.task.judge()), allow_nan=False)
    assert str(tmp_path) not in told
    assert "cannot be told" not in told


def test_an_agent_of_ones_own_is_loaded_by_its_class(tmp_path: Path) -> None:
    class Mine(SEPO):
        name = "mine"

    agent = Mine("toy", device="cpu")
    agent.save(tmp_path)
    loaded = Mine.load(tmp_path, device="cpu")
    assert type(loaded) is Mine
    assert loaded.sample(3, seed=0) == agent.sample(3, seed=0)
    with pytest.raises(UnknownNameError, match="unknown agent 'mine'"):
        Agent.load(tmp_path)


def test_a_reward_says_of_itself_what_json_can_hold(tmp_path: Path) -> None:
    class Vague(Weighed):
        def identity(self) -> dict[str, Any]:
            return {"weight": torch.tensor(self.weight)}

    with pytest.raises(InvalidArgumentError, match="'weighed' says of its identity is not for JSON"):
        trained(tmp_path, reward=Vague(1.0))


def test_a_reward_may_say_itself_what_it_is(tmp_path: Path) -> None:
    class Versioned(Weighed):
        def identity(self) -> dict[str, Any]:
            return {"version": int(self.weight)}

    trained(tmp_path, reward=Versioned(1.25))
    resumed(tmp_path, reward=Versioned(1.75))
    with pytest.raises(CheckpointError, match="reward.version was 1, is 2"):
        resumed(tmp_path, reward=Versioned(2.0))
