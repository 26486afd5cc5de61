"""A masked language model as a denoiser says what Transformers says, restricted to content and renormalised."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from sepo_env.denoisers import load_denoiser
from sepo_env.denoisers.masked_lm import MaskedLMDenoiser, is_masked_lm_folder, load_masked_lm
from sepo_env.diffusion import Absorbing, DiffusionProcess, LogLinear
from sepo_env.diffusion.sampler import sample
from sepo_env.errors import (
    CheckpointError,
    InvalidArgumentError,
    InvalidTokensError,
    MissingExtraError,
    UnknownNameError,
)
from tests.comparisons import assert_same
from tests.hf_models import (
    LETTERS,
    POSITIONS,
    SPECIALS,
    forgotten_modules,
    make_tokenizer,
    save_classifier,
    save_masked_lm,
    save_remote,
    transformers,
)

KINDS = ("bert", "modernbert", "esm")
# The mask in front, in the middle and at the end of the tokenizer; the model has two ids more in any case.
ORDERS = {
    "first": ("[MASK]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS),
    "middle": (*SPECIALS, *LETTERS),
    "late": ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, "[MASK]"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("masked_lm")
    return {kind: save_masked_lm(root / kind, kind) for kind in KINDS}


@pytest.fixture(scope="module")
def denoisers(folders: dict[str, Path]) -> dict[str, MaskedLMDenoiser]:
    return {kind: load_masked_lm(folder) for kind, folder in folders.items()}


def upstream_posterior(folder: Path, text: str, letters: tuple[str, ...] = LETTERS) -> torch.Tensor:
    """Softmax over the letters' logits at each position of a text, from Transformers' own model and tokenizer."""
    library = transformers()
    model = library.AutoModelForMaskedLM.from_pretrained(folder).eval()
    tokenizer = library.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(**tokenizer(text, return_tensors="pt")).logits[0, 1:-1]
    return logits[:, tokenizer.convert_tokens_to_ids(list(letters))].softmax(-1)


@pytest.mark.parametrize("kind", KINDS)
def test_posterior_is_that_of_transformers_on_content(
    kind: str, folders: dict[str, Path], denoisers: dict[str, MaskedLMDenoiser]
) -> None:
    denoiser = denoisers[kind]
    tokens = denoiser.codec.encode(["a ? d ? c"], 5, "?")
    with torch.no_grad():
        log_p = denoiser(tokens, torch.ones(1))
    assert log_p.shape == (1, 5, denoiser.num_tokens)
    assert log_p.dtype == torch.float32
    letters = denoiser.codec.encode(["a b c d"], 4, "?")[0]
    expected = upstream_posterior(folders[kind], "a [MASK] d [MASK] c")
    torch.testing.assert_close(log_p[0][:, letters].exp(), expected, atol=1e-6, rtol=1e-5)
    others = [v for v in range(denoiser.num_tokens) if v not in letters.tolist()]
    assert bool((log_p[..., others] == -torch.inf).all())
    torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(1, 5))


@pytest.mark.parametrize("order", ORDERS)
def test_wherever_the_mask_stands_it_is_our_last_id(order: str, tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / "model", tokenizer=make_tokenizer(ORDERS[order]))
    denoiser = load_masked_lm(folder)
    pieces = denoiser.codec.pieces()
    assert denoiser.num_tokens == len(pieces) == len(ORDERS[order]) + 2 - 1
    assert [piece for piece in pieces if piece] == [piece for piece in ORDERS[order] if piece != "[MASK]"]
    assert [piece for piece, is_content in zip(pieces, denoiser.codec.content, strict=True) if is_content] == [*LETTERS]
    tokens = denoiser.codec.encode(["a ? d"], 3, "?")
    assert tokens.tolist() == [[pieces.index("a"), denoiser.num_tokens, pieces.index("d")]]
    assert denoiser.codec.decode(tokens, "?") == ["a ? d"]
    with torch.no_grad():
        found = denoiser(tokens, torch.ones(1))[0, :, denoiser.codec.content].exp()
    torch.testing.assert_close(found, upstream_posterior(folder, "a [MASK] d"), atol=1e-6, rtol=1e-5)


def test_a_tokenizer_with_no_id_to_spare(tmp_path: Path) -> None:
    # The mask is the model's very last id: nothing is moved.
    tokenizer = make_tokenizer(ORDERS["late"])
    folder = save_masked_lm(tmp_path / "model", tokenizer=tokenizer)
    denoiser = load_masked_lm(folder)
    denoiser.model.resize_token_embeddings(len(tokenizer))
    trimmed = MaskedLMDenoiser(denoiser.model, tokenizer)
    assert trimmed.codec.pieces() == list(ORDERS["late"][:-1])
    assert trimmed.codec.model_ids().tolist() == list(range(9))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_content_and_keep_the_prompt(kind: str, denoisers: dict[str, MaskedLMDenoiser]) -> None:
    denoiser = denoisers[kind]
    process = DiffusionProcess(Absorbing(denoiser.num_tokens), LogLinear())
    prompt = denoiser.codec.encode(["? b ? ? a"], 6, "?")[0]
    tokens = sample(process, denoiser, 32, 6, num_steps=4, seed=1, prompt=prompt)
    assert bool(denoiser.codec.content[tokens].all())
    given = prompt < denoiser.num_tokens
    assert bool((tokens[:, given] == prompt[given]).all())
    words = [text.split() for text in denoiser.codec.decode(tokens, "?")]
    assert {len(row) for row in words} == {6}
    assert {word for row in words for word in row} == set(LETTERS)


@pytest.mark.parametrize("kernel", ["ancestral", "tau-leaping", "analytic"])
def test_every_kernel_takes_what_can_never_be(kernel: Any, denoisers: dict[str, MaskedLMDenoiser]) -> None:
    denoiser = denoisers["bert"]
    process = DiffusionProcess(Absorbing(denoiser.num_tokens), LogLinear())
    tokens = denoiser.codec.encode(["a ? ? b"], 4, "?")
    t, s = torch.tensor([0.5], dtype=torch.float64), torch.tensor([0.25], dtype=torch.float64)
    output = denoiser(tokens, t)
    law = process.step_law(output, tokens, t, s, "posterior", kernel)
    torch.testing.assert_close(law.log_probs.exp().sum(-1), torch.ones(1, 4))
    assert bool((law.log_probs[..., :-1][..., ~denoiser.codec.content] == -torch.inf).all())
    (law.entropy().sum() + law.kl(law).sum()).backward()
    gradients = [p.grad for p in denoiser.parameters() if p.grad is not None]
    assert gradients
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    denoiser.zero_grad(set_to_none=True)


def test_dropout_is_off_even_in_training(denoisers: dict[str, MaskedLMDenoiser]) -> None:
    denoiser = denoisers["bert"]
    tokens = torch.full((1, 6), denoiser.num_tokens)
    before = denoiser(tokens, torch.ones(1))
    denoiser.train()
    assert denoiser.training
    assert denoiser.model.config.hidden_dropout_prob > 0
    assert torch.equal(denoiser(tokens, torch.ones(1)), before)
    denoiser.eval()


def test_padding_in_a_prompt_is_not_attended_to(denoisers: dict[str, MaskedLMDenoiser]) -> None:
    denoiser = denoisers["modernbert"]
    pad = denoiser.codec.pieces().index("[PAD]")
    long = torch.cat([denoiser.codec.encode(["a ? b ?"], 4, "?"), torch.full((1, 3), pad)], dim=1)
    # Against the same with SEP, the end of the frame, put where the short sequence has it.
    short = denoiser(long[:, :4], torch.ones(1))
    sep = denoiser.codec.pieces().index("[SEP]")
    long[0, 4] = sep
    unframed = MaskedLMDenoiser(denoiser.model, denoiser.codec.tokenizer, framed=False)
    cls = torch.full((1, 1), denoiser.codec.pieces().index("[CLS]"))
    inside = unframed(torch.cat([cls, long], dim=1), torch.ones(1))[:, 1:5]
    torch.testing.assert_close(inside, short, atol=1e-5, rtol=1e-5)


def test_what_is_content_can_be_said(folders: dict[str, Path]) -> None:
    denoiser = load_masked_lm(folders["bert"], allow=["[SEP]"], forbid=["c"])
    pieces = denoiser.codec.pieces()
    content = [piece for piece, is_content in zip(pieces, denoiser.codec.content, strict=True) if is_content]
    assert content == ["[SEP]", "a", "b", "d"]
    sentence = torch.tensor([[pieces.index(piece) for piece in ("a", "[SEP]", "b", "[PAD]")]])
    assert denoiser.codec.decode(sentence, "?") == ["a b"]
    with pytest.raises(UnknownNameError, match="unknown token 'z'"):
        load_masked_lm(folders["bert"], forbid=["z"])
    with pytest.raises(InvalidArgumentError, match="every token"):
        load_masked_lm(folders["bert"], forbid=LETTERS)


def test_letters_are_joined_where_they_make_one_word(denoisers: dict[str, MaskedLMDenoiser]) -> None:
    codec = denoisers["esm"].codec
    codec.joined = True
    assert codec.decode(codec.encode(["a ? d"], 4, "?"), "_") == ["a_d_"]
    codec.joined = False


def test_texts_that_do_not_fit_are_refused(denoisers: dict[str, MaskedLMDenoiser]) -> None:
    codec = denoisers["bert"].codec
    with pytest.raises(InvalidTokensError, match="sequence 1 has 3 tokens"):
        codec.encode(["a b", "a b c"], 2, "?")
    with pytest.raises(InvalidTokensError, match="cannot spell, in 'a zebra'"):
        codec.encode(["a zebra"], 5, "?")
    assert denoisers["bert"].max_length == POSITIONS - 2
    assert denoisers["esm"].max_length is None
    with pytest.raises(InvalidTokensError, match="up to 10, but got"):
        denoisers["bert"](torch.zeros(1, POSITIONS - 1, dtype=torch.int64), torch.ones(1))


def test_a_model_that_cannot_start_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(InvalidArgumentError, match="no finite output for a sequence of masks"):
        load_masked_lm(folders["esm"], framed=False)


def test_folder_round_trip(denoisers: dict[str, MaskedLMDenoiser], tmp_path: Path) -> None:
    denoisers["bert"].save_pretrained(tmp_path / "again")
    again = load_masked_lm(tmp_path / "again")
    tokens = denoisers["bert"].codec.encode(["a ? ? d"], 4, "?")
    assert_same(again(tokens, torch.ones(1)), denoisers["bert"](tokens, torch.ones(1)))
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    with pytest.raises(CheckpointError, match="something stands there already"):
        again.save_pretrained(tmp_path / "again")


def write_config(folder: Path, **config: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_folders_are_recognised(folders: dict[str, Path], tmp_path: Path) -> None:
    assert all(is_masked_lm_folder(folder) for folder in folders.values())
    mdlm = {"model_type": "mdlm", "auto_map": {"AutoModelForMaskedLM": "modeling_mdlm.MDLM"}}
    llada = {"architectures": ["LLaDAModelLM"], "auto_map": {"AutoModelForCausalLM": "m.M"}, "mask_token_id": 126336}
    assert not is_masked_lm_folder(write_config(tmp_path / "mdlm", **mdlm))
    assert is_masked_lm_folder(write_config(tmp_path / "llada", **llada))
    assert not is_masked_lm_folder(write_config(tmp_path / "gpt2", architectures=["GPT2LMHeadModel"]))
    assert not is_masked_lm_folder(write_config(tmp_path / "sedd", graph={"type": "absorb"}))
    assert not is_masked_lm_folder(tmp_path)
    assert not is_masked_lm_folder(tmp_path / "absent")


def test_load_denoiser_knows_the_folder(folders: dict[str, Path]) -> None:
    denoiser = load_denoiser(folders["bert"])
    assert isinstance(denoiser, MaskedLMDenoiser)
    assert not denoiser.training


def test_wrong_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no folder with a config.json"):
        load_masked_lm(tmp_path / "absent")
    classifier = save_classifier(tmp_path / "classifier")
    with pytest.raises(CheckpointError, match=r"BertForSequenceClassification.*missing: cls.predictions"):
        load_masked_lm(classifier)
    truncated = save_masked_lm(tmp_path / "truncated")
    weights = truncated / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load_masked_lm(truncated)
    resized = save_masked_lm(tmp_path / "resized")
    config = json.loads((resized / "config.json").read_text())
    (resized / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))
    with pytest.raises(CheckpointError, match="does not load it|another shape"):
        load_masked_lm(resized)


def test_remote_code_runs_only_when_the_user_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    table = save_remote(folder, preamble=f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(CheckpointError, match=r"own.OwnModel.*trust_remote_code=True"):
        load_masked_lm(folder)
    assert not (tmp_path / "ran").exists()
    with forgotten_modules():
        denoiser = load_masked_lm(folder, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    with torch.no_grad():
        found = denoiser(torch.full((1, 2), denoiser.num_tokens), torch.ones(1))[0, 0, denoiser.codec.content]
    torch.testing.assert_close(found, table[4, 5:9].log_softmax(-1))


def test_without_transformers_the_extra_is_named(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtraError, match=r"'\.\[hf\]'"):
        load_masked_lm(folders["bert"])
