r"""Counter-based random numbers: a pure function of (key, counter, index), the same on every device.

An environment's randomness must not depend on how many environments run beside it. Each trajectory therefore
owns a 64-bit key, and the uniforms of its k-th step are a hash of (key, k, position). Nothing is stored, nothing
is advanced, and a batch is one tensor operation. The hash is the SplitMix64 finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", 2014).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sepo_env.arguments import Seed, check_argument
from sepo_env.errors import InvalidArgumentError

# The constants are SplitMix64's; int64 holds them in two's complement, and int64 products wrap as uint64 ones do.
_GOLDEN_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MULTIPLIER_2 = 0x94D049BB133111EB - (1 << 64)


def _logical_shift_right(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _logical_shift_right(x, 30)) * _MULTIPLIER_1
    x = (x ^ _logical_shift_right(x, 27)) * _MULTIPLIER_2
    return x ^ _logical_shift_right(x, 31)


def keys_from_seed(seeds: Tensor, episodes: Tensor | int = 0) -> Tensor:
    """One key for each (seed, episode) pair.

    Args:
        seeds: int64 ``(B,)``, 0 or more.
        episodes: int64 ``(B,)`` or one number; how often that seed's environment has been reset before.

    Returns:
        Keys, int64 ``(B,)``.

    Raises:
        InvalidArgumentError: seeds that are negative, or of another dtype.
    """
    if seeds.dtype != torch.int64 or (seeds.numel() and int(seeds.min()) < 0):
        low = f", the lowest {seeds.min()}" if seeds.numel() else ""
        raise InvalidArgumentError(f"the seeds are {seeds.dtype}{low}; give int64 of at least 0.")
    # As a tensor: a product of Python's own numbers would outgrow 64 bits instead of wrapping.
    episodes = torch.as_tensor(episodes, device=seeds.device)
    return _mix(_mix(seeds + _GOLDEN_GAMMA) + _GOLDEN_GAMMA * (episodes + 1))


def row_keys(seed: int, number: int, device: torch.device | str | None = None) -> Tensor:
    """Keys of the seeds ``seed``, ``seed + 1`` and so on, one for each of ``number`` rows: int64 ``(number,)``.

    Raises:
        InvalidArgumentError: one of the seeds is outside of 0 .. 2^63 - 1.

    >>> bool((row_keys(3, 2) == keys_from_seed(torch.tensor([3, 4]))).all())
    True
    """
    first = check_argument("seed", seed, Seed)
    check_argument("the last row's seed", first + max(number, 1) - 1, Seed)
    return keys_from_seed(first + torch.arange(number, device=device))


def child_keys(keys: Tensor, number: Tensor | int) -> Tensor:
    """Unrelated keys that belong to keys: of one trajectory, those of its candidates.

    Args:
        keys: int64 ``(B,)``.
        number: int64 ``(B,)`` or one number; which child.

    Returns:
        Keys, int64 ``(B,)``.
    """
    return _mix(_mix(keys) + _GOLDEN_GAMMA * (torch.as_tensor(number, device=keys.device) + 1))


def uniforms(keys: Tensor, counter: Tensor | int, num: int) -> Tensor:
    """Independent uniform numbers of the open interval (0, 1).

    Args:
        keys: int64 ``(B,)``.
        counter: int64 ``(B,)`` or one number; the step that the numbers are for.
        num: how many numbers a row, n.

    Returns:
        float64 ``(B, n)``; 52 random bits each, so that 0 and 1 never occur.

    >>> u = uniforms(keys_from_seed(torch.arange(3)), 7, 4)
    >>> bool((u[1:2] == uniforms(keys_from_seed(torch.tensor([1])), 7, 4)).all())
    True
    """
    step_keys = _mix(keys + _GOLDEN_GAMMA * _mix(torch.as_tensor(counter, device=keys.device) + _GOLDEN_GAMMA))
    index = torch.arange(1, num + 1, device=keys.device)
    bits = _logical_shift_right(_mix(step_keys[:, None] + _GOLDEN_GAMMA * index), 12)
    return (bits.double() + 0.5) * 2.0**-52


def sample_categorical(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """Draw from categorical laws by inverting their distribution functions in float64.

    Float32 Gumbel noise lowers the effective temperature (arXiv 2409.02908); inversion in float64 does not.

    Args:
        log_probs: ``(..., W)``; need not be normalised, ``-inf`` is never drawn.
        uniform: float64 ``(...)`` in (0, 1).

    Returns:
        int64 ``(...)``.

    >>> sample_categorical(torch.log(torch.tensor([0.25, 0.0, 0.75])), torch.tensor(0.3, dtype=torch.float64))
    tensor(2)
    """
    log_probs = log_probs.double()
    probs = torch.exp(log_probs - log_probs.amax(-1, keepdim=True))
    cumulative = probs.cumsum(-1)
    threshold = uniform[..., None] * cumulative[..., -1:]
    # The first entry whose cumulative mass exceeds the threshold has positive mass of its own.
    return torch.searchsorted(cumulative, threshold, right=True)[..., 0].clamp(max=log_probs.shape[-1] - 1)
