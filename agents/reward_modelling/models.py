"""The model that becomes a reward model: a pretrained one, or a small GPT-2 with a tokenizer of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

from agents.reward_modelling.config import RewardModelConfig
from agents.reward_modelling.pairs import Pair
from sepo_env.loading.hub import local_path
from sepo_env.loading.hugging_face import import_transformers, load_folder, text_room
from sepo_env.loading.paths import is_folder

END, PADDING = "<|endoftext|>", "<|pad|>"
# What a language model lacks of a sequence classifier: the layer that reads the reward off.
_HEADS = ("score.", "classifier.")


def make_model(config: RewardModelConfig, pairs: Iterable[Pair]) -> tuple[Any, Any]:
    """The model and the tokenizer to start from; random weights come from torch's global generator.

    Args:
        config: the settings.
        pairs: what a tokenizer from scratch is trained on.

    Raises:
        CheckpointError: the base is no folder of a model that can be one.
        MissingExtraError: transformers is not installed.
    """
    import_transformers()
    if config.base is None:
        tokenizer = _train_tokenizer(config, pairs)
        model = _small_gpt2(config, tokenizer)
    else:
        model, tokenizer = load_folder(config.base, "AutoModelForSequenceClassification", may_miss=_HEADS, num_labels=1)
        if tokenizer.pad_token_id is None:  # GPT-2 has none; the configuration is told below
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        tokenizer.model_max_length = min(config.max_length, text_room(model, tokenizer) or config.max_length)
    tokenizer.truncation_side = "left"  # the answer stands at the end
    tokenizer.padding_side = "right"
    return model, tokenizer


def base_digest(base: str) -> str:
    """A hash of the files of a model to start from, wherever the folder lies; of nothing where there is none."""
    digest = hashlib.sha256()
    folder = local_path(base)
    for path in sorted(folder.iterdir()) if is_folder(folder) else ():
        if path.is_file():
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _train_tokenizer(config: RewardModelConfig, pairs: Iterable[Pair]) -> Any:
    """Byte-pair encoding over bytes, as GPT-2's; each text ends with a token of its own, where the reward is read."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    bytewise = Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END, PADDING],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bytewise.train_from_iterator((text for pair in pairs for text in (pair.chosen, pair.rejected)), trainer)
    bytewise.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, bytewise.token_to_id(END))]
    )
    return import_transformers().PreTrainedTokenizerFast(
        tokenizer_object=bytewise, eos_token=END, pad_token=PADDING, model_max_length=config.max_length
    )


def _small_gpt2(config: RewardModelConfig, tokenizer: Any) -> Any:
    library = import_transformers()
    shape = library.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=config.max_length,
        n_embd=config.width,
        n_layer=config.depth,
        n_head=config.heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=1,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return library.GPT2ForSequenceClassification(shape)
