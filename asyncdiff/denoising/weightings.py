"""Loss weights on the squared error of the velocity, per patch."""

import math
from abc import ABC, abstractmethod

import torch

from asyncdiff.checks import within
from asyncdiff.noise.levels import LevelSampler
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import LevelMap

BIASES = 50.0  # far beyond any use: e^50 is a weight of 1 at one level and of 0 elsewhere


class Weighting(ABC):
    """A weight on ||v - v_hat||^2 for every patch.

    Attributes:
        needs_slopes: whether it weights by dt/ds, which only levels along a path have.
    """

    needs_slopes: bool = False

    @abstractmethod
    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """Weight of each patch at level `t`, whose path moves with `slope` = dt/ds (None: it follows no path)."""

    def check(self, levels: LevelSampler) -> None:
        """Raise ValueError if training with `levels` would not be what this weighting promises."""
        if levels.progress_sampler.needs_floor and not self.needs_slopes:
            raise ValueError(
                f"progress_sampler {type(levels.progress_sampler).__name__} draws s for the weight of ELBO, got {type(self).__name__}, "
                "whose losses it makes noisier: leave it out of the levels"
            )


class Velocity(Weighting):
    """1: the flow-matching loss."""

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """Ones."""
        return torch.ones_like(t)


class Epsilon(Weighting):
    """alpha^2: the plain squared error of the noise, eps - eps_hat = alpha (v - v_hat), DDPM's and DiT's loss."""

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """From 1 at t = 0 down to 0 or nearly at t = 1."""
        return process.alpha(t).square()


class Sigmoid(Weighting):
    """The sigmoid weight -1/2 dlogSNR/dt sigmoid(bias - logSNR) on the noise's error, twice and on the velocity's.

    Source: SiD2, arXiv:2410.19324. With the Wronskian W it is 2 W alpha sigma e^bias / (alpha^2 + e^bias sigma^2) on
    the velocity's error: bounded, no clamping. For the rectified flow the peak is e^(bias/2) at 1 / (1 + e^(bias/2)).

    Args:
        bias: larger shifts weight to lower noise. +2 at ImageNet 64 pixels, 0 / -1 / -3 / -4 at 128 / 256 / 512 / 1024.
    """

    def __init__(self, bias: float = 0.0):
        within("bias", bias, -BIASES, BIASES, "the larger the image, the lower: 2 to -4")
        self.bias = bias

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """Finite weights for every t in [0, 1]."""
        alpha, sigma, odds = process.alpha(t), process.sigma(t), math.exp(self.bias)
        return 2 * process.wronskian(t) * alpha * sigma * odds / (alpha.square() + odds * sigma.square())


class ELBO(Weighting):
    """-1/2 dSNR/dt sigma^2 dt/ds: the mean loss is the negative evidence bound's diffusion term in nats per dimension.

    For the rectified flow (1 - t) / t dt/ds. Holds along any path that is independent of the image (MuLAN,
    arXiv:2312.13236, for learned schedules), so it needs the slopes of a path and a floor above t = 0.
    """

    needs_slopes = True

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """Weights that diverge as 1/t towards t = 0."""
        if slope is None:
            raise ValueError("ELBO needs dt/ds, got levels without slopes: draw them with AlongPath(Floored(...))")
        # A patch that stands still adds nothing, also a known one at t = 0, where its weight would be infinite.
        still = slope == 0
        sigma = process.sigma(t).masked_fill(still, 1)
        return process.wronskian(t) * process.alpha(t) / sigma * slope

    def check(self, levels: LevelSampler) -> None:
        """Refuse level samplers without slopes, and those that reach t = 0, where the bound is infinite."""
        name = type(levels).__name__
        if not levels.has_slopes:
            raise ValueError(
                f"ELBO weights levels by their slope dt/ds along a path, and {name} follows no path: "
                "use AlongPath, or the weighting Velocity or Sigmoid"
            )
        if levels.t_min <= 0:
            raise ValueError(
                f"ELBO is infinite at t = 0, and {name} reaches down to t = {levels.t_min}: "
                "lift its path, AlongPath(Floored(path, t_min=0.001))"
            )
