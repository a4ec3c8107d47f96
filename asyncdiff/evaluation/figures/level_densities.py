"""Provide closed-form densities of a patch's level, marginalized over images and patches, for known samplers."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.noise.level_samplers import AlongPath, Homogeneous, Independent, LevelSampler, Perlin, Shared
from asyncdiff.noise.paths import AsyncPatch, Floored, Path, Synchronous
from asyncdiff.noise.progress_samplers import UniformProgress

Levels = Float[Tensor, " n"]
Density = Callable[[Levels], Levels]


def exact_density(sampler: LevelSampler) -> Density | None:
    """Return the density of a patch's level, or None if no closed form is known for this exact class."""
    make_density = SAMPLER_DENSITIES.get(type(sampler))
    return None if make_density is None else make_density(sampler)


def path_density(path: Path) -> Density | None:
    """Return the density of a patch's level at uniform s on a random curve of `path`, or None if it is unknown."""
    make_density = PATH_DENSITIES.get(type(path))
    return None if make_density is None else make_density(path)


def uniform_density(t: Levels) -> Levels:
    """Return the density of uniformly distributed levels, which is 1."""
    return torch.ones_like(t)


def _shared_density(sampler: Shared) -> Density:
    return uniform_density if sampler.scale is None else logit_normal_density(sampler.loc, sampler.scale)


def logit_normal_density(loc: float, scale: float) -> Density:
    """Return the density of sigmoid(loc + scale n) with n ~ N(0, 1)."""

    def density(t: Levels) -> Levels:
        z = (t.logit() - loc) / scale
        return (-0.5 * z.square()).exp() / (math.sqrt(2 * math.pi) * scale * t * (1 - t))

    return density


def _along_path_density(sampler: AlongPath) -> Density | None:
    return path_density(sampler.path) if type(sampler.progress_sampler) is UniformProgress else None


def _homogeneous_density(sampler: Homogeneous) -> Density | None:
    inner, p = exact_density(sampler.levels), sampler.probability
    if inner is None or sampler.t_min > 0:
        return None
    return lambda t: p + (1 - p) * inner(t)


def async_patch_density(spread: float) -> Density:
    """Return the density of s + spread u min(s, 1 - s) with s ~ U(0, 1) and u ~ U(-1, 1).

    Given s <= 1/2, t is uniform on s (1 -+ spread): 1 / (2 spread s) integrated over the s from t / (1 + spread) to
    min(1/2, t / (1 - spread)), and the mirrored integral for s > 1/2. For spread 1 it is -1/2 ln(t (1 - t)).
    """

    def density(t: Levels) -> Levels:
        lower = torch.stack([t, 1 - t]) / (1 + spread)
        upper = lower.clamp(min=0.5) if spread == 1 else (lower * (1 + spread) / (1 - spread)).clamp(max=0.5)
        return ((upper / lower).log().clamp(min=0) / (2 * spread)).sum(0)

    return density if spread else uniform_density


def _floored_density(path: Floored) -> Density | None:
    inner, scale = path_density(path.path), 1 - path.t_min
    if inner is None:
        return None

    def density(t: Levels) -> Levels:
        return torch.where(t > path.t_min, inner(((t - path.t_min) / scale).clamp(1e-6, 1 - 1e-6)) / scale, 0)

    return density


SAMPLER_DENSITIES: dict[type, Callable[..., Density | None]] = {
    Shared: _shared_density,
    Independent: lambda sampler: uniform_density,
    AlongPath: _along_path_density,
    Perlin: _along_path_density,
    Homogeneous: _homogeneous_density,
}
# All fields have U(-1, 1) marginals; fields ranked within an image have them on average over the patches.
PATH_DENSITIES: dict[type, Callable[..., Density | None]] = {
    Synchronous: lambda path: uniform_density,
    AsyncPatch: lambda path: async_patch_density(path.spread),
    Floored: _floored_density,
}
