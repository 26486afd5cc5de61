"""The language world: prompts as text, two rewards that keep apart, and its metrics."""

import sys

import gymnasium as gym
import numpy as np
import pytest
import torch

from sepo_env import tasks
from sepo_env.denoisers import Denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.errors import (
    HeldOutRewardError,
    InvalidArgumentError,
    InvalidPromptError,
    InvalidTokensError,
    MissingExtraError,
)
from sepo_env.tasks.text_sentiment import TextSentimentTask
from sepo_env.tasks.tokenizer import TokenizerTask

VERSE = "and god saw the light, that it was good: and god divided the light from the darkness"


def filled(task: TextSentimentTask, *texts: str) -> torch.Tensor:
    """Finished sequences: what is free is filled with "the"."""
    tokens = task.encode(texts)
    return torch.where(tokens == task.num_tokens, int(task.encode(["the"])[0, 0]), tokens)


@pytest.fixture(scope="module")
def task() -> TextSentimentTask:
    return TextSentimentTask()


class Uniform(Denoiser):
    """Every token is as likely as the others."""

    num_tokens, length, parameterisation, time_conditioned = 2048, None, "posterior", False

    def forward(self, tokens, time):
        return torch.full((*tokens.shape, self.num_tokens), -float(np.log(self.num_tokens)))


def test_words_of_the_book_are_tokens(task) -> None:
    tokens = task.encode(["the lord is my shepherd;"])
    assert tokens.shape == (1, 24)
    assert [task.token_texts[token] for token in tokens[0, :6]] == [" the", " lord", " is", " my", " shepherd", ";"]
    assert (tokens[0, 6:] == task.num_tokens).all()
    assert task.decode(tokens)[0] == "the lord is my shepherd;" + " _" * 18


def test_what_is_no_text_is_refused(task) -> None:
    with pytest.raises(InvalidTokensError, match="list of strings"):
        task.encode("the lord")
    with pytest.raises(InvalidTokensError, match="'3'"):
        task.encode(["3 men"])
    with pytest.raises(InvalidTokensError, match="0 to 2048"):
        task.decode(torch.full((1, 24), 2049))


def test_the_codec_must_fit_the_graph(task) -> None:
    class Odd(TextSentimentTask):
        def __init__(self):
            TokenizerTask.__init__(
                self,
                name="odd",
                codec=task.codec,
                length=4,
                process=DiffusionProcess(Absorbing(7), LogLinear()),
                num_steps=4,
            )

    with pytest.raises(InvalidArgumentError, match="2048 tokens, but the graph 7"):
        Odd()


@pytest.mark.parametrize("prompt", ["the lord is my", "_ _ is my _ , and", ["the lord", "and he"]])
def test_episodes_keep_their_prompts(prompt) -> None:
    env = gym.make("TextSentiment-v0", prompt=prompt, num_steps=3, denoiser=Uniform())
    task = env.unwrapped.task
    observation, _ = env.reset(seed=0)
    given = observation["prompt_mask"].astype(bool)
    prompts = task.encode([prompt] if isinstance(prompt, str) else prompt).numpy()
    start = observation["tokens"].copy()
    assert any((start == row).all() for row in prompts)
    assert (given == (start < task.num_tokens)).all()
    for _ in range(3):
        observation, _, terminated, _, _ = env.step(env.unwrapped.pretrained_action())
        assert (observation["tokens"][given] == start[given]).all()
    assert terminated


def test_a_reset_takes_a_text_and_refuses_one_that_does_not_fit() -> None:
    env = gym.make("TextSentiment-v0", num_steps=2, denoiser=Uniform())
    observation, info = env.reset(seed=0, options={"prompt": "blessed are"})
    assert info["prompt_mask"].tolist() == [True] * 2 + [False] * 22
    assert env.unwrapped.task.decode(torch.from_numpy(observation["tokens"])[None])[0].startswith("blessed are _")
    with pytest.raises(InvalidPromptError, match="does not fit"):
        env.reset(options={"prompt": "and " * 25})


def test_the_judge_never_trains_and_the_trainer_never_judges(task) -> None:
    for spec in ("vader", {"sentiment": 1.0, "vader": 0.1}):
        with pytest.raises(HeldOutRewardError):
            task.make_reward(spec)
    with pytest.raises(HeldOutRewardError):
        task.judge("sentiment")
    assert (task.make_reward().name, task.judge().name) == ("sentiment", "vader")


def test_without_its_package_the_judge_says_what_to_install(task, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingExtraError, match="text"):
        task.judge()
    assert task.make_reward()(filled(task, VERSE)).shape == (1,)


def test_both_rewards_tell_praise_from_slaughter(task) -> None:
    tokens = filled(
        task,
        "o give thanks unto the lord; for he is good: for his mercy is great",
        "and they slew the wicked with the sword, and there was great anger, and evil, and death",
    )
    for reward in (task.make_reward(), task.judge()):
        good, evil = reward(tokens).tolist()
        assert good > 0.5
        assert evil < -0.5


def test_letters_are_counted_without_blanks(task) -> None:
    assert task.make_reward("letters")(filled(task, "lord, and")).tolist() == pytest.approx([(4 + 1 + 22 * 3) / 24])


def test_metrics_of_equal_texts_are_known(task) -> None:
    tokens = filled(task, VERSE).repeat(4, 1)
    figures = task.metrics(tokens, likelihood_samples=2)
    score = float(task.judge()(tokens)[0])
    for name in ("held_out_mean", "held_out_q05", "held_out_median", "held_out_q95"):
        assert figures[name] == pytest.approx(score, abs=1e-6)
    assert figures["oracle_gap"] == pytest.approx(figures["training_median"] - score, abs=1e-6)
    assert figures["uniqueness"] == 0.25
    assert figures["mean_hamming"] == figures["nearest_hamming"] == figures["position_entropy"] == 0.0
    assert figures["distinct_1"] == pytest.approx(len(set(tokens[0].tolist())) / 96)
    assert "log_likelihood_median" not in task.metrics(tokens, likelihood_samples=0)


def test_a_denoiser_that_knows_nothing_gives_the_uniform_likelihood() -> None:
    task = TextSentimentTask(denoiser=Uniform())
    bounds = task.log_likelihood(torch.zeros(80, 24, dtype=torch.int64), num_steps=6)
    # On average over the noise -L log V; each draw weighs the masks that it happens to see.
    assert bounds.dtype == torch.float64
    error = float(bounds.std() / 80**0.5)
    assert float(bounds.mean()) == pytest.approx(-24 * np.log(2048), abs=4 * error)
    assert error < 5.0


def test_the_pretrained_denoiser_finds_its_book_likelier_than_shuffled_words(task) -> None:
    tokens = filled(task, VERSE).repeat(8, 1)
    shuffled = torch.stack([line[torch.randperm(24)] for line in tokens])
    assert task.log_likelihood(tokens).mean() > task.log_likelihood(shuffled).mean() + 20


def test_it_is_made_by_name() -> None:
    assert isinstance(tasks.make("text_sentiment", prompt="in the beginning"), TextSentimentTask)
