"""Text to tokens and back: the protocol, and a codec of words and letters that needs no package."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from sepo_env.arguments import PathArgument, checked, shown
from sepo_env.errors import CheckpointError, InvalidArgumentError, InvalidTokensError
from sepo_env.files import write_atomically
from sepo_env.loading.paths import as_path
from sepo_env.textfile import read_json_object

FORMAT = "sepo_env.codec/1"
_PUNCTUATION = ",;:.?!"
_BLANKS = re.compile(rf" (?=[{_PUNCTUATION}])")
_WORDS = re.compile(rf"[{_PUNCTUATION}]| ?[^ {_PUNCTUATION}]+| ")
"""Words carry the space before them, punctuation is parted from them."""


@runtime_checkable
class Codec(Protocol):
    """What a task of text asks of a tokenizer; those of other libraries can be wrapped to fit.

    Attributes:
        num_tokens: V, the number of visible tokens.
        end_token: the visible token that ends a text, where there is one.
    """

    num_tokens: int

    @property
    def end_token(self) -> int | None:
        """The visible token that ends a text, where there is one; `decode` leaves it out."""

    def encode(self, texts: Sequence[str], length: int, mask_letter: str) -> Tensor:
        """Tokens int64 ``(B, length)``; short texts are padded with the id V, where ``mask_letter`` leads to as well.

        Raises:
            InvalidTokensError: a text with more tokens, or with letters that no token holds.
        """

    def decode(self, tokens: Tensor, mask_letter: str) -> list[str]:
        """Text of each row of ``tokens`` int64 ``(B, L)``; the id V becomes ``mask_letter``."""

    def pieces(self) -> list[str]:
        """The text of each token, for pictures and messages."""


_OWN_FILE = "give a file of WordPieceCodec.save"


class WordPieceCodec:
    r"""Frequent words as tokens of their own, all others by the longest pieces that fit (as in arXiv:1609.08144).

    Token v is ``pieces[v]``. A word begins with the space before it, and so does a text: its first space is put before
    it in `encode` and taken away in `decode`. Text is lower-case.

    Args:
        pieces: distinct texts; each letter that is to be written at all is one of them.

    Attributes:
        num_tokens: V, the number of pieces.

    Raises:
        InvalidArgumentError: a piece that is empty, is there twice, or holds a letter that is no piece.

    Example:
        >>> codec = WordPieceCodec([" ", "a", "b", " a", " ab"])
        >>> codec.encode(["ab aa", "b _"], 4, "_").tolist()
        [[4, 3, 1, 5], [0, 2, 5, 5]]
        >>> codec.decode(torch.tensor([[4, 5, 3]]), "_")
        ['ab _ a']
    """

    @checked
    def __init__(self, pieces: Sequence[str]) -> None:
        self._pieces = list(pieces)
        self._ids = {piece: token for token, piece in enumerate(self._pieces)}
        letters = {letter for piece in self._pieces for letter in piece}
        if len(self._ids) != len(self._pieces) or "" in self._ids or not letters <= self._ids.keys():
            raise InvalidArgumentError(
                "pieces must be distinct and not empty, with every letter among them; "
                f"missing letters: {sorted(letters - self._ids.keys())}."
            )
        self._longest = max(map(len, self._pieces), default=0)
        self._words: dict[str, list[int]] = {}
        self.num_tokens = len(self._pieces)

    @property
    def end_token(self) -> None:
        """None: a text has as many tokens as there is room for."""

    def pieces(self) -> list[str]:
        """The text of each token."""
        return list(self._pieces)

    def encode(self, texts: Sequence[str], length: int, mask_letter: str) -> Tensor:
        """Tokens int64 ``(B, length)``; each ``mask_letter`` and what is missing at the end become the id V.

        Upper-case letters are read as lower-case ones, and blanks before punctuation are left out.

        Raises:
            InvalidTokensError: a text with more tokens, or with a letter that the codec does not know.
        """
        rows = torch.full((len(texts), length), self.num_tokens)
        for index, text in enumerate(texts):
            tokens: list[int] = []
            for number, part in enumerate(text.split(mask_letter)):
                tokens += [self.num_tokens] if number else []
                tokens += self.encode_text(part, f"sequence {index}")
            if len(tokens) > length:
                raise InvalidTokensError(
                    f"sequence {index} has {len(tokens)} tokens, but there is room for {length}; shorten it."
                )
            rows[index, : len(tokens)] = torch.tensor(tokens, dtype=torch.int64)
        return rows

    def encode_text(self, text: str, name: str = "the text") -> list[int]:
        """The tokens of a text of any length.

        Raises:
            InvalidTokensError: a letter that the codec does not know.
        """
        text = _BLANKS.sub("", "".join(" " + word for word in text.lower().split()))
        unknown = next((letter for letter in text if letter not in self._ids), None)
        if unknown is not None:
            known = "".join(sorted(piece for piece in self._pieces if len(piece) == 1))
            raise InvalidTokensError(f"{name} has {unknown!r}; the codec knows {known!r}: write it with these.")
        return [token for word in _WORDS.findall(text) for token in self._encode_word(word)]

    def _encode_word(self, word: str) -> list[int]:
        if word not in self._words:
            tokens, start = [], 0
            while start < len(word):
                stop = min(len(word), start + self._longest)
                while word[start:stop] not in self._ids:
                    stop -= 1
                tokens.append(self._ids[word[start:stop]])
                start = stop
            self._words[word] = tokens
        return self._words[word]

    def decode(self, tokens: Tensor, mask_letter: str) -> list[str]:
        """Text of each row of ``tokens`` int64 ``(B, L)``; the id V becomes a word ``mask_letter``."""
        pieces = [*self._pieces, " " + mask_letter]
        return ["".join(pieces[token] for token in row).removeprefix(" ") for row in tokens.tolist()]

    def save(self, path: PathArgument) -> None:
        """Write the codec as JSON, whole or not at all."""
        text = json.dumps({"format": FORMAT, "pieces": self._pieces}, ensure_ascii=False) + "\n"
        write_atomically(as_path(path), text.encode())

    @classmethod
    def load(cls, path: PathArgument) -> WordPieceCodec:
        """Read a codec that `save` wrote.

        Raises:
            CheckpointError: another file than that.
        """
        content = read_json_object(path)
        if content.get("format") != FORMAT:
            found = shown(content.get("format"))
            raise CheckpointError(as_path(path), f"expected the format {FORMAT!r}, found {found}", _OWN_FILE)
        try:
            return cls(content.get("pieces"))  # type: ignore[arg-type] # it is checked
        except InvalidArgumentError as error:
            raise CheckpointError(as_path(path), f"no codec ({error})", _OWN_FILE) from error
