"""One step of the reverse process, from a level map t to a map t' <= t, patch by patch.

Along a path every patch obeys the probability-flow ODE in its own level, dx_t/dt = W(t) v, where v depends on the whole
image and the whole map (asyncdiff.noise.processes). A rule of order p ends at a distance O(steps^-p) from its solution; kinks
of the path cost it nothing of p, as long as their number is fixed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import within
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.noise.processes import Process
from asyncdiff.shapes import Image, LevelMap, to_pixels

# A patch that speeds up by more passes a kink of its path, or has moved for a part of its first step only: its slope
# changed with the other patches meanwhile, not with its own small step, and the ratio would blow that change up.
MAX_RATIO = 2.0

Evaluate = Callable[[Image, LevelMap], Prediction]  # a denoiser with its label bound


class Solver(ABC):
    """A rule for one step. Patches with t' = t come back bit for bit.

    Attributes:
        stochastic: whether a step wants noise.
        evaluations: evaluations of the network in a step, at most.
    """

    stochastic: bool = False
    evaluations: int = 1

    def begin(self) -> "Solver":
        """A solver ready for one walk: one that remembers earlier steps returns a fresh copy, without any."""
        return self

    def select(self, rows: Int64[Tensor, " n"]) -> "Solver":
        """The solver for some of the images of the walk; one that remembers steps forgets those of the others."""
        return self

    @abstractmethod
    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """The image at level map `to`; `noise` is standard normal, or None for solvers that are not stochastic."""


class DDIM(Solver):
    """DDIM whose stochasticity c blends the deterministic step (c = 0) with the ancestral one (c = 1).

    With r01 = sigma'/sigma and r11 = alpha r01 / alpha',

        x' = [c r11 r01 + (1 - c) r01] x_t
           + alpha' [1 - c r11^2 - (1 - c) r11] x_hat
           + sigma' sqrt(1 - (c r11 + 1 - c)^2) noise

    The step keeps the marginals for every c (Song et al., arXiv:2010.02502, eq. 12, with c about eta^2); c = 0 is
    Euler's step for the rectified flow. AsyncPatch Diffusion samples with c = 0.25 and 250 steps.

    Args:
        stochasticity: c in [0, 1]: 0 is deterministic, 1 ancestral, 0.25 AsyncPatch Diffusion's.
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


class Heun(Solver):
    """Heun's rule for the probability-flow ODE: the mean of the slopes at both ends of the step. Order two.

    Patches that arrive at t' = 0 take Euler's step: there a network cannot tell noise from image, its velocity is that
    of no noise, and half of it would leave half of the last noise behind. One such step for each patch costs
    O(1/steps^2) and keeps the order. The second evaluation is spared where no patch is to be corrected.
    """

    evaluations = 2

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """Two evaluations of the denoiser, one where every patch stands still or arrives at 0."""
        size = (x_t.shape[2], x_t.shape[3])
        step = to_pixels(to - t, size)
        moves, corrected = to < t, (to < t) & (to > 0)
        slope = _slope(evaluate(x_t, t), t)
        moved = torch.where(to_pixels(moves, size), x_t + step * slope, x_t).to(x_t.dtype)
        if not corrected.any():
            return moved
        # Images without a patch to correct are evaluated as they were: what a network remembers of them stays.
        again = corrected.flatten(1).any(1)[:, None, None]
        at, x_at = torch.where(again, to, t), torch.where(to_pixels(again, (1, 1)), moved, x_t)
        mean_slope = (slope + _slope(evaluate(x_at, at), at)) / 2
        return torch.where(to_pixels(corrected, size), x_t + step * mean_slope, moved)


class Multistep(Solver):
    """Adams-Bashforth's two-step rule for the probability-flow ODE: order two at one evaluation a step.

    x' = x_t + (t' - t) [(1 + r/2) f - r/2 f_before] with the slope f = W v now and at the step before, and r the ratio
    of the patch's two steps, at most `MAX_RATIO`. A patch that did not move in the step before has no history: it takes
    Euler's step.

    The history belongs to a walk: `begin` returns the solver that gathers it. Called without, this is Euler's step.
    """

    def begin(self) -> Solver:
        """A solver without history, for one walk."""
        return _MultistepWalk()

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """The first step of a walk: Euler's, of order one."""
        return self.begin()(evaluate, x_t, t, to, noise)


class _MultistepWalk(Multistep):
    """`Multistep` with the slope and the steps of the call before."""

    def __init__(self) -> None:
        self._before: tuple[Image, LevelMap] | None = None

    def select(self, rows: Int64[Tensor, " n"]) -> Solver:
        """The history of these images."""
        if self._before is not None:
            self._before = self._before[0][rows], self._before[1][rows]
        return self

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """One evaluation of the denoiser."""
        size = (x_t.shape[2], x_t.shape[3])
        step, slope = to - t, _slope(evaluate(x_t, t), t)
        before, step_before = self._before or (slope, torch.zeros_like(step))
        self._before = slope, step
        fresh = step_before >= 0
        ratio = (step / step_before.masked_fill(fresh, 1)).clamp(max=MAX_RATIO)
        change = torch.where(to_pixels(fresh, size), 0, slope - before)
        extrapolated = slope + to_pixels(ratio / 2, size) * change
        return torch.where(to_pixels(to < t, size), x_t + to_pixels(step, size) * extrapolated, x_t)


def _slope(prediction: Prediction, t: LevelMap) -> Image:
    """dx_t/dt = W v, per patch in its own level."""
    size = (prediction.v.shape[2], prediction.v.shape[3])
    return to_pixels(prediction.process.wronskian(t), size) * prediction.v
