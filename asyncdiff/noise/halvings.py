"""Recursive halving of a sum over patches, with which `SumBeta` distributes the mean level of an image."""

import math
from functools import lru_cache

import torch
from torch import Tensor

from asyncdiff.devices import constant

Sizes = tuple[int, ...]  # numbers of patches of the parts


@lru_cache(maxsize=64)
def halvings(patches: int) -> tuple[Sizes, ...]:
    """Return the parts before every step of the halving, which splits those of more than one patch in two."""
    steps, sizes = list[Sizes](), Sizes((patches,))
    while max(sizes) > 1:
        steps.append(sizes)
        sizes = tuple(half for size in sizes for half in _halves(size) if half)
    return tuple(steps)


@constant
def beta_parameters(patches: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return (d - 1 - d % 2)^1.05 for the d patches of every part of `halvings`."""
    d = torch.tensor([size for sizes in halvings(patches) for size in sizes], dtype=dtype, device=device)
    return (d - 1 - d % 2).clamp(min=1) ** 1.05


def split(sums: Tensor, share: Tensor, sizes: Sizes) -> Tensor:
    """Split the sums (b, parts) at a share of their range; return the sums of the nonempty halves."""
    first_size, rest_size = _half_sizes(sizes, sums.dtype, sums.device).unbind()
    low = (sums - rest_size).clamp(min=0)
    high = torch.minimum(sums, first_size)
    first = low + (high - low) * share
    parts = torch.stack([first, sums - first], dim=2).flatten(1)
    return parts if min(sizes) > 1 else parts.index_select(1, _nonempty(sizes, sums.device))


def _halves(size: int) -> tuple[int, int]:
    return size // 2, size - size // 2


@constant
def _half_sizes(sizes: Sizes, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([_halves(size) for size in sizes], dtype=dtype, device=device).T.contiguous()


@constant
def _nonempty(sizes: Sizes, device: torch.device) -> Tensor:
    halves = [half for size in sizes for half in _halves(size)]
    return torch.tensor([k for k, half in enumerate(halves) if half], device=device)


def symmetric_beta(a: Tensor, uniform: Tensor) -> Tensor:
    """Return Beta(a, a) numbers, exact for every a > 0, from two uniform numbers each.

    They are (1 + T / sqrt(2 a + T^2)) / 2, where T has Student's t distribution with 2 a degrees of freedom and is
    drawn as sqrt(2 a (U^(-1/a) - 1)) cos(2 pi V) (Bailey, Math. Comp. 62, 1994). This needs neither rejection
    nor private functions of torch.

    Args:
        a: positive parameters, (n,).
        uniform: uniform numbers in [0, 1), (b, 2, n).

    Returns:
        Random numbers in [0, 1], (b, n).
    """
    u, v = uniform.unbind(1)
    cosine = (2 * math.pi * v).cos()
    # 1 - U lies in (0, 1]. The clamp changes nothing: beyond it, the result is 0 or 1 to every digit.
    radius2 = torch.expm1((-torch.log1p(-u) / a).clamp(max=80))
    ratio2 = radius2 * cosine.square()
    return 0.5 + 0.5 * cosine.sign() * (ratio2 / (1 + ratio2)).sqrt()
