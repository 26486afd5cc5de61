"""Folders in the layout of Hugging Face Transformers, from the disk and to it, without a network."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from sepo_env.arguments import PathArgument, checked
from sepo_env.errors import CheckpointError, InvalidTokensError, MissingExtraError
from sepo_env.files import replacing
from sepo_env.loading.hub import local_path
from sepo_env.loading.paths import as_path, is_folder
from sepo_env.loading.tensorfile import (
    WRAPPERS,
    bare_name,
    check_finite,
    count_tensors,
    find_prefixes,
    held_to,
)
from sepo_env.precision import float32_default
from sepo_env.textfile import read_json_object, without_marks

EXTRA = "hf"
# What tokenizers without a maximum call theirs is 1e30.
_NO_LIMIT = 1_000_000_000

# Tensors of published files that nothing reads, by what their names match: heads of other tasks of the pretraining,
# second copies of tied weights, and tables that are computed.
_UNUSED = (
    r"^cls\.seq_relationship\.",
    r"^(sop_classifier|discriminator_predictions|lm_predictions|mask_predictions)\.",
    r"(^|\.)pooler\.",
    r"(^|\.)contact_head\.",
    r"(^|\.)(position_ids|token_type_ids|inv_freq|masked_bias|version)$",
    r"(^|\.)attn\.bias$",
    r"(^lm_head|^cls\.predictions|^predictions|^generator_lm_head)\.(decoder\.)?(weight|bias)$",
)
# A classifier may have been, or be made from, a language model.
_LANGUAGE_HEADS = r"^(lm_head|cls|predictions|pred_layer|embed_out|vocab_\w+|generator_\w+)\."
_UNUSED_BY = {"AutoModelForSequenceClassification": (_LANGUAGE_HEADS,)}


def import_transformers() -> ModuleType:
    """Transformers, imported when it is first needed: it takes seconds, and is optional.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", EXTRA) from error


@contextmanager
def quiet() -> Iterator[ModuleType]:
    """Transformers without its progress bars over the tensors of a file, and without its remarks: ours are errors."""
    transformers = import_transformers()
    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()


@checked
def read_config(path: PathArgument) -> dict[str, Any] | None:
    """A folder's config.json; None where there is none, or another kind of file."""
    try:
        return read_json_object(as_path(path) / "config.json")
    except CheckpointError:
        return None


def is_masked_lm_type(config: Mapping[str, Any]) -> bool:
    """Whether ``AutoModelForMaskedLM`` knows the type of model that a config.json names; no without Transformers."""
    try:
        kinds = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_MASKED_LM_MAPPING_NAMES
    except ModuleNotFoundError:
        return False
    model_type = config.get("model_type")
    return isinstance(model_type, str) and model_type in kinds


def load_config(path: str | os.PathLike[str]) -> Any:
    """Read the configuration of a folder's model, and no weights; no code of the folder runs.

    Args:
        path: a folder with a config.json, or a hub id ``"hub:owner/name"``.

    Raises:
        CheckpointError: no such folder, or one that Transformers does not read.
        MissingExtraError: transformers is not installed.
    """
    path = local_path(path)
    if read_config(path) is None:
        raise CheckpointError(path, "no folder with a config.json", "give the folder that save_pretrained wrote")
    with quiet() as transformers:
        try:
            return transformers.AutoConfig.from_pretrained(str(path), local_files_only=True)
        except Exception as error:  # a damaged or foreign folder may fail in any way
            raise CheckpointError(
                path,
                f"AutoConfig does not load it ({type(error).__name__}: {_first_line(error)})",
                "give the folder that save_pretrained wrote",
            ) from error


@float32_default()
@checked
def load_folder(
    path: PathArgument,
    auto_class: str,
    *,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    may_miss: tuple[str, ...] = (),
    **settings: Any,
) -> tuple[Any, Any]:
    """Read a model and its tokenizer from a folder, on the CPU and in evaluation mode.

    Transformers fills what a file lacks with random numbers, drops what the model has no place for, and says so in its
    log; here that is an error.

    Args:
        path: a folder with config.json, weights and tokenizer files, or a hub id ``"hub:owner/name"``.
        auto_class: the class of `transformers` that makes the model, such as ``"AutoModelForMaskedLM"``.
        trust_remote_code: run Python code that the folder brings along; it can do whatever you can.
        dtype: of the weights.
        may_miss: beginnings of the names of tensors that the file may lack.
        **settings: changes of the model's configuration.

    Returns:
        The model and the tokenizer.

    Raises:
        CheckpointError: no such folder, one that needs code of its own, another model's weights, or such that are not
            finite.
        MissingExtraError: transformers is not installed.
    """
    path = local_path(path, programs=trust_remote_code)
    config = read_config(path)
    if config is None:
        raise CheckpointError(path, "no folder with a config.json", "give the folder that save_pretrained wrote")
    remote = config.get("auto_map", {}) if isinstance(config.get("auto_map", {}), dict) else {}
    trust = ""  # the cure where the folder has code of its own
    if remote and not trust_remote_code:
        programs = ", ".join(sorted(map(str, remote.values())))
        trust = f"read the Python code that it brings ({programs}), and if you trust it give trust_remote_code=True"
    with quiet() as transformers, without_marks(path) as folder:
        model_type = config.get("model_type")
        known = isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING
        if trust and not known:
            unknown = f"the model {model_type!r} is not part of transformers {transformers.__version__}"
            raise CheckpointError(path, unknown, trust)
        if not known and auto_class not in remote and trust_remote_code:
            # LLaDA's kind: a masked language model that its authors published under another auto class.
            auto_class = next((name for name in ("AutoModelForCausalLM", "AutoModel") if name in remote), auto_class)
        common: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        try:
            common["config"] = transformers.AutoConfig.from_pretrained(str(folder), **common, **settings)
            common |= {"dtype": dtype, "output_loading_info": True}
            common["attn_implementation"] = None  # the model's own choice; a configuration may name one to be fetched
            common["ignore_mismatched_sizes"] = True  # which are told below
            read = partial(getattr(transformers, auto_class).from_pretrained, str(folder), **common)
            cure = "give the folder that save_pretrained wrote, with its own config.json"
            num_tensors, num_entries = count_tensors(folder)
            with held_to(path, num_tensors, cure, num_entries):
                model, info = read()
            if names := _wrapped_names(info):
                with held_to(path, num_tensors, cure, num_entries):
                    model, info = read(key_mapping=names)
        except CheckpointError:
            raise
        except Exception as error:  # a damaged or foreign folder may fail in any way
            raise CheckpointError(
                path,
                f"{auto_class} does not load it ({type(error).__name__}: {_first_line(error)})",
                " or, ".join(filter(None, ("give a whole folder of such a model, with its tokenizer", trust))),
            ) from error
    missing = sorted(name for name in info["missing_keys"] if not name.startswith(may_miss or ("\0",)))
    mismatched = sorted(str(entry[0]) for entry in info["mismatched_keys"])
    extra = sorted(name for name in info["unexpected_keys"] if not _is_unused(name, auto_class))
    if missing or mismatched or extra:
        raise CheckpointError(
            path,
            f"it is a {config.get('architectures')}, not the model that {auto_class} makes of it; tensors missing: "
            f"{_shorten(missing)}, of another shape: {_shorten(mismatched)}, not expected: {_shorten(extra)}",
            " or, ".join(filter(None, ("give a model that was trained for this, with its own config.json", trust))),
        )
    check_finite(path, dict(model.named_parameters()))
    return model.eval(), load_tokenizer(path, trust_remote_code=trust_remote_code)


def _wrapped_names(info: Mapping[str, Any]) -> dict[str, str]:
    """Patterns of what stands in the names of tensors that the model lacks and the file has, and what to put there."""
    names = list(info["unexpected_keys"])
    prefixes = find_prefixes(map(bare_name, names), set(info["missing_keys"]))
    if len(prefixes) != 1:
        return {}
    # As it is written there, with wrappers within it and behind it; then one more wrapper of each kind further in.
    wrappers = "|".join(sorted(WRAPPERS))
    outer = rf"(?:(?:{wrappers})\.)*".join(["^", *(re.escape(f"{word}.") for word in prefixes[0].split(".")[:-1]), ""])
    return {outer: ""} | {rf"\.{wrapper}\.": "." for wrapper in WRAPPERS}


def _is_unused(name: str, auto_class: str) -> bool:
    return any(re.search(pattern, name) for pattern in (*_UNUSED, *_UNUSED_BY.get(auto_class, ())))


@checked
def load_tokenizer(path: PathArgument, *, trust_remote_code: bool = False) -> Any:
    """Read a tokenizer from a folder, without a network.

    Args:
        path: a folder with a tokenizer's files, or a hub id ``"hub:owner/name"``.
        trust_remote_code: run Python code that the folder brings along; it can do whatever you can.

    Raises:
        CheckpointError: no folder with a tokenizer.
        MissingExtraError: transformers is not installed.
    """
    path = local_path(path, programs=trust_remote_code)
    if not is_folder(path):
        raise CheckpointError(path, "there is no such folder", "give the folder of the tokenizer's files")
    cure = "give the folder that the tokenizer's save_pretrained wrote, such as a downloaded gpt2"
    with quiet() as transformers, without_marks(path) as folder:
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=trust_remote_code
            )
        except Exception as error:  # a damaged or foreign folder may fail in any way
            raise CheckpointError(
                path, f"AutoTokenizer does not load it ({type(error).__name__}: {_first_line(error)})", cure
            ) from error
    # Transformers makes an empty tokenizer of the model's kind where there are no files.
    files = {"tokenizer.json", *getattr(tokenizer, "vocab_files_names", {}).values()}
    if not trust_remote_code and files != {"tokenizer.json"} and not any((path / name).is_file() for name in files):
        raise CheckpointError(path, f"the tokenizer's files are missing ({', '.join(sorted(files))})", cure)
    return tokenizer


def text_room(model: Any, tokenizer: Any = None) -> int | None:
    """Tokens of a text, special ones included, that a model and its tokenizer both have room for; None: no limit.

    The position table of RoBERTa and its kin has ``padding_idx + 1`` rows that no text reaches: they are not counted.
    """
    found = [getattr(model.config, name, None) for name in ("max_position_embeddings", "n_positions")]
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None:
            found.append(module.num_embeddings - padding - 1)
    found.append(getattr(tokenizer, "model_max_length", None))
    limits = [int(limit) for limit in found if isinstance(limit, (int, float)) and 0 < limit < _NO_LIMIT]
    return min(limits, default=None)


def save_folder(folder: str | os.PathLike[str], *parts: Any, replace: bool = False, **texts: str) -> None:
    """Write models and tokenizers into a new folder that appears whole, or not at all.

    Args:
        folder: must not exist, or be empty, unless it may be replaced.
        *parts: what has a ``save_pretrained``.
        replace: move a folder that stands there away first.
        **texts: further files by stem: ``metrics="..."`` becomes metrics.json.

    Raises:
        CheckpointError: the folder holds something already.
        FolderError: it cannot be written.
    """
    target = Path(folder)
    if not replace and target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(target, "something stands there already", "choose another folder, or move it away")
    with replacing(target) as temporary:
        temporary.mkdir()
        with quiet():
            for part in parts:
                part.save_pretrained(str(temporary))
        for stem, text in texts.items():
            (temporary / f"{stem}.json").write_text(text, encoding="utf-8")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _shorten(names: list[str], shown: int = 4) -> str:
    if not names:
        return "none"
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def encode_texts(
    tokenizer: Any,
    texts: Sequence[str],
    length: int,
    mask_letter: str,
    *,
    mask: int,
    from_model: Callable[[list[int]], list[int]] = list,
) -> Tensor:
    """Texts -> tokens int64 ``(B, length)``, no frame; ``mask_letter`` and what is missing at the end become ``mask``.

    Args:
        tokenizer: a tokenizer of Transformers.
        texts: B of them.
        length: L.
        mask_letter: stands for a masked position.
        mask: the token of one.
        from_model: the tokenizer's ids as tokens, where they differ.

    Raises:
        InvalidTokensError: a text with more tokens than ``length``, or one that the tokenizer cannot spell.
    """
    rows = torch.full((len(texts), length), mask)
    for index, text in enumerate(texts):
        tokens: list[int] = []
        *before, last = text.split(mask_letter)
        # The blank before a mask is no token of its own.
        for number, part in enumerate([*(part.rstrip(" ") for part in before), last]):
            tokens += [mask] if number else []
            ids = tokenizer(part, add_special_tokens=False)["input_ids"]
            if tokenizer.unk_token_id in ids and tokenizer.unk_token not in part:
                raise InvalidTokensError(
                    f"sequence {index} holds what the tokenizer cannot spell, in {part!r}; write it with tokens of the "
                    f"model, and {mask_letter!r} for a masked position."
                )
            tokens += from_model(ids)
        if len(tokens) > length:
            raise InvalidTokensError(
                f"sequence {index} has {len(tokens)} tokens, but there is room for {length}; shorten it."
            )
        rows[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
    return rows
