"""Normal noise that is a function of counters: the same on every device, in any batch, by any number of workers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# splitmix64 (Steele et al. 2014), as signed numbers: torch's int64 wraps around as the unsigned one does.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST = 0xBF58476D1CE4E5B9 - 2**64
SECOND = 0x94D049BB133111EB - 2**64
STREAM = 0x6C61_7465_6E74_7321  # sets these draws apart from others that are made of the same keys
HALF = 2**32  # values of a uniform number


def mix_bits(words: Tensor) -> Tensor:
    """int64 words, each mixed into 64 bits without visible pattern."""
    words = (words ^ _logical_shift(words, 30)) * FIRST
    words = (words ^ _logical_shift(words, 27)) * SECOND
    return words ^ _logical_shift(words, 31)


def counter_normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 (b, *shape), on the keys' device; element j of row i depends on key i and j only.

    Devices agree but for the rounding of logarithm, sine and cosine. No value is beyond 6.7.

    Args:
        key: int64 (b,).
        shape: of a row.
    """
    size = math.prod(shape)
    pairs = torch.arange(1, (size + 1) // 2 + 1, device=key.device, dtype=torch.int64) * GAMMA
    # Each key begins a sequence of splitmix64 at a place of its own; an element of it makes two numbers (Box-Muller).
    words = mix_bits(mix_bits(key ^ STREAM)[:, None] + pairs)
    radius = (((words & (HALF - 1)).float() + 0.5) / HALF).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (_logical_shift(words, 32).float()).mul_(2 * math.pi / HALF)
    noise = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    return noise.flatten(1)[:, :size].reshape(len(key), *shape)


def _logical_shift(words: Tensor, bits: int) -> Tensor:
    """The words shifted to the right as unsigned numbers."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)
