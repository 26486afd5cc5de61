"""Adapters: the policy starts as the pretrained denoiser, they alone learn, and a saved agent comes back."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from agents import SEPO, Agent
from agents.policies.lora import adaptable_layers, add_lora, merge_lora
from agents.policies.weights import frozen_fingerprint, policy_state
from sepo_env.denoisers import ARCHITECTURES, ConvDenoiser, ConvDenoiserConfig, Denoiser, TabularDenoiser
from sepo_env.denoisers.dna_cnn import ClassDNAConvConfig, ClassDNAConvDenoiser, DNAConvConfig, DNAConvDenoiser
from sepo_env.denoisers.masked_lm import MaskedLMDenoiser, load_masked_lm
from sepo_env.denoisers.mdlm import MDLMConfig, MDLMDenoiser
from sepo_env.denoisers.sedd import SEDDConfig, SEDDDenoiser
from sepo_env.denoisers.transformer import TransformerDenoiser, TransformerDenoiserConfig
from sepo_env.errors import CheckpointError, InvalidArgumentError, MissingExtraError
from sepo_env.tasks import Task, make
from tests.comparisons import assert_same
from tests.hf_models import make_frameless_tokenizer, save_masked_lm

SMALL: dict[str, Any] = {
    "num_iterations": 2,
    "batch_size": 8,
    "num_steps": 3,
    "learning_rate": 0.05,
    "eval_every": 1,
    "eval_samples": 8,
    "tensorboard": "off",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("lora") / "bert"
    return save_masked_lm(path, tokenizer=make_frameless_tokenizer(), spare_ids=0)


def masked_lm_task(folder: Path) -> Task:
    return make("toy", num_tokens=4, length=3, denoiser=load_masked_lm(folder))


def conv() -> ConvDenoiser:
    model = ConvDenoiser(ConvDenoiserConfig(channels=8, dilations=(1, 2), length=None))
    torch.nn.init.normal_(model.head.weight)
    return model


def outputs(denoiser: Denoiser) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, denoiser.num_tokens + 1, (4, 5), generator=generator)
    with torch.no_grad():
        return denoiser(tokens, torch.ones(4)).clamp(min=-1e3)


def build(kind: str, folder: Path) -> Denoiser:
    return conv() if kind == "conv" else load_masked_lm(folder)


def randomise_adapters(denoiser: Denoiser) -> None:
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)


@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_adapters_start_as_nothing_and_are_all_that_learns(kind: str, folder: Path) -> None:
    denoiser = build(kind, folder)
    before = outputs(denoiser)
    names = set(adaptable_layers(denoiser))
    assert add_lora(denoiser, rank=2) is denoiser
    assert_same(outputs(denoiser), before)
    learning = {name.partition(".lora_")[0] for name, p in denoiser.named_parameters() if p.requires_grad}
    assert learning == names
    assert all(p.requires_grad == (".lora_" in name) for name, p in denoiser.named_parameters())
    randomise_adapters(denoiser)
    assert not torch.allclose(outputs(denoiser), before, atol=1e-2)


def small_denoisers() -> dict[str, Denoiser]:
    """One of each shipped architecture that has layers to adapt, with weights that are all alive."""
    shape: dict[str, Any] = {"num_tokens": 5, "width": 8, "depth": 1, "heads": 2}
    found: dict[str, Denoiser] = {
        "class-dna-conv": ClassDNAConvDenoiser(ClassDNAConvConfig(channels=8, num_stacks=1)),
        "conv": conv(),
        "dna-conv": DNAConvDenoiser(DNAConvConfig(channels=8, num_stacks=1)),
        "mdlm": MDLMDenoiser(MDLMConfig(**shape, cond_width=8)),
        "sedd": SEDDDenoiser(SEDDConfig(**shape, cond_width=8)),
        "transformer": TransformerDenoiser(TransformerDenoiserConfig(vocab_size=6, **shape)),
    }
    generator = torch.Generator().manual_seed(0)
    for denoiser in found.values():
        for parameter in denoiser.parameters():
            parameter.data.normal_(std=0.5, generator=generator)
    return found


def test_all_architectures_with_layers_are_here() -> None:
    assert {*small_denoisers(), "tabular", "guided"} == set(ARCHITECTURES)  # guidance adapts what it guides


@pytest.mark.parametrize("kind", sorted(small_denoisers()))
def test_every_adapter_takes_part(kind: str) -> None:
    denoiser = small_denoisers()[kind]
    adapted = add_lora(small_denoisers()[kind], rank=2)
    assert_same(outputs(adapted), outputs(denoiser))
    randomise_adapters(adapted)
    tokens = torch.randint(0, denoiser.num_tokens, (4, 5), generator=torch.Generator().manual_seed(0))
    adapted(tokens, torch.full((4,), 0.5)).square().sum().backward()
    idle = [name for name, p in adapted.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle
    expected = outputs(adapted)
    torch.testing.assert_close(outputs(merge_lora(adapted)), expected, atol=1e-4, rtol=1e-4)


def test_the_update_is_the_low_rank_product(folder: Path) -> None:
    denoiser = load_masked_lm(folder)
    name = next(name for name in adaptable_layers(denoiser) if name.endswith("query"))
    before = denoiser.get_submodule(name).weight.detach().clone()
    add_lora(denoiser, rank=2, alpha=6.0)
    randomise_adapters(denoiser)
    state = policy_state(denoiser)
    a, b = (state[f"{name}.lora_{which}.default.weight"] for which in "AB")
    assert (a.shape, b.shape) == ((2, 16), (16, 2))
    merge_lora(denoiser)
    torch.testing.assert_close(denoiser.get_submodule(name).weight, before + 6.0 / 2 * b @ a)


@pytest.mark.parametrize("kind", ["conv", "bert"])
def test_merged_adapters_are_an_ordinary_denoiser(kind: str, folder: Path) -> None:
    denoiser, plain = build(kind, folder), build(kind, folder)
    add_lora(denoiser, rank=2)
    randomise_adapters(denoiser)
    expected = outputs(denoiser)
    merged = merge_lora(denoiser)
    torch.testing.assert_close(outputs(merged), expected, atol=1e-4, rtol=1e-4)
    assert merged.state_dict().keys() == plain.state_dict().keys()
    assert all(parameter.requires_grad for parameter in merged.parameters())


def test_tied_layers_are_left_alone(folder: Path) -> None:
    denoiser = load_masked_lm(folder)
    tied = denoiser.model.get_output_embeddings()
    assert tied.weight is denoiser.model.get_input_embeddings().weight
    layers = {name: module for name, module in denoiser.named_modules() if isinstance(module, torch.nn.Linear)}
    assert set(layers) - set(adaptable_layers(denoiser)) == {name for name, m in layers.items() if m is tied}


def test_what_cannot_be_adapted_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="TabularDenoiser has no linear"):
        add_lora(TabularDenoiser(2, 3, vocab_size=3), rank=1)
    with pytest.raises(InvalidArgumentError, match="rank is 0"):
        add_lora(conv(), rank=0)
    with pytest.raises(InvalidArgumentError, match="lora_rank is -1"):
        SEPO("ToyCTMC-v0", lora_rank=-1)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[lora\]'"):
        add_lora(conv(), rank=1)


@pytest.mark.parametrize("rank", [0, 2])
def test_two_iterations_on_a_masked_language_model(rank: int, folder: Path, tmp_path: Path) -> None:
    task = masked_lm_task(folder)
    agent = SEPO(task, device="cpu", lora_rank=rank, kl_coeff=0.1, **SMALL)
    rows = agent.train(progress=False)
    assert [row["iteration"] for row in rows] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in rows)
    assert rows[-1]["kl"] > 0
    pretrained = load_masked_lm(folder)
    assert isinstance(agent.denoiser, MaskedLMDenoiser)
    ours = dict(agent.denoiser.named_parameters())
    changed = {
        name
        for name, parameter in pretrained.named_parameters()
        if not torch.equal(ours.get(name, ours.get(f"{name.rpartition('.')[0]}.base_layer.weight")), parameter)
        and not name.endswith(".bias")
    }
    assert bool(changed) == (rank == 0)
    # The reference, and whoever else asks the task, sees the pretrained denoiser still.
    assert_same(outputs(task.denoiser), outputs(pretrained))
    samples = agent.sample_tokens(32, seed=3)
    assert bool(agent.denoiser.codec.content[samples].all())

    agent.save(tmp_path / "agent")
    (weights,) = (tmp_path / "agent").glob("*.safetensors")
    saved = load_file(weights)
    assert all(".lora_" in name for name in saved) == (rank > 0)
    again = Agent.load(tmp_path / "agent", task=masked_lm_task(folder), device="cpu")
    assert again.config.lora_rank == rank
    assert torch.equal(again.sample_tokens(32, seed=3), samples)
    assert_same(outputs(again.denoiser), outputs(agent.denoiser))


def test_adapters_of_another_base_are_refused(folder: Path, tmp_path: Path) -> None:
    agent = SEPO(masked_lm_task(folder), device="cpu", lora_rank=1, **SMALL)
    agent.save(tmp_path / "agent")
    torch.manual_seed(1)
    other = save_masked_lm(tmp_path / "other", tokenizer=make_frameless_tokenizer(), spare_ids=0)
    with pytest.raises(CheckpointError, match="adapters belong to another pretrained denoiser"):
        Agent.load(tmp_path / "agent", task=masked_lm_task(other), device="cpu")
    with pytest.raises(CheckpointError, match="lora_rank as it was"):
        Agent.load(tmp_path / "agent", task=masked_lm_task(folder), device="cpu", lora_rank=0)
    with pytest.raises(CheckpointError, match="do not fit"):
        Agent.load(tmp_path / "agent", task=masked_lm_task(folder), device="cpu", lora_rank=2)


def test_resuming_adapters_is_exact(folder: Path, tmp_path: Path) -> None:
    def run(name: str, iterations: int, resume: bool = False) -> SEPO:
        settings = SMALL | {"num_iterations": iterations, "eval_every": 0, "log_dir": str(tmp_path / name)}
        agent = SEPO(masked_lm_task(folder), device="cpu", lora_rank=2, **settings)
        agent.train(progress=False, resume=resume)
        return agent

    whole = run("whole", 3)
    run("parted", 1)
    parted = run("parted", 3, resume=True)
    expected = policy_state(whole.denoiser)
    assert all(torch.equal(value, expected[name]) for name, value in policy_state(parted.denoiser).items())


def test_the_fingerprint_is_that_of_the_frozen_part(folder: Path) -> None:
    assert frozen_fingerprint(conv()) is None
    one, same, other = (add_lora(load_masked_lm(folder), rank=r, seed=r) for r in (1, 1, 2))
    randomise_adapters(same)
    assert frozen_fingerprint(one) == frozen_fingerprint(same) == frozen_fingerprint(other)
    with torch.no_grad():
        next(p for p in other.parameters() if not p.requires_grad).add_(1e-3)
    assert frozen_fingerprint(one) != frozen_fingerprint(other)


class Named(Denoiser):
    """Layers whose names end alike, and one that is used in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens, self.length, self.parameterisation, self.time_conditioned = 4, None, "posterior", False
        self.embedding = torch.nn.Embedding(5, 4)
        self.attention = torch.nn.MultiheadAttention(4, 2, batch_first=True)
        self.out_proj = torch.nn.Linear(4, 4)
        self.once = torch.nn.Linear(4, 4)
        self.twice = self.once

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = self.embedding(tokens)
        hidden = self.out_proj(self.attention(hidden, hidden, hidden)[0])
        return self.twice(self.once(hidden)).log_softmax(-1)


def test_layers_are_named_whole_and_shared_ones_left_alone() -> None:
    denoiser = Named()
    assert adaptable_layers(denoiser) == ["out_proj"]
    add_lora(denoiser, rank=2)
    assert {name.partition(".lora_")[0] for name, p in denoiser.named_parameters() if p.requires_grad} == {"out_proj"}


def test_a_frozen_number_has_a_fingerprint() -> None:
    denoiser = conv()
    denoiser.register_parameter("scale", torch.nn.Parameter(torch.tensor(2.0), requires_grad=False))
    assert frozen_fingerprint(denoiser) is not None


class Convolutions(Denoiser):
    """One that an adapter fits, one with holes, and one in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.num_tokens, self.length, self.parameterisation, self.time_conditioned = 4, None, "posterior", False
        self.plain = torch.nn.Conv1d(4, 4, 3, padding=1)
        self.dilated = torch.nn.Conv1d(4, 4, 3, padding=2, dilation=2)
        self.grouped = torch.nn.Conv1d(4, 4, 3, padding=1, groups=2)

    def forward(self, tokens: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.one_hot(tokens, 5)[..., :4].float().mT
        return self.grouped(self.dilated(self.plain(hidden))).mT.log_softmax(-1)


def test_convolutions_that_no_adapter_fits_are_left_alone() -> None:
    assert adaptable_layers(Convolutions()) == ["plain"]
