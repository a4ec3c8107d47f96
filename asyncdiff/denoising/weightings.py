"""Weightings: loss weights on the squared error of the velocity, per patch, as functions of the noise level."""

import math
from abc import ABC, abstractmethod

import torch

from asyncdiff.checks import within
from asyncdiff.noise.level_samplers import LevelSampler
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import LevelMap

MAX_ABS_BIAS = 50.0  # far beyond useful values: with e^50 all of the weight is at one end of the levels


class Weighting(ABC):
    """Loss weight of every patch, a factor of ||v - v_hat||^2.

    Attributes:
        needs_slopes: whether the weight depends on dt/ds, which only level samplers along a path provide.

    Examples:
        >>> from asyncdiff.noise import RectifiedFlow
        >>> t = torch.tensor([[[0.1, 0.5, 0.9]]])
        >>> Sigmoid(bias=0.0)(RectifiedFlow(), t, None)
        tensor([[[0.2195, 1.0000, 0.2195]]])
    """

    needs_slopes: bool = False

    @abstractmethod
    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        """Return the weight of every patch.

        Args:
            process: noise process.
            t: level map.
            slope: dt/ds of the path at `t`; None if the levels do not follow a path.

        Returns:
            Nonnegative weights, in the shape of `t`.
        """

    def check(self, levels: LevelSampler) -> None:
        """Raise ValueError if this weighting must not be combined with the level sampler `levels`."""
        if levels.progress_sampler.needs_floor and not self.needs_slopes:
            raise ValueError(
                f"progress_sampler {type(levels.progress_sampler).__name__} needs the weighting ELBO, "
                f"got {type(self).__name__}, whose losses it makes noisier: remove it from the level sampler"
            )


class Velocity(Weighting):
    """Weight 1: the flow matching loss, and the default."""

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        return torch.ones_like(t)


class Epsilon(Weighting):
    """Weight alpha^2: the squared error of the noise, as eps - eps_hat = alpha (v - v_hat); loss of DDPM and DiT."""

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        return process.alpha(t).square()


class Sigmoid(Weighting):
    """Sigmoid weighting of SiD2 (arXiv:2410.19324): bounded, with a bias towards lower or higher noise levels.

    It is -dlogSNR/dt sigmoid(bias - logSNR) on the error of the noise (twice SiD2's weight), which on the velocity's
    error is 2 W alpha sigma e^bias / (alpha^2 + e^bias sigma^2) with the Wronskian W: no clamping is needed. For the
    rectified flow the peak is e^(bias/2) at t = 1 / (1 + e^(bias/2)).

    Args:
        bias: the larger, the more weight on low noise; in [-50, 50]. +2 for ImageNet at 64 pixels, 0 / -1 / -3 / -4 at
            128 / 256 / 512 / 1024 pixels.
    """

    def __init__(self, bias: float = 0.0):
        within("bias", bias, -MAX_ABS_BIAS, MAX_ABS_BIAS, "use 2 for small images down to -4 for large ones")
        self.bias = bias

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        alpha, sigma, odds = process.alpha(t), process.sigma(t), math.exp(self.bias)
        return 2 * process.wronskian(t) * alpha * sigma * odds / (alpha.square() + odds * sigma.square())


class ELBO(Weighting):
    """Likelihood weighting -1/2 dSNR/dt sigma^2 dt/ds: the mean loss is the diffusion term of the ELBO.

    The loss is in nats per dimension. For the rectified flow the weight is (1 - t) / t dt/ds. It holds along any path
    that is independent of the image (MuLAN, arXiv:2312.13236, for learned schedules), so it needs the slopes of a path;
    it diverges as 1/t, so the path needs a floor above t = 0. Use `AlongPath(Floored(path), FluxProgress())`.
    """

    needs_slopes = True

    def __call__(self, process: Process, t: LevelMap, slope: LevelMap | None) -> LevelMap:
        if slope is None:
            raise ValueError(
                "ELBO needs the slopes dt/ds, got levels without slopes: draw them with AlongPath(Floored(path))"
            )
        # Patches with slope 0 contribute nothing. Known patches are among them: at t = 0 their weight would be inf * 0.
        still = slope == 0
        sigma = process.sigma(t).masked_fill(still, 1)
        return process.wronskian(t) * process.alpha(t) / sigma * slope

    def check(self, levels: LevelSampler) -> None:
        """Raise ValueError for level samplers without slopes or a floor: the bound is infinite at t = 0."""
        name = type(levels).__name__
        if not levels.has_slopes:
            raise ValueError(
                f"ELBO needs the slopes dt/ds along a path, got {name}, which does not provide them: "
                "use AlongPath with weighted=True, or the weighting Velocity or Sigmoid"
            )
        if levels.t_min <= 0:
            raise ValueError(
                f"ELBO is infinite at t = 0, got {name}, which reaches t = {levels.t_min}: "
                "use AlongPath(Floored(path, t_min=0.001))"
            )
