"""Noise processes x_t = alpha(t) x + sigma(t) eps, and the conversions between x, eps, v and the score.

Everything follows from alpha, sigma and their derivatives. With the Wronskian W = alpha sigma' - sigma alpha', the
velocity v = (sigma' eps + alpha' x) / W has a pair of coefficients of unit determinant against (alpha, sigma), so that
x = (sigma'/W) x_t - sigma v and eps = -(alpha'/W) x_t + alpha v, and never a division by sigma. For the rectified flow
v = eps - x; for the cosine process v = alpha eps - sigma x (Salimans & Ho, arXiv:2202.00512). The probability-flow
ODE is dx_t/dt = W v for both.
"""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.shapes import Image, LevelMap, to_pixels

Level = Float[Tensor, "*level"]


class Process(ABC):
    """A Gaussian process from the clean image (t = 0) to pure noise (t = 1); t may have any shape."""

    @abstractmethod
    def alpha(self, t: Level) -> Level:
        """Factor of the clean image: 1 at t = 0, 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Level) -> Level:
        """Factor of the noise: 0 at t = 0, 1 at t = 1."""

    @abstractmethod
    def dalpha(self, t: Level) -> Level:
        """Derivative of alpha."""

    @abstractmethod
    def dsigma(self, t: Level) -> Level:
        """Derivative of sigma."""

    def wronskian(self, t: Level) -> Level:
        """W = alpha sigma' - sigma alpha' = -1/2 alpha sigma dlogSNR/dt."""
        return self.alpha(t) * self.dsigma(t) - self.sigma(t) * self.dalpha(t)

    def logsnr(self, t: Level) -> Level:
        """Log of the signal-to-noise ratio alpha^2 / sigma^2; +inf at t = 0, -inf at t = 1."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @abstractmethod
    def level(self, logsnr: Level) -> Level:
        """The t of a log signal-to-noise ratio: the inverse of `logsnr`."""

    def dlogsnr(self, t: Level) -> Level:
        """Derivative of `logsnr`, never positive."""
        return -2 * self.wronskian(t) / (self.alpha(t) * self.sigma(t))

    def snr(self, t: Level) -> Level:
        """Signal-to-noise ratio alpha^2 / sigma^2."""
        return (self.alpha(t) / self.sigma(t)).square()

    def dsnr(self, t: Level) -> Level:
        """Derivative of `snr`, never positive; for the rectified flow -2 (1 - t) / t^3."""
        return -2 * self.wronskian(t) * self.alpha(t) / self.sigma(t) ** 3

    def noised(self, x: Image, eps: Image, t: LevelMap) -> Image:
        """x_t: each patch of `x` mixed with noise at its own level."""
        size = (x.shape[2], x.shape[3])
        return to_pixels(self.alpha(t), size) * x + to_pixels(self.sigma(t), size) * eps

    def diffused(self, x_t: Image, eps: Image, t: LevelMap, to: LevelMap) -> Image:
        """`x_t` of level map t with noise added up to level map `to` >= t; patches at the same level are unchanged."""
        keep = self.alpha(to) / self.alpha(t).masked_fill(to <= t, 1)
        added = (self.sigma(to).square() - (keep * self.sigma(t)).square()).clamp(min=0).sqrt()
        keep, added = (
            self._pixels(factor.masked_fill(to <= t, still), x_t) for factor, still in ((keep, 1), (added, 0))
        )
        return keep * x_t + added * eps

    def velocity(self, x: Image, eps: Image, t: LevelMap) -> Image:
        """v, the network's target."""
        c_eps, c_x = self._coefficients(t, x)
        return c_eps * eps - c_x * x

    def x_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """The clean image that goes with `v`."""
        return self._coefficients(t, x_t)[0] * x_t - self._pixels(self.sigma(t), x_t) * v

    def eps_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """The noise that goes with `v`."""
        return self._coefficients(t, x_t)[1] * x_t + self._pixels(self.alpha(t), x_t) * v

    def v_from_x(self, x_t: Image, x: Image, t: LevelMap) -> Image:
        """The velocity that goes with a clean image; undefined at t = 0, where x_t holds no noise."""
        return (self._coefficients(t, x_t)[0] * x_t - x) / self._pixels(self.sigma(t), x_t)

    def v_from_eps(self, x_t: Image, eps: Image, t: LevelMap) -> Image:
        """The velocity that goes with a noise; undefined at t = 1, where x_t holds no signal."""
        return (eps - self._coefficients(t, x_t)[1] * x_t) / self._pixels(self.alpha(t), x_t)

    def score_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """Gradient of log p(x_t) as -eps / sigma; undefined at t = 0."""
        return -self.eps_from_v(x_t, v, t) / self._pixels(self.sigma(t), x_t)

    def _coefficients(self, t: LevelMap, like: Image) -> tuple[Tensor, Tensor]:
        """(sigma'/W, -alpha'/W): the factors of eps and of -x in v."""
        w = self.wronskian(t)
        return self._pixels(self.dsigma(t) / w, like), self._pixels(-self.dalpha(t) / w, like)

    @staticmethod
    def _pixels(per_patch: LevelMap, like: Image) -> Tensor:
        return to_pixels(per_patch, (like.shape[2], like.shape[3]))


class RectifiedFlow(Process):
    """x_t = (1 - t) x + t eps, v = eps - x (Liu et al., arXiv:2209.03003)."""

    def alpha(self, t: Level) -> Level:
        """1 - t."""
        return 1 - t

    def sigma(self, t: Level) -> Level:
        """t."""
        return t

    def dalpha(self, t: Level) -> Level:
        """-1."""
        return -torch.ones_like(t)

    def dsigma(self, t: Level) -> Level:
        """1."""
        return torch.ones_like(t)

    def level(self, logsnr: Level) -> Level:
        """1 / (1 + e^(logSNR / 2))."""
        return (-logsnr / 2).sigmoid()


class CosineVP(Process):
    """x_t = cos(pi t / 2) x + sin(pi t / 2) eps: variance preserving (arXiv:2102.09672, no offset)."""

    def alpha(self, t: Level) -> Level:
        """cos(pi t / 2), written as a sine so that it is exactly 0 at t = 1."""
        return (math.pi / 2 * (1 - t)).sin()

    def sigma(self, t: Level) -> Level:
        """sin(pi t / 2)."""
        return (math.pi / 2 * t).sin()

    def dalpha(self, t: Level) -> Level:
        """-pi/2 sin(pi t / 2)."""
        return -math.pi / 2 * self.sigma(t)

    def dsigma(self, t: Level) -> Level:
        """pi/2 cos(pi t / 2)."""
        return math.pi / 2 * self.alpha(t)

    def level(self, logsnr: Level) -> Level:
        """2/pi atan(e^(-logSNR / 2))."""
        return 2 / math.pi * (-logsnr / 2).exp().atan()
