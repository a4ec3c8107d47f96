"""One step of the reverse process, from a level map t to a map t' <= t, patch by patch."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch

from asyncdiff.checks import within
from asyncdiff.denoiser import Prediction
from asyncdiff.processes import Process
from asyncdiff.shapes import Image, LevelMap, to_pixels

Evaluate = Callable[[Image, LevelMap], Prediction]  # a denoiser with its label bound


class Solver(ABC):
    """A rule for one step. Patches with t' = t come back bit for bit."""

    stochastic: bool = False

    @abstractmethod
    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """The image at level map `to`; `noise` is standard normal, or None for solvers that are not stochastic."""


class Ddim(Solver):
    """DDIM whose stochasticity c blends the deterministic step (c = 0) with the ancestral one (c = 1).

    With r01 = sigma'/sigma and r11 = alpha r01 / alpha':
    x' = [c r11 r01 + (1 - c) r01] x_t + alpha' [1 - c r11^2 - (1 - c) r11] x_hat
         + sigma' sqrt(1 - (c r11 + 1 - c)^2) noise.
    The step keeps the marginals for every c (Song et al., arXiv:2010.02502, eq. 12, with c about eta^2); c = 0 is
    Euler's step for the rectified flow. AsyncPatch Diffusion samples with c = 0.25 and 250 steps.

    Args:
        stochasticity: c in [0, 1].
    """

    def __init__(self, stochasticity: float = 0.0):
        within("stochasticity", stochasticity, 0, 1, "0 is deterministic, 1 ancestral")
        self.stochasticity = stochasticity
        self.stochastic = stochasticity > 0

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """One evaluation of the denoiser."""
        prediction = evaluate(x_t, t)
        size = (x_t.shape[2], x_t.shape[3])
        keep, clean, fresh = (to_pixels(k, size) for k in self._coefficients(prediction.process, t, to))
        moved = keep * x_t + clean * prediction.x
        if self.stochastic:
            if noise is None:
                raise ValueError(f"noise must be given to a step of stochasticity {self.stochasticity}, got None")
            moved = moved + fresh * noise
        return torch.where(to_pixels(to < t, size), moved, x_t)

    def _coefficients(self, process: Process, t: LevelMap, to: LevelMap) -> tuple[LevelMap, LevelMap, LevelMap]:
        """Factors of x_t, x_hat and the noise. Patches that stand still get finite numbers that nobody uses."""
        c, still = self.stochasticity, to >= t
        alpha_to, sigma = process.alpha(to).masked_fill(still, 1), process.sigma(t).masked_fill(still, 1)
        sigma_to = process.sigma(to)
        r01 = sigma_to / sigma
        r11 = process.alpha(t) / alpha_to * r01
        keep = c * r11 * r01 + (1 - c) * r01
        clean = alpha_to * (1 - c * r11.square() - (1 - c) * r11)
        fresh = sigma_to * (1 - (c * r11 + 1 - c).square()).clamp(min=0).sqrt()
        return keep, clean, fresh
