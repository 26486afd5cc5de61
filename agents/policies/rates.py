"""The actor and the critic as tensordict modules."""

from __future__ import annotations

from typing import Any, Self, cast

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.diffusion.guided import Guiding
from sepo_env.diffusion.wrapped import unwrapped
from sepo_env.errors import InvalidArgumentError
from sepo_env.precision import at_least_float32, float32_default

_PROMPT_MASK = "prompt_mask"


class _Rates(nn.Module):
    """Tokens ``(..., L)``, time ``(..., 1)`` and, if any, given positions ``(..., L)`` -> rates ``(..., L, V)``."""

    def __init__(self, denoiser: Denoiser, process: DiffusionProcess, num_steps: int | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.num_steps = num_steps

    def forward(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
        batch, length = tokens.shape[:-1], tokens.shape[-1]
        given = None if prompt_mask is None else prompt_mask.reshape(-1, length).bool()
        t = time.double().reshape(-1)
        s = None
        if self.num_steps is not None:
            # The next time of the grid, in the sampler's own float64: a float32 time is off by a rounding
            # error.
            s = 1.0 - (torch.round((1.0 - t) * self.num_steps) + 1.0) / self.num_steps
        # float32 is what environments take, whatever the network computes in.
        rates = self.process.rates(self.denoiser, tokens.reshape(-1, length), t, s, given).float()
        return rates.reshape(*batch, *rates.shape[1:])


class RatePolicy(TensorDictModule):
    r"""A denoiser as a policy: its rates make the environment its ancestral sampler.

    Absorbing: :math:`r_{i,v} = p_\theta(v | x_t)_i` at masked positions. Other graphs: the rates that, held
    from t to the next time of the grid, give the ancestral law; they depend on the grid. The losses of
    :mod:`agents.objectives` score that same law. The rates are written for the environment and need not be kept:
    losses recompute what they need from the tokens.

    Args:
        denoiser: the network; its parameters are the policy's.
        process: the diffusion process that it belongs to.
        num_steps: K of the environment's time grid; needed where the graph has no mask.
        tokens_key: where tokens ``(..., L)`` are read.
        time_key: where the time ``(..., 1)`` is read.
        action_key: where rates ``(..., L, V)`` are written, in float32.
        prompt_key: where the given positions ``(..., L)`` are read, as conditional environments show them; nothing
            is given where the entry is missing. None: nowhere. Only a denoiser that reads them
            (:class:`~sepo_env.diffusion.guided.Guiding`, such as guidance) makes something of them.

    Raises:
        InvalidArgumentError: a graph without mask and no ``num_steps``; or, when called, a denoiser that hides the
            prompt and given positions that stand elsewhere than under ``prompt_key``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        process: DiffusionProcess,
        *,
        num_steps: int | None = None,
        tokens_key: NestedKey = "tokens",
        time_key: NestedKey = "time",
        action_key: NestedKey = "action",
        prompt_key: NestedKey | None = _PROMPT_MASK,
    ) -> None:
        if process.graph.mask_token is None and num_steps is None:
            raise InvalidArgumentError(
                f"the ancestral rates of {process.graph} depend on the time grid; give the environment's num_steps."
            )
        denoiser = unwrapped(denoiser)
        # A masked position's rates are the same on every grid.
        grid = num_steps if process.graph.mask_token is None else None
        in_keys = [tokens_key, time_key] if prompt_key is None else [tokens_key, time_key, prompt_key]
        super().__init__(_Rates(denoiser, process, grid), in_keys=in_keys, out_keys=[action_key])
        self.prompt_key = prompt_key
        self._needs_prompt = isinstance(denoiser, Guiding) and denoiser.hides_prompt

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase, *args: Any, **kwargs: Any) -> TensorDictBase:
        """Write the rates of the states in a tensordict ``[...]``."""
        if self._needs_prompt and (self.prompt_key is None or tensordict.get(self.prompt_key, None) is None):
            leaves = tensordict.exclude("next").keys(include_nested=True, leaves_only=True)
            for key in leaves:
                if key == _PROMPT_MASK or (isinstance(key, tuple) and key[-1] == _PROMPT_MASK):
                    raise InvalidArgumentError(
                        f"the denoiser hides the prompt, and its positions stand under {key!r}, but the policy reads "
                        f"{self.prompt_key!r}; give prompt_key={key!r}."
                    )
        return super().forward(tensordict, *args, **kwargs)


class ValueNetwork(nn.Module):
    """A small convolutional network from an observation to the expected return.

    Two convolutions over the one-hot tokens, averaged over positions, joined with the time and the share of
    masks, and one hidden layer: cheap beside a denoiser.

    Args:
        process: gives the vocabulary.
        hidden_size: channels of every layer.
        kernel_size: width of the convolutions, odd.
        conditional: whether it reads which positions are given, as one channel more: a token that is given and
            stays looks like one that may still change.

    Shapes:
        tokens ``(..., L)`` int64, time ``(..., 1)`` and, if conditional, prompt_mask ``(..., L)`` -> ``(..., 1)``.
    """

    @float32_default()
    def __init__(
        self, process: DiffusionProcess, hidden_size: int = 32, kernel_size: int = 7, *, conditional: bool = False
    ) -> None:
        super().__init__()
        self.vocab_size = process.graph.vocab_size
        self.mask_token = process.graph.mask_token
        padding = kernel_size // 2
        self.first = nn.Conv1d(self.vocab_size, hidden_size, kernel_size, padding=padding)
        self.second = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=padding)
        self.head = nn.Sequential(nn.Linear(hidden_size + 2, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1))
        # Last, so that the rest starts from the weights that it would have without.
        self.given = nn.Conv1d(1, hidden_size, kernel_size, padding=padding, bias=False) if conditional else None

    def forward(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
        """Return the value ``(..., 1)`` of tokens ``(..., L)`` at time ``(..., 1)``, given positions ``(..., L)``.

        Raises:
            InvalidArgumentError: given positions for a network that does not read them, or none for one that does.
        """
        if (prompt_mask is None) != (self.given is None):
            raise InvalidArgumentError(
                "a value network with conditional=True reads prompt_mask, and another one does not; make it as the "
                "task is, ValueNetwork(process, conditional=task.conditional)."
            )
        batch, length = tokens.shape[:-1], tokens.shape[-1]
        flat = tokens.reshape(-1, length)
        dtype = self.first.weight.dtype
        features = self._read_tokens(flat)
        if prompt_mask is not None and self.given is not None:
            features = features + self.given(prompt_mask.reshape(-1, 1, length).to(dtype))
        features = F.gelu(self.second(F.gelu(features))).mean(dim=-1)
        masked = torch.zeros_like(flat) if self.mask_token is None else flat == self.mask_token
        context = torch.stack([time.reshape(-1).to(dtype), masked.to(dtype).mean(dim=-1)], dim=-1)
        value = self.head(torch.cat([features, context], dim=-1))
        return at_least_float32(value).reshape(*batch, 1)  # advantages are small differences of returns

    def _read_tokens(self, tokens: Tensor) -> Tensor:
        """The first convolution, ``(B, L)`` -> ``(B, C, L)``, by whichever takes fewer numbers a position."""
        weight, bias = self.first.weight, self.first.bias
        channels, _, width = weight.shape
        if self.vocab_size <= channels * width:
            one_hot = F.one_hot(tokens, self.vocab_size)
            return self.first(one_hot.to(weight.dtype).transpose(1, 2))
        # A one-hot column picks a column of the weights; V numbers a position are not needed for that.
        length = tokens.shape[1]
        features = cast("Tensor", bias)[:, None, None]
        for offset in range(width):
            position = torch.arange(length, device=tokens.device) + offset - width // 2
            inside = (position >= 0) & (position < length)
            seen = tokens[:, position.clamp(0, length - 1)]
            columns = weight[:, :, offset].index_select(1, seen.reshape(-1)).unflatten(1, seen.shape)
            features = features + columns * inside
        return features.transpose(0, 1)


class Critic(TensorDictModule):
    r"""The critic :math:`V(x_t, t)` of actor-critic agents, a network of its own.

    Args:
        network: tokens ``(..., L)``, time ``(..., 1)`` and, with ``prompt_key``, given positions ``(..., L)`` ->
            ``(..., 1)``.
        tokens_key: where tokens are read.
        time_key: where the time is read.
        prompt_key: where the given positions are read; None: nowhere.
        value_key: where the value ``(..., 1)`` is written.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        tokens_key: NestedKey = "tokens",
        time_key: NestedKey = "time",
        prompt_key: NestedKey | None = None,
        value_key: NestedKey = "state_value",
    ) -> None:
        in_keys = [tokens_key, time_key] if prompt_key is None else [tokens_key, time_key, prompt_key]
        super().__init__(network, in_keys=in_keys, out_keys=[value_key])

    @classmethod
    def of(cls, process: DiffusionProcess, *, conditional: bool) -> Self:
        """A critic with a fresh `ValueNetwork`, which sees the given positions where there are such."""
        return cls(ValueNetwork(process, conditional=conditional), prompt_key=_PROMPT_MASK if conditional else None)

    def value(self, states: TensorDictBase) -> Tensor:
        """The value of states ``[...]``, as ``(..., 1)``; nothing is written."""
        return self.module(*(states[key] for key in self.in_keys))
