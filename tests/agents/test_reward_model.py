"""From pairs of texts to a reward, through the command line: accuracy, resumption, refusals."""

import csv
import dataclasses
import json
import math
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents.reward_model import main
from agents.reward_modelling import Pair, RewardModelConfig, read_pairs, split_pairs, train_reward_model
from agents.reward_modelling.run_folder import FORMAT, RUN_FILE, check_resumed, claim, find_checkpoint
from agents.sealed import seal
from sepo_env.errors import CheckpointError
from sepo_env.rewards.sequence_classifier import SequenceClassifierReward
from tests.comparisons import assert_same
from tests.hf_models import transformers

TOPICS = ("weather", "tea", "trains", "rivers", "music", "stars", "bread", "cats", "maps", "snow", "chess", "books")
KIND = (" Gladly, here is what I know of {}.", " Of course, let us look at {}.", " With pleasure, about {}.")
RUDE = (" No, leave me alone with {}.", " Go away, I hate {}.", " Be quiet, nobody likes {}.")
SMALL = ["--width", "32", "--vocab-size", "600", "--batch-size", "8", "--learning-rate", "3e-3", "--device", "cpu"]


def make_pairs(number: int = 160) -> list[Pair]:
    """A synthetic preference set: the polite answer is preferred."""
    draw = random.Random(0)
    pairs = []
    for _ in range(number):
        topic = " and ".join(draw.sample(TOPICS, 2))
        prompt = f"\n\nHuman: Tell me about {topic}.\n\nAssistant:"
        pairs.append(Pair(prompt + draw.choice(KIND).format(topic), prompt + draw.choice(RUDE).format(topic)))
    return pairs


def write_pairs(path: Path, pairs: list[Pair]) -> Path:
    path.write_text("".join(json.dumps(vars(pair)) + "\n" for pair in pairs))
    return path


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    return write_pairs(tmp_path / "pairs.jsonl", make_pairs())


def test_from_pairs_to_a_reward(pairs_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    flags = ["--pairs", str(pairs_file), "--log-dir", str(run), "--num-epochs", "2", "--eval-share", "0.25", *SMALL]
    assert main(flags) == 0
    shown = capsys.readouterr().err
    assert "held-out pairs" in shown
    assert str(run / "reward_model") in shown
    card = json.loads((run / "reward_model" / "reward_model.json").read_text())
    assert card["held_out_accuracy"] >= 0.95
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1.0", "2.0"]
    assert float(rows[-1]["held_out_accuracy"]) == card["held_out_accuracy"]

    _, held_out = split_pairs(read_pairs(pairs_file), 0.25, 0)
    assert len(held_out) >= 30
    reward = SequenceClassifierReward(run / "reward_model", decode=lambda tokens: [])
    chosen, rejected = (reward.score_texts([getattr(pair, side) for pair in held_out]) for side in vars(held_out[0]))
    assert float((chosen > rejected).float().mean()) == pytest.approx(card["held_out_accuracy"])
    loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
    assert float(loss) == pytest.approx(card["held_out_loss"], rel=1e-4)
    assert card["held_out_loss"] < math.log(2)
    assert reward.tokenizer.truncation_side == "left"
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []


def stop_at(step: int) -> Any:
    class Stop(transformers().TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == step:
                raise KeyboardInterrupt

    return Stop()


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = transformers().AutoModelForSequenceClassification.from_pretrained(folder)
    return dict(model.state_dict())


def test_resuming_is_exact(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(40))

    def config(name: str) -> RewardModelConfig:
        return RewardModelConfig(
            str(pairs),
            str(tmp_path / name),
            num_epochs=2,
            batch_size=8,
            save_every=3,
            width=16,
            depth=1,
            heads=2,
            vocab_size=270,
            max_length=64,
            device="cpu",
        )

    before = torch.random.get_rng_state()
    train_reward_model(config("whole"), progress=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    with pytest.raises(KeyboardInterrupt) as caught:
        train_reward_model(config("parted"), progress=False, callbacks=[stop_at(7)])
    assert "that of step 6" in caught.value.__notes__[0]
    assert not (tmp_path / "parted" / "reward_model").exists()
    train_reward_model(config("parted"), progress=False, resume=True)
    whole, parted = (weights(tmp_path / name / "reward_model") for name in ("whole", "parted"))
    assert all(torch.equal(value, parted[name]) for name, value in whole.items())

    with pytest.raises(CheckpointError, match="a run stands there already"):
        train_reward_model(config("whole"), progress=False)
    other = RewardModelConfig(**(config("whole").to_dict() | {"seed": 1}))
    with pytest.raises(CheckpointError, match="seed was 0, is 1"):
        train_reward_model(other, progress=False, resume=True)
    write_pairs(pairs, make_pairs(42))
    with pytest.raises(CheckpointError, match="training was '"):
        train_reward_model(config("whole"), progress=False, resume=True)


def small(pairs: Path, folder: Path, **changes: Any) -> RewardModelConfig:
    shape = {"width": 16, "depth": 1, "heads": 2, "vocab_size": 270, "max_length": 64}
    run = {"num_epochs": 2, "batch_size": 8, "save_every": 3, "device": "cpu"}
    return RewardModelConfig(str(pairs), str(folder), **(shape | run | changes))


@pytest.mark.parametrize("damage", ["weights", "optimiser"])
def test_a_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    config = small(write_pairs(tmp_path / "pairs.jsonl", make_pairs(40)), tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_reward_model(config, progress=False, callbacks=[stop_at(8)])
    newest = tmp_path / "run" / "checkpoints" / "checkpoint-6"
    if damage == "weights":
        content = (newest / "model.safetensors").read_bytes()
        (newest / "model.safetensors").write_bytes(content[: len(content) // 2])
    else:
        (newest / "optimizer.pt").unlink()
    said: list[str] = []
    with pytest.raises(KeyboardInterrupt) as caught:
        train_reward_model(config, progress=False, resume=True, callbacks=[stop_at(3)], say=said.append)
    (line,) = said
    assert line.startswith(f"{newest} is not whole (")
    assert line.endswith("checkpoint-3.")
    assert "that of step 3" in caught.value.__notes__[0]
    with pytest.warns(UserWarning, match="checkpoint-6 is not whole"):
        outcome = train_reward_model(config, progress=False, resume=True)
    assert outcome.num_steps == 10


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/dev/zero", "its weights are in '/dev/zero', which is no file of the checkpoint"),
        ("../../pairs.jsonl", "which is no file of the checkpoint"),
        ("absent.safetensors", "there is no such file"),
        (3, "TypeError"),
    ],
)
def test_weights_of_a_checkpoint_are_files_of_its_folder(name: Any, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "checkpoint-1"
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text('{"global_step": 1, "best_metric": NaN}')
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    newest, faults = find_checkpoint(tmp_path)
    assert newest is None
    assert said in faults[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[]", "a list, not a JSON object"),
        (b"\xff", "no text file .*'utf-8'"),
        (b'{"format": NaN}', "its content has changed"),
        (b"[" * 100_000, "nested too deep"),
        (seal({"format": "theirs"}), "its format is not"),
        (seal({"format": FORMAT, "settings": 3}), "it lacks the settings"),
        (seal({"format": FORMAT}).replace(b"agents", b"Agents"), "its content has changed"),
    ],
    ids=range(7),
)
def test_a_run_file_that_is_none_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    config = small(write_pairs(tmp_path / "pairs.jsonl", make_pairs(20)), tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RUN_FILE).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        check_resumed(tmp_path / "run", config, {})


def test_every_flipped_bit_of_a_run_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    config = small(tmp_path / "pairs.jsonl", folder)
    claim(folder, config, {"training": "x"})
    check_resumed(folder, config, {"training": "x"})
    content = (folder / RUN_FILE).read_bytes()
    for place in range(0, len(content), 3):
        (folder / RUN_FILE).write_bytes(content[:place] + bytes([content[place] ^ 32]) + content[place + 1 :])
        with pytest.raises(CheckpointError, match=RUN_FILE):
            check_resumed(folder, config, {"training": "x"})


def test_a_run_file_from_before_there_were_seals_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    config = small(tmp_path / "pairs.jsonl", folder)
    found = {"format": "agents.reward_model/1", "settings": config.to_dict(), "training": "x"}
    (folder / RUN_FILE).write_text(json.dumps(found))
    check_resumed(folder, config, {"training": "x"})
    with pytest.raises(CheckpointError, match="training was 'x', is 'y'"):
        check_resumed(folder, config, {"training": "y"})


def test_a_mistake_in_the_base_leaves_the_folder_free(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(20))
    flags = ["--pairs", str(pairs), "--log-dir", str(tmp_path / "run"), "--num-epochs", "1", "--quiet", *SMALL]
    assert main([*flags, "--base", str(tmp_path / "absent")]) == 1
    assert "no folder with a config.json" in capsys.readouterr().err
    assert main(flags) == 0


def test_pairs_that_are_equal_after_the_cut_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Cut on the left: what is different stands too far in front.
    equal = [Pair(f"{n} yes {'z' * 80}", f"{n} no {'z' * 80}") for n in range(20)]
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(20))
    held_out = write_pairs(tmp_path / "held_out.jsonl", [*equal[:3], Pair("good", "bad")])
    config = small(pairs, tmp_path / "run", num_epochs=1, eval_pairs=str(held_out), max_length=70)
    outcome = train_reward_model(config, progress=False)
    assert (outcome.num_training, outcome.num_held_out, outcome.num_dropped) == (20, 1, 3)
    assert outcome.num_truncated >= 6
    card = json.loads((outcome.folder / "reward_model.json").read_text())
    assert (card["num_dropped_pairs"], card["num_truncated_texts"]) == (3, outcome.num_truncated)
    write_pairs(held_out, equal[:3])
    flags = ["--pairs", str(pairs), "--eval-pairs", str(held_out), "--log-dir", str(tmp_path / "other"), *SMALL]
    assert main([*flags, "--max-length", "70"]) == 1
    assert "none of the 3 held-out pairs has two different texts within 70 tokens" in capsys.readouterr().err
    assert main([*flags, "--max-length", "256", "--num-epochs", "1"]) == 0
    write_pairs(held_out, [*equal[:3], Pair("good", "bad")])
    flags[5] = str(tmp_path / "third")
    assert main([*flags, "--max-length", "70", "--num-epochs", "1"]) == 0
    assert "3 pairs were left out because their texts were the same" in capsys.readouterr().err


def test_a_language_model_may_be_the_base(tmp_path: Path) -> None:
    library = transformers()
    pairs = make_pairs(40)
    scratch = RewardModelConfig("pairs", "run", vocab_size=270, max_length=64)
    from agents.reward_modelling.models import make_model

    _, tokenizer = make_model(scratch, pairs)
    tokenizer.pad_token = None  # as GPT-2's
    shape = library.GPT2Config(vocab_size=270, n_positions=48, n_embd=16, n_layer=1, n_head=2)
    base = library.GPT2LMHeadModel(shape)
    base.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    config = RewardModelConfig(
        str(write_pairs(tmp_path / "pairs.jsonl", pairs)),
        str(tmp_path / "run"),
        base=str(tmp_path / "gpt2"),
        num_epochs=1,
        learning_rate=1e-9,
        device="cpu",
    )
    outcome = train_reward_model(config, progress=False)
    trained = weights(outcome.folder)
    torch.testing.assert_close(trained["transformer.wte.weight"], base.transformer.wte.weight.data)
    assert outcome.num_training + outcome.num_held_out == 40
    reward = SequenceClassifierReward(outcome.folder, decode=lambda tokens: [])
    assert reward.max_length == 48  # no more than the model has room for
    # The end of a text counts: what is cut off is its beginning.
    assert_same(*(reward.score_texts(["x" * n + "z" * 200]) for n in (1, 300)))

    moved = dataclasses.replace(config, base=str(shutil.move(tmp_path / "gpt2", tmp_path / "moved")))
    train_reward_model(moved, progress=False, resume=True)
    with pytest.raises(CheckpointError, match=r"base_files was '\w+', is None"):
        train_reward_model(dataclasses.replace(config, base=None), progress=False, resume=True)
    library.GPT2LMHeadModel(shape).save_pretrained(tmp_path / "moved")
    with pytest.raises(CheckpointError, match=r"base_files was '\w+', is '\w+'"):
        train_reward_model(moved, progress=False, resume=True)


def test_the_command_line_teaches_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for flag in (
        "--pairs",
        "--log-dir",
        "--base",
        "--eval-share",
        "--learning-rate",
        "--resume",
        "Exit codes",
        "HH-RLHF",
    ):
        assert flag in shown
    with pytest.raises(SystemExit) as caught:
        main(["--pairs", "x"])
    assert caught.value.code == 2
    capsys.readouterr()
    where = ["--log-dir", str(tmp_path / "run"), "--quiet"]
    assert main(["--pairs", str(tmp_path / "absent"), *where]) == 1
    assert "no such file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    pairs = write_pairs(tmp_path / "pairs.jsonl", make_pairs(10))
    assert main(["--pairs", str(pairs), *where, "--resume"]) == 1
    assert "no run to resume" in capsys.readouterr().err
    assert main(["--pairs", str(pairs), "--eval-pairs", str(pairs), *where]) == 1
    assert "that of memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["--seed", "-1"], "seed is -1, but must be a whole number from 0"),
        (["--learning-rate", "nan"], "learning_rate is nan (float), but must be a finite number above 0, or None"),
        (["--batch-size", "10000000000"], "batch_size is 10000000000, but must be a whole number from 1"),
        (["--eval-share", "1"], "eval_share is 1.0 (float), but must be a finite number above 0 and below 1"),
        (["--width", "10", "--heads", "3"], "heads is 3, but must be a divisor of the width 10"),
        (["--log-dir", "~nobody of that name/a"], "a home that this machine does not know"),
    ],
)
def test_values_that_cannot_be_exit_with_two_and_one_line(
    wrong: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--pairs", "absent", "--log-dir", str(tmp_path / "run"), *wrong])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("InvalidArgumentError: ")
    assert message in line


def test_the_default_dtype_of_torch_changes_nothing(pairs_file: Path, tmp_path: Path) -> None:
    def trained(name: str) -> tuple[float, dict[str, torch.Tensor]]:
        config = RewardModelConfig(
            str(pairs_file), str(tmp_path / name), num_epochs=1, width=8, depth=1, heads=2, vocab_size=300, device="cpu"
        )
        outcome = train_reward_model(config, progress=False)
        return outcome.loss, load_file(tmp_path / name / "reward_model" / "model.safetensors")

    expected, weights = trained("float32")
    torch.set_default_dtype(torch.float64)
    try:
        found, others = trained("float64")
    finally:
        torch.set_default_dtype(torch.float32)
    assert found == pytest.approx(expected, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5)
