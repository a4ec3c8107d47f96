"""Rules for how far each patch goes with one prediction, by how uncertain the network is of it."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoising.uncertainty import ROUNDING, surest
from asyncdiff.shapes import KnownPatches, LevelMap

Strides = Int64[Tensor, "b gh gw"]  # in steps of the grid


@dataclass(frozen=True)
class PatchState:
    """Where the patches of some images stand.

    Attributes:
        level: steps of the grid that each patch has before it; 0 = finished or known.
        unknown: True = generated, per patch.
        steps: steps of the grid from noise to clean.
        left: calls of the rule that the budget allows, this one included.
    """

    level: Strides
    unknown: KnownPatches
    steps: int
    left: int

    @property
    def unfinished(self) -> KnownPatches:
        """True where noise is left."""
        return self.level > 0

    @property
    def highest(self) -> Int64[Tensor, "b 1 1"]:
        """Level of each image's noisiest patch."""
        return self.level.amax(dim=(1, 2), keepdim=True)

    @property
    def lowest(self) -> Int64[Tensor, "b 1 1"]:
        """Level of each image's cleanest patch that is not known."""
        return self.level.masked_fill(~self.unknown, self.steps).amin(dim=(1, 2), keepdim=True)


class StepRule(ABC):
    """A rule for how far each patch goes with one prediction. It decides for every image by that image alone.

    Attributes:
        elastic: whether it keeps to a budget below `count` by larger strides; others refuse one.
    """

    elastic: bool = False

    def begin(self) -> "StepRule":
        """A rule ready for one walk: one that remembers returns a fresh copy, without any memory."""
        return self

    def select(self, rows: Int64[Tensor, " n"]) -> "StepRule":
        """The rule for some of the images of the walk; one that remembers forgets the others."""
        return self

    def count(self, steps: int, patches: int) -> int:
        """Predictions that images of up to `patches` unknown patches take at most, without a budget."""
        return steps

    def wanted(self, at: PatchState) -> KnownPatches:
        """Patches of which the next call needs a fresh prediction: all unfinished ones, unless a rule knows better."""
        return at.unfinished

    @abstractmethod
    def __call__(self, at: PatchState, uncertainty: LevelMap) -> Strides:
        """Steps that each patch takes now, from 0 (it waits) to its level; `uncertainty` is the predicted rms error."""


class Tolerance(StepRule):
    """Strides inverse to the predicted error: dt = tolerance / u, rounded down to the grid, one step at least.

    u is the predicted rms error of the velocity: what a stride gets wrong has an rms of `tolerance` at most, where the
    grid is fine enough. With equal uncertainties all patches stride alike, on a uniform grid. The noisiest patch of an
    image moves in every call, so that a walk takes `steps` predictions at most; a smaller budget is kept by strides of
    at least (levels left) / (predictions left), beyond `max_stride` if need be.

    Args:
        tolerance: largest root mean square error that a stride may add, in model units; the larger, the fewer
            predictions. In pure noise u is about the standard deviation of the data, next to the clean image about 1,
            that of the noise.
        max_stride: longest stride in steps of the grid.
        lead: how far the level of a patch may be below the image's highest one, in [0, 1]; a patch that has run so far
            ahead waits. 1 is no bound, which exact Gaussians pay for, too; choose levels that the network has seen.
    """

    elastic = True

    def __init__(self, tolerance: float = 0.02, max_stride: int = 4, lead: float = 0.5):
        if not 0 < tolerance < math.inf:
            raise ValueError(f"tolerance must be positive and finite, got {tolerance}: 1/steps is a careful start")
        at_least("max_stride", max_stride, 1, "1 is the uniform grid")
        within("lead", lead, 0, 1, "1 is no bound, 0 keeps all patches at one level")
        self.tolerance = tolerance
        self.max_stride = max_stride
        self.lead = lead

    def __call__(self, at: PatchState, uncertainty: LevelMap) -> Strides:
        """At least one step for the noisiest patches."""
        wanted = (self.tolerance * at.steps / uncertainty + ROUNDING).clamp(1, self.max_stride).long()
        least = (at.level + at.left - 1) // at.left
        to = (at.level - wanted.maximum(least)).clamp(min=0)
        floor = to.amax(dim=(1, 2), keepdim=True) - int(self.lead * at.steps + ROUNDING)
        return at.level - to.maximum(floor).minimum(at.level)


class DualLoop(StepRule):
    """Outer steps, which sure patches take at once and the others in small ones that see the sure ones ahead.

    An outer step is `inner` steps of the grid. After its prediction the patches whose uncertainty lies below the
    `share` quantile of their image go all the way; the others follow step by step, each with a prediction of its own:
    `inner` + 1 predictions. Where none is surer than the rest all take one step of the grid. The dual loop of Patch
    Forcing (arXiv:2604.19141).

    Args:
        share: quantile of the uncertainty below which a patch is sure; 0 is the uniform grid, at 1 all are sure.
        inner: steps of the grid in an outer step.
    """

    def __init__(self, share: float = 0.7, inner: int = 4):
        within("share", share, 0, 1, "0.7 of the patches go ahead by default")
        at_least("inner", inner, 1, "4 is usual")
        self.share = share
        self.inner = inner

    def count(self, steps: int, patches: int) -> int:
        """One for every step of the grid and one for every outer step."""
        return steps + math.ceil(steps / self.inner)

    def wanted(self, at: PatchState) -> KnownPatches:
        """All where an outer step begins, those behind within it."""
        return torch.where(at.highest == at.lowest, at.unfinished, at.level > at.lowest)

    def __call__(self, at: PatchState, uncertainty: LevelMap) -> Strides:
        """The outer step of sure patches while the others wait, or one step of those behind."""
        sure = surest(uncertainty, at.unfinished, self.share)
        any_sure = sure.flatten(1).any(1)[:, None, None]
        outer = torch.where(sure, self.inner, torch.where(any_sure, 0, 1))
        follow = (at.level > at.lowest).long()
        return torch.where(at.highest == at.lowest, outer, follow).minimum(at.level)


class Sequential(StepRule):
    """Patch after patch, in the order that the network finds easiest: of those that wait, the surest start.

    Patches wait at pure noise; when the next group may start, the `together` waiting patches of the lowest predicted
    uncertainty do. Each then takes every step of the grid. With overlap a group starts before the last is done, at the
    steps of `asyncdiff.noise.Ordered`. The sequential order by uncertainty of SRM (arXiv:2502.21075).

    Args:
        together: patches that start at once.
        overlap: share of a group's time in which the next one moves, too; in [0, 1).
    """

    def __init__(self, together: int = 1, overlap: float = 0.0):
        at_least("together", together, 1, "1 is one patch after the other")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must lie in [0, 1), got {overlap}: 0 is strict order, 0.75 a wave of four")
        self.together = together
        self.overlap = overlap

    def count(self, steps: int, patches: int) -> int:
        """Steps until the last group starts, and its own."""
        groups = max(1, math.ceil(patches / self.together))
        return math.ceil((groups - 1) * self._lag(steps) - ROUNDING) + steps

    def wanted(self, at: PatchState) -> KnownPatches:
        """Those on their way, and where others may start those that wait."""
        waiting = at.unknown & (at.level == at.steps)
        due = (self._due(at) > 0)[:, None, None]
        return at.unfinished & (~waiting | due)

    def __call__(self, at: PatchState, uncertainty: LevelMap) -> Strides:
        """One step for every patch on its way or about to start."""
        waiting = at.unknown & (at.level == at.steps)
        order = uncertainty.masked_fill(~waiting, math.inf).flatten(1).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1).reshape(waiting.shape)
        moving = at.unfinished & (~waiting | (rank < self._due(at)[:, None, None]))
        return moving.long()

    def _due(self, at: PatchState) -> Int64[Tensor, " b"]:
        """How many more patches of each image may start now."""
        started = at.unknown & (at.level < at.steps)
        count = started.flatten(1).sum(1)
        groups = (count + self.together - 1) // self.together  # all but the image's last one are whole
        lag = self._lag(at.steps)
        of_last = ((groups - 1) * lag - ROUNDING).ceil()  # the step at which the last of them started
        elapsed = of_last + at.steps - at.level.masked_fill(~started, 0).flatten(1).amax(1)
        elapsed = torch.where(groups > 0, elapsed, torch.zeros_like(elapsed))
        due = ((elapsed + ROUNDING) / lag).floor().long() + 1
        return (due * self.together - count).clamp(min=0)

    def _lag(self, steps: int) -> float:
        return steps * (1 - self.overlap)
