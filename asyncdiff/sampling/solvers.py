"""Solvers: one step of the reverse process, from a level map t to a level map t' <= t, patch by patch.

Along a path every patch obeys the probability-flow ODE in its own level, dx_t/dt = W(t) v, where v depends on the
entire image and the entire map (`asyncdiff.noise.processes`). A solver of order p ends at a distance O(steps^-p) from
the solution of the ODE; kinks of the path do not reduce p, as long as their number is fixed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.checks import within
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.devices import to_device
from asyncdiff.noise.processes import Process
from asyncdiff.sampling.hosted_levels import HostedLevels, hosted, map_on_host
from asyncdiff.shapes import Image, LevelMap, Levels, level_map, to_pixels

# A step more than twice as long as the previous one means that the patch has passed a kink of its path, or moved during
# only part of its first step. Its slope has then changed because of the other patches, not because of its own small
# step, and a larger ratio would amplify that change.
MAX_RATIO = 2.0

Evaluate = Callable[[Image, Levels], Prediction]  # a denoiser with its labels bound


class Solver(ABC):
    """Base class of solvers, which take one step. Patches with t' = t are returned bit for bit.

    Attributes:
        stochastic: whether a step needs noise.
        evaluations: maximum number of network evaluations per step.
    """

    stochastic: bool = False
    evaluations: int = 1

    def begin(self) -> "Solver":
        """Return the solver for one sampling trajectory; multistep solvers return a fresh copy without history."""
        return self

    def select(self, rows: Int64[Tensor, " n"]) -> "Solver":
        """Return the solver for the images `rows` only; multistep solvers drop the history of the others."""
        return self

    def between(self, t: HostedLevels, to: HostedLevels) -> "Solver":
        """Return the solver for the step from `t` to `to`; solvers that depend on levels decide here, on the host.

        Evaluations at `t` and `to` wait for nothing; those at other maps do not either if they are `HostedLevels`.
        """
        return self

    @abstractmethod
    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        """Take one step from level map `t` to level map `to`.

        Args:
            evaluate: denoiser as a function of (x_t, t).
            x_t: noisy images at level map `t`, (b, c, h, w).
            t: current level map, (b, gh, gw).
            to: next level map, with `to` <= `t` in every patch.
            noise: standard normal noise of the shape of `x_t`; None for solvers that are not stochastic.

        Returns:
            The images at level map `to`.
        """


class DDIM(Solver):
    """DDIM, whose stochasticity c interpolates between the deterministic step (c = 0) and the ancestral one (c = 1).

    With r01 = sigma'/sigma and r11 = alpha r01 / alpha',

        x' = [c r11 r01 + (1 - c) r01] x_t
           + alpha' [1 - c r11^2 - (1 - c) r11] x_hat
           + sigma' sqrt(1 - (c r11 + 1 - c)^2) noise

    The step preserves the marginals for every c (Song et al., arXiv:2010.02502, eq. 12, with c about eta^2). For the
    rectified flow, c = 0 is Euler's step. AsyncPatch Diffusion uses c = 0.25 with 250 steps.

    Order one, with one evaluation per step: robust and the default. `Multistep` needs fewer steps.

    Args:
        stochasticity: c in [0, 1]: 0 is deterministic, 1 ancestral; AsyncPatch Diffusion uses 0.25.
    """

    def __init__(self, stochasticity: float = 0.0):
        within("stochasticity", stochasticity, 0, 1, "0 is deterministic, 1 ancestral")
        self.stochasticity = stochasticity
        self.stochastic = stochasticity > 0

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        prediction = evaluate(x_t, t)
        size = (x_t.shape[2], x_t.shape[3])
        keep, clean, fresh = (to_pixels(k, size) for k in self._coefficients(prediction.process, t, to))
        moved = keep * x_t + clean * prediction.x
        if self.stochastic:
            if noise is None:
                raise ValueError(
                    f"stochasticity {self.stochasticity} needs noise, got None: pass standard normal noise"
                )
            moved = moved + fresh * noise
        return torch.where(to_pixels(to < t, size), moved, x_t)

    def _coefficients(self, process: Process, t: LevelMap, to: LevelMap) -> tuple[LevelMap, LevelMap, LevelMap]:
        """Return the coefficients of x_t, x_hat and the noise; finite, but unused, in patches that do not move."""
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
    """Heun's method for the probability-flow ODE, of order two: the mean of the slopes at both ends of the step.

    Takes two evaluations per step; `Multistep` has the same order with one.

    Patches that arrive at t' = 0 take Euler's step: at level 0 a network cannot distinguish noise from image, its
    velocity contains no noise, and half of it would leave half of the last noise behind. One such step per patch costs
    O(1/steps^2) and keeps the order. The second evaluation is skipped if no patch needs it.
    """

    evaluations = 2

    def between(self, t: HostedLevels, to: HostedLevels) -> Solver:
        before, after = map_on_host(t), map_on_host(to)
        # Images without a patch to correct are evaluated at their old state, so that their KV cache stays valid.
        again = ((after < before) & (after > 0)).flatten(1).any(1)
        if not again.any():
            return _HeunStep(None, None)
        if again.all():
            return _HeunStep(None, to)
        again = again[:, None, None]
        return _HeunStep(again, hosted(torch.where(again, after, before), to.levels.device))

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        step = self.between(hosted(t.cpu(), t.device), hosted(to.cpu(), to.device))
        return step(lambda x, at: evaluate(x, level_map(at)), x_t, t, to, noise)


class _HeunStep(Heun):
    """`Heun` for one step, with the images to evaluate again (None: all) and at which levels (None: no second time)."""

    def __init__(self, again: Bool[Tensor, "b 1 1"] | None, levels: HostedLevels | None):
        self._again = again
        self._levels = levels

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        size = (x_t.shape[2], x_t.shape[3])
        step = to_pixels(to - t, size)
        moves, corrected = to < t, (to < t) & (to > 0)
        slope = _slope(evaluate(x_t, t), t)
        moved = torch.where(to_pixels(moves, size), x_t + step * slope, x_t).to(x_t.dtype)
        if self._levels is None:
            return moved
        x_at = moved
        if self._again is not None:
            x_at = torch.where(to_pixels(to_device(self._again, x_t.device), (1, 1)), moved, x_t)
        mean_slope = (slope + _slope(evaluate(x_at, self._levels), self._levels.levels)) / 2
        return torch.where(to_pixels(corrected, size), x_t + step * mean_slope, moved)


class Multistep(Solver):
    """Two-step Adams-Bashforth method for the probability-flow ODE, of order two with one evaluation per step.

    x' = x_t + (t' - t) [(1 + r/2) f - r/2 f_before] with the slopes f = W v of this step and f_before of the
    previous step, and r the ratio of the patch's two steps, at most `MAX_RATIO`. A patch that did not move in the
    previous step has no history and takes Euler's step.

    About as accurate per step as `Heun`, at half the evaluations. The history belongs to one trajectory: `begin`
    returns the solver that collects it. Called directly, without `begin`, it takes Euler's steps.
    """

    def begin(self) -> Solver:
        return _MultistepWithHistory()

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        return self.begin()(evaluate, x_t, t, to, noise)


class _MultistepWithHistory(Multistep):
    """`Multistep` during one trajectory, with the slopes and step sizes of the previous step."""

    def __init__(self) -> None:
        self._previous: tuple[Image, LevelMap] | None = None

    def select(self, rows: Int64[Tensor, " n"]) -> Solver:
        if self._previous is not None:
            self._previous = self._previous[0][rows], self._previous[1][rows]
        return self

    def __call__(self, evaluate: Evaluate, x_t: Image, t: LevelMap, to: LevelMap, noise: Image | None) -> Image:
        size = (x_t.shape[2], x_t.shape[3])
        step, slope = to - t, _slope(evaluate(x_t, t), t)
        slope_before, step_before = self._previous or (slope, torch.zeros_like(step))
        self._previous = slope, step
        no_history = step_before >= 0
        ratio = (step / step_before.masked_fill(no_history, 1)).clamp(max=MAX_RATIO)
        change = torch.where(to_pixels(no_history, size), 0, slope - slope_before)
        extrapolated = slope + to_pixels(ratio / 2, size) * change
        return torch.where(to_pixels(to < t, size), x_t + to_pixels(step, size) * extrapolated, x_t)


def take_step(
    solver: Solver, evaluate: Evaluate, x_t: Image, t: HostedLevels, to: HostedLevels, noise: Image | None
) -> Image:
    """Return the images after one step between level maps that the host knows; evaluations at either need no sort."""

    def known(x: Image, at: Levels) -> Prediction:
        return evaluate(x, t if at is t.levels else to if at is to.levels else at)

    return solver.between(t, to)(known, x_t, t.levels, to.levels, noise)


def _slope(prediction: Prediction, t: LevelMap) -> Image:
    """Return dx_t/dt = W v, per patch in its own level."""
    size = (prediction.v.shape[2], prediction.v.shape[3])
    return to_pixels(prediction.process.wronskian(t), size) * prediction.v
