"""Step rules for `Adaptive`: how far each patch moves after a prediction, given the predicted uncertainty."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, below_one, positive, within
from asyncdiff.denoising.uncertainty import ROUNDING, most_certain
from asyncdiff.shapes import KnownPatches, LevelMap

Strides = Int64[Tensor, "b gh gw"]  # in steps of the uniform grid of levels, t = k / steps


@dataclass(frozen=True)
class PatchState:
    """Levels of all patches during adaptive sampling, as seen by a step rule.

    Attributes:
        level: grid steps that each patch still has to take, t = level / steps; 0 = finished or known.
        unknown: mask of patches to generate, True = unknown.
        steps: number of grid steps from noise to clean.
        calls_left: number of calls of the rule that the budget still allows, including this one.
    """

    level: Strides
    unknown: KnownPatches
    steps: int
    calls_left: int

    @property
    def unfinished(self) -> KnownPatches:
        """True for patches that are not clean yet."""
        return self.level > 0

    @property
    def highest(self) -> Int64[Tensor, "b 1 1"]:
        """Level of the noisiest patch of each image."""
        return self.level.amax(dim=(1, 2), keepdim=True)

    @property
    def lowest(self) -> Int64[Tensor, "b 1 1"]:
        """Level of the cleanest unknown patch of each image."""
        return self.level.masked_fill(~self.unknown, self.steps).amin(dim=(1, 2), keepdim=True)


class StepRule(ABC):
    """Base class of step rules, which decide how far each patch moves after one prediction.

    A rule must treat each image independently of the others, so that image i depends only on seed i.

    Attributes:
        adjusts_to_budget: whether the rule takes larger strides to fit a budget below `max_predictions`; with other
            rules, such a budget raises ValueError.
    """

    adjusts_to_budget: bool = False

    def begin(self) -> "StepRule":
        """Return the rule for one sampling trajectory; stateful rules return a fresh copy without state."""
        return self

    def select(self, rows: Int64[Tensor, " n"]) -> "StepRule":
        """Return the rule for the images `rows` only; stateful rules drop the state of the others."""
        return self

    def max_predictions(self, steps: int, patches: int) -> int:
        """Return the maximum number of predictions without a budget, for images with at most `patches` to generate."""
        return steps

    def needs_prediction(self, state: PatchState) -> KnownPatches:
        """Return the patches that need a fresh prediction in the next call: by default all unfinished ones.

        Only used with partial updates, with a state on the CPU.
        """
        return state.unfinished

    @abstractmethod
    def __call__(self, state: PatchState, uncertainty: LevelMap) -> Strides:
        """Return the grid steps that each patch takes now, from 0 (wait) to its level.

        Args:
            state: current levels of all patches.
            uncertainty: predicted rms error of the velocity, per patch.

        Returns:
            Strides (b, gh, gw), with 0 <= stride <= `state.level`. At least one patch of every unfinished image must
            move.
        """


class Tolerance(StepRule):
    """Step rule with strides inversely proportional to the predicted error.

    Strides are dt = tolerance / u, rounded down to the grid, but at least 1. u is the predicted rms error of the
    velocity: the error that a stride adds has an rms of at most `tolerance`, if the grid is fine enough. With equal
    uncertainties all patches take the same strides, on a uniform grid. The noisiest patch of an image moves in every
    call, so sampling takes at most `steps` predictions. To fit a smaller budget, strides are at least (levels left) /
    (predictions left), beyond `max_stride` if necessary.

    This is the default rule of `Adaptive`; it spends fewer evaluations on images and patches of which the network is
    certain.

    Args:
        tolerance: largest root mean square error that a stride may add, in model units; larger means fewer predictions.
            In pure noise u is about the standard deviation of the data, near the clean image about 1 (that
            of the noise).
        max_stride: longest stride in grid steps.
        lead: how far the level of a patch may fall below the image's highest level, in [0, 1]; a patch that is further
            ahead waits. 1 sets no limit, which costs quality even on exact Gaussians; choose level differences that
            occur in the network's training.
    """

    adjusts_to_budget = True

    def __init__(self, tolerance: float = 0.02, max_stride: int = 4, lead: float = 0.5):
        positive("tolerance", tolerance, "start with 1/steps")
        at_least("max_stride", max_stride, 1, "1 gives the uniform grid")
        within("lead", lead, 0, 1, "1 sets no limit, 0 keeps all patches at one level")
        self.tolerance = tolerance
        self.max_stride = max_stride
        self.lead = lead

    def __call__(self, state: PatchState, uncertainty: LevelMap) -> Strides:
        stride = (self.tolerance * state.steps / uncertainty + ROUNDING).clamp(1, self.max_stride).long()
        within_budget = (state.level + state.calls_left - 1) // state.calls_left
        to = (state.level - stride.maximum(within_budget)).clamp(min=0)
        floor = to.amax(dim=(1, 2), keepdim=True) - int(self.lead * state.steps + ROUNDING)
        return state.level - to.maximum(floor).minimum(state.level)


class DualLoop(StepRule):
    """Step rule of Patch Forcing (arXiv:2604.19141): certain patches take large steps, others follow in small ones.

    An outer step is `inner` grid steps. After its prediction, the patches whose uncertainty lies below the `share`
    quantile of their image take the outer step at once. The others follow one grid step per prediction and see the
    certain patches ahead, which makes `inner` + 1 predictions in all. If no patch is more certain than the rest,
    all take one grid step.

    Args:
        share: quantile of the uncertainty below which a patch is certain; 0 gives the uniform grid, 1 makes all patches
            certain.
        inner: grid steps in an outer step.
    """

    def __init__(self, share: float = 0.7, inner: int = 4):
        within("share", share, 0, 1, "the default is 0.7")
        at_least("inner", inner, 1, "the default is 4")
        self.share = share
        self.inner = inner

    def max_predictions(self, steps: int, patches: int) -> int:
        """Return one prediction per grid step plus one per outer step."""
        return steps + math.ceil(steps / self.inner)

    def needs_prediction(self, state: PatchState) -> KnownPatches:
        """Return all unfinished patches at the beginning of an outer step, and those that lag behind within it."""
        return torch.where(state.highest == state.lowest, state.unfinished, state.level > state.lowest)

    def __call__(self, state: PatchState, uncertainty: LevelMap) -> Strides:
        certain = most_certain(uncertainty, state.unfinished, self.share)
        any_certain = certain.flatten(1).any(1)[:, None, None]
        outer = torch.where(certain, self.inner, torch.where(any_certain, 0, 1))
        follow = (state.level > state.lowest).long()
        return torch.where(state.highest == state.lowest, outer, follow).minimum(state.level)


class Sequential(StepRule):
    """Step rule of SRM (arXiv:2502.21075): generate patch after patch, the most certain ones first.

    Patches wait at pure noise. Whenever the next group may start, the `together` waiting patches with the lowest
    predicted uncertainty start; each then takes every step of the grid. With an overlap, a group starts before the
    previous one is done, at the same steps as in `asyncdiff.noise.Ordered`.

    Args:
        together: number of patches that start at once.
        overlap: share of a group's time during which the next group moves too; in [0, 1).
    """

    def __init__(self, together: int = 1, overlap: float = 0.0):
        at_least("together", together, 1, "1 generates one patch after the other")
        below_one("overlap", overlap, "0 is strict order, at 0.75 four groups move at once")
        self.together = together
        self.overlap = overlap

    def max_predictions(self, steps: int, patches: int) -> int:
        """Return the number of steps until the last group starts, plus its own steps."""
        groups = max(1, math.ceil(patches / self.together))
        return math.ceil((groups - 1) * self._lag(steps) - ROUNDING) + steps

    def needs_prediction(self, state: PatchState) -> KnownPatches:
        """Return the patches being denoised, plus all waiting patches of images in which some may start now."""
        waiting = state.unknown & (state.level == state.steps)
        may_start = (self._num_to_start(state) > 0)[:, None, None]
        return state.unfinished & (~waiting | may_start)

    def __call__(self, state: PatchState, uncertainty: LevelMap) -> Strides:
        waiting = state.unknown & (state.level == state.steps)
        order = uncertainty.masked_fill(~waiting, math.inf).flatten(1).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1).reshape(waiting.shape)
        moving = state.unfinished & (~waiting | (rank < self._num_to_start(state)[:, None, None]))
        return moving.long()

    def _num_to_start(self, state: PatchState) -> Int64[Tensor, " b"]:
        """Return how many more patches of each image may start now."""
        started = state.unknown & (state.level < state.steps)
        count = started.flatten(1).sum(1)
        groups = (count + self.together - 1) // self.together  # only the last group of an image may be smaller
        lag = self._lag(state.steps)
        last_start = ((groups - 1) * lag - ROUNDING).ceil()  # the step at which the latest group started
        elapsed = last_start + state.steps - state.level.masked_fill(~started, 0).flatten(1).amax(1)
        elapsed = torch.where(groups > 0, elapsed, torch.zeros_like(elapsed))
        groups_to_start = ((elapsed + ROUNDING) / lag).floor().long() + 1
        return (groups_to_start * self.together - count).clamp(min=0)

    def _lag(self, steps: int) -> float:
        """Return the number of steps between the starts of two groups."""
        return steps * (1 - self.overlap)
