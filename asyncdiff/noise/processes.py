"""Noise processes x_t = alpha(t) x + sigma(t) eps, and the conversions between x, eps, v and the score.

Everything follows from alpha, sigma and their derivatives. With the Wronskian W = alpha sigma' - sigma alpha', the
velocity is defined as v = (sigma' eps + alpha' x) / W. The map from (x, eps) to (x_t, v) then has determinant 1, so
that x = (sigma'/W) x_t - sigma v and eps = -(alpha'/W) x_t + alpha v need no division by sigma. For the rectified flow
v = eps - x; for variance-preserving processes v = alpha eps - sigma x (Salimans & Ho, arXiv:2202.00512). The
probability-flow ODE is dx_t/dt = W v for all processes.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import finite
from asyncdiff.shapes import Image, LevelMap, to_pixels

Level = Float[Tensor, "*level"]

TERMS = 6  # terms of the series of log(1 - beta): the next one is below 1e-8 of the first for beta up to MAX_BETA
MAX_BETA = 0.05
NEWTON_STEPS = 4  # the initial value is off by a few percent, and every step doubles the number of correct digits
TINY = 1e-6  # smallest sigma to divide by


class Process(ABC):
    """Gaussian noise process x_t = alpha(t) x + sigma(t) eps, from the clean image (t = 0) to pure noise (t = 1).

    The functions of t take tensors of any shape; methods that take images take level maps t, one level per patch.
    Subclasses define `alpha`, `sigma`, their derivatives and `level`.

    Examples:
        >>> process = RectifiedFlow()
        >>> x, eps = torch.ones(1, 1, 2, 4), torch.zeros(1, 1, 2, 4)
        >>> t = torch.tensor([[[0.0, 0.5]]])  # left patch clean, right patch half noise
        >>> x_t = process.noised(x, eps, t)
        >>> x_t[0, 0, 0]
        tensor([1.0000, 1.0000, 0.5000, 0.5000])
        >>> v = process.velocity(x, eps, t)
        >>> bool((process.x_from_v(x_t, v, t) == x).all())
        True
    """

    @abstractmethod
    def alpha(self, t: Level) -> Level:
        """Return the factor of the clean image: 1 at t = 0; 0 or nearly 0 at t = 1."""

    @abstractmethod
    def sigma(self, t: Level) -> Level:
        """Return the factor of the noise: 0 at t = 0; 1 or nearly 1 at t = 1."""

    @abstractmethod
    def dalpha(self, t: Level) -> Level:
        """Return the derivative of alpha with respect to t."""

    @abstractmethod
    def dsigma(self, t: Level) -> Level:
        """Return the derivative of sigma with respect to t."""

    def wronskian(self, t: Level) -> Level:
        """Return W = alpha sigma' - sigma alpha' = -1/2 alpha sigma dlogSNR/dt."""
        return self.alpha(t) * self.dsigma(t) - self.sigma(t) * self.dalpha(t)

    def logsnr(self, t: Level) -> Level:
        """Return the log signal-to-noise ratio log(alpha^2 / sigma^2): inf at t = 0, -inf where alpha = 0."""
        return 2 * (self.alpha(t).log() - self.sigma(t).log())

    @abstractmethod
    def level(self, logsnr: Level) -> Level:
        """Return the level t with this log signal-to-noise ratio: the inverse of `logsnr`."""

    def dlogsnr(self, t: Level) -> Level:
        """Return the derivative of `logsnr`, never positive: -inf at t = 0 and where alpha = 0."""
        return -2 * self.wronskian(t) / (self.alpha(t) * self.sigma(t))

    def snr(self, t: Level) -> Level:
        """Return the signal-to-noise ratio alpha^2 / sigma^2: inf at t = 0."""
        return (self.alpha(t) / self.sigma(t)).square()

    def dsnr(self, t: Level) -> Level:
        """Return the derivative of `snr`, never positive: -inf at t = 0; -2 (1 - t) / t^3 for the rectified flow."""
        return -2 * self.wronskian(t) * self.alpha(t) / self.sigma(t) ** 3

    def noised(self, x: Image, eps: Image, t: LevelMap) -> Image:
        """Return x_t: every patch of `x` mixed with the noise `eps` at its own level."""
        size = (x.shape[2], x.shape[3])
        return to_pixels(self.alpha(t), size) * x + to_pixels(self.sigma(t), size) * eps

    def diffused(self, x_t: Image, eps: Image, t: LevelMap, to: LevelMap) -> Image:
        """Return `x_t` noised further from level map `t` to level map `to` >= t; patches with to = t are unchanged."""
        keep = self.alpha(to) / self.alpha(t).masked_fill(to <= t, 1)
        added = (self.sigma(to).square() - (keep * self.sigma(t)).square()).clamp(min=0).sqrt()
        keep, added = (
            self._pixels(factor.masked_fill(to <= t, unchanged), x_t) for factor, unchanged in ((keep, 1), (added, 0))
        )
        return keep * x_t + added * eps

    def velocity(self, x: Image, eps: Image, t: LevelMap) -> Image:
        """Return the velocity v, a network's default target."""
        c_eps, c_x = self._coefficients(t, x)
        return c_eps * eps - c_x * x

    def x_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """Return the clean image, computed from `x_t` and the velocity `v`."""
        return self._coefficients(t, x_t)[0] * x_t - self._pixels(self.sigma(t), x_t) * v

    def eps_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """Return the noise, computed from `x_t` and the velocity `v`."""
        return self._coefficients(t, x_t)[1] * x_t + self._pixels(self.alpha(t), x_t) * v

    def v_from_x(self, x_t: Image, x: Image, t: LevelMap, *, floor: float = 0.0) -> Image:
        """Return the velocity, computed from `x_t` and a clean image.

        Args:
            x_t: noisy image.
            x: clean image.
            t: level map of `x_t`.
            floor: lower limit for the divisor sigma. With 0, the velocity is undefined at t = 0, where x_t has no
                noise; above 0, it is finite everywhere but too small where sigma < floor.

        Returns:
            The velocity, in the shape of `x_t`.
        """
        return (self._coefficients(t, x_t)[0] * x_t - x) / self._pixels(self.sigma(t), x_t).clamp(min=floor)

    def v_from_eps(self, x_t: Image, eps: Image, t: LevelMap) -> Image:
        """Return the velocity, computed from `x_t` and the noise; undefined where alpha = 0, as x_t has no signal."""
        return (eps - self._coefficients(t, x_t)[1] * x_t) / self._pixels(self.alpha(t), x_t)

    def score_from_v(self, x_t: Image, v: Image, t: LevelMap) -> Image:
        """Return the score, the gradient of log p(x_t), as -eps / sigma; undefined at t = 0."""
        return -self.eps_from_v(x_t, v, t) / self._pixels(self.sigma(t), x_t)

    def _coefficients(self, t: LevelMap, like: Image) -> tuple[Tensor, Tensor]:
        """Return (sigma'/W, -alpha'/W): the factors of eps and of -x in v."""
        w = self.wronskian(t)
        return self._pixels(self.dsigma(t) / w, like), self._pixels(-self.dalpha(t) / w, like)

    @staticmethod
    def _pixels(per_patch: LevelMap, like: Image) -> Tensor:
        return to_pixels(per_patch, (like.shape[2], like.shape[3]))


class RectifiedFlow(Process):
    """Rectified flow, the default process: x_t = (1 - t) x + t eps, v = eps - x (Liu et al., arXiv:2209.03003).

    logSNR = 2 log((1 - t) / t) and W = 1.
    """

    def alpha(self, t: Level) -> Level:
        return 1 - t

    def sigma(self, t: Level) -> Level:
        return t

    def dalpha(self, t: Level) -> Level:
        return -torch.ones_like(t)

    def dsigma(self, t: Level) -> Level:
        return torch.ones_like(t)

    def wronskian(self, t: Level) -> Level:
        """Return alpha + sigma: 1, rounded as the general formula is."""
        return (1 - t) + t

    def level(self, logsnr: Level) -> Level:
        return (-logsnr / 2).sigmoid()


class CosineVP(Process):
    """Variance-preserving cosine schedule: x_t = cos(pi t / 2) x + sin(pi t / 2) eps (arXiv:2102.09672, no offset).

    logSNR = -2 log tan(pi t / 2) and W = pi / 2.
    """

    def alpha(self, t: Level) -> Level:
        return (math.pi / 2 * (1 - t)).sin()  # cos(pi t / 2), but exactly 0 at t = 1

    def sigma(self, t: Level) -> Level:
        return (math.pi / 2 * t).sin()

    def dalpha(self, t: Level) -> Level:
        return -math.pi / 2 * self.sigma(t)

    def dsigma(self, t: Level) -> Level:
        return math.pi / 2 * self.alpha(t)

    def level(self, logsnr: Level) -> Level:
        return 2 / math.pi * (-logsnr / 2).exp().atan()


class LinearVP(Process):
    """Linear beta schedule of DDPM (arXiv:2006.11239) in continuous time, for DDPM and DiT networks.

    t = n / steps is timestep n - 1 of DDPM and DiT: the state after n noising steps. With beta linear in a real u, the
    sum of log(1 - beta_j) over j < n is replaced by the integral from -1/2 to n - 1/2 (midpoint rule; relative error
    2e-7 for DDPM's numbers), which has a closed form through log(1 - b) = -(b + b^2/2 + b^3/3 + ...).

    With DDPM's numbers alpha(1) is 0.0064, not 0: sampling starts from slightly purer noise than training sees at t =
    1. Near t = 0 sigma grows as the square root of t. sigma' and W, infinite at t = 0, are large finite numbers there,
    so that 0 times them is 0, not NaN.

    Args:
        beta_start: variance of the first noising step, above 0.
        beta_end: variance of the last noising step, above `beta_start` and at most 0.05.
        steps: number of noising steps from t = 0 to 1.
    """

    def __init__(self, beta_start: float = 1e-4, beta_end: float = 0.02, steps: int = 1000):
        if not 0 < beta_start < beta_end <= MAX_BETA:
            raise ValueError(
                f"beta_start and beta_end must satisfy 0 < beta_start < beta_end <= {MAX_BETA}, "
                f"got {beta_start} and {beta_end}: use 1e-4 and 0.02 as in DDPM"
            )
        finite("steps", steps, "use 1000 as in DDPM")
        least = math.floor(1 + (beta_end - beta_start) / (2 * beta_start)) + 1
        if steps < least:
            raise ValueError(
                f"steps must be at least {least} for beta from {beta_start} to {beta_end}, got {steps}: "
                "use 1000 as in DDPM"
            )
        self.beta_start = beta_start
        self.beta_end = beta_end
        self.steps = steps
        self._slope = (beta_end - beta_start) / (steps - 1)  # of beta, per noising step
        self._first = beta_start - self._slope / 2  # beta at u = -1/2

    def alpha(self, t: Level) -> Level:
        """Return the square root of the product of 1 - beta over the noising steps up to t."""
        return (-self._decay(t) / 2).exp()

    def sigma(self, t: Level) -> Level:
        """Return sqrt(1 - alpha^2), without cancellation near t = 0."""
        return (-torch.expm1(-self._decay(t))).sqrt()

    def dalpha(self, t: Level) -> Level:
        return -self._rate(t) / 2 * self.alpha(t)

    def dsigma(self, t: Level) -> Level:
        """Return -alpha alpha' / sigma, since alpha^2 + sigma^2 = 1."""
        return self.wronskian(t) * self.alpha(t)

    def wronskian(self, t: Level) -> Level:
        """Return -alpha' / sigma, the angular velocity of a variance-preserving process."""
        return -self.dalpha(t) / self.sigma(t).clamp(min=TINY)

    def level(self, logsnr: Level) -> Level:
        """Solve log(1 + e^-logSNR) = -2 log alpha for t by Newton's method; 1 for ratios below that of t = 1."""
        decay = F.softplus(-logsnr).clamp(max=2 * float(self._decay(torch.ones((), device="cpu", dtype=torch.float64))))
        # Start from the root of the first term alone, a parabola. It is an upper bound, from which Newton's method on a
        # convex function descends to the root.
        linear, square = self.steps * self._first, self.steps**2 * self._slope / 2
        t = 2 * decay / (linear + (linear**2 + 4 * square * decay).sqrt())
        for _ in range(NEWTON_STEPS):
            t = t - (self._decay(t) - decay) / self._rate(t)
        return t.clamp(0, 1)

    def _decay(self, t: Level) -> Level:
        """Return -log alpha^2: sum over m of n / (m (m + 1)) times the sum over i = 0 .. m of beta(t)^i b_0^(m - i)."""
        beta = self._beta(t)
        powers, total = torch.ones_like(t), torch.zeros_like(t)
        for m in range(1, TERMS + 1):
            powers = beta * powers + self._first**m
            total = total + powers / (m * (m + 1))
        return self.steps * t * total

    def _rate(self, t: Level) -> Level:
        """Return the derivative of `_decay`: -log(1 - beta) per noising step, to the same number of terms."""
        beta = self._beta(t)
        total = torch.zeros_like(t)
        for m in range(TERMS, 0, -1):
            total = beta * (total + 1 / m)
        return self.steps * total

    def _beta(self, t: Level) -> Level:
        return self._first + self._slope * self.steps * t

    def _coefficients(self, t: LevelMap, like: Image) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma), also at t = 0."""
        return self._pixels(self.alpha(t), like), self._pixels(self.sigma(t), like)
