"""Prompts as users write them: templates with flanks and motifs, sets that are drawn from, and what is refused."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sepo_env  # noqa: F401 - registers the ids
from agents import DDPO
from sepo_env import tasks
from sepo_env.denoisers import TabularDenoiser
from sepo_env.diffusion.random import keys_from_seed
from sepo_env.errors import InvalidArgumentError, InvalidPromptError
from sepo_env.tasks import MASK_LETTER
from sepo_env.tasks.prompts import FREE, prompt_template, resolve_prompts

TOY = tasks.make("toy")  # 3 letters, length 4
KEYS = keys_from_seed(torch.arange(3))


def test_a_template_by_hand():
    assert FREE == MASK_LETTER
    assert prompt_template(10, "ACGT", flanks=("AC", "GT"), motifs={3: "TT", 6: "A?"}) == "AC?TT?A?GT"
    assert prompt_template(10, "ACGT", flanks=("", "GT")) == "????????GT"
    for pairs in ({"3": "TT"}, [(3, "TT")], [[3, "TT"]], ((np.int64(3), "TT"),)):
        assert prompt_template(6, "ACGT", motifs=pairs) == "???TT?"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"motifs": {2: "TGA", 4: "CC"}}, "both cover position 4"),
        ({"flanks": ("ACGT", ""), "motifs": {3: "A"}}, "first flank both cover position 3"),
        ({"flanks": ("ACGTAC", "ACGTAC")}, "both cover"),
        ({"motifs": {8: "TGA"}}, "positions 8 to 10, but there are 0 to 9"),
        ({"motifs": {-1: "TGA"}}, "positions -1 to 1"),
        ({"motifs": {2: "TGN"}}, "holds 'N'"),
        ({"motifs": {2: "tga"}}, "holds 't'"),
        ({"motifs": {2: ""}}, "is empty"),
        ({"motifs": {"x": "A"}}, "no position"),
        ({"motifs": [(1.5, "A")]}, "no position"),
        ({"flanks": "ACGT"}, "two strings"),
        ({"flanks": ("A", "C", "G")}, "two strings"),
        ({"flanks": ("A" * 11, "")}, "0 to 9"),
        ({"flanks": ("ACGTA", "ACGTA")}, "nothing is left"),
    ],
)
def test_templates_that_do_not_fit_are_refused(options, words):
    with pytest.raises(InvalidPromptError, match=words):
        prompt_template(10, "ACGT", **options)


@given(
    st.text("ACGT", max_size=4),
    st.text("ACGT", max_size=4),
    st.integers(4, 12),
    st.text("ACGT?", min_size=1, max_size=4),
)
def test_a_template_holds_its_parts_and_nothing_else(first, last, start, motif):
    template = prompt_template(20, "ACGT", flanks=(first, last), motifs={start: motif})
    assert len(template) == 20
    assert template.startswith(first)
    assert template.endswith(last)
    assert template[start : start + len(motif)] == motif
    assert sum(letter != FREE for letter in template) == len(first + last + motif) - motif.count(FREE)


def test_dna_with_flanks_and_motifs():
    task = tasks.make("dna_enhancer", flanks=("ACGT", "TT"), motifs={96: "TGACTCA"})
    assert task.conditional
    text = task.decode(task.prompt(KEYS))
    assert len(set(text)) == 1
    assert (text[0][:4], text[0][-2:], text[0][96:103]) == ("ACGT", "TT", "TGACTCA")
    assert text[0].count("?") == 200 - 13
    written_out = tasks.make("dna_enhancer", prompt=text[0])
    assert torch.equal(written_out.prompt(KEYS), task.prompt(KEYS))
    with pytest.raises(InvalidArgumentError, match="prompt gives all"):
        tasks.make("dna_enhancer", prompt=text[0], motifs={3: "A"})
    for bad in ("ACGT", "A" * 200, "N" + "?" * 199, []):
        with pytest.raises(InvalidPromptError):
            tasks.make("dna_enhancer", prompt=bad)
    assert not tasks.make("dna_enhancer").conditional


def test_dna_in_gym_and_from_a_spec_written_as_json():
    tiny = TabularUniformDNA()
    env = gym.make("DNAEnhancer-v0", motifs={96: "TGACTCA"}, flanks=("GG", ""), num_steps=2, reward="gc", denoiser=tiny)
    observation, _ = env.reset(seed=0)
    assert observation["prompt_mask"].sum() == 9
    info: dict = {}
    while "sequence" not in info:
        *_, info = env.step(env.unwrapped.pretrained_action())
    sequence = info["sequence"]
    assert (sequence[:2], sequence[96:103]) == ("GG", "TGACTCA")
    assert info["reward_terms"]["reward"] == pytest.approx(sum(c in "GC" for c in sequence) / 200)  # of all of it
    observation, _ = env.reset(options={"prompt": "ACGT" + "?" * 196})  # goes before the task's own
    assert observation["prompt_mask"].sum() == 4
    spec = gym.make_vec("DNAEnhancer-v0", num_envs=2, motifs={96: "TGACTCA"}, num_steps=2, reward="gc").spec
    again = gym.envs.registration.EnvSpec.from_json(spec.to_json())
    assert json.loads(spec.to_json())["kwargs"]["motifs"] == {"96": "TGACTCA"}
    envs = gym.make_vec(again, num_envs=2)
    assert envs.reset(seed=0)[0]["prompt_mask"].sum(-1).tolist() == [7, 7]


class TabularUniformDNA(TabularDenoiser):
    """Every base alike, at any length: what DNA costs nothing to denoise with."""

    def __init__(self):
        super().__init__(4, 1, vocab_size=5)
        self.length = None

    def forward(self, tokens, time):
        return self.logits[0].log_softmax(-1).expand(*tokens.shape, 4)


def test_an_agent_keeps_the_motifs_in_training_and_in_samples():
    task = tasks.make("dna_enhancer", motifs={50: "TGACTCA"}, denoiser=TabularUniformDNA())
    agent = DDPO(task, reward="gc", batch_size=4, num_steps=3, num_iterations=1, eval_every=0, group_size=2)
    agent.train(progress=False)
    assert all(s[50:57] == "TGACTCA" for s in agent.sample(5, seed=0))
    assert all(s[:2] == "GG" for s in agent.sample(5, seed=0, prompt="GG" + "?" * 198))


def test_several_prompts_are_drawn_evenly_and_by_the_key_alone():
    task = tasks.make("toy")
    task.start_from(["A???", "?B??", "???C"])
    drawn = task.prompt(keys_from_seed(torch.arange(3000)))
    _, counts = drawn.unique(dim=0, return_counts=True)
    assert counts.tolist() == pytest.approx([1000] * 3, abs=4 * (3000 * 2 / 9) ** 0.5)
    assert torch.equal(drawn[7:9], task.prompt(keys_from_seed(torch.arange(7, 9))))


def test_prompts_in_every_spelling():
    same = [
        ["A??C"] * 3,
        "A??C",
        [0, 3, -1, 2],
        np.array([[0, -1, 3, 2]] * 3),
        torch.tensor([0, 3, 3, 2], dtype=torch.int32),
        ("A??C",) * 3,
    ]
    for prompt in same:
        resolved = resolve_prompts(TOY, prompt, KEYS)
        assert resolved.tolist() == [[0, 3, 3, 2]] * 3
        assert resolved.dtype == torch.int64
    assert resolve_prompts(TOY, None, KEYS) is None
    assert resolve_prompts(TOY, ["A???", None, "?B??"], KEYS).tolist() == [[0, 3, 3, 3], [3, 3, 3, 3], [3, 1, 3, 3]]
    prompted = tasks.make("toy", prompted=True)
    own = prompted.prompt(KEYS)
    assert torch.equal(resolve_prompts(prompted, None, KEYS), own)
    assert torch.equal(resolve_prompts(prompted, ["A???", None, "?B??"], KEYS)[1], own[1])
    assert torch.equal(own[1], prompted.prompt(KEYS)[1])  # not written into


@pytest.mark.parametrize(
    "prompt",
    [
        "A?",
        "AX??",
        ["A???"] * 2,
        ["A???", 3, "A???"],
        [],
        [0.5, 1, 1, 1],
        torch.zeros(2, 4).long(),
        {},
        7,
        [[0, 1], [2]],
        True,
    ],
)
def test_what_is_no_prompt_is_refused(prompt):
    with pytest.raises(InvalidPromptError):
        resolve_prompts(TOY, prompt, KEYS)
