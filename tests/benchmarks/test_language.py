"""The evaluation of language models: figures of the texts that are written, sides with the same prompts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import language
import pandas as pd
import pytest

from agents import REINFORCE
from sepo_env import tasks
from sepo_env.errors import InvalidArgumentError
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
    assert {path.name for path in folder.iterdir()} == {"language.csv", "language.md", "language.png", "samples.csv"}
    assert (folder / "language.md").read_text().strip() in capsys.readouterr().out
    table, texts = pd.read_csv(folder / "language.csv"), pd.read_csv(folder / "samples.csv")
    assert table[["side", "steps"]].to_numpy().tolist() == [[s, k] for k in (2, 4) for s in ("pretrained", "mine")]
    task, perplexity = tasks.make("text_rlhf"), Perplexity(options.perplexity_model or "")
    for row in table.itertuples():
        chosen = texts[(texts["side"] == row.side) & (texts["steps"] == row.steps)]
        tokens = task.encode(list(chosen["text"]))
        assert row.perplexity == pytest.approx(perplexity(list(chosen["text"])))
        assert row.held_out_mean == pytest.approx(float(task.judge()(tokens).mean()), abs=1e-6)
        if bool((tokens < task.num_tokens).all()):  # a text may be spelled in fewer tokens than it was written with
            assert row.distinct_2 == pytest.approx(float(distinct_n(tokens, 2)), abs=0.05)
    # The untrained agent is the pretrained denoiser: the same prompts, the same texts, no winner.
    for _, group in texts.groupby("steps"):
        ours, theirs = (group[group["side"] == side].reset_index(drop=True) for side in ("mine", "pretrained"))
        assert ours["text"].tolist() == theirs["text"].tolist()
        assert all(text.startswith(p) for p, text in zip(ours["prompt"], ours["text"], strict=True))
    assert table["win_rate"].tolist() == pytest.approx([0.5] * 4)


def test_win_rates_are_against_the_pretrained_denoiser(options: language.Options) -> None:
    task = tasks.make("text_rlhf")
    drawers = language.sides(task, options)
    drawers["mine"] = lambda steps, seed, draw=drawers["pretrained"]: draw(steps, seed + 1000)  # type: ignore[misc]
    given = language.prompts_of(task, 6, options.seed)
    assert given is not None
    table, texts = language.evaluate(task, drawers, options, judge=judge)
    assert "perplexity" not in table
    chosen = texts[texts["steps"] == 2]
    ours, theirs = (chosen[chosen["side"] == side] for side in ("mine", "pretrained"))
    games = play(judge, list(ours["prompt"]), list(ours["response"]), list(theirs["response"]))
    row = table[(table["side"] == "mine") & (table["steps"] == 2)].iloc[0]
    assert (row["win_rate"], row["win_rate_length_controlled"]) == (games.raw, games.length_controlled)


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
    path.write_text("1 / 0")
    with pytest.raises(InvalidArgumentError, match="fails with ZeroDivisionError"):
        language.load_judge(f"{path}:ask")
    with pytest.raises(InvalidArgumentError, match="one of them judges"):
        language.main(language.Options(**{**chosen, "judge_model": path}), "command")
