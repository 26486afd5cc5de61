"""The evaluation of language models: figures of the texts that are written, sides with the same prompts."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from agents import REINFORCE
from benchmarks import language
from sepo_env import tasks
from sepo_env.assets import asset_path
from sepo_env.errors import InvalidArgumentError, RewardError, UnknownOptionError
from sepo_env.files import LOCK_FILE
from sepo_env.tasks.language_metrics import Perplexity, play
from sepo_env.tasks.metrics import distinct_n

spec = importlib.util.spec_from_file_location("hf_models", Path(__file__).parents[1] / "hf_models.py")
assert spec is not None
assert spec.loader is not None
hf_models = importlib.util.module_from_spec(spec)
sys.modules.setdefault("hf_models", hf_models)
spec.loader.exec_module(hf_models)


def judge(prompt: str, first: str, second: str) -> float:
    return 0.5 + 0.4 * (("," in first) - ("," in second))


@pytest.fixture
def options(tmp_path: Path) -> language.Options:
    REINFORCE("TextRLHF-v0", device="cpu").save(tmp_path / "mine" / "agent")
    tokenizer = hf_models.make_tokenizer(tuple([*hf_models.SPECIALS, "the", "and", "of"]))
    library = hf_models.transformers()
    config = library.GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=8, n_layer=1, n_head=2)
    library.GPT2LMHeadModel(config).save_pretrained(tmp_path / "causal")
    tokenizer.save_pretrained(tmp_path / "causal")
    return language.Options(
        agents=(tmp_path / "mine" / "agent",),
        steps=(2, 4),
        num_samples=6,
        batch_size=4,
        perplexity_model=tmp_path / "causal",
        output=tmp_path / "out",
    )


def test_the_table_is_of_the_texts_that_are_written(options: language.Options, capsys) -> None:  # type: ignore[no-untyped-def]
    assert language.main(options, "command", judge=judge) == 0
    folder = options.output
    assert {path.name for path in folder.iterdir()} == {
        "language.csv", "language.md", "language.png", "samples.csv", LOCK_FILE,
    }  # fmt: skip
    assert (folder / "language.md").read_text().strip() in capsys.readouterr().out
    table, texts = pd.read_csv(folder / "language.csv"), pd.read_csv(folder / "samples.csv")
    assert table[["side", "steps"]].to_numpy().tolist() == [[s, k] for k in (2, 4) for s in ("pretrained", "mine")]
    task, perplexity = tasks.make("text_rlhf"), Perplexity(options.perplexity_model or "")
    draw = language.sides(task, options)
    for row in table.itertuples():
        chosen = texts[(texts["side"] == row.side) & (texts["steps"] == row.steps)]
        tokens = task.encode(list(chosen["text"]))
        given = list(chosen["prompt"])
        assert row.perplexity == pytest.approx(perplexity(list(chosen["text"]), given))
        assert row.perplexity != pytest.approx(perplexity(list(chosen["text"])))
        assert row.held_out_mean == pytest.approx(float(task.judge()(tokens).mean()), abs=1e-6)
        # Drawn again: a text may be spelled in fewer tokens than it was written with.
        drawn = draw[row.side](row.steps, options.seed)
        assert task.decode(drawn) == list(chosen["text"])
        assert row.distinct_2 == distinct_n(drawn, 2, task.encode(given) == task.num_tokens)
    lines = asset_path("text_rlhf_prompts.jsonl").read_text().splitlines()
    beginnings = {json.loads(line)["prompt"] for line in lines}
    # The untrained agent is the pretrained denoiser: the same prompts, the same texts, no winner.
    for _, group in texts.groupby("steps"):
        ours, theirs = (group[group["side"] == side].reset_index(drop=True) for side in ("mine", "pretrained"))
        assert ours["text"].tolist() == theirs["text"].tolist()
        assert ours["text"].tolist() == (ours["prompt"] + ours["response"]).tolist()
        assert set(ours["prompt"]) <= beginnings
    assert table["win_rate"].tolist() == pytest.approx([0.5] * 4)


def test_win_rates_are_against_the_pretrained_denoiser(options: language.Options) -> None:
    task = tasks.make("text_rlhf")
    drawers = language.sides(task, options)
    drawers["mine"] = lambda steps, seed, draw=drawers["pretrained"]: draw(steps, seed + 1000)  # type: ignore[misc]
    given = language.prompts_of(task, 6, options.seed)
    assert given is not None

    def judge(prompt: str, first: str, second: str) -> float:
        return 0.5 + 0.4 * ((first > second) - (first < second))

    table, texts = language.evaluate(task, drawers, options, judge=judge)
    assert "perplexity" not in table
    chosen = texts[texts["steps"] == 2]
    ours, theirs = (chosen[chosen["side"] == side] for side in ("mine", "pretrained"))
    games = play(judge, list(ours["prompt"]), list(ours["response"]), list(theirs["response"]))
    row = table[(table["side"] == "mine") & (table["steps"] == 2)].iloc[0]
    assert (row["win_rate"], row["win_rate_length_controlled"]) == (games.raw, games.length_controlled)
    assert row["win_rate_low"] <= row["win_rate"] <= row["win_rate_high"]
    assert ours["win"].mean() == pytest.approx(games.raw)
    report = language.write_results(table, texts, options.output, "command")
    assert f"{games.raw:.3f} [{row['win_rate_low']:.3f}, {row['win_rate_high']:.3f}]" in report


def test_what_is_done_survives_a_failing_judge(options: language.Options) -> None:
    asked = []

    def failing(prompt: str, first: str, second: str) -> float:
        asked.append(prompt)
        if len(asked) > 12:  # both orders of six texts: the second number of steps
            raise ConnectionError("no route")
        return 0.5

    options.output.mkdir()
    (options.output / "language.md").write_text("of an earlier run")
    with pytest.raises(RewardError, match="ConnectionError: no route") as caught:
        language.main(options, "command", judge=failing)
    assert caught.value.__notes__ == [f"What was done until then is in {options.output}."]
    assert {path.name for path in options.output.iterdir()} == {"language.csv", "samples.csv", LOCK_FILE}
    table, texts = (pd.read_csv(options.output / name) for name in ("language.csv", "samples.csv"))
    assert table[["side", "steps"]].to_numpy().tolist() == [[s, k] for k in (2, 4) for s in ("pretrained", "mine")]
    assert table["win_rate"].isna().tolist() == [False, False, False, True]
    assert table["perplexity"].notna().all()
    assert len(texts) == 24


def test_ctrl_c_keeps_the_texts(options: language.Options) -> None:
    def interrupted(prompt: str, first: str, second: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        language.main(options, "command", judge=interrupted)
    assert str(options.output) in caught.value.__notes__[0]
    assert len(pd.read_csv(options.output / "samples.csv")) == 12


class Wordless:
    """The parts of a task that texts are parted with: pieces that begin with "##" belong to the word before."""

    num_tokens = 4
    pieces = ("sun", "##day", "is", "_")

    def decode(self, tokens: torch.Tensor) -> list[str]:
        return [" ".join(self.pieces[i] for i in row).replace(" ##", "") for row in tokens.tolist()]


def test_responses_are_read_in_the_context_of_their_prompts() -> None:
    task = Wordless()
    tokens = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2]])
    given = torch.tensor([[0, 4, 4], [4, 1, 4], [4, 4, 4], [0, 1, 4]])
    prompts, responses = language.prompts_and_responses(task, tokens, given)  # type: ignore[arg-type]
    # A given token behind a free one: no prompt, and the whole is the response.
    assert prompts == ["sun", "", "", "sunday"]
    assert responses == ["day is", "sunday is", "sunday is", " is"]


def test_an_agent_of_a_reward_that_only_its_trainer_had(options: language.Options, tmp_path: Path) -> None:
    denoiser = hf_models.save_masked_lm(tmp_path / "lm")
    task = tasks.make("text_rlhf", denoiser=denoiser, length=6)
    REINFORCE(task, reward=lambda texts: [len(text) for text in texts], device="cpu").save(tmp_path / "own" / "agent")
    given = json.dumps({"denoiser": str(denoiser), "length": 6})
    fields = {"task_options": given, "agents": (tmp_path / "own" / "agent",), "perplexity_model": None}
    assert language.main(language.Options(**{**vars(options), **fields}), "command") == 0
    assert set(pd.read_csv(options.output / "language.csv")["side"]) == {"pretrained", "own"}


def test_a_judge_that_was_trained_on_is_pointed_out(options: language.Options, tmp_path: Path) -> None:
    reward_model = hf_models.save_classifier(tmp_path / "judge")
    fields = {"judge_model": reward_model, "perplexity_model": None, "steps": (2,)}
    reward = json.dumps({"reward_model": f"{tmp_path}/mine/../judge"})
    for task_options, pointed_out in [(reward, True), ("{}", False)]:
        chosen = language.Options(**{**vars(options), **fields, "task_options": task_options})
        assert language.main(chosen, "command") == 0
        assert ("training maximised" in (options.output / "language.md").read_text()) is pointed_out


def test_an_option_that_the_task_does_not_have(options: language.Options) -> None:
    with pytest.raises(UnknownOptionError, match="did you mean 'reward_model'.*It takes: denoiser, "):
        language.main(language.Options(**{**vars(options), "task_options": '{"rewardmodel": "x"}'}), "")


@pytest.mark.parametrize("wrong", [{"steps": ()}, {"num_samples": 1}, {"task_options": "["}, {"task_options": "[1]"}])
def test_wrong_options_are_refused_before_anything_is_written(options: language.Options, wrong: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(InvalidArgumentError):
        language.main(language.Options(**{**vars(options), **wrong}), "")
    assert not options.output.exists()


def test_a_judge_of_the_users_own_by_the_name_of_its_file(options: language.Options, tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def ask(prompt, first, second):\n    return first > second\n\nnothing = 3\n")
    assert language.load_judge(f"{path}:ask")("", "b", "a") is True
    chosen = {**vars(options), "judge": f"{path}:ask", "perplexity_model": None, "steps": (2,)}
    assert language.main(language.Options(**chosen), "command") == 0
    assert "win_rate_length_controlled" in pd.read_csv(options.output / "language.csv")
    for name, message in [
        (f"{path}:nothing", "no function 'nothing'"),
        (f"{path}:absent", "no function 'absent'"),
        (str(path), "names no file"),
        (f"{tmp_path / 'absent.py'}:ask", "names no file"),
        ("os:getcwd", "names no file"),
    ]:
        with pytest.raises(InvalidArgumentError, match=message):
            language.load_judge(name)
    (tmp_path / "beside_the_judge.py").write_text("SURE = 1.0\n")
    path.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom beside_the_judge import SURE\n"
        "@dataclass\nclass Judge:\n    answer: float = SURE\n"
        "    def __call__(self, prompt, first, second):\n        return self.answer\nask = Judge()\n"
    )
    assert language.load_judge(f"{path}:ask")("", "b", "a") == 1.0
    path.write_text("1 / 0")
    with pytest.raises(InvalidArgumentError, match="fails with ZeroDivisionError"):
        language.load_judge(f"{path}:ask")
    with pytest.raises(InvalidArgumentError, match="one of them judges"):
        language.main(language.Options(**{**chosen, "judge_model": path}), "command")


def test_the_judge_that_ships_prefers_the_cheerful_text() -> None:
    judge = language.load_judge(str(Path(language.__file__).with_name("vader_judge.py")) + ":more_cheerful")
    good, evil = "praise and joy", "blood and evil"
    answers = [judge("the lord", *pair) for pair in ((good, evil), (evil, good), (good, good), ("and", "the"))]
    assert answers == [1.0, 0.0, 0.5, 0.5]
