"""Exact densities of one patch's level, over all images and patches, where there is a closed form."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.noise.levels import AlongPath, Homogeneous, Independent, LevelSampler, Perlin, Shared
from asyncdiff.noise.paths import AsyncPatch, Floored, Path, Synchronous
from asyncdiff.noise.progress import UniformProgress

Levels = Float[Tensor, " n"]
Density = Callable[[Levels], Levels]


def exact_density(sampler: LevelSampler) -> Density | None:
    """The density of a patch's level; None where no closed form is known. Subclasses are not taken for their bases."""
    rule = OF_SAMPLERS.get(type(sampler))
    return None if rule is None else rule(sampler)


def path_density(path: Path) -> Density | None:
    """The density of a patch's level at uniform s on a random curve of `path`; None where no closed form is known."""
    rule = OF_PATHS.get(type(path))
    return None if rule is None else rule(path)


def flat(t: Levels) -> Levels:
    """1: uniform levels."""
    return torch.ones_like(t)


def _shared(sampler: Shared) -> Density:
    return flat if sampler.scale is None else logit_normal(sampler.loc, sampler.scale)


def logit_normal(loc: float, scale: float) -> Density:
    """The density of sigmoid(loc + scale n), n standard normal."""

    def density(t: Levels) -> Levels:
        z = (t.logit() - loc) / scale
        return (-0.5 * z.square()).exp() / (math.sqrt(2 * math.pi) * scale * t * (1 - t))

    return density


def _along(sampler: AlongPath) -> Density | None:
    return path_density(sampler.path) if type(sampler.progress_sampler) is UniformProgress else None


def _homogeneous(sampler: Homogeneous) -> Density | None:
    inner, p = exact_density(sampler.levels), sampler.probability
    if inner is None or sampler.t_min > 0:
        return None
    return lambda t: p + (1 - p) * inner(t)


def async_patch(spread: float) -> Density:
    """The density of s + spread u min(s, 1 - s) with s ~ U(0, 1) and u ~ U(-1, 1); spread 1 gives -1/2 ln(t (1 - t)).

    Given s <= 1/2, t is uniform on s (1 -+ spread): 1 / (2 spread s) integrated over the s from t / (1 + spread) to
    min(1/2, t / (1 - spread)), and the mirrored integral for s > 1/2.
    """

    def density(t: Levels) -> Levels:
        lower = torch.stack([t, 1 - t]) / (1 + spread)
        upper = lower.clamp(min=0.5) if spread == 1 else (lower * (1 + spread) / (1 - spread)).clamp(max=0.5)
        return ((upper / lower).log().clamp(min=0) / (2 * spread)).sum(0)

    return density if spread else flat


def _floored(path: Floored) -> Density | None:
    inner, share = path_density(path.path), 1 - path.t_min
    if inner is None:
        return None

    def density(t: Levels) -> Levels:
        return torch.where(t > path.t_min, inner(((t - path.t_min) / share).clamp(1e-6, 1 - 1e-6)) / share, 0)

    return density


OF_SAMPLERS: dict[type, Callable[..., Density | None]] = {
    Shared: _shared,
    Independent: lambda sampler: flat,
    AlongPath: _along,
    Perlin: _along,
    Homogeneous: _homogeneous,
}
# Every field of ours has U(-1, 1) marginals, one ranked within its image on average over the patches.
OF_PATHS: dict[type, Callable[..., Density | None]] = {
    Synchronous: lambda path: flat,
    AsyncPatch: lambda path: async_patch(path.spread),
    Floored: _floored,
}
