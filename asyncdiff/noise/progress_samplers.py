"""Progress samplers: distributions of the progress s along a noise path, for training and the likelihood bound.

Choose uniform or logit-normal progress, or importance sampling of the bound's integrand.
"""

import math
from abc import ABC, abstractmethod

import torch

from asyncdiff.checks import finite, positive
from asyncdiff.noise.paths import Curve
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.shapes import LevelMap, Progress

BISECTIONS = 30  # bisections of [0, 1]: s is exact to 1e-9, and the density is exact for the returned s


class ProgressSampler(ABC):
    """Distribution of the progress s along a curve, as a map from uniform numbers to s, with the density of s.

    Losses and integrands divided by the density stay unbiased for every progress sampler.

    Attributes:
        needs_floor: whether the path must start above t = 0, as `Floored` paths do.
    """

    needs_floor: bool = False

    @abstractmethod
    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """Map uniform numbers to progress.

        Args:
            curve: noise path of each image.
            u: uniform numbers in [0, 1], one per image.

        Returns:
            s, increasing in u, and its density q(s), which is 0 where no patch of the curve moves.
        """


class UniformProgress(ProgressSampler):
    """Uniform progress, the default: s = u, density 1."""

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        return u, torch.ones_like(u)


class LogitNormalProgress(ProgressSampler):
    """Logit-normal progress, logit(s) ~ N(loc, scale^2): favors the middle of a path (Esser et al., arXiv:2403.03206).

    Args:
        loc: mean of logit(s); larger means noisier.
        scale: standard deviation of logit(s), positive.
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0):
        finite("loc", loc, "0 favors the middle")
        positive("scale", scale, "use 1, for example")
        self.loc = loc
        self.scale = scale

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        tiny = torch.finfo(u.dtype).eps
        normal = torch.special.ndtri(u.clamp(tiny, 1 - tiny))  # s must lie inside (0, 1)
        s = (self.loc + self.scale * normal).sigmoid()
        density = torch.exp(-0.5 * normal.square()) / (math.sqrt(2 * math.pi) * self.scale * s * (1 - s))
        return s, density


class FluxProgress(ProgressSampler):
    """Importance sampling of s for the bound and the `ELBO` weighting; derived for independent Gaussian pixels.

    q(s) is proportional to the bound's integrand for independent N(m, variance) pixels. There the integral from t = 1
    down to level t_i is G = 1/2 log(1 + variance SNR(t_i)) per pixel (Guo, Shamai & Verdu 2005), so that the integrand
    is a total derivative on every path. The density q(s) = -dG/ds / (G(0) - G(1)) is exact, and s is found by
    bisection. The integrand divided by q is an average of errors relative to this ideal, bounded on every path, ordered
    ones included (our own derivation).

    Args:
        variance: expected variance of a pixel given its surroundings, in model units; the result is unbiased for any
            value.
        process: noise process; default: rectified flow.
    """

    needs_floor = True

    def __init__(self, variance: float = 0.1, process: Process | None = None):
        positive("variance", variance, "use 0.1 for images in [-1, 1]")
        self.variance = variance
        self.process = process or RectifiedFlow()

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        start, end = self._mean_gain(curve(torch.zeros_like(u))[0]), self._mean_gain(curve(torch.ones_like(u))[0])
        goal = start + u * (end - start)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(BISECTIONS):
            s = (low + high) / 2
            below = self._mean_gain(curve(s)[0]) > goal  # G falls with s
            low, high = torch.where(below, s, low), torch.where(below, high, s)
        s = high  # the lower end may lie where no patch moves, between two groups of an ordered path
        t, slope = curve(s)
        return s, ((self._gain_rate(t) * slope).mean((1, 2)) / (start - end)).nan_to_num(0, posinf=0)

    def _mean_gain(self, t: LevelMap) -> Progress:
        """Return the mean of G over the patches, with 0 for known ones, which stay at t = 0."""
        known = t <= 0
        gain = 0.5 * torch.log1p(self.variance * self.process.snr(t.masked_fill(known, 1)))
        return gain.masked_fill(known, 0).mean((1, 2))

    def _gain_rate(self, t: LevelMap) -> LevelMap:
        """Return -dG/dt of every patch, 0 for known ones."""
        known = t <= 0
        t = t.masked_fill(known, 1)
        rate = -0.5 * self.variance * self.process.dsnr(t) / (1 + self.variance * self.process.snr(t))
        return rate.masked_fill(known, 0)
