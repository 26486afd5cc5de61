"""Sequences as callers give them to a task, strings or tokens: refused by name where they are none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sepo_env.arguments import shown
from sepo_env.diffusion import Graph
from sepo_env.errors import InvalidShapeError, InvalidTokensError

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_finished(name: str, graph: Graph, length: int, tokens: Tensor, prompt_mask: Tensor | None) -> None:
    """Refuse what are no finished sequences of a task, int64 ``(B, L)`` of visible tokens, B from 1.

    Args:
        name: of the task, for the message.
        graph: gives the vocabulary.
        length: L.
        tokens: the sequences.
        prompt_mask: which positions were given, bool ``(B, L)``; None: none.

    Raises:
        InvalidShapeError: another length, none at all, or a mask of another shape.
        InvalidTokensError: another dtype, ids of another vocabulary, or masks.
    """
    graph.check_tokens(tokens)
    if tokens.shape[1] != length or not len(tokens):
        raise InvalidShapeError("tokens", tokens.shape, f"(B, {length}), B from 1, the sequences of {name}")
    if graph.mask_token is not None and bool((tokens == graph.mask_token).any()):
        raise InvalidTokensError(
            f"tokens hold masks (id {graph.mask_token}), but finished sequences are wanted; denoise them first."
        )
    graph.check_mask(prompt_mask, tokens)


def check_ids(name: str, num_tokens: int, tokens: Tensor) -> None:
    """Raise unless ``tokens`` are ``(B, L)`` of ids 0 .. V, V being ``num_tokens``.

    Raises:
        InvalidShapeError: not two axes.
        InvalidTokensError: no integers, or ids outside of the range.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype not in _INTEGERS:
        kind = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise InvalidTokensError(f"tokens are {kind}; give a tensor of integers (B, L).")
    if tokens.ndim != 2:
        raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
    if tokens.numel() == 0:
        return
    low, high = (int(bound) for bound in tokens.aminmax())
    if low < 0 or high > num_tokens:
        raise InvalidTokensError(f"tokens range from {low} to {high}, but {name} has the ids 0 to {num_tokens}.")


def check_texts(texts: Any) -> Sequence[str]:
    """Strings to encode, as they are.

    Raises:
        InvalidTokensError: one string alone, or something else than strings.
    """
    if isinstance(texts, str):
        raise InvalidTokensError("encode takes a list of strings, got one string; write encode([sequence]).")
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise InvalidTokensError(f"encode takes a list of strings, got {shown(texts)}; give [sequence, ...].")
    return texts
