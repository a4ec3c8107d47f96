"""Where along a path to look: uniformly, or where the likelihood's integrand is large (importance sampling of s)."""

import math
from abc import ABC, abstractmethod

import torch

from asyncdiff.noise.paths import Curve
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.shapes import LevelMap, Progress

BISECTIONS = 30  # halvings of [0, 1]: what is left of the law of s is 1e-9, its density is exact at the s found


class ProgressSampler(ABC):
    """A law of progress: uniform numbers to points s on a curve, with the density of s.

    Attributes:
        needs_floor: whether it needs a path that starts above t = 0.
    """

    needs_floor: bool = False

    @abstractmethod
    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """s and its density q(s) for uniform `u` in [0, 1], increasing in u; 0 where no point of the curve moves."""


class UniformProgress(ProgressSampler):
    """s = u."""

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """Density 1."""
        return u, torch.ones_like(u)


class LogitNormalProgress(ProgressSampler):
    """logit(s) ~ N(loc, scale^2): more of the middle of a path, less of its ends (Esser et al., arXiv:2403.03206).

    Args:
        loc: mean of logit(s); larger means noisier.
        scale: standard deviation of logit(s).
    """

    def __init__(self, loc: float = 0.0, scale: float = 1.0):
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}: 1 is usual")
        self.loc = loc
        self.scale = scale

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """The law's quantiles. u is kept off 0 and 1 by its rounding, where s would not be inside of (0, 1)."""
        tiny = torch.finfo(u.dtype).eps
        normal = torch.special.ndtri(u.clamp(tiny, 1 - tiny))
        s = (self.loc + self.scale * normal).sigmoid()
        density = torch.exp(-0.5 * normal.square()) / (math.sqrt(2 * math.pi) * self.scale * s * (1 - s))
        return s, density


class FluxProgress(ProgressSampler):
    """q(s) in proportion to what the bound's integrand would be if every pixel were Gaussian with this variance.

    For independent N(m, variance) pixels the bound gathers G = 1/2 log(1 + variance SNR(t_i)) per pixel down to level
    t_i (Guo, Shamai & Verdu 2005): the integrand is a total derivative on every path, q(s) = dG/ds / G in closed form,
    and s is found by bisection. Weighted by 1/q the integrand is an average of errors relative to that ideal, bounded
    on every path, ordered ones included (own derivation).

    Args:
        variance: of a pixel given its surroundings, in model units; the result stays unbiased whatever it is.
        process: the noise process whose SNR is meant; the rectified flow by default.
    """

    needs_floor = True

    def __init__(self, variance: float = 0.1, process: Process | None = None):
        if variance <= 0:
            raise ValueError(f"variance must be positive, got {variance}: 0.1 suits images in [-1, 1]")
        self.variance = variance
        self.process = process or RectifiedFlow()

    def __call__(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """Points of equal shares of G, with their density."""
        start, end = self._left(curve(torch.zeros_like(u))[0]), self._left(curve(torch.ones_like(u))[0])
        goal = start + u * (end - start)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(BISECTIONS):
            s = (low + high) / 2
            below = self._left(curve(s)[0]) > goal  # what is left falls with s
            low, high = torch.where(below, s, low), torch.where(below, high, s)
        s = high  # the lower end may lie between two groups' turns, where nothing moves
        t, slope = curve(s)
        return s, ((self._loss(t) * slope).mean((1, 2)) / (start - end)).nan_to_num(0, posinf=0)

    def _left(self, t: LevelMap) -> Progress:
        """Mean of G over the patches; those that are known stay at t = 0 and count nothing."""
        known = t <= 0
        gathered = 0.5 * torch.log1p(self.variance * self.process.snr(t.masked_fill(known, 1)))
        return gathered.masked_fill(known, 0).mean((1, 2))

    def _loss(self, t: LevelMap) -> LevelMap:
        """-dG/dt."""
        known = t <= 0
        t = t.masked_fill(known, 1)
        density = -0.5 * self.variance * self.process.dsnr(t) / (1 + self.variance * self.process.snr(t))
        return density.masked_fill(known, 0)
