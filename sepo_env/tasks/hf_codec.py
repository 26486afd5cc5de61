"""A tokenizer of Hugging Face Transformers as the codec of a task whose denoiser is no masked language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sepo_env.arguments import Count, PathArgument, checked
from sepo_env.errors import InvalidArgumentError
from sepo_env.loading.hugging_face import encode_texts, load_tokenizer


class HuggingFaceCodec:
    """Text to tokens and back through a tokenizer whose ids are those of the denoiser; MASK is no token of its own.

    MDLM and SEDD read the ids of GPT-2's tokenizer and have MASK behind them. No frame is added to a text. Special
    tokens (such as the end of text) are tokens like others to the denoiser and are left out by `decode`. (The codec of
    masked language models, whose mask is one of the tokenizer's, is `sepo_env.denoisers.masked_lm_codec`.)

    Args:
        tokenizer: a tokenizer of Transformers.
        num_tokens: V; ids that the tokenizer does not have are written as "".

    Raises:
        InvalidArgumentError: the tokenizer has more tokens than the denoiser.
    """

    @checked
    def __init__(self, tokenizer: Any, num_tokens: Count) -> None:
        if len(tokenizer) > num_tokens:
            raise InvalidArgumentError(
                f"the tokenizer has {len(tokenizer)} tokens, but the denoiser reads {num_tokens}; give the folder of "
                "the tokenizer that the denoiser was trained with."
            )
        self.tokenizer = tokenizer
        self.num_tokens = num_tokens
        self._pieces = [""] * num_tokens
        for piece, index in tokenizer.get_vocab().items():
            self._pieces[index] = piece
        self._dropped = {index for index, piece in enumerate(self._pieces) if not piece}
        self._dropped |= set(tokenizer.all_special_ids)

    @property
    def end_token(self) -> int | None:
        """The tokenizer's end of text."""
        end: int | None = self.tokenizer.eos_token_id
        return end

    def pieces(self) -> list[str]:
        """The tokens as the tokenizer spells them, V of them."""
        return list(self._pieces)

    def encode(self, texts: Sequence[str], length: int, mask_letter: str) -> Tensor:
        """Texts -> tokens int64 ``(B, length)``; ``mask_letter`` and what is missing at the end become V.

        Raises:
            InvalidTokensError: a text with more tokens than ``length``, or one that the tokenizer cannot spell.
        """
        return encode_texts(self.tokenizer, texts, length, mask_letter, mask=self.num_tokens)

    def decode(self, tokens: Tensor, mask_letter: str) -> list[str]:
        """Tokens int64 ``(B, L)`` -> texts; V becomes ``mask_letter``, special tokens are left out."""
        return [self._decode_row(row, mask_letter) for row in tokens.tolist()]

    def _decode_row(self, row: list[int], mask_letter: str) -> str:
        text, run = "", []
        for token in [*row, None]:
            if token is not None and token != self.num_tokens:
                run.append(token)
                continue
            kept = [index for index in run if index not in self._dropped]
            # Together: a letter of several bytes may be spread over several tokens.
            piece: str = self.tokenizer.decode(kept, clean_up_tokenization_spaces=False) if kept else ""
            text += piece if not text or not piece or piece[0].isspace() else f" {piece}"
            run = []
            if token is not None:
                text += f" {mask_letter}" if text else mask_letter
        return text


@checked
def load_codec(path: PathArgument, num_tokens: Count) -> HuggingFaceCodec:
    """Read a tokenizer from a folder, or a hub id ``"hub:owner/name"``, without running code of its own.

    Raises:
        CheckpointError: no folder with a tokenizer.
        InvalidArgumentError: the tokenizer does not fit.
        MissingExtraError: transformers is not installed.
    """
    return HuggingFaceCodec(load_tokenizer(path), num_tokens)
