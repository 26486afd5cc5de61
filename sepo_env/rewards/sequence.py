"""Rewards that are read off the sequence itself."""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.arguments import checked
from sepo_env.errors import InvalidArgumentError, InvalidShapeError
from sepo_env.rewards.base import Reward

DNA = "ACGT"

_COMPLEMENT = {"A": "T", "C": "G", "G": "C", "T": "A"}

_IUPAC = {
    "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""Ambiguity codes of nucleotides (IUPAC-IUB 1984)."""


class LetterContent(Reward):
    r"""The share of positions that carry one of the given letters, :math:`\frac{1}{L} \sum_i 1[x_i \in S]`.

    Example:
        >>> gc_content()(torch.tensor([[0, 1, 2, 3], [2, 2, 2, 2]]))
        tensor([0.5000, 1.0000])
    """

    @checked
    def __init__(self, letters: str, alphabet: str = DNA, *, name: str | None = None) -> None:
        if not letters:
            raise InvalidArgumentError("a content is that of at least one letter.")
        self.name = name or f"{letters} content"
        self.num_ids = len(alphabet)
        self._weights = torch.zeros(len(alphabet), dtype=torch.float32)
        self._weights[[_index(letter, alphabet) for letter in letters]] = 1.0

    def score(self, tokens: Tensor) -> Tensor:
        """Return the shares ``(B,)``, in 0..1."""
        return self._weights.to(tokens.device)[tokens].mean(-1)


def gc_content() -> LetterContent:
    """Return the share of G and C in DNA, in 0..1."""
    return LetterContent("GC", DNA, name="gc")


class MotifDensity(Reward):
    r"""The share of the windows of a sequence that match a motif.

    .. math:: \frac{1}{L - w + 1} \sum_i 1[x_{i \dots i+w-1} \text{ matches on either strand}]

    Args:
        motif: its letters; over DNA also IUPAC codes, such as TGASTCA for AP-1.
        alphabet: the letters of tokens 0, 1, ...
        both_strands: count matches of the reverse complement as well; for DNA only.
        name: of the reward.

    Example:
        >>> MotifDensity("AN", both_strands=False)(torch.tensor([[0, 0, 1], [1, 1, 0]]))
        tensor([1., 0.])
    """

    @checked
    def __init__(self, motif: str, alphabet: str = DNA, *, both_strands: bool = True, name: str | None = None) -> None:
        if not motif:
            raise InvalidArgumentError("a motif has at least one letter.")
        self.name = name or f"{motif} density"
        self.num_ids = len(alphabet)
        allowed = torch.zeros(len(motif), len(alphabet), dtype=torch.bool)
        for position, code in enumerate(motif):
            letters = _IUPAC.get(code, code) if alphabet == DNA else code
            allowed[position, [_index(letter, alphabet) for letter in letters]] = True
        self._patterns = _with_other_strand(allowed, alphabet) if both_strands else allowed[None]

    def score(self, tokens: Tensor) -> Tensor:
        """Return the shares ``(B,)``, in 0..1."""
        return _scan(tokens, self._patterns).all(-1).any(0).float().mean(-1)


class MotifScore(Reward):
    r"""How well the best window of a sequence fits a position weight matrix, relative to the consensus.

    .. math:: \frac{\max_i S_i - S_{\min}}{S_{\max} - S_{\min}}, \qquad
              S_i = \sum_{j=1}^{w} \log_2 \frac{p_{j, x_{i+j}}}{b_{x_{i+j}}}

    so that motifs of any width score in 0..1, 1 for the consensus.

    Args:
        probabilities: ``(w, V)``, rows sum to 1, no zeros (add pseudocounts first).
        alphabet: the letters of tokens 0, 1, ...
        background: ``(V,)``, letter frequencies that sum to 1; uniform where it is not given.
        both_strands: scan the reverse complement as well; for DNA only.
        name: of the reward.

    Raises:
        InvalidShapeError: ``probabilities`` is not ``(w, V)`` or ``background`` not ``(V,)``.
        InvalidArgumentError: they are not positive or do not sum to 1, or all sequences would score the same.
    """

    @checked
    def __init__(
        self,
        probabilities: Tensor,
        alphabet: str = DNA,
        *,
        background: Tensor | None = None,
        both_strands: bool = True,
        name: str = "motif score",
    ) -> None:
        num_tokens = len(alphabet)
        if background is None:
            background = torch.full((num_tokens,), 1.0 / num_tokens, dtype=torch.float32)
        if probabilities.dim() != 2 or probabilities.shape[1] != num_tokens:
            raise InvalidShapeError("probabilities", probabilities.shape, f"(w, V) with V = {num_tokens}")
        if background.shape != (num_tokens,):
            raise InvalidShapeError("background", background.shape, f"(V,) = ({num_tokens},)")
        for label, rows in (("probabilities", probabilities), ("background", background)):
            if not (rows.is_floating_point() and bool((rows > 0).all() & ((rows.sum(-1) - 1).abs() < 1e-4).all())):
                raise InvalidArgumentError(
                    f"{label}: expected positive rows that sum to 1; add a pseudocount and divide by the sum."
                )
        self.name = name
        self.num_ids = num_tokens
        log_odds = (probabilities / background).log2().float()
        self._worst, best = log_odds.amin(-1).sum(), log_odds.amax(-1).sum()
        self._range = best - self._worst
        if self._range <= 0:
            raise InvalidArgumentError(
                "the motif prefers no letter over the background; every sequence would score alike."
            )
        self._matrices = _with_other_strand(log_odds, alphabet) if both_strands else log_odds[None]

    def score(self, tokens: Tensor) -> Tensor:
        """Return the relative scores ``(B,)``, in 0..1."""
        best = _scan(tokens, self._matrices).sum(-1).amax(-1).amax(0)
        return (best - self._worst.to(best.device)) / self._range.to(best.device)


def _index(letter: str, alphabet: str) -> int:
    index = alphabet.find(letter)
    if index < 0:
        raise InvalidArgumentError(f"{letter!r} is no letter of the alphabet {alphabet!r}.")
    return index


def _with_other_strand(matrix: Tensor, alphabet: str) -> Tensor:
    """Stack ``(w, V)`` and its reverse complement: ``(2, w, V)``."""
    if set(alphabet) != set(_COMPLEMENT):
        raise InvalidArgumentError(f"only DNA has another strand, not {alphabet!r}; give both_strands=False.")
    complement = [alphabet.index(_COMPLEMENT[letter]) for letter in alphabet]
    return torch.stack([matrix, matrix.flip(0)[:, complement]])


def _scan(tokens: Tensor, matrices: Tensor) -> Tensor:
    """Look every window up in the matrices ``(S, w, V)``: ``(S, B, L - w + 1, w)``."""
    width = matrices.shape[1]
    if tokens.shape[1] < width:
        raise InvalidShapeError("tokens", tokens.shape, f"(B, L) with L of at least the motif's width {width}")
    windows = tokens.unfold(1, width, 1)
    return matrices.to(tokens.device)[:, torch.arange(width, device=tokens.device), windows]
