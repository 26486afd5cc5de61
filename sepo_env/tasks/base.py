"""What a world is about: alphabet, process, denoiser, rewards and metrics behind one name."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sepo_env.arguments import Seed, Size, checked
from sepo_env.denoisers import Denoiser, DenoiserArgument, as_denoiser, load_denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.likelihood import elbo
from sepo_env.errors import InvalidArgumentError
from sepo_env.identity import describe, describe_object, is_library
from sepo_env.rewards import FOR_JUDGING, FOR_TRAINING, Reward, as_reward
from sepo_env.tasks import metrics
from sepo_env.tasks.prompts import PromptSet
from sepo_env.tasks.sequences import check_finished, check_ids

_MOST_ROWS, _MOST_ENTRIES = 64, 1 << 25
"""Sequences that the denoiser reads at a time for likelihoods, and entries of one table over them."""

_MOST_LETTERS = 64
"""Tokens that are written out in a description; more are told by a hash."""

MASK_LETTER = "?"
"""Stands for a position that is masked (in states) or free (in prompts)."""


class Task(ABC):
    r"""A world without its dynamics: what the sequences are, how they are denoised, what they are worth.

    A subclass gives the pretrained denoiser, the registry of rewards and the metrics; environments, agents and
    benchmarks read everything else from here. Its own heavy parts (weights, oracles) are loaded when first asked for.

    Args:
        name: the key of the task in `sepo_env.tasks.TASKS`.
        length: L, the number of positions.
        process: the diffusion process over the V tokens.
        num_steps: K, the number of reverse steps unless something else is asked for.
        denoiser: another pretrained network than the task's own: a live one, or the path of a checkpoint, which is
            read at once.
        trust_remote_code: run Python code that the folder of a masked language model as ``denoiser`` brings along; it
            can do whatever you can.

    Attributes:
        training_reward: name of the reward that agents optimise by default.
        held_out_reward: name of the reward that judges, and never trains.
        conditional: whether episodes start from prompts that the task draws (`prompt`).
        mask_letter: stands for MASK in decoded sequences, and for a free position in prompts.
        prompt_set: the prompts that `prompt` draws from, unless a subclass draws otherwise; None: no prompts.

    Raises:
        CheckpointError: the denoiser's file is missing, or is none.
        InvalidArgumentError: the denoiser does not fit the task, or an argument of another type or out of range.
    """

    training_reward: str
    held_out_reward: str
    conditional: bool = False
    mask_letter: str = MASK_LETTER
    prompt_set: PromptSet | None = None

    _denoiser: Denoiser | None = None

    @checked
    def __init__(
        self,
        *,
        name: str,
        length: Size,
        process: DiffusionProcess,
        num_steps: Size,
        denoiser: DenoiserArgument | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        self.name = name
        self.length = length
        self.process = process
        self.num_steps = num_steps
        self._given_denoiser = as_denoiser(denoiser) if isinstance(denoiser, nn.Module) else denoiser
        self._trust_remote_code = trust_remote_code
        if denoiser is not None:
            _ = self.denoiser  # what cannot be read, or does not fit, is said where it was given

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
            denoiser = load_denoiser(given, trust_remote_code=self._trust_remote_code)
        return self._check_denoiser(denoiser).eval()

    @abstractmethod
    def _load_default_denoiser(self) -> Denoiser:
        """The task's own pretrained denoiser, a new object at each call."""

    @abstractmethod
    def rewards(self) -> Mapping[str, Callable[[], Reward]]:
        """The rewards of this task by name; each entry builds one."""

    @property
    def fingerprints(self) -> dict[str, str]:
        """Short hashes, by role, of the user's files that the task runs on in place of its own."""
        return {}

    @property
    def settings(self) -> dict[str, Any]:
        """What else decides over the task's world, for JSON; a task with options of its own adds them."""
        return {}

    @property
    def world(self) -> dict[str, Any]:
        """What is around the denoiser, for JSON.

        By name: the task's name, alphabet, length and process; `settings`; where they are not ours, the code of task,
        graph and schedule, with the attributes of these two; `fingerprints`, if any. Prompts and guidance have
        descriptions of their own; num_steps is a setting of agents.
        """
        parts = {"graph": self.process.graph, "schedule": self.process.schedule}
        own = {role: describe_object(part) for role, part in parts.items() if not is_library(type(part).__module__)}
        own |= {} if is_library(type(self).__module__) else {"task": describe(type(self))}
        return {
            "name": self.name,
            "alphabet": _letters(self.token_texts),
            "length": self.length,
            "process": repr(self.process),
            "settings": self.settings,
            **({"own code": own} if own else {}),
            **({"artefacts": self.fingerprints} if self.fingerprints else {}),
        }

    def identity(self, pretrained: Any = None) -> dict[str, Any]:
        """What this task is, for JSON: `world`, and the pretrained denoiser with a hash of its weights.

        An agent is loaded, and a run resumed, in a task of the same identity.

        Args:
            pretrained: what `sepo_env.identity.describe` says of the pretrained denoiser's ``core``, if at hand; None
                loads one.
        """
        return {**self.world, "denoiser": describe(self.load_denoiser().core) if pretrained is None else pretrained}

    @abstractmethod
    def metrics(self, tokens: Tensor, *args: Any, **options: Any) -> dict[str, float]:
        """All metrics that the task's assets allow.

        Args:
            tokens: finished sequences, int64 ``(B, L)``.
            *args: none.
            **options: the task's own; all tasks take ``prompt_mask``, which positions were given, bool ``(B, L)``, or
                None: what is said of a sampler's own words (likelihoods, distinct-n) leaves them out.
        """

    @checked
    def log_likelihood(
        self, tokens: Tensor, *, num_steps: Size | None = None, prompt_mask: Tensor | None = None, seed: Seed = 0
    ) -> Tensor:
        r"""The pretrained denoiser's bound on :math:`\log \pi_K(x_0 | prompt)`, float64 ``(B,)``, nats a sequence.

        Args:
            tokens: finished sequences, int64 ``(B, L)``.
            num_steps: steps of the bound, a forward pass a sequence each; None is the task's ``num_steps``.
            prompt_mask: which positions were given, bool ``(B, L)``; None: none.
            seed: sequence i draws its noise from the seed ``seed + i``.

        Raises:
            InvalidShapeError: tokens of another length, or a mask of another shape than theirs.
            InvalidTokensError: ids of another vocabulary, or masks.
        """
        if len(tokens) == 0:
            return torch.zeros(0, dtype=torch.float64, device=tokens.device)
        self.check_finished(tokens, prompt_mask)
        denoiser = self.denoiser.to(tokens.device)
        rows = max(1, min(_MOST_ROWS, _MOST_ENTRIES // (self.length * self.num_tokens)))
        given = [None] * len(tokens) if prompt_mask is None else prompt_mask.split(rows)
        bounds = [
            elbo(
                self.process,
                denoiser,
                chunk,
                num_steps=self.num_steps if num_steps is None else num_steps,
                seed=seed + rows * index,
                prompt_mask=given[index],
            )
            for index, chunk in enumerate(tokens.split(rows))
        ]
        return torch.cat(bounds)

    def check_finished(self, tokens: Tensor, prompt_mask: Tensor | None = None) -> None:
        """Refuse what are no finished sequences of this task, int64 ``(B, L)`` of visible tokens.

        Args:
            tokens: the sequences, at least one.
            prompt_mask: which positions were given, bool ``(B, L)``; None: none.

        Raises:
            InvalidShapeError: another length, none at all, or a mask of another shape.
            InvalidTokensError: another dtype, ids of another vocabulary, or masks.
        """
        check_finished(self.name, self.process.graph, self.length, tokens, prompt_mask)

    def prompt(self, keys: Tensor) -> Tensor | None:
        """Draw prompts: keys int64 ``(B,)`` -> tokens ``(B, L)`` with the id V where free; None where unconditional.

        Rows with the same key get the same prompt.
        """
        return None if self.prompt_set is None else self.prompt_set.draw(keys)

    @checked
    def start_from(self, prompts: str | Sequence[str]) -> None:
        """Make the task conditional: each episode starts from one of these prompts, drawn evenly.

        Args:
            prompts: one or several, as `encode` reads them.

        Raises:
            InvalidPromptError: none at all, one that does not fit, or one that leaves nothing to generate.
        """
        self.prompt_set = PromptSet.of(self, [prompts] if isinstance(prompts, str) else prompts)
        self.conditional = True

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
            num_ids=self.num_tokens + 1,  # a function may read MASK, as `decode` does
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
            num_ids=self.num_tokens + 1,  # a function may read MASK, as `decode` does
            allow_roles=FOR_JUDGING,
            **options,
        )

    @property
    @abstractmethod
    def token_texts(self) -> Sequence[str]:
        """What each of the V visible tokens is written as, in order: for pictures and messages."""

    @abstractmethod
    def encode(self, sequences: Sequence[str]) -> Tensor:
        """Strings -> tokens int64 ``(B, L)``; `mask_letter` becomes the id V (MASK, or free in a prompt).

        Raises:
            InvalidTokensError: what no token stands for, or another length than the task has.
        """

    @abstractmethod
    def decode(self, tokens: Tensor) -> list[str]:
        """Tokens int64 ``(B, L)`` -> strings; the id V (MASK) becomes `mask_letter`.

        Raises:
            InvalidShapeError: not two axes.
            InvalidTokensError: ids outside of 0 .. V.
        """

    def _check_tokens(self, tokens: Tensor) -> None:
        """Raise unless ``tokens`` are ``(B, L)`` of ids 0 .. V."""
        check_ids(self.name, self.num_tokens, tokens)

    def _check_denoiser(self, denoiser: Denoiser) -> Denoiser:
        if denoiser.num_tokens != self.num_tokens or denoiser.length not in (None, self.length):
            raise InvalidArgumentError(
                f"the denoiser reads {denoiser.num_tokens} tokens at length {denoiser.length}, but {self.name} has "
                f"{self.num_tokens} at length {self.length}; give a denoiser of this task."
            )
        read, needed = denoiser.core.vocab_size, self.process.graph.vocab_size
        if read is not None and read < needed:
            raise InvalidArgumentError(
                f"the denoiser reads {read} ids and no MASK, but the states of {self.name} hold {needed}; give one of "
                "an absorbing graph."
            )
        return denoiser

    def __repr__(self) -> str:
        return f"{type(self).__name__}(length={self.length}, process={self.process}, num_steps={self.num_steps})"


def _letters(token_texts: Sequence[str]) -> str:
    """All letters, or a fingerprint where there are too many to be read."""
    if len(token_texts) <= _MOST_LETTERS:
        return "".join(token_texts)
    digest = hashlib.sha256(json.dumps(list(token_texts)).encode()).hexdigest()
    return f"{len(token_texts)} tokens, sha256 {digest[:16]}"
