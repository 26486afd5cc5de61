"""Folders of masked language models that do not say what they are, or hold more or less than the model reads."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sepo_env.denoisers import load_denoiser
from sepo_env.denoisers.masked_lm import MaskedLMDenoiser, is_masked_lm_folder, load_masked_lm
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidTokensError
from tests.comparisons import assert_same
from tests.hf_models import (
    POSITIONS,
    SHAPE,
    forgotten_modules,
    make_config,
    make_tokenizer,
    save_masked_lm,
    save_remote,
    transformers,
)

ESM_ALPHABET = ("<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>")


def change_config(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def add_tensors(folder: Path, **tensors: Tensor) -> Path:
    weights = folder / "model.safetensors"
    together = load_file(weights) | tensors
    weights.unlink()  # a model that was loaded may still look into this file
    save_file(together, weights, metadata={"format": "pt"})
    return folder


# Tensors that nothing reads


def test_layers_that_the_configuration_leaves_out_are_not_dropped_in_silence(tmp_path: Path) -> None:
    folder = change_config(save_masked_lm(tmp_path / "bert"), num_hidden_layers=1)
    with pytest.raises(CheckpointError, match=r"not expected: bert.encoder.layer.1.*its own config.json"):
        load_denoiser(folder)


def test_heads_of_other_tasks_may_be_left_over(tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / "bert")
    before = load_masked_lm(folder)
    add_tensors(
        folder,
        **{
            "cls.seq_relationship.weight": torch.zeros(2, 16),
            "cls.seq_relationship.bias": torch.zeros(2),
            "bert.pooler.dense.weight": torch.zeros(16, 16),
            "bert.pooler.dense.bias": torch.zeros(16),
            "bert.embeddings.position_ids": torch.arange(POSITIONS)[None],
        },
    )
    tokens = before.codec.encode(["a ? b"], 3, "?")
    assert_same(load_masked_lm(folder)(tokens, torch.ones(1)), before(tokens, torch.ones(1)))
    with pytest.raises(CheckpointError, match="not expected: adapter.weight"):
        load_masked_lm(add_tensors(folder, **{"adapter.weight": torch.zeros(1)}))


# Tokenizers


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / "bert", spare_ids=0)
    larger = transformers().AutoTokenizer.from_pretrained(folder)
    larger.add_tokens(["e", "f"])
    larger.save_pretrained(folder)
    with pytest.raises(InvalidArgumentError, match="'e' has the id 9, and the model has the ids 0 to 8"):
        load_denoiser(folder)


def test_missing_files_of_a_tokenizer_are_named(tmp_path: Path) -> None:
    folder = save_masked_lm(tmp_path / "bert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    with pytest.raises(CheckpointError, match=r"tokenizer's files are missing \(tokenizer.json, vocab.txt\)"):
        load_masked_lm(folder)


@pytest.fixture(scope="module")
def esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("esm")
    (folder / "vocab.txt").write_text("\n".join(ESM_ALPHABET))
    tokenizer = transformers().EsmTokenizer(str(folder / "vocab.txt"))
    transformers().EsmForMaskedLM(make_config("esm", tokenizer, spare_ids=0)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_proteins_have_no_gaps(esm: Path) -> None:
    def content(**settings: Any) -> str:
        codec = load_masked_lm(esm, **settings).codec
        return "".join(piece for piece, is_content in zip(codec.pieces(), codec.content, strict=True) if is_content)

    assert content() == "LAGVSERTIDPKQNFYMHWCXBUZO"
    assert content(forbid=["X", "B", "Z", "U", "O"]) == "LAGVSERTIDPKQNFYMHWC"
    assert content(allow=["-"]) == "LAGVSERTIDPKQNFYMHWCXBUZO-"
    codec = load_masked_lm(esm).codec  # a prompt may hold gaps all the same
    assert codec.decode(codec.encode(["MK-T?"], 5, "?"), "?") == ["MK-T?"]


# What kind of model it is


@pytest.mark.parametrize("architectures", [["BertForPreTraining"], None])
def test_pretraining_is_masked_language_modelling(architectures: list[str] | None, tmp_path: Path) -> None:
    folder = change_config(save_masked_lm(tmp_path / "bert"), architectures=architectures)
    assert type(load_denoiser(folder)) is MaskedLMDenoiser


@pytest.mark.parametrize("kind", ["Bart", "XLM", "Flaubert"])
def test_every_type_that_transformers_maps_is_read(kind: str, tmp_path: Path) -> None:
    small = {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8}
    small |= {"encoder_attention_heads": 1, "decoder_attention_heads": 1, "emb_dim": 8, "n_layers": 1, "n_heads": 1}
    library, tokenizer = transformers(), make_tokenizer()
    config = getattr(library, f"{kind}Config")(vocab_size=9, max_position_embeddings=POSITIONS, pad_token_id=0, **small)
    library.AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    denoiser = load_denoiser(tmp_path)
    assert isinstance(denoiser, MaskedLMDenoiser)
    assert denoiser.max_length == POSITIONS - 2


def test_without_transformers_the_type_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertForPreTraining"]}')
    assert is_masked_lm_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "transformers.models.auto.modeling_auto", None)
    assert not is_masked_lm_folder(tmp_path)
    with pytest.raises(CheckpointError, match="call load_masked_lm for a masked language model"):
        load_denoiser(tmp_path)


def test_a_known_type_with_code_of_its_own_may_need_that_code(tmp_path: Path) -> None:
    auto_map = {"AutoModelForMaskedLM": "own.OwnModel"}
    folder = change_config(save_masked_lm(tmp_path / "bert"), auto_map=auto_map, num_hidden_layers=3)
    with pytest.raises(CheckpointError, match=r"missing: bert.encoder.layer.2.*own.OwnModel.*trust_remote_code=True"):
        load_masked_lm(folder)


def test_a_configuration_names_no_kernel_to_be_fetched(tmp_path: Path) -> None:
    for name in ("attn_implementation", "_attn_implementation"):
        folder = change_config(save_masked_lm(tmp_path / name), **{name: "someone/kernel"})
        assert load_masked_lm(folder).model.config._attn_implementation == "sdpa"


# Room


@pytest.mark.parametrize(
    ("kind", "taken"), [("RoFormer", 2), ("IBert", 3), ("Nystromformer", 2), ("Mra", 2), ("Yoso", 2), ("Roberta", 3)]
)
def test_tables_of_positions_are_found(kind: str, taken: int) -> None:
    # I-BERT's and RoBERTa's positions begin behind that of padding, so one row more is taken than by the frame.
    library, tokenizer = transformers(), make_tokenizer()
    rooms = {"max_position_embeddings": 24, "embedding_size": 16, "pad_token_id": 0}
    config = getattr(library, f"{kind}Config")(vocab_size=9, **SHAPE, **rooms)
    denoiser = MaskedLMDenoiser(library.AutoModelForMaskedLM.from_config(config), tokenizer)
    assert denoiser.max_length == 24 - taken
    tokens = torch.full((1, denoiser.max_length), denoiser.num_tokens)
    assert denoiser(tokens, torch.ones(1)).shape == (1, denoiser.max_length, denoiser.num_tokens)
    with pytest.raises(InvalidTokensError, match=f"L up to {24 - taken}"):
        denoiser(torch.cat([tokens, tokens[:, :1]], dim=1), torch.ones(1))


def test_a_table_that_nobody_knows_is_no_raw_error() -> None:
    config = transformers().RoFormerConfig(vocab_size=9, embedding_size=16, max_position_embeddings=12, **SHAPE)
    denoiser = MaskedLMDenoiser(transformers().RoFormerForMaskedLM(config), make_tokenizer())
    denoiser.max_length = None
    with pytest.raises(InvalidTokensError, match="does not read 14 tokens, frame included"):
        denoiser(torch.full((1, 12), denoiser.num_tokens), torch.ones(1))


def test_a_model_that_needs_more_than_ids_is_refused() -> None:
    config = transformers().XmodConfig(vocab_size=9, **SHAPE, max_position_embeddings=12, pad_token_id=0)
    model = transformers().XmodForMaskedLM(config)
    with pytest.raises(InvalidArgumentError, match="no logits for token ids and an attention mask alone"):
        MaskedLMDenoiser(model, make_tokenizer())


# Shifted models


@pytest.mark.parametrize(("model_type", "shifted"), [("Dream", None), ("Other", None), ("Other", True)])
def test_the_logits_of_a_dream_are_about_the_next_token(model_type: str, shifted: bool | None, tmp_path: Path) -> None:
    folder = tmp_path / f"{model_type}{shifted}".lower()
    table = save_remote(folder, model_type, "AutoModel")
    with forgotten_modules():
        denoiser = load_masked_lm(folder, trust_remote_code=True, shifted=shifted)
    assert denoiser.shifted is (model_type == "Dream" or bool(shifted))
    tokens = denoiser.codec.encode(["a ? c ?"], 4, "?")
    letters = slice(5, 9)
    # [CLS] a [MASK] c [MASK] [SEP]
    read = torch.tensor([2, 5, 4, 7] if denoiser.shifted else [5, 4, 7, 4])
    with torch.no_grad():
        found = denoiser(tokens, torch.ones(1))[0][:, denoiser.codec.content]
        torch.testing.assert_close(found, table[read, letters].log_softmax(-1))
        # Without a frame nothing stands before the first token, which is read where it is.
        bare = MaskedLMDenoiser(denoiser.model, denoiser.codec.tokenizer, framed=False, shifted=shifted)
        first = bare(tokens, torch.ones(1))[0, 0, bare.codec.content]
    torch.testing.assert_close(first, table[5, letters].log_softmax(-1))
