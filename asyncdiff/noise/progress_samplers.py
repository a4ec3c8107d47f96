"""Progress samplers: distributions of the progress s along a noise path, for training and the likelihood bound.

Choose uniform or logit-normal progress, or importance sampling of the bound's integrand.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import finite, positive
from asyncdiff.noise.curves import BroadcastCurve, Curve
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.shapes import LevelMap, Progress

BISECTIONS = 30  # bisections of [0, 1]: s is exact to 1e-9, and the density is exact for the returned s
BITS, FLOAT32_BITS = 32, 24  # precision of s found by sections
SECTIONS = {8: 2**14, 6: 2**16}  # bits per round, for up to so many patches: their levels fit into the cache of a GPU


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
    bisection, on GPUs by dividing intervals into many sections at once. The integrand divided by q is an average of
    errors relative to this ideal, bounded on every path, ordered ones included (our own derivation).

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
        # On CPUs, the work counts, and bisection does least of it; on GPUs, the number of kernels does.
        if u.device.type == "cpu" or not isinstance(curve, BroadcastCurve):
            s, total = self._bisected(curve, u)
        else:
            s, total = self._sectioned(curve, u)
        t, slope = curve(s)
        return s, ((self._gain_rate(t) * slope).mean((1, 2)) / total).nan_to_num(0, posinf=0)

    def _bisected(self, curve: Curve, u: Progress) -> tuple[Progress, Progress]:
        """Return s and G(0) - G(1), by bisection."""
        levels = curve.levels if isinstance(curve, BroadcastCurve) else lambda s: curve(s)[0]
        start, end = self._mean_gain(levels(torch.zeros_like(u))), self._mean_gain(levels(torch.ones_like(u)))
        goal = start + u * (end - start)
        low, high = torch.zeros_like(u), torch.ones_like(u)
        for _ in range(BISECTIONS):
            s = (low + high) / 2
            below = self._mean_gain(levels(s)) > goal  # G falls with s
            low, high = torch.where(below, s, low), torch.where(below, high, s)
        return high, start - end  # the lower end may lie where no patch moves, between two groups of an ordered path

    def _sectioned(self, curve: BroadcastCurve, u: Progress) -> tuple[Progress, Progress]:
        """Return s and G(0) - G(1), like `_bisected`, by dividing the interval of sqrt(s) into many sections at once.

        G changes fastest near s = 0, where sections of sqrt(s) are short.
        """
        bits = BITS if u.dtype == torch.float64 else FLOAT32_BITS
        patches = len(u) * math.prod(curve.grid)
        per_round = next((n for n, most in SECTIONS.items() if patches <= most), 4)
        edges = torch.arange(2**per_round + 1, device=u.device, dtype=u.dtype)[:, None]
        low, width, rounds = torch.zeros_like(u), 1.0, -(-bits // per_round)
        for k in range(rounds):
            width /= 2**per_round
            gain = self._mean_gain(curve.levels(torch.add(low, edges, alpha=width).square()))
            if k == 0:
                start, end = gain[0], gain[-1]
                goal = start + u * (end - start)
            low = torch.add(low, (gain[1:-1] > goal).sum(0), alpha=width)
        return (low + width).square(), start - end

    def _mean_gain(self, t: Float[Tensor, "*points b gh gw"]) -> Float[Tensor, "*points b"]:
        """Return the mean of 2 G over the patches, up to a constant: known patches, which stay at t = 0, count as 1."""
        return torch.log1p(self.variance * self.process.snr(_without_known(t))).mean((-2, -1))

    def _gain_rate(self, t: LevelMap) -> LevelMap:
        """Return -2 dG/dt of every patch; known ones have slope 0."""
        t = _without_known(t)
        return -self.variance * self.process.dsnr(t) / (1 + self.variance * self.process.snr(t))


def _without_known(t: Float[Tensor, "*points b gh gw"]) -> Float[Tensor, "*points b gh gw"]:
    """Return the levels with 1 instead of the 0 of known patches, where SNRs are infinite."""
    return t.masked_fill(t <= 0, 1)
