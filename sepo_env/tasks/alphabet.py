"""Tasks whose sequences are written with one letter a token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sepo_env.arguments import Size, checked
from sepo_env.denoisers import DenoiserArgument
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError, InvalidTokensError
from sepo_env.tasks.base import Task
from sepo_env.tasks.sequences import check_texts


class AlphabetTask(Task):
    """A task in which token v is written ``alphabet[v]``; MASK, or a free position of a prompt, is `mask_letter`.

    Args:
        name: the key of the task in `sepo_env.tasks.TASKS`.
        alphabet: one letter a visible token, V in all.
        length: L, the number of positions.
        process: the diffusion process over the V tokens.
        num_steps: K, the number of reverse steps unless something else is asked for.
        denoiser: another pretrained network than the task's own: a live one, or the path of a checkpoint.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.

    Raises:
        InvalidArgumentError: the alphabet does not fit the graph, or the denoiser does not fit the task.
    """

    @checked
    def __init__(
        self,
        *,
        name: str,
        alphabet: str,
        length: Size,
        process: DiffusionProcess,
        num_steps: Size,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if len(alphabet) != process.graph.num_tokens or len(set(alphabet)) != len(alphabet):
            raise InvalidArgumentError(
                f"the alphabet {alphabet!r} must hold {process.graph.num_tokens} different letters, one for each token."
            )
        if self.mask_letter in alphabet:
            raise InvalidArgumentError(f"{self.mask_letter!r} stands for masked positions; choose another letter.")
        super().__init__(
            name=name,
            length=length,
            process=process,
            num_steps=num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        self.alphabet = alphabet
        self._letters = np.array([*alphabet, self.mask_letter])

    @property
    def token_texts(self) -> Sequence[str]:
        """The letters of the alphabet."""
        return self.alphabet

    def encode(self, sequences: Sequence[str]) -> Tensor:
        """Strings of the alphabet -> tokens int64 ``(B, L)``; "?" becomes the id V (MASK, or free in a prompt).

        Raises:
            InvalidTokensError: another length, or a letter that is not in the alphabet.
        """
        sequences = check_texts(sequences)
        ids = {letter: token for token, letter in enumerate(self._letters.tolist())}
        rows = []
        for index, sequence in enumerate(sequences):
            if len(sequence) != self.length:
                raise InvalidTokensError(
                    f"sequence {index} has {len(sequence)} letters, but those of {self.name} have {self.length}."
                )
            unknown = next((i for i, letter in enumerate(sequence) if letter not in ids), None)
            if unknown is not None:
                raise InvalidTokensError(
                    f"sequence {index} has {sequence[unknown]!r} at position {unknown}; the alphabet is "
                    f"{self.alphabet!r}, and {self.mask_letter!r} for a masked position."
                )
            rows.append([ids[letter] for letter in sequence])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens int64 ``(B, L)`` -> strings; the id V (MASK) becomes "?".

        Raises:
            InvalidShapeError: not two axes.
            InvalidTokensError: ids outside of 0 .. V.
        """
        self._check_tokens(tokens)
        if tokens.numel() == 0:
            return [""] * tokens.shape[0]
        letters = np.ascontiguousarray(self._letters[tokens.detach().cpu().numpy()])
        sequences: list[str] = letters.view(f"<U{tokens.shape[1]}")[:, 0].tolist()
        return sequences
