"""The actor and the critic as tensordict modules."""

from __future__ import annotations

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torch.nn import functional as F

from sepo_env.denoisers.base import Denoiser
from sepo_env.diffusion import DiffusionProcess
from sepo_env.errors import InvalidArgumentError


class _Rates(nn.Module):
    """Tokens ``(..., L)``, time ``(..., 1)`` and, if any, given positions ``(..., L)`` -> rates ``(..., L, V)``."""

    def __init__(self, denoiser: Denoiser, process: DiffusionProcess, num_steps: int | None) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.process = process
        self.num_steps = num_steps

    def forward(self, tokens: Tensor, time: Tensor, prompt_mask: Tensor | None = None) -> Tensor:
        batch, length = tokens.shape[:-1], tokens.shape[-1]
        given = None if prompt_mask is None else prompt_mask.reshape(-1, length)
        t = time.double().reshape(-1)
        s = None
        if self.num_steps is not None:
            # The next time of the grid, in the sampler's own float64: a float32 time is off by a rounding
            # error.
            s = 1.0 - (torch.round((1.0 - t) * self.num_steps) + 1.0) / self.num_steps
        rates = self.process.rates(self.denoiser, tokens.reshape(-1, length), t, s, given)
        return rates.reshape(*batch, *rates.shape[1:])


class RatePolicy(TensorDictModule):
    r"""A denoiser as a policy: its rates make the environment its ancestral sampler.

    Absorbing: :math:`r_{i,v} = p_\theta(v | x_t)_i` at masked positions. Other graphs: the rates that, held
    from t to the next time of the grid, give the ancestral law; they depend on the grid. The losses of
    :mod:`agents.losses` score that same law. The rates are written for the environment and need not be kept:
    losses recompute what they need from the tokens.

    Args:
        denoiser: the network; its parameters are the policy's.
        process: the diffusion process that it belongs to.
        num_steps: K of the environment's time grid; needed where the graph has no mask.
        tokens_key: where tokens ``(..., L)`` are read.
        time_key: where the time ``(..., 1)`` is read.
        action_key: where rates ``(..., L, V)`` are written, in the denoiser's dtype.
        prompt_key: where the given positions ``(..., L)`` are read, as conditional environments show them; None:
            nowhere. Only a denoiser that reads them
            (:class:`~sepo_env.diffusion.guided.Guiding`, such as guidance) makes something of them.

    Raises:
        InvalidArgumentError: a graph without mask and no ``num_steps``.
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
        prompt_key: NestedKey | None = None,
    ) -> None:
        if process.graph.mask_token is None and num_steps is None:
            raise InvalidArgumentError(
                f"the ancestral rates of {process.graph} depend on the time grid; give the environment's num_steps."
            )
        # A masked position's rates are the same on every grid.
        grid = num_steps if process.graph.mask_token is None else None
        in_keys = [tokens_key, time_key] if prompt_key is None else [tokens_key, time_key, prompt_key]
        super().__init__(_Rates(denoiser, process, grid), in_keys=in_keys, out_keys=[action_key])


class ValueNetwork(nn.Module):
    """A small convolutional network from an observation to the expected return.

    Two convolutions over the one-hot tokens, averaged over positions, joined with the time and the share of
    masks, and one hidden layer: cheap beside a denoiser.

    Args:
        process: gives the vocabulary.
        hidden_size: channels of every layer.
        kernel_size: width of the convolutions, odd.

    Shapes:
        tokens ``(..., L)`` int64 and time ``(..., 1)`` -> ``(..., 1)``.
    """

    def __init__(self, process: DiffusionProcess, hidden_size: int = 32, kernel_size: int = 7) -> None:
        super().__init__()
        self.vocab_size = process.graph.vocab_size
        self.mask_token = process.graph.mask_token
        padding = kernel_size // 2
        self.first = nn.Conv1d(self.vocab_size, hidden_size, kernel_size, padding=padding)
        self.second = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=padding)
        self.head = nn.Sequential(nn.Linear(hidden_size + 2, hidden_size), nn.GELU(), nn.Linear(hidden_size, 1))

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """Return the value ``(..., 1)`` of tokens ``(..., L)`` at time ``(..., 1)``."""
        batch, length = tokens.shape[:-1], tokens.shape[-1]
        flat = tokens.reshape(-1, length)
        dtype = self.first.weight.dtype
        features = F.one_hot(flat, self.vocab_size).to(dtype).transpose(1, 2)
        features = F.gelu(self.second(F.gelu(self.first(features)))).mean(dim=-1)
        masked = torch.zeros_like(flat) if self.mask_token is None else flat == self.mask_token
        context = torch.stack([time.reshape(-1).to(dtype), masked.to(dtype).mean(dim=-1)], dim=-1)
        return self.head(torch.cat([features, context], dim=-1)).reshape(*batch, 1)


class Critic(TensorDictModule):
    r"""The critic :math:`V(x_t, t)` of actor-critic agents, a network of its own.

    Args:
        network: tokens ``(..., L)`` and time ``(..., 1)`` -> ``(..., 1)``.
        tokens_key: where tokens are read.
        time_key: where the time is read.
        value_key: where the value ``(..., 1)`` is written.
    """

    def __init__(
        self,
        network: ValueNetwork,
        *,
        tokens_key: NestedKey = "tokens",
        time_key: NestedKey = "time",
        value_key: NestedKey = "state_value",
    ) -> None:
        super().__init__(network, in_keys=[tokens_key, time_key], out_keys=[value_key])

    def value(self, tokens: Tensor, time: Tensor) -> Tensor:
        """The value of tokens ``(..., L)`` at time ``(..., 1)``, as ``(..., 1)``."""
        return self.module(tokens, time)
