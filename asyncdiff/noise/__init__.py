"""Noise processes, level samplers, noise paths, fields, orders and masks. Depends only on PyTorch and jaxtyping.

A `Process` defines the noising x_t = alpha(t) x + sigma(t) eps; a `LevelSampler` draws the level maps t for training; a
`Path` is a curve of level maps from clean to noise. Sampling follows it backwards; the likelihood is an integral along
it.
"""

from asyncdiff.noise.clean_patches import CleanPatches, MixedCleanPatches, RandomBoxes, RandomMasks, RandomRegions
from asyncdiff.noise.curves import BroadcastCurve, Curve
from asyncdiff.noise.distribution import Distribution
from asyncdiff.noise.fields import BlockwiseField, Field, IndependentField, PerlinField
from asyncdiff.noise.level_samplers import (
    AlongPath,
    Gaussian,
    Homogeneous,
    Independent,
    LevelDraw,
    LevelSampler,
    LogitNormalTruncated,
    Perlin,
    Shared,
    SumBeta,
    TruncatedGaussian,
    WithCleanPatches,
)
from asyncdiff.noise.masks import Extreme, Half, Lines, Mask, Square, SuperResolution, Thin, Wide
from asyncdiff.noise.orders import CenterOut, CustomOrder, Order, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.noise.paths import (
    AsyncPatch,
    Conditioned,
    Floored,
    Ordered,
    PartiallyNoised,
    Path,
    Synchronous,
    Waypoints,
    check_path,
)
from asyncdiff.noise.processes import CosineVP, LinearVP, Process, RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress, LogitNormalProgress, ProgressSampler, UniformProgress

__all__ = [
    "AlongPath",
    "AsyncPatch",
    "BlockwiseField",
    "BroadcastCurve",
    "CenterOut",
    "CleanPatches",
    "Conditioned",
    "CosineVP",
    "Curve",
    "CustomOrder",
    "Distribution",
    "Extreme",
    "Field",
    "Floored",
    "FluxProgress",
    "Gaussian",
    "Half",
    "Homogeneous",
    "Independent",
    "IndependentField",
    "LevelDraw",
    "LevelSampler",
    "LinearVP",
    "Lines",
    "LogitNormalProgress",
    "LogitNormalTruncated",
    "Mask",
    "MixedCleanPatches",
    "Order",
    "Ordered",
    "PartiallyNoised",
    "Path",
    "Perlin",
    "PerlinField",
    "Process",
    "ProgressSampler",
    "RandomBoxes",
    "RandomMasks",
    "RandomRegions",
    "Raster",
    "RectifiedFlow",
    "Shared",
    "Shuffled",
    "Snake",
    "Spiral",
    "Square",
    "SumBeta",
    "SuperResolution",
    "Synchronous",
    "Thin",
    "TruncatedGaussian",
    "UniformProgress",
    "Wavefront",
    "Waypoints",
    "Wide",
    "WithCleanPatches",
    "check_path",
]
