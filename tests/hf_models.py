"""Tiny random models and tokenizers of Transformers, made on the fly; nothing is downloaded."""

import os

# Before huggingface_hub is imported anywhere.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LETTERS = ("a", "b", "c", "d")
SHAPE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
POSITIONS = 12


REMOTE = """
import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import MaskedLMOutput


class OwnConfig(PretrainedConfig):
    model_type = "{model_type}"


class OwnModel(PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.table = nn.Embedding(11, 11)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, **_):
        return MaskedLMOutput(logits=self.table(input_ids))
"""


def transformers() -> Any:
    return importlib.import_module("transformers")


def make_tokenizer(pieces: tuple[str, ...] = (*SPECIALS, *LETTERS)) -> Any:
    """Words are tokens, numbered in the given order; a text becomes [CLS] text [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    ids = {piece: index for index, piece in enumerate(pieces)}
    words = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")]
    )
    names = {f"{piece.strip('[]').lower()}_token": piece for piece in SPECIALS}
    return transformers().PreTrainedTokenizerFast(tokenizer_object=words, **names)


def make_frameless_tokenizer() -> Any:
    """Three letters, a mask and one special token: four visible ids, as many as the toy task can have."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    ids = {piece: index for index, piece in enumerate(("[CLS]", "[MASK]", "a", "b", "c"))}
    words = Tokenizer(models.WordLevel(ids, unk_token="[CLS]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[CLS]"}
    return transformers().PreTrainedTokenizerFast(tokenizer_object=words, **names)


def make_config(kind: str, tokenizer: Any, *, spare_ids: int = 2, **changes: Any) -> Any:
    """The configuration of a tiny model that has a few ids more than the tokenizer."""
    settings = {
        **SHAPE,
        "vocab_size": len(tokenizer) + spare_ids,
        "max_position_embeddings": POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        **changes,
    }
    library = transformers()
    if kind == "bert":
        return library.BertConfig(**settings)
    if kind == "modernbert":
        frame = {"bos": tokenizer.cls_token_id, "cls": tokenizer.cls_token_id}
        frame |= {"eos": tokenizer.sep_token_id, "sep": tokenizer.sep_token_id}
        return library.ModernBertConfig(**settings, **{f"{name}_token_id": index for name, index in frame.items()})
    if kind == "esm":
        rotary = {"position_embedding_type": "rotary", "token_dropout": True}
        return library.EsmConfig(**settings, mask_token_id=tokenizer.mask_token_id, **rotary)
    raise ValueError(kind)


def save_masked_lm(folder: Path, kind: str = "bert", tokenizer: Any = None, **settings: Any) -> Path:
    """A masked language model with weights large enough to prefer some tokens."""
    tokenizer = make_tokenizer() if tokenizer is None else tokenizer
    model = transformers().AutoModelForMaskedLM.from_config(make_config(kind, tokenizer, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_classifier(folder: Path, num_labels: int = 1, **changes: Any) -> Path:
    """A sequence classifier; its labels are LABEL_0, LABEL_1 ... unless ``id2label`` is given."""
    tokenizer = make_tokenizer()
    config = make_config("bert", tokenizer, num_labels=num_labels, **changes)
    model = transformers().AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_remote(
    folder: Path, model_type: str = "own", auto_class: str = "AutoModelForCausalLM", preamble: str = ""
) -> torch.Tensor:
    """A folder with Python code of its own, a model that looks the logits of each token up; returns the table."""
    from safetensors.torch import save_file

    make_tokenizer().save_pretrained(folder)
    (folder / "own.py").write_text(preamble + REMOTE.replace("{model_type}", model_type))
    auto_map = {"AutoConfig": "own.OwnConfig", auto_class: "own.OwnModel"}
    config = {"model_type": model_type, "architectures": ["OwnModel"], "auto_map": auto_map, "mask_token_id": 4}
    (folder / "config.json").write_text(json.dumps(config))
    table = torch.randn(11, 11)
    save_file({"table.weight": table}, folder / "model.safetensors", metadata={"format": "pt"})
    return table


@contextmanager
def forgotten_modules() -> Iterator[None]:
    """Code of folders that was imported meanwhile is forgotten afterwards."""
    before = set(sys.modules)
    try:
        yield
    finally:
        for name in set(sys.modules) - before:
            if name.startswith("transformers_modules"):
                del sys.modules[name]
