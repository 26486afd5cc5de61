"""A denoiser with one row of logits a state: any law can be written into it, on spaces small enough to list."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.arguments import Count, Size, checked
from sepo_env.denoisers.base import Denoiser, Parameterisation
from sepo_env.errors import InvalidArgumentError, InvalidTokensError

_LARGEST_LOG2 = 33
"""Numbers of a table: 32 GiB of them."""


class TabularDenoiser(Denoiser):
    r"""A learnable table over all ``vocab_size ** L`` states.

    The state ``x`` has the row :math:`\sum_i x_i\, \mathrm{vocab}^{L - 1 - i}`: position 0 is the most significant
    digit. It serves teaching and exact tests; it is not conditioned on time.

    Args:
        num_tokens: ``V``, the number of visible tokens.
        length: ``L``.
        vocab_size: ``V + 1`` where the states hold a MASK (absorbing), ``V`` where they do not (uniform).
        parameterisation: what the model returns.
        generator: draws standard normal logits; None starts from zeros, the uniform posterior.

    Shapes:
        tokens ``(B, L)`` int64, time ``(B,)`` -> ``(B, L, V)``; the parameter ``logits`` is
        ``(vocab_size ** L, L, V)``.

    Raises:
        InvalidArgumentError: the table would not fit the vocabulary, or no memory; or an argument of another type.
        InvalidTokensError: tokens of another length or outside of the vocabulary.

    Example:
        >>> import torch
        >>> toy = TabularDenoiser(num_tokens=2, length=3, vocab_size=3)
        >>> toy(torch.tensor([[2, 2, 2]]), torch.ones(1)).exp()[0, 0].tolist()
        [0.5, 0.5]
    """

    @checked
    def __init__(
        self,
        num_tokens: Count,
        length: Size,
        vocab_size: Count,
        parameterisation: Parameterisation = "posterior",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if vocab_size not in (num_tokens, num_tokens + 1):
            raise InvalidArgumentError(
                f"vocab_size is {vocab_size}, but a model of {num_tokens} visible tokens reads either {num_tokens} "
                f"ids (uniform noise) or {num_tokens + 1} (with a MASK); give one of these."
            )
        if length * math.log2(vocab_size) + math.log2(length * num_tokens) > _LARGEST_LOG2:
            raise InvalidArgumentError(
                f"a table of {vocab_size} ** {length} states fits into no memory; give a smaller world, or a network."
            )
        self.num_tokens = num_tokens
        self.length: int = length
        self.vocab_size: int = vocab_size
        self.parameterisation = parameterisation
        self.time_conditioned = False
        shape = (vocab_size**length, length, num_tokens)
        initial = torch.zeros(shape, dtype=torch.float32)
        if generator is not None:
            initial = torch.randn(shape, dtype=torch.float32, generator=generator)
        self.logits = nn.Parameter(initial)
        powers = vocab_size ** torch.arange(length - 1, -1, -1)
        self.register_buffer("_powers", powers, persistent=False)
        self._powers: Tensor

    def state_index(self, tokens: Tensor) -> Tensor:
        """Return the row ``(B,)`` of each state ``(B, L)``.

        Raises:
            InvalidTokensError: tokens of another length or outside of the vocabulary.
        """
        if tokens.ndim != 2 or tokens.shape[1] != self.length:
            raise InvalidTokensError(
                f"the table holds states of length {self.length}, but got tokens of shape {tuple(tokens.shape)}; "
                f"give (B, {self.length})."
            )
        if tokens.numel() and not (int(tokens.min()) >= 0 and int(tokens.max()) < self.vocab_size):
            raise InvalidTokensError(
                f"tokens must lie in 0..{self.vocab_size - 1}, but range over {int(tokens.min())}.."
                f"{int(tokens.max())}; a table without MASK cannot read masked states."
            )
        return (tokens * self._powers).sum(dim=-1)

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return ``(B, L, V)`` log-posteriors or log scores of ``tokens`` ``(B, L)``; ``time`` is not read."""
        logits = self.logits[self.state_index(tokens)]
        if self.parameterisation == "posterior":
            return logits.log_softmax(dim=-1)
        is_current = F.one_hot(tokens, self.vocab_size)[..., : self.num_tokens].bool()
        return logits.masked_fill(is_current, 0.0)
