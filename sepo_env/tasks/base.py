"""What a world is about: alphabet, process, denoiser, rewards and metrics behind one name."""

from __future__ import annotations

import copy
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sepo_env.denoisers import Denoiser, load_denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError, InvalidShapeError, InvalidTokensError
from sepo_env.rewards import FOR_JUDGING, FOR_TRAINING, Reward, as_reward
from sepo_env.tasks import metrics

MASK_LETTER = "?"
"""Stands for a position that is masked (in states) or free (in prompts)."""


class Task(ABC):
    r"""A world without its dynamics: what the sequences are, how they are denoised, what they are worth.

    A subclass gives the pretrained denoiser, the registry of rewards and the metrics; environments, agents and
    benchmarks read everything else from here. Heavy parts (weights, oracles) are loaded when first asked for.

    Args:
        name: the key of the task in `sepo_env.tasks.TASKS`.
        alphabet: one letter a visible token, V in all; token v is written ``alphabet[v]``.
        length: L, the number of positions.
        process: the diffusion process over the V tokens.
        num_steps: K, the number of reverse steps unless something else is asked for.
        denoiser: another pretrained network than the task's own: a live one, or the path of a checkpoint.

    Attributes:
        training_reward: name of the reward that agents optimise by default.
        held_out_reward: name of the reward that judges, and never trains.
        conditional: whether episodes start from prompts that the task draws (`prompt`).

    Raises:
        InvalidArgumentError: the alphabet does not fit the graph, or the denoiser does not fit the task.
    """

    training_reward: str
    held_out_reward: str
    conditional: bool = False

    def __init__(
        self,
        *,
        name: str,
        alphabet: str,
        length: int,
        process: DiffusionProcess,
        num_steps: int,
        denoiser: Denoiser | str | os.PathLike[str] | None = None,
    ) -> None:
        if len(alphabet) != process.graph.num_tokens or len(set(alphabet)) != len(alphabet):
            raise InvalidArgumentError(
                f"the alphabet {alphabet!r} must hold {process.graph.num_tokens} different letters, one for each token."
            )
        if MASK_LETTER in alphabet:
            raise InvalidArgumentError(f"{MASK_LETTER!r} stands for masked positions; choose another letter.")
        self.name = name
        self.alphabet = alphabet
        self.length = length
        self.process = process
        self.num_steps = num_steps
        self._given_denoiser = denoiser
        self._denoiser: Denoiser | None = None
        self._letters = np.array([*alphabet, MASK_LETTER])

    @property
    def num_tokens(self) -> int:
        """V, the number of visible tokens."""
        return self.process.graph.num_tokens

    @property
    def denoiser(self) -> Denoiser:
        """The pretrained denoiser, loaded on first use and shared by all who ask this object: do not train it."""
        if self._denoiser is None:
            given = self._given_denoiser
            self._denoiser = self._check_denoiser(given) if isinstance(given, Denoiser) else self.load_denoiser()
        return self._denoiser

    def load_denoiser(self) -> Denoiser:
        """A fresh copy of the pretrained denoiser in evaluation mode: this one may be trained."""
        given = self._given_denoiser
        if given is None:
            denoiser = self._load_default_denoiser()
        elif isinstance(given, Denoiser):
            denoiser = copy.deepcopy(given)
        else:
            denoiser = load_denoiser(given)
        return self._check_denoiser(denoiser).eval()

    @abstractmethod
    def _load_default_denoiser(self) -> Denoiser:
        """The task's own pretrained denoiser, a new object at each call."""

    @abstractmethod
    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        """The rewards of this task by name; each entry builds one."""

    @abstractmethod
    def metrics(self, tokens: Tensor, *args: Any, **options: Any) -> dict[str, float]:
        """All metrics that the task's assets allow, of finished sequences int64 ``(B, L)``."""

    def prompt(self, keys: Tensor) -> Tensor | None:
        """Draw prompts: keys int64 ``(B,)`` -> tokens ``(B, L)`` with the id V where free; None where unconditional."""
        return None

    def diversity(self, tokens: Tensor) -> dict[str, float]:
        """How different finished sequences ``(B, L)`` are: uniqueness, Hamming distances, entropy of a position."""
        return {
            "uniqueness": float(metrics.uniqueness(tokens)),
            "mean_hamming": float(metrics.mean_hamming(tokens, self.num_tokens)),
            "nearest_hamming": float(metrics.nearest_hamming(tokens, self.num_tokens).double().mean()),
            "position_entropy": float(metrics.position_entropy(tokens, self.num_tokens).mean()),
        }

    def make_reward(self, spec: Any = None, **options: Any) -> Reward:
        """The reward that an agent is trained on.

        Args:
            spec: whatever `sepo_env.rewards.as_reward` takes: a name of `rewards`, a function, a module, a weighted
                sum; None means `training_reward`.
            **options: passed to `as_reward` (``workers``, ``timeout``, ``on_error``, ``cache``).

        Raises:
            HeldOutRewardError: the held-out reward was asked for.
        """
        return as_reward(
            self.training_reward if spec is None else spec,
            decode=self.decode,
            registry=self.rewards(),
            allow_roles=FOR_TRAINING,
            **options,
        )

    def judge(self, name: str | None = None, **options: Any) -> Reward:
        """The reward that judges: `held_out_reward`, or another one that no agent is trained on.

        Raises:
            HeldOutRewardError: a training reward was asked for.
        """
        return as_reward(
            self.held_out_reward if name is None else name,
            decode=self.decode,
            registry=self.rewards(),
            allow_roles=FOR_JUDGING,
            **options,
        )

    def encode(self, sequences: Sequence[str]) -> Tensor:
        """Strings of the alphabet -> tokens int64 ``(B, L)``; "?" becomes the id V (MASK, or free in a prompt).

        Raises:
            InvalidTokensError: another length, or a letter that is not in the alphabet.
        """
        if isinstance(sequences, str):
            raise InvalidTokensError("encode takes a list of strings, got one string; write encode([sequence]).")
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
                    f"{self.alphabet!r}, and {MASK_LETTER!r} for a masked position."
                )
            rows.append([ids[letter] for letter in sequence])
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), self.length)

    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens int64 ``(B, L)`` -> strings; the id V (MASK) becomes "?".

        Raises:
            InvalidShapeError: not two axes.
            InvalidTokensError: ids outside of 0 .. V.
        """
        if tokens.ndim != 2:
            raise InvalidShapeError("tokens", tokens.shape, "(B, L)")
        if tokens.numel() == 0:
            return [""] * tokens.shape[0]
        low, high = (int(bound) for bound in tokens.aminmax())
        if low < 0 or high > self.num_tokens:
            raise InvalidTokensError(
                f"tokens range from {low} to {high}, but {self.name} has the ids 0 to {self.num_tokens}."
            )
        letters = np.ascontiguousarray(self._letters[tokens.detach().cpu().numpy()])
        sequences: list[str] = letters.view(f"<U{tokens.shape[1]}")[:, 0].tolist()
        return sequences

    def _check_denoiser(self, denoiser: Denoiser) -> Denoiser:
        if denoiser.num_tokens != self.num_tokens or denoiser.length not in (None, self.length):
            raise InvalidArgumentError(
                f"the denoiser reads {denoiser.num_tokens} tokens at length {denoiser.length}, but {self.name} has "
                f"{self.num_tokens} at length {self.length}; give a denoiser of this task."
            )
        return denoiser

    def __repr__(self) -> str:
        return f"{type(self).__name__}(length={self.length}, process={self.process}, num_steps={self.num_steps})"
