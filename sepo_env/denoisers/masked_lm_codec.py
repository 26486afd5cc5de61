"""The vocabulary of a masked language model as a diffusion process sees it: V visible tokens, then MASK."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from sepo_env.arguments import Count, WholeNumber, checked
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, UnknownNameError
from sepo_env.identity import Identified, describe
from sepo_env.loading.hugging_face import encode_texts

_NO_RESIDUES = ("<null_1>", ".", "-", "|")
"""What ESM's alphabet holds besides letters: padding of the alphabet, gaps of alignments, breaks of a chain."""


class MaskedLMCodec(Identified):
    r"""Text to tokens and back through a tokenizer of Hugging Face Transformers, with MASK as the last id.

    A model with n ids has V = n - 1 visible tokens. Ids below that of its mask are kept, those above move down by one,
    and the mask becomes V:

    .. math:: v = h \text{ if } h < m, \quad h - 1 \text{ if } h > m, \quad V \text{ if } h = m .

    Special tokens (CLS, SEP, PAD, UNK, BOS, EOS and added ones) and ids that no token has (padding of the embedding
    matrix) are visible tokens: a prompt may hold them. They are no content: a denoiser gives them no probability
    (`content`), and `decode` leaves them out. Of ESM's alphabet the gaps ``.`` and ``-`` and the likes of ``<null_1>``
    are no content either. Its letters all are: the ambiguity codes X, B and Z and the rare residues U and O, too, since
    the model learned them from real sequences; ``forbid=["X", "B", "Z", "U", "O"]`` leaves the twenty.

    Args:
        tokenizer: the model's.
        num_ids: n, the ids that the model scores.
        mask_id: the model's id of MASK; None is the tokenizer's.
        allow: special tokens that are content all the same, such as the end of text in a model that fills up with it.
        forbid: further tokens that are none, such as ``"X"`` or ``"[unused0]"``.
        joined: whether a sequence is written without spaces between its tokens and has no gaps; None: where the
            tokenizer is ESM's, whose own decoding puts spaces between letters.

    Attributes:
        num_tokens: V.
        content: which tokens a denoiser may choose, bool ``(V,)``.
        closed: the model's ids that are no content.
        prefix: ids of the model that frame a sequence in front (CLS, BOS), as the tokenizer puts them.
        suffix: those behind (SEP, EOS).

    Raises:
        InvalidArgumentError: no mask, a mask that the tokenizer or the model does not have, tokens that the model does
            not score, or no content.
        UnknownNameError: ``allow`` or ``forbid`` names a token that the tokenizer does not have.
    """

    @checked
    def __init__(
        self,
        tokenizer: Any,
        num_ids: Count,
        *,
        mask_id: WholeNumber | None = None,
        allow: Sequence[str] = (),
        forbid: Sequence[str] = (),
        joined: bool | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.mask_id = _find_mask(tokenizer, num_ids, mask_id)
        self.joined = "esm" in type(tokenizer).__name__.lower() if joined is None else joined
        self.num_tokens = num_ids - 1
        self._pieces = _pieces(tokenizer, num_ids)
        named = {piece: index for index, piece in enumerate(self._pieces) if piece}
        for piece in (*allow, *forbid):
            if piece not in named:
                raise UnknownNameError("token", piece, named)
        specials = set(tokenizer.all_special_ids)
        gaps = {named[piece] for piece in _NO_RESIDUES if self.joined and piece in named}
        closed = (specials | gaps | {named[piece] for piece in forbid}) - {named[piece] for piece in allow}
        self.closed = closed | {index for index, piece in enumerate(self._pieces) if not piece}
        is_content = torch.tensor([index not in self.closed for index in range(num_ids)])
        self.content = self.without_mask(is_content)
        if not bool(self.content.any()):
            raise InvalidArgumentError("every token of the tokenizer is a special one; allow those that are content.")
        self._dropped = specials - {self.mask_id}
        self.prefix, self.suffix = self._find_frame()

    def identity(self) -> dict[str, Any]:
        """Its tokens, the model's id of each, and which are content."""
        return {
            "pieces": describe(tuple(self.pieces())),
            "ids": describe(self.model_ids()),
            "content": describe(self.content),
            "joined": self.joined,
        }

    @property
    def end_token(self) -> int | None:
        """The tokenizer's end of text, where the denoiser may write it (``allow``)."""
        end = self.tokenizer.eos_token_id
        if end is None or end in self.closed or end == self.mask_id:
            return None
        return self._from_model([end])[0]

    def without_mask(self, values: Tensor) -> Tensor:
        """Values of the model's ids ``(..., n)`` -> values of the visible tokens ``(..., V)``."""
        if self.mask_id == self.num_tokens:
            return values[..., :-1]
        return torch.cat([values[..., : self.mask_id], values[..., self.mask_id + 1 :]], dim=-1)

    def model_ids(self) -> Tensor:
        """The model's id of each of ours, int64 ``(V + 1,)``."""
        ids = torch.arange(self.num_tokens + 1)
        return torch.cat([self.without_mask(ids), ids[self.mask_id : self.mask_id + 1]])

    def pieces(self) -> list[str]:
        """The tokens as the tokenizer spells them, V of them; "" where the model has an id that no token uses."""
        return [*self._pieces[: self.mask_id], *self._pieces[self.mask_id + 1 :]]

    def encode(self, texts: Sequence[str], length: int, mask_letter: str) -> Tensor:
        """Texts -> tokens int64 ``(B, length)``, no frame; ``mask_letter`` and what is missing at the end become V.

        Raises:
            InvalidTokensError: a text with more tokens than ``length``, or one that the tokenizer cannot spell.
        """
        return encode_texts(
            self.tokenizer, texts, length, mask_letter, mask=self.num_tokens, from_model=self._from_model
        )

    def _from_model(self, ids: Iterable[int]) -> list[int]:
        return [self.num_tokens if i == self.mask_id else i - int(i > self.mask_id) for i in ids]

    def decode(self, tokens: Tensor, mask_letter: str) -> list[str]:
        """Tokens int64 ``(B, L)`` -> texts; V becomes ``mask_letter``, special tokens are left out.

        Raises:
            InvalidShapeError: not two axes.
        """
        if tokens.ndim != 2:
            raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
        rows = self.model_ids().to(tokens.device)[tokens].tolist()
        return [self._decode_row([i for i in row if i not in self._dropped], mask_letter) for row in rows]

    def _decode_row(self, ids: list[int], mask_letter: str) -> str:
        mask = self._pieces[self.mask_id]
        if self.joined:
            return "".join(mask_letter if i == self.mask_id else self._pieces[i] for i in ids)
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text.replace(mask, mask_letter)

    def _find_frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts around a text: seen on the first content token that it can read back."""
        for token in self.content.nonzero()[:, 0].tolist():
            text = self.tokenizer.decode([int(self.model_ids()[token])])
            bare = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            framed = self.tokenizer(text)["input_ids"]
            for start in range(len(framed) - len(bare) + 1 if bare else 0):
                if framed[start : start + len(bare)] == bare:
                    return list(framed[:start]), list(framed[start + len(bare) :])
        raise InvalidArgumentError("the tokenizer reads none of its own tokens; give the tokenizer of this model.")


def _find_mask(tokenizer: Any, num_ids: int, mask_id: int | None) -> int:
    found = tokenizer.mask_token_id if mask_id is None else mask_id
    if found is None:
        raise InvalidArgumentError(
            "the tokenizer has no mask token, so the model's noise is not known; give mask_token_id=, the id that its "
            "authors mask with."
        )
    if not 0 <= found < num_ids or not tokenizer.convert_ids_to_tokens(found):
        raise InvalidArgumentError(
            f"the mask has the id {found}, but the model scores the ids 0 to {num_ids - 1} and the tokenizer "
            f"{'knows' if found < len(tokenizer) else 'does not know'} it; give the model's own tokenizer."
        )
    return int(found)


def _pieces(tokenizer: Any, num_ids: int) -> list[str]:
    """The token of each id of the model, "" where there is none."""
    vocabulary = tokenizer.get_vocab()
    beyond = sorted((index, piece) for piece, index in vocabulary.items() if index >= num_ids)
    if beyond:
        raise InvalidArgumentError(
            f"the tokenizer has tokens that the model does not score: {beyond[0][1]!r} has the id {beyond[0][0]}, and "
            f"the model has the ids 0 to {num_ids - 1}; give the tokenizer that the model was trained with."
        )
    pieces = [""] * num_ids
    for piece, index in vocabulary.items():
        pieces[index] = piece
    return pieces
