"""The agent as its user sees it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from agents import DDPO, PPO, SEPO, Agent, PPOConfig, SEPOConfig
from agents.sealed import seal
from agents.storage import CONFIG_FILE, save_agent
from agents.training.recovery import CHECKPOINT_FILE
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion import Cosine
from sepo_env.errors import (
    CheckpointError,
    HeldOutRewardError,
    InvalidArgumentError,
    InvalidPromptError,
    UnknownNameError,
)
from sepo_env.rewards import Reward
from sepo_env.tasks import make
from sepo_env.tasks.toy import ToyTask

SMALL: dict[str, Any] = {"num_iterations": 2, "batch_size": 8, "num_steps": 4, "eval_every": 0, "tensorboard": "off"}


def small(kind: type[Agent] = SEPO, task: Any = "ToyCTMC-v0", **overrides: Any) -> Agent:
    return kind(task, device="cpu", **(SMALL | overrides))


def test_id_name_and_task_are_the_same_world() -> None:
    agents = [small(task=task) for task in ("ToyCTMC-v0", "toy", make("toy"))]
    samples = [agent.sample(5, seed=3) for agent in agents]
    assert samples[0] == samples[1] == samples[2]
    with pytest.raises(UnknownNameError, match="did you mean 'ToyCTMC-v0'"):
        small(task="ToyCTMC-v1")


def test_default_task_and_settings() -> None:
    agent = SEPO(device="cpu")
    assert (agent.task.name, agent.task.length) == ("dna_enhancer", 200)
    assert agent.config == SEPOConfig()


def test_config_and_overrides() -> None:
    config = PPOConfig(seed=4)
    assert PPO("toy", config=config, batch_size=5).config == PPOConfig(seed=4, batch_size=5)
    with pytest.raises(InvalidArgumentError, match="set up by a PPOConfig, not a SEPOConfig"):
        PPO("toy", config=SEPOConfig())
    with pytest.raises(UnknownNameError, match="did you mean 'batch_size'"):
        PPO("toy", batchsize=5)


class PrefersA(nn.Module):
    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens == 0).float().mean(-1)


class PrefersFirst(Reward):
    name = "prefers_first"

    def score(self, tokens: Tensor) -> Tensor:
        return (tokens == 0).float().mean(-1)


@pytest.mark.parametrize(
    "reward",
    [
        lambda sequences: [s.count("A") / len(s) for s in sequences],
        PrefersA(),
        PrefersFirst(),
        "share_of_a",
        {"share_of_a": 1.0, "table": 0.0},
    ],
    ids=["function", "module", "reward", "name", "weighted sum"],
)
def test_any_reward_is_learnt(reward: Any) -> None:
    """The share of the letter A: about 1/3 at first; the same reward in five guises is learnt the same way."""
    agent = small(reward=reward, num_iterations=30, batch_size=64, learning_rate=0.2)
    rows = agent.train(progress=False)
    assert rows[0]["reward_mean"] < 0.5
    assert rows[-1]["reward_mean"] > 0.9
    assert rows[-1]["reward_calls"] == 30 * 64
    letters = "".join(agent.sample(50, seed=0))
    assert letters.count("A") / len(letters) > 0.9


class HeldOut(PrefersFirst):
    role = "held_out"


def test_the_judge_may_not_train() -> None:
    with pytest.raises(HeldOutRewardError):
        small(reward=HeldOut())


def test_pretrained_denoiser_of_the_task_stays_as_it_is() -> None:
    task = make("toy")
    before = task.denoiser.state_dict()["logits"].clone()
    agent = small(task=task, learning_rate=0.5)
    agent.train(progress=False)
    assert torch.equal(task.denoiser.state_dict()["logits"], before)
    assert not torch.equal(agent.denoiser.state_dict()["logits"], before)


def test_samples() -> None:
    agent = small()
    tokens = agent.sample_tokens(7, seed=5)
    assert tokens.shape == (7, 4)
    assert tokens.dtype == torch.int64
    assert agent.sample(7, seed=5) == agent.task.decode(tokens)
    assert agent.sample(3, seed=7) == agent.sample(7, seed=5)[2:5], "sequence i depends on seed + i alone"
    assert small(micro_batch_size=2).sample(7, seed=5) == agent.sample(7, seed=5), "nor on the chunks"
    torch.manual_seed(0)
    first, second = agent.sample(20), agent.sample(20)
    torch.manual_seed(0)
    assert first == agent.sample(20)
    assert first != second
    with pytest.raises(InvalidArgumentError, match="num_samples"):
        agent.sample(0)


def test_prompts() -> None:
    agent = small()
    assert all(s[0] == "B" and s[2] == "A" for s in agent.sample(20, seed=0, prompt="B?A?"))
    each = agent.sample(3, seed=0, prompt=["A???", "?B??", "??C?"])
    assert (each[0][0], each[1][1], each[2][2]) == ("A", "B", "C")
    tokens = torch.tensor([2, -1, -1, 1])
    assert all(s[0] == "C" and s[3] == "B" for s in agent.sample(20, seed=0, prompt=tokens))
    assert small(micro_batch_size=2).sample(3, seed=0, prompt=["A???", "?B??", "??C?"]) == each
    mixed = agent.sample(3, seed=0, prompt=["A???", None, "??C?"])
    assert (mixed[0], mixed[1], mixed[2]) == (each[0], agent.sample(3, seed=0)[1], each[2])
    for bad in ("TOO LONG", "AXC?", "ABCA", ["A???"] * 4, torch.zeros(4, 4).long(), torch.zeros(4), ["A???", 3, "B?"]):
        with pytest.raises(InvalidPromptError):
            agent.sample(3, prompt=bad)


def test_sampling_with_another_number_of_steps() -> None:
    agent = small()
    assert agent.sample(50, seed=0, num_steps=1) != agent.sample(50, seed=0, num_steps=64)


def test_save_and_load(tmp_path: Path) -> None:
    agent = small(PPO, learning_rate=0.3, seed=2, log_dir=str(tmp_path / "run"))
    agent.train(progress=False)
    agent.save(tmp_path / "agent")
    assert {path.suffix for path in (tmp_path / "agent").iterdir()} == {".json", ".safetensors"}
    for loaded in (PPO.load(tmp_path / "agent", device="cpu"), Agent.load(str(tmp_path / "agent"), device="cpu")):
        assert type(loaded) is PPO
        assert loaded.config == agent.config.replace(log_dir=None, tensorboard="auto")
        assert loaded.sample(9, seed=1) == agent.sample(9, seed=1)
    assert str(tmp_path) not in (tmp_path / "agent" / CONFIG_FILE).read_text()


def test_saving_again_replaces(tmp_path: Path) -> None:
    agent = small(learning_rate=0.3)
    agent.save(tmp_path)
    agent.train(progress=False)
    agent.save(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    assert SEPO.load(tmp_path, device="cpu").sample(9, seed=1) == agent.sample(9, seed=1)


def test_crash_between_the_two_files_leaves_the_old_agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = small(learning_rate=0.3)
    agent.save(tmp_path)
    before = agent.sample(9, seed=1)
    agent.train(progress=False)

    def crash(*_: object, **__: object) -> str:
        raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr("agents.storage.seal", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            agent.save(tmp_path)
    assert SEPO.load(tmp_path, device="cpu").sample(9, seed=1) == before


def test_an_agent_remembers_its_prompts(tmp_path: Path) -> None:
    task = make("toy")
    task.start_from(["A???", "?BC?"])
    agent = small(task=task)
    agent.save(tmp_path / "agent")
    loaded = Agent.load(tmp_path / "agent", device="cpu")
    assert loaded.sample(6, seed=5) == agent.sample(6, seed=5)
    assert all(text[0] == "A" or text[1:3] == "BC" for text in loaded.sample(6))
    free = Agent.load(tmp_path / "agent", task=make("toy"), device="cpu")
    assert free.task.prompt_set is None
    # A fingerprint in the JSON, the tokens with the weights: 2,000 prompts of 1,024 tokens were 20 MiB of JSON.
    assert task.prompt_set is not None
    config = json.loads((tmp_path / "agent" / CONFIG_FILE).read_text())
    assert config["prompts"] == task.prompt_set.fingerprint
    cases = (([[0, 1]], "no tokens"), ([0, 0, 0, 0], "no tokens"), ([[0, 3, 3, 3]], "does not draw the prompts"))
    for wrong, message in cases:
        other = make("toy")
        other.prompt_set = SimpleNamespace(tokens=torch.tensor(wrong))
        save_agent(tmp_path / "wrong", config, agent.denoiser.state_dict(), other)
        with pytest.raises(CheckpointError, match=message):
            Agent.load(tmp_path / "wrong", device="cpu")


def test_a_checkpoint_remembers_its_prompts(tmp_path: Path) -> None:
    task = make("toy")
    task.start_from(["A???", "?BC?"])
    agent = small(task=task, log_dir=str(tmp_path), group_size=2, batch_size=4)
    agent.train(progress=False)
    loaded = Agent.load(tmp_path / CHECKPOINT_FILE, device="cpu")
    assert loaded.sample(6, seed=5) == agent.sample(6, seed=5)
    assert loaded.task.prompt_set is not None
    assert loaded.task.prompt_set.fingerprint == task.prompt_set.fingerprint
    plain = small(log_dir=str(tmp_path / "plain"))
    plain.train(progress=False)
    assert Agent.load(tmp_path / "plain" / CHECKPOINT_FILE, device="cpu").task.prompt_set is None


def test_prompts_that_a_task_draws_by_itself_are_part_of_the_run(tmp_path: Path) -> None:
    """They are no set that could be kept, so the task has to be given."""
    options = {"log_dir": str(tmp_path), "group_size": 2, "batch_size": 4}
    agent = small(task=make("toy", prompted=True), **options)
    agent.train(progress=False)
    small(task=make("toy", prompted=True), **options).train(progress=False, resume=True)
    with pytest.raises(CheckpointError, match="prompts was"):
        small(task=make("toy"), **(options | {"group_size": 0})).train(progress=False, resume=True)
    agent.save(tmp_path / "agent")
    for path in (tmp_path / "agent", tmp_path / CHECKPOINT_FILE):
        with pytest.raises(CheckpointError, match="does not draw the prompts"):
            Agent.load(path, device="cpu")
        again = Agent.load(path, device="cpu", task=make("toy", prompted=True))
        assert again.sample(6, seed=5) == agent.sample(6, seed=5)


def test_loading_what_is_no_agent(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no saved agent"):
        SEPO.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_text("[1]")
    with pytest.raises(CheckpointError, match="it holds a list, not a JSON object"):
        SEPO.load(tmp_path)
    (tmp_path / CONFIG_FILE).write_bytes(seal({"format": "theirs"}))
    with pytest.raises(CheckpointError, match="its format is not"):
        SEPO.load(tmp_path)
    small().save(tmp_path)
    with pytest.raises(CheckpointError, match="holds a SEPO agent; use SEPO.load or Agent.load"):
        DDPO.load(tmp_path)
    weights = next(tmp_path.glob("*.safetensors"))
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"x")
    with pytest.raises(CheckpointError, match="its content has changed"):
        SEPO.load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="no saved agent"):
        SEPO.load(tmp_path)


def test_loading_for_another_task(tmp_path: Path) -> None:
    task = make("toy", num_tokens=2, length=3)
    agent = small(task=task)
    agent.save(tmp_path)
    with pytest.raises(CheckpointError, match="length: 3 there, 4 here"):
        SEPO.load(tmp_path)
    with pytest.raises(CheckpointError, match="process: "):
        SEPO.load(tmp_path, task=make("toy", num_tokens=2, length=3, schedule=Cosine()))
    assert SEPO.load(tmp_path, task=task, device="cpu").sample(5, seed=0) == agent.sample(5, seed=0)


def test_task_of_ones_own(tmp_path: Path) -> None:
    class Mine(ToyTask):
        pass

    task = Mine(denoiser=TabularDenoiser(3, 4, vocab_size=4))
    task.name = "mine"
    agent = small(task=task)
    agent.train(progress=False)
    agent.save(tmp_path)
    with pytest.raises(CheckpointError, match="no task is registered as 'mine'"):
        SEPO.load(tmp_path)
    assert SEPO.load(tmp_path, task=task, device="cpu").sample(5, seed=0) == agent.sample(5, seed=0)


def test_damaged_config_names_the_file(tmp_path: Path) -> None:
    small().save(tmp_path)
    path = tmp_path / CONFIG_FILE
    description = json.loads(path.read_text())
    description["config"]["no_such_field"] = 1
    path.write_bytes(seal(description))
    with pytest.raises(CheckpointError, match="its settings are not of this version .*'no_such_field'"):
        SEPO.load(tmp_path)


def test_devices() -> None:
    assert small().device == torch.device("cpu")
    with pytest.raises(InvalidArgumentError, match="is no device"):
        SEPO("toy", device="warp drive")
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert SEPO("toy").device.type == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")
def test_no_gpu() -> None:
    with pytest.raises(InvalidArgumentError, match="no GPU"):
        SEPO("toy", device="cuda")
