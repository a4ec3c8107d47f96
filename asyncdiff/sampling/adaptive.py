"""Walks in which every patch keeps its own time: where the network is sure, a patch runs ahead.

All walks here stand on one grid of levels, t = k / steps: a rule of `asyncdiff.sampling.step_rules` says after every prediction how
many of its steps each patch takes now. Images that are done leave the batch; what they leave behind changes nothing for
the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.denoising.uncertainty import check_finite, rms_error
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.guidance import Guidance
from asyncdiff.sampling.samplers import Frame, ImageSampler, Start, check_partial_updates
from asyncdiff.sampling.solvers import DDIM, Evaluate, Solver
from asyncdiff.sampling.step_rules import PatchState, StepRule, Tolerance
from asyncdiff.shapes import Image, KnownPatches, LevelMap


class Adaptive(ImageSampler):
    """Walks every patch down a grid of levels at the pace that a rule sets by its predicted uncertainty.

    One prediction at a time serves the rule and the solver. Frames show the whole batch; their s is the mean level of
    the unknown patches. The rule chooses a path of level maps: solvers keep their order towards the solution along it.

    Args:
        clocks: the rule; `Tolerance` by default.
        solver: the rule for one step.
        steps: steps of the grid, from noise to clean: levels are multiples of 1 / steps.
        budget: evaluations of the network per image, at most; by default what the rule takes at most, times
            `solver.evaluations`. Elastic rules keep to a smaller one by larger strides, others refuse it.
        guidance: what the denoiser is guided by, applied in this order; a guided evaluation counts as one.
        refresh: evaluations between those that compute all patches, for networks that can compute some; 1 is exact.
        margin: patches around moving ones, in every direction, that are computed with them between refreshes.
    """

    def __init__(
        self,
        step_rule: StepRule | None = None,
        solver: Solver | None = None,
        steps: int = 50,
        budget: int | None = None,
        guidance: Sequence[Guidance] = (),
        refresh: int = 1,
        margin: int = 0,
    ):
        at_least("steps", steps, 1, "50 is usual")
        check_partial_updates(refresh, margin)
        self.step_rule = step_rule or Tolerance()
        self.solver = solver or DDIM()
        self.steps = steps
        self.budget = budget
        self.guidance = list(guidance)
        self.refresh = refresh
        self.margin = margin
        if budget is not None:
            at_least("budget", budget, self.solver.evaluations, "one step is the least")

    def walk(self, start: Start) -> Iterator[Frame]:
        """The states after every prediction, until the last image is done."""
        level = torch.full(start.held.shape, self.steps, device=start.held.device).masked_fill(start.held, 0)
        rows = torch.arange(len(level), device=level.device)
        ladder = _ladder(self.steps, start.source)
        images = _Images(start, self.solver.begin(), self.step_rule.begin(), rows, start.x_t, level, ladder)
        x_t, unknown = start.x_t, ~start.held
        calls = self._calls(unknown)
        yield _frame(x_t, ladder[level], unknown)
        for left in range(calls, 0, -1):
            images = images.unfinished()
            if not len(images.rows):
                return
            images = images.moved(left)
            x_t, level = x_t.index_copy(0, images.rows, images.x_t), level.index_copy(0, images.rows, images.level)
            yield _frame(x_t, ladder[level], unknown)
        if (level > 0).any():
            raise ValueError(
                f"{type(self.step_rule).__name__} must end within its count, got noise left after {calls} predictions: "
                "move some patch of every image in every call"
            )

    def _calls(self, unknown: KnownPatches) -> int:
        """How often the rule may be asked."""
        most = self.step_rule.count(self.steps, int(unknown.flatten(1).sum(1).max()))
        if self.budget is None:
            return most
        calls = self.budget // self.solver.evaluations
        if calls < most and not self.step_rule.elastic:
            raise ValueError(
                f"budget must be at least {most * self.solver.evaluations} for {type(self.step_rule).__name__} on "
                f"{self.steps} steps, got {self.budget}: take fewer steps, or Tolerance, which strides to fit"
            )
        return min(calls, most)


@dataclass(frozen=True)
class _Images:
    """Those images of a walk that are on their way, at the places `rows` of the whole batch."""

    start: Start
    solver: Solver
    step_rule: StepRule
    rows: Int64[Tensor, " n"]
    x_t: Float[Tensor, "n c h w"]
    level: Int64[Tensor, "n gh gw"]
    ladder: Float[Tensor, " levels"]

    def unfinished(self) -> "_Images":
        """Without the images that are done."""
        going = self.level.flatten(1).any(1)
        if going.all():
            return self
        rows = going.nonzero()[:, 0]
        return replace(
            self,
            start=self.start.select(rows),
            solver=self.solver.select(rows),
            step_rule=self.step_rule.select(rows),
            rows=self.rows[rows],
            x_t=self.x_t[rows],
            level=self.level[rows],
        )

    def moved(self, left: int) -> "_Images":
        """One prediction further; `left` are allowed, this one included."""
        at = PatchState(self.level, ~self.start.held, len(self.ladder) - 1, left)
        self.start.moving(self.step_rule.wanted(at))
        t = self.ladder[self.level]
        prediction = self._evaluate(self.x_t, t)
        strides = self.step_rule(at, rms_error(prediction, type(self.step_rule).__name__))
        if ((strides < 0) | (strides > self.level)).any():
            raise ValueError(f"{type(self.step_rule).__name__} must give strides from 0 to a patch's level, got others")
        level = self.level - strides
        to = self.ladder[level]
        noise = self.start.noise() if self.solver.stochastic else None
        moved = self.solver(_made(prediction, self._evaluate), self.x_t, t, to, noise)
        return replace(self, x_t=self.start.with_known_pixels(moved.to(self.x_t.dtype), to), level=level)

    def _evaluate(self, x_t: Image, t: LevelMap) -> Prediction:
        prediction = self.start.evaluate(x_t, t)
        check_finite(prediction, self.rows)
        return prediction


def _made(first: Prediction, evaluate: Evaluate) -> Evaluate:
    """`evaluate`, whose first call gives the prediction that is made already."""
    made = [first]

    def call(x_t: Image, t: LevelMap) -> Prediction:
        return made.pop() if made else evaluate(x_t, t)

    return call


def _ladder(steps: int, source: RandomSource) -> Float[Tensor, " levels"]:
    """t of every level, 0 .. steps: the numbers of `asyncdiff.sampling.Sampler`, to the last bit."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu").flip(0).to(source.device, source.dtype)


def _frame(x_t: Image, t: LevelMap, unknown: KnownPatches) -> Frame:
    return Frame(x_t, t, float(t.sum() / unknown.sum().clamp(min=1)))
