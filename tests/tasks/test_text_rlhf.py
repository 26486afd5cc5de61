"""Prompts from files, denoisers and rewards by path, and the vocabulary of GPT-2 at full length."""

import importlib.util
import json
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from agents import SEPO, Agent
from agents.train import main as train
from sepo_env import tasks
from sepo_env.denoisers import (
    ClassifierFreeGuidance,
    MDLMConfig,
    MDLMDenoiser,
    SEDDConfig,
    SEDDDenoiser,
    save_denoiser,
)
from sepo_env.diffusion.likelihood import elbo
from sepo_env.errors import (
    CheckpointError,
    HeldOutRewardError,
    InvalidArgumentError,
    InvalidPromptError,
)
from sepo_env.rewards import token_reward
from sepo_env.tasks.hf_codec import HuggingFaceCodec
from sepo_env.tasks.prompt_file import read_prompts
from sepo_env.tasks.text_rlhf import TextRLHFTask

spec = importlib.util.spec_from_file_location("hf_models", Path(__file__).parents[1] / "hf_models.py")
hf_models = importlib.util.module_from_spec(spec)
sys.modules.setdefault("hf_models", hf_models)
spec.loader.exec_module(hf_models)

SIZES = {"width": 8, "depth": 1, "heads": 2, "cond_width": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders and files of tiny models."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    tokenizer = hf_models.make_tokenizer()
    tokenizer.save_pretrained(root / "tokenizer")
    save_denoiser(MDLMDenoiser(MDLMConfig(num_tokens=11, **SIZES)), root / "mdlm.safetensors")
    for graph in ("absorbing", "uniform"):
        save_denoiser(SEDDDenoiser(SEDDConfig(num_tokens=11, graph=graph, **SIZES)), root / f"{graph}.safetensors")
    hf_models.save_masked_lm(root / "masked")
    hf_models.save_classifier(root / "reward")
    hf_models.save_classifier(root / "labels", num_labels=2)
    (root / "prompts.jsonl").write_text('{"prompt": "a b", "id": 1}\n\n{"prompt": "c"}\n')
    return root


def test_what_ships_runs_and_keeps_its_prompts() -> None:
    env = gym.make("TextRLHF-v0", num_steps=3)
    task = env.unwrapped.task
    shipped = [row.split(" _")[0] for row in task.decode(task.prompt_set.tokens)]
    observation, _ = env.reset(seed=0)
    for _ in range(3):
        observation, reward, terminated, _, _ = env.step(env.unwrapped.pretrained_action())
    (text,) = task.decode(torch.from_numpy(observation["tokens"])[None])
    assert terminated
    assert len(shipped) == len(set(shipped)) == 8
    assert sum(text.startswith(prompt) for prompt in shipped) == 1
    assert reward == pytest.approx(float(task.make_reward()(torch.from_numpy(observation["tokens"])[None])))
    assert task.judge().name == "vader"


@pytest.mark.parametrize("kind", ["mdlm.safetensors", "absorbing.safetensors", "uniform.safetensors", "masked"])
def test_any_denoiser_writes_after_the_prompts_for_any_reward(kind, folders) -> None:
    given = {} if kind == "masked" else {"tokenizer": folders / "tokenizer"}
    task = tasks.make(
        "text_rlhf",
        denoiser=folders / kind,
        prompts=folders / "prompts.jsonl",
        reward_model=folders / "reward",
        held_out_model=folders / "labels",
        held_out_label="LABEL_1",
        length=6,
        num_steps=3,
        **given,
    )
    graph = type(task.process.graph).__name__
    assert graph == ("Uniform" if kind.startswith("uniform") else "Absorbing")
    agent = SEPO(
        task,
        device="cpu",
        num_iterations=1,
        batch_size=4,
        group_size=2,
        num_steps=3,
        kl_coeff=0.0,
        eval_every=1,
        eval_samples=4,
        form="path" if graph == "Uniform" else "neighbours",  # a uniform graph has no masks to sum over
    )
    (row,) = agent.train(progress=False)
    assert row["held_out_reward"] == row["held_out_reward"]
    tokens = agent.sample_tokens(8, seed=0)
    texts = task.decode(tokens)
    assert all(text.startswith(("a b", "c")) for text in texts)
    # By hand: the classifier reads the decoded texts.
    model = hf_models.transformers().AutoModelForSequenceClassification.from_pretrained(folders / "reward")
    batch = [hf_models.make_tokenizer()(text, return_tensors="pt") for text in texts]
    with torch.no_grad():
        by_hand = torch.cat([model.eval()(**entry).logits[0] for entry in batch])
    torch.testing.assert_close(task.make_reward()(tokens), by_hand, atol=1e-5, rtol=1e-5)
    figures = task.metrics(tokens, likelihood_samples=2, num_likelihood_steps=2)
    assert figures["training_median"] == pytest.approx(float(by_hand.quantile(0.5)), abs=1e-4)
    assert torch.isfinite(torch.tensor(list(figures.values()))).all()


@pytest.mark.parametrize("kind", ["mdlm.safetensors", "absorbing.safetensors", "uniform.safetensors", "masked"])
def test_a_guided_denoiser_makes_the_world_of_its_network(kind, folders) -> None:
    given = {} if kind == "masked" else {"tokenizer": folders / "tokenizer"}
    plain = tasks.make("text_rlhf", denoiser=folders / kind, length=6, num_steps=3, **given)
    guided = ClassifierFreeGuidance(plain.load_denoiser(), 1.0)
    task = tasks.make("text_rlhf", denoiser=guided, length=6, num_steps=3, **given)
    assert task.process == plain.process
    assert task.mask_letter == plain.mask_letter
    assert task.token_texts == plain.token_texts
    assert task.denoiser is guided


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no", "line 3: no JSON .* write one object a line"),
        ('["a"]', "line 3: expected an object with 'prompt', found a list"),
        ('{"text": "a"}', "line 3: expected an object with 'prompt', found the entries \\['text'\\]"),
        ('{"prompt": " "}', "line 3: 'prompt' is ' ', expected a text"),
        ('{"prompt": "' + "and " * 25 + '"}', "line 3: .*25 tokens, but there is room for 24; shorten"),
        ('{"prompt": "3 men"}', "line 3: .*'3'"),
        ('{"prompt": "' + "and " * 24 + '"}', "line 3: .*nothing is left"),
    ],
)
def test_a_bad_line_is_named(line, message, tmp_path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "the lord"}\n\n' + line + "\n")
    with pytest.raises(InvalidPromptError, match=message):
        TextRLHFTask(prompts=path)


def test_files_without_prompts(tmp_path) -> None:
    with pytest.raises(InvalidPromptError, match="no such file"):
        read_prompts(tmp_path / "absent.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(InvalidPromptError, match="holds no prompt"):
        read_prompts(tmp_path / "empty.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InvalidPromptError, match="no text file"):
        read_prompts(tmp_path / "binary.jsonl")


def test_arguments_that_do_not_go_together(folders) -> None:
    with pytest.raises(InvalidArgumentError, match="both prompts"):
        TextRLHFTask(prompts=folders / "prompts.jsonl", prompt="the lord")
    with pytest.raises(HeldOutRewardError, match="to train and to judge"):
        TextRLHFTask(reward_model=folders / "reward", held_out_model=f"{folders}/./reward")
    with pytest.raises(InvalidArgumentError, match="brings no tokenizer"):
        TextRLHFTask(denoiser=folders / "mdlm.safetensors")
    with pytest.raises(InvalidArgumentError, match="brings its own tokenizer"):
        TextRLHFTask(denoiser=folders / "masked", tokenizer=folders / "tokenizer")
    with pytest.raises(InvalidArgumentError, match="from 1 to 10"):
        TextRLHFTask(denoiser=folders / "masked", length=11)
    with pytest.raises(CheckpointError, match="no such folder"):
        TextRLHFTask(denoiser=folders / "mdlm.safetensors", tokenizer=folders / "absent")
    small = MDLMDenoiser(MDLMConfig(num_tokens=4, **SIZES))
    with pytest.raises(InvalidArgumentError, match="9 tokens, but the denoiser reads 4"):
        TextRLHFTask(denoiser=small, tokenizer=folders / "tokenizer")
    bare = TextRLHFTask(denoiser=folders / "masked")
    assert not bare.conditional
    assert bare.length == 10
    with pytest.raises(InvalidArgumentError, match="give reward_model="):
        bare.make_reward()
    trained = TextRLHFTask(reward_model=folders / "reward")
    with pytest.raises(HeldOutRewardError):
        trained.judge("reward_model")


def test_texts_with_masks_survive_the_codec() -> None:
    codec = HuggingFaceCodec(hf_models.make_tokenizer(), 11)
    tokens = codec.encode(["a <mask> b c", "d"], 5, "<mask>")
    assert tokens.tolist() == [[5, 11, 6, 7, 11], [8, 11, 11, 11, 11]]
    assert codec.decode(tokens, "<mask>") == ["a <mask> b c <mask>", "d <mask> <mask> <mask> <mask>"]
    # Special tokens and ids without a token are left out.
    assert codec.decode(torch.tensor([[2, 5, 3, 10, 6]]), "<mask>") == ["a b"]


def test_the_command_line_takes_the_options_of_the_task(folders, tmp_path, capsys) -> None:
    chosen = {"reward_model": str(folders / "labels"), "label": 0, "prompt": "in the beginning"}
    where = ["--log-dir", str(tmp_path / "run"), "--device", "cpu", "--task", "TextRLHF-v0"]
    small = ["--num-iterations", "1", "--batch-size", "2", "--num-steps", "2", "--eval-every", "0", "--samples", "2"]
    options = ["--task-options", json.dumps(chosen)]
    assert train(["sepo", *where, *small, *options]) == 0
    assert capsys.readouterr().err.count("in the beginning") == 4  # before and after
    task = tasks.make("text_rlhf", **chosen)
    agent = Agent.load(tmp_path / "run" / "agent", task=task, device="cpu")
    assert agent.sample(1, seed=3)[0].startswith("in the beginning")
    for wrong, message in (
        ("{", "no JSON"),
        ("[1]", "give an object"),
        ('{"rewards": 1}', "unexpected keyword argument"),
    ):
        assert train(["sepo", "--task", "TextRLHF-v0", "--quiet", "--task-options", wrong]) == 1
        assert message in capsys.readouterr().err


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.timeout(300)
def test_an_update_with_the_vocabulary_of_gpt2_at_full_length_fits() -> None:
    """No tensor is larger than the rates of one micro-batch, 1 x L x V: none has an axis of B or of K beside V."""

    class Whole(TextRLHFTask):
        def __init__(self, codec):
            from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
            from sepo_env.tasks.tokenizer import TokenizerTask

            self._ships, self._reward_model, self._held_out_model = True, None, None
            TokenizerTask.__init__(
                self,
                name="whole",
                codec=codec,
                length=length,
                process=DiffusionProcess(Absorbing(vocabulary), LogLinear()),
                num_steps=num_steps,
                denoiser=MDLMDenoiser(MDLMConfig(num_tokens=vocabulary, **SIZES)),
            )

    vocabulary, length, num_steps = 50257, 1024, 2
    codec = HuggingFaceCodec(hf_models.make_tokenizer(), vocabulary)
    task = Whole(codec)
    agent = SEPO(
        task,
        reward=token_reward(lambda tokens: tokens.double().mean(-1) / vocabulary),
        device="cpu",
        num_iterations=1,
        batch_size=2,
        micro_batch_size=1,
        num_steps=num_steps,
        states_per_trajectory=1,
        eval_every=0,
        kl_coeff=0.0,
    )
    before = [parameter.clone() for parameter in agent.denoiser.parameters()]
    with Largest() as largest:
        (row,) = agent.train(progress=False)
    assert row["reward_calls"] == 2
    assert any(not torch.equal(*pair) for pair in zip(before, agent.denoiser.parameters(), strict=True))
    assert length * vocabulary <= largest.elements <= length * (vocabulary + 1)


def test_the_figures_are_of_the_responses() -> None:
    task = tasks.make("text_rlhf", prompt=["the lord is my shepherd", "blessed are the poor"])
    prompts = task.prompt_set.tokens
    tokens = prompts.repeat(4, 1).masked_fill(prompts.repeat(4, 1) == task.num_tokens, task.encode(["lord"])[0, 0])
    given = (prompts < task.num_tokens).repeat(4, 1)
    figures = task.metrics(tokens, prompt_mask=given, likelihood_samples=5, num_likelihood_steps=3)
    assert figures["distinct_1"] == 1 / int((~given).sum())  # one word for all
    bound = torch.cat(
        [
            elbo(task.process, task.denoiser, tokens[i : i + 1], num_steps=3, seed=i, prompt_mask=given[i : i + 1])
            for i in range(5)
        ]
    )
    assert figures["log_likelihood_median"] == pytest.approx(float(bound.median()))


def ending_task(folders, **options) -> TextRLHFTask:
    tokenizer = hf_models.make_tokenizer()
    tokenizer.eos_token = "[SEP]"
    folder = folders / "ending"
    tokenizer.save_pretrained(folder)
    return tasks.make(
        "text_rlhf", denoiser=folders / "mdlm.safetensors", tokenizer=folder, length=6, **{"prompt": "a", **options}
    )


def test_a_text_ends_at_its_end_of_text(folders) -> None:
    task = ending_task(folders)
    vocabulary = task.codec.tokenizer.get_vocab()
    a, b, end = vocabulary["a"], vocabulary["b"], vocabulary["[SEP]"]
    mask = task.num_tokens
    rows = [[a, b, end, b, end, a], [end, end, a, end, b, b], [a, b, a, b, a, b], [a, end, mask, b, b, b], [end] * 6]
    texts = task.decode(torch.tensor(rows))
    assert texts == ["a b", "a", "a b a b a b", f"a {task.mask_letter} b b b", ""]
    glued = ending_task(folders, end_of_text=False).decode(torch.tensor(rows[:2]))
    assert glued == ["a b b a", "a b b"]
    # What follows the end changes neither reward nor judge: they read the text.
    reward = task.make_reward(lambda texts: [float(len(text)) for text in texts])
    assert reward(torch.tensor(rows[:2])).tolist() == [3.0, 1.0]


def test_a_prompt_that_ends_the_text_is_refused(folders) -> None:
    with pytest.raises(InvalidPromptError, match="holds the end of text"):
        ending_task(folders, prompt=["a", "a [SEP] b"])
    assert ending_task(folders, prompt="a [SEP] b", end_of_text=False).conditional
