"""Tasks whose sequences are text: several letters a token, read and written by a codec."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from sepo_env.arguments import Size, checked
from sepo_env.denoisers import DenoiserArgument
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError
from sepo_env.tasks import metrics
from sepo_env.tasks.base import Task
from sepo_env.tasks.codec import Codec
from sepo_env.tasks.sequences import check_texts


class TokenizerTask(Task):
    """A task of text. In strings, a word `mask_letter` is a masked position, or one that is free in a prompt.

    A prompt may be shorter than L tokens, the rest is free: ``"the lord is my"`` is a prefix, and
    ``"the lord is my _ _ _ for ever"`` also gives what follows three free tokens.

    Args:
        name: the key of the task in `sepo_env.tasks.TASKS`.
        codec: text to tokens and back; see `sepo_env.tasks.codec.Codec`.
        length: L, the number of positions.
        process: the diffusion process over the V tokens.
        num_steps: K, the number of reverse steps unless something else is asked for.
        denoiser: another pretrained network than the task's own: a live one, or the path of a checkpoint.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.

    Raises:
        InvalidArgumentError: the codec does not fit the graph, or the denoiser does not fit the task.
    """

    mask_letter = "_"

    @checked
    def __init__(
        self,
        *,
        name: str,
        codec: Codec,
        length: Size,
        process: DiffusionProcess,
        num_steps: Size,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if codec.num_tokens != process.graph.num_tokens:
            raise InvalidArgumentError(
                f"the codec has {codec.num_tokens} tokens, but the graph {process.graph.num_tokens}; give a graph of "
                "the codec's."
            )
        super().__init__(
            name=name,
            length=length,
            process=process,
            num_steps=num_steps,
            denoiser=denoiser,
            trust_remote_code=trust_remote_code,
        )
        self.codec = codec
        self._token_texts = tuple(codec.pieces())

    @property
    def token_texts(self) -> Sequence[str]:
        """The text of each token; words carry the space before them."""
        return self._token_texts

    def encode(self, sequences: Sequence[str]) -> Tensor:
        """Texts -> tokens int64 ``(B, L)``; the id V for each word "_", and at the end of shorter texts.

        Raises:
            InvalidTokensError: a text of more tokens than L, or with a letter that the codec does not know.
        """
        sequences = check_texts(sequences)
        return self.codec.encode(sequences, self.length, self.mask_letter)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens int64 ``(B, L)`` -> texts; the id V (MASK) becomes a word "_".

        Raises:
            InvalidShapeError: not two axes.
            InvalidTokensError: ids outside of 0 .. V.
        """
        self._check_tokens(tokens)
        return self.codec.decode(tokens, self.mask_letter)

    def distinct(self, tokens: Tensor, prompt_mask: Tensor | None = None) -> dict[str, float]:
        """``distinct_1`` .. ``distinct_3`` of texts ``(B, L)``: see `sepo_env.tasks.metrics.distinct_n`.

        Given positions are left out; so is an n for which no text has that many free positions in a row.
        """
        free = None if prompt_mask is None else ~prompt_mask
        shares = {n: float(metrics.distinct_n(tokens, n, free)) for n in range(1, min(3, self.length) + 1)}
        return {f"distinct_{n}": share for n, share in shares.items() if not math.isnan(share)}
