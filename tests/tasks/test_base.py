"""The common part of tasks: letters and tokens, denoisers, rewards by role."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sepo_env import tasks
from sepo_env.denoisers import TabularDenoiser, save_denoiser
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.errors import (
    HeldOutRewardError,
    InvalidArgumentError,
    InvalidShapeError,
    InvalidTokensError,
    UnknownNameError,
)
from sepo_env.rewards import Reward
from sepo_env.tasks.toy import ToyTask


@given(st.lists(st.text("ABC?", min_size=4, max_size=4), max_size=5))
def test_decoding_undoes_encoding(sequences):
    task = tasks.make("toy")
    tokens = task.encode(sequences)
    assert tokens.shape == (len(sequences), 4)
    assert tokens.dtype == torch.int64
    assert task.decode(tokens) == sequences


def test_letters_stand_for_tokens_in_order():
    task = tasks.make("toy", num_tokens=4)
    assert task.encode(["ABCD", "D?AA"]).tolist() == [[0, 1, 2, 3], [3, 4, 0, 0]]


@pytest.mark.parametrize(
    ("sequences", "words"),
    [
        (["ABCA", "ABX?"], "sequence 1 has 'X' at position 2"),
        (["ABCA", "ABC"], "sequence 1 has 3 letters"),
        ("ABCA", "list"),
    ],
)
def test_sequences_that_cannot_be_encoded_are_named(sequences, words):
    with pytest.raises(InvalidTokensError, match=words):
        tasks.make("toy").encode(sequences)


def test_tokens_that_cannot_be_decoded_are_refused():
    task = tasks.make("toy")
    with pytest.raises(InvalidTokensError, match="0 to 4"):
        task.decode(torch.tensor([[0, 1, 2, 4]]))
    with pytest.raises(InvalidTokensError, match="-1"):
        task.decode(torch.tensor([[0, 1, 2, -1]]))
    with pytest.raises(InvalidShapeError):
        task.decode(torch.tensor([0, 1, 2, 2]))


def test_a_denoiser_is_shared_or_copied():
    task = tasks.make("toy")
    assert task.denoiser is task.denoiser
    assert not task.denoiser.training
    copy = task.load_denoiser()
    assert copy is not task.denoiser
    assert torch.equal(copy.logits, task.denoiser.logits)
    with torch.no_grad():
        copy.logits += 1.0
    assert not torch.equal(copy.logits, task.denoiser.logits)
    assert torch.equal(task.load_denoiser().logits, task.denoiser.logits)


def test_another_denoiser_is_given_live_or_by_path(tmp_path):
    given = TabularDenoiser(3, 4, 4)
    save_denoiser(given, tmp_path / "toy.safetensors")
    live, read = ToyTask(denoiser=given), ToyTask(denoiser=tmp_path / "toy.safetensors")
    assert live.denoiser is given
    assert live.load_denoiser() is not given
    for task in (live, read):
        assert torch.equal(task.denoiser.logits, given.logits)
        assert torch.equal(task.load_denoiser().logits, given.logits)


def test_a_denoiser_of_another_space_is_refused():
    with pytest.raises(InvalidArgumentError, match="length 5"):
        _ = ToyTask(denoiser=TabularDenoiser(3, 5, 4)).denoiser
    with pytest.raises(InvalidArgumentError, match="2 tokens"):
        ToyTask(denoiser=TabularDenoiser(2, 4, 3)).load_denoiser()


class Scored(Reward):
    """A constant with a role."""

    def __init__(self, name, role):
        self.name = name
        self.role = role

    def score(self, tokens):
        return torch.ones(len(tokens))


class Judged(ToyTask):
    """The toy with one reward for each role."""

    training_reward = "proxy"
    held_out_reward = "truth"

    def rewards(self):
        roles = {"proxy": "training", "truth": "held_out", "both": "any"}
        return {name: (lambda name=name, role=role: Scored(name, role)) for name, role in roles.items()}


def test_the_held_out_reward_judges_and_never_trains():
    task = Judged()
    assert task.make_reward().name == "proxy"
    assert task.judge().name == "truth"
    assert task.make_reward("both").name == task.judge("both").name == "both"
    for spec in ("truth", {"both": 1.0, "truth": 0.1}, Scored("mine", "held_out")):
        with pytest.raises(HeldOutRewardError):
            task.make_reward(spec)
    with pytest.raises(HeldOutRewardError):
        task.judge("proxy")
    with pytest.raises(UnknownNameError, match="truth"):
        task.judge("trut")


@pytest.mark.parametrize("alphabet", ["ABC", "ABCDE", "AABC", "ABC?"])
def test_an_alphabet_has_a_letter_for_each_token(alphabet):
    class Odd(ToyTask):
        def __init__(self):
            tasks.AlphabetTask.__init__(
                self,
                name="odd",
                alphabet=alphabet,
                length=2,
                process=DiffusionProcess(Absorbing(4), LogLinear()),
                num_steps=2,
            )

    with pytest.raises(InvalidArgumentError):
        Odd()


def test_tasks_are_made_by_name():
    assert isinstance(tasks.make("toy"), ToyTask)
    assert tasks.make("toy", length=2).length == 2
    with pytest.raises(UnknownNameError, match="did you mean 'dna_enhancer'"):
        tasks.make("dna_enhancers")


@pytest.mark.parametrize("name", sorted(tasks.TASKS))
def test_what_is_no_finished_sequence_is_neither_measured_nor_likely(name):
    task = tasks.make(name)
    good = torch.zeros(2, task.length, dtype=torch.int64)
    for wrong, words, kind in [
        (torch.zeros(2, task.length - 1, dtype=torch.int64), "tokens has shape", InvalidShapeError),
        (good[0], "tokens has shape", InvalidShapeError),
        (good.float(), "dtype", InvalidTokensError),
        (good + task.num_tokens, "denoise them first", InvalidTokensError),
        (good + task.num_tokens + 1, "ids from", InvalidTokensError),
        (good - 1, "ids from", InvalidTokensError),
        (None, "tokens is None", InvalidArgumentError),
        ([[0] * task.length], "tokens is", InvalidArgumentError),
    ]:
        for measure in (task.metrics, task.log_likelihood):
            with pytest.raises(kind, match=words):
                measure(wrong)
    with pytest.raises(InvalidShapeError, match="B from 1"):
        task.metrics(good[:0])
    assert task.log_likelihood(good[:0]).shape == (0,)
    for mask, kind in [
        (torch.ones(2, 1, dtype=torch.bool), InvalidShapeError),
        (torch.ones(2, task.length), InvalidArgumentError),
        ("all", InvalidArgumentError),
    ]:
        for measure in (task.metrics, task.log_likelihood):
            with pytest.raises(kind, match="prompt_mask"):
                measure(good, prompt_mask=mask)
