"""Counter-based normal noise: the same on every device, in any batch, with any number of workers."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# splitmix64 (Steele et al. 2014), as signed integers: torch's int64 wraps around like uint64.
GAMMA = 0x9E3779B97F4A7C15 - 2**64
MULTIPLIER_1 = 0xBF58476D1CE4E5B9 - 2**64
MULTIPLIER_2 = 0x94D049BB133111EB - 2**64
STREAM = 0x6C61_7465_6E74_7321  # separates these draws from others that use the same keys
TWO_32 = 2**32  # number of values of a 32-bit uniform number


def mix_bits(x: Tensor) -> Tensor:
    """Hash int64 values to 64 pseudo-random bits each: the finalizer of splitmix64."""
    x = (x ^ _logical_shift(x, 30)) * MULTIPLIER_1
    x = (x ^ _logical_shift(x, 27)) * MULTIPLIER_2
    return x ^ _logical_shift(x, 31)


def counter_normal(key: Tensor, shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise on the keys' device; element j of row i depends only on key i and j.

    Devices agree up to the rounding of logarithm, sine and cosine. No absolute value exceeds 6.7.

    Args:
        key: int64 (b,).
        shape: shape of one row.

    Returns:
        Noise, float32 (b, *shape).
    """
    size = math.prod(shape)
    pairs = torch.arange(1, (size + 1) // 2 + 1, device=key.device, dtype=torch.int64) * GAMMA
    # Each key starts its own splitmix64 sequence; each element gives two normal numbers (Box-Muller).
    bits = mix_bits(mix_bits(key ^ STREAM)[:, None] + pairs)
    radius = (((bits & (TWO_32 - 1)).float() + 0.5) / TWO_32).log_().mul_(-2).clamp_(min=0).sqrt_()
    angle = (_logical_shift(bits, 32).float()).mul_(2 * math.pi / TWO_32)
    noise = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)
    return noise.flatten(1)[:, :size].reshape(len(key), *shape)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 values right as if they were unsigned."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
