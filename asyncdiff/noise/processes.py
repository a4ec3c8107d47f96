"""Noise processes x_t = alpha(t) x + sigma(t) eps, and the conversions between x, eps, v and the score.

Everything follows from alpha, sigma and their derivatives. With the Wronskian W = alpha sigma' - sigma alpha', the
velocity v = (sigma' eps + alpha' x) / W has a pair of coefficients of unit determinant against (alpha, sigma), so that
x = (sigma'/W) x_t - sigma v and eps = -(alpha'/W) x_t + alpha v, and never a division by sigma. For the rectified flow
v = eps - x; for variance-preserving processes v = alpha eps - sigma x (Salimans & Ho, arXiv:2202.00512). The
probability-flow ODE is dx_t/dt = W v for all.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asyncdiff.shapes import Image, LevelMap, to_pixels

Level = Float[Tensor, "*level"]

TERMS = 6  # of the series of log(1 - beta): the next one is below 1e-8 of the first for beta up to MAX_BETA
MAX_BETA = 0.05
NEWTON_STEPS = 4  # the start is off by a few per cent, the digits double with every step
TINY = 1e-6  # smallest sigma that is divided by


class Process(ABC):
    """A Gaussian process from the clean image (t = 0) to pure noise (t = 1); t may have any shape."""

    @abstractmethod
    def alpha(self, t: Level) -> Level:
        """Factor of the clean image: 1 at t = 0, 0 at t = 1 or nearly."""

    @abstractmethod
    def sigma(self, t: Level) -> Level:
        """Factor of the noise: 0 at t = 0, 1 at t = 1 or nearly."""

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
        """Log of the signal-to-noise ratio alpha^2 / sigma^2; +inf at t = 0, -inf at t = 1 where alpha is 0 there."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @abstractmethod
    def level(self, logsnr: Level) -> Level:
        """The t of a log signal-to-noise ratio: the inverse of `logsnr`."""

    def dlogsnr(self, t: Level) -> Level:
        """Derivative of `logsnr`, never positive; -inf at t = 0, and at t = 1 where alpha is 0 there."""
        return -2 * self.wronskian(t) / (self.alpha(t) * self.sigma(t))

    def snr(self, t: Level) -> Level:
        """Signal-to-noise ratio alpha^2 / sigma^2; inf at t = 0."""
        return (self.alpha(t) / self.sigma(t)).square()

    def dsnr(self, t: Level) -> Level:
        """Derivative of `snr`, never positive; for the rectified flow -2 (1 - t) / t^3. -inf at t = 0."""
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

    def v_from_x(self, x_t: Image, x: Image, t: LevelMap, *, floor: float = 0.0) -> Image:
        """The velocity that goes with a clean image; undefined at t = 0, where x_t holds no noise.

        With a `floor` sigma is raised to it where it divides, which is finite everywhere and smaller below it.
        """
        return (self._coefficients(t, x_t)[0] * x_t - x) / self._pixels(self.sigma(t), x_t).clamp(min=floor)

    def v_from_eps(self, x_t: Image, eps: Image, t: LevelMap) -> Image:
        """The velocity that goes with a noise; undefined where alpha = 0: there x_t holds no signal."""
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


class LinearVP(Process):
    """DDPM's betas, linear from `beta_start` to `beta_end` (arXiv:2006.11239), as a process in continuous time.

    At t = n / steps it has had n of the `steps` noisings: x_t there is DDPM's and DiT's at their time step n - 1. With
    beta linear in a real u, the sum of log(1 - beta_j) over j < n is its integral from -1/2 to n - 1/2 (midpoint rule;
    for DDPM's numbers off by 2e-7 of itself), in closed form by log(1 - b) = -(b + b^2/2 + b^3/3 + ...).

    alpha(1) is 0.0064, not 0: pure noise is a little purer than what training sees at t = 1. Towards t = 0 sigma goes
    as the root of t. What is infinite at 0, sigma' and W, is given as a large number there, so that 0 times it is 0.

    Args:
        beta_start: variance of the first noising.
        beta_end: variance of the last noising.
        steps: number of noisings from t = 0 to 1.
    """

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000):
        if not 0 < beta_start < beta_end <= MAX_BETA:
            raise ValueError(
                f"beta_start and beta_end must rise, above 0 and up to {MAX_BETA}, got {beta_start} and {beta_end}: "
                "DDPM's are 1e-4 and 0.02"
            )
        least = math.floor(1 + (beta_end - beta_start) / (2 * beta_start)) + 1
        if steps < least:
            raise ValueError(
                f"steps must be at least {least} for beta from {beta_start} to {beta_end}, got {steps}: DDPM has 1000"
            )
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.steps = steps
        self._slope = (beta_end - beta_start) / (steps - 1)  # of beta, per noising
        self._first = beta_start - self._slope / 2  # beta at u = -1/2

    def alpha(self, t: Level) -> Level:
        """Root of the product of 1 - beta over the noisings up to t."""
        return (-self._decay(t) / 2).exp()

    def sigma(self, t: Level) -> Level:
        """Root of 1 - alpha^2, without cancellation near t = 0."""
        return (-torch.expm1(-self._decay(t))).sqrt()

    def dalpha(self, t: Level) -> Level:
        """alpha / 2 times the sum's integrand."""
        return -self._rate(t) / 2 * self.alpha(t)

    def dsigma(self, t: Level) -> Level:
        """-alpha alpha' / sigma: alpha^2 + sigma^2 = 1."""
        return self.wronskian(t) * self.alpha(t)

    def wronskian(self, t: Level) -> Level:
        """-alpha' / sigma, the angular velocity of a variance-preserving process."""
        return -self.dalpha(t) / self.sigma(t).clamp(min=TINY)

    def level(self, logsnr: Level) -> Level:
        """By Newton's iteration on log(1 + e^-logSNR) = -2 log alpha; 1 for ratios that t = 1 does not come down to."""
        decay = F.softplus(-logsnr).clamp(max=2 * float(self._decay(torch.ones((), device="cpu", dtype=torch.float64))))
        # The first term alone, a parabola: an upper bound, from which a convex function's iteration falls to the root.
        linear, square = self.steps * self._first, self.steps**2 * self._slope / 2
        t = 2 * decay / (linear + (linear**2 + 4 * square * decay).sqrt())
        for _ in range(NEWTON_STEPS):
            t = t - (self._decay(t) - decay) / self._rate(t)
        return t.clamp(0, 1)

    def _decay(self, t: Level) -> Level:
        """-log alpha^2: the sum over m of n / (m (m + 1)) times that of b^i b_0^(m - i), i = 0 .. m, at the end b."""
        beta = self._beta(t)
        powers, total = torch.ones_like(t), torch.zeros_like(t)
        for m in range(1, TERMS + 1):
            powers = beta * powers + self._first**m
            total = total + powers / (m * (m + 1))
        return self.steps * t * total

    def _rate(self, t: Level) -> Level:
        """Derivative of `_decay`: -log(1 - beta) per noising, to the same number of terms."""
        beta = self._beta(t)
        total = torch.zeros_like(t)
        for m in range(TERMS, 0, -1):
            total = beta * (total + 1 / m)
        return self.steps * total

    def _beta(self, t: Level) -> Level:
        return self._first + self._slope * self.steps * t

    def _coefficients(self, t: LevelMap, like: Image) -> tuple[Tensor, Tensor]:
        """(alpha, sigma), also at t = 0."""
        return self._pixels(self.alpha(t), like), self._pixels(self.sigma(t), like)
