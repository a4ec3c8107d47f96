"""Adaptive sampling: each patch takes larger steps where the network is more certain.

All levels lie on one uniform grid, t = k / steps. After every prediction a rule of `asyncdiff.sampling.step_rules`
chooses how many grid steps each patch takes. Finished images are removed from the batch, which does not change the
results of the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from asyncdiff.checks import MAX_STEPS, at_least
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.denoising.uncertainty import FiniteChecks, predicted_rms_error
from asyncdiff.devices import HostCopy, to_device
from asyncdiff.randomness import RandomSource
from asyncdiff.sampling.guidance import Guidance
from asyncdiff.sampling.hosted_levels import hosted
from asyncdiff.sampling.samplers import ImageSampler, check_partial_updates
from asyncdiff.sampling.solvers import DDIM, Evaluate, Solver, take_step
from asyncdiff.sampling.step_rules import PatchState, StepRule, Tolerance
from asyncdiff.sampling.trajectories import Frame, Start
from asyncdiff.shapes import Image, KnownPatches, LevelMap, Levels


class Adaptive(ImageSampler):
    """Sampler that sets each patch's step size by its predicted uncertainty.

    Use it with networks that predict their uncertainty (`uncertainty: true`), to save evaluations on patches and images
    of which the network is certain, or to let it choose the order of generation. Each prediction serves both the step
    rule and the solver. In effect, the rule picks a path through level maps, and solvers keep their convergence order
    along that path. Frames show the entire batch; their s is the mean level of the unknown patches.

    Args:
        step_rule: rule that decides how far each patch moves after a prediction; `Tolerance()` by default.
        solver: solver that takes each step; `DDIM()` by default.
        steps: number of grid steps from noise to clean; levels are multiples of 1 / steps.
        budget: maximum number of network evaluations per image (default: the rule's maximum times
            `solver.evaluations`). Rules that can take larger steps do so to fit a smaller budget; others raise
            ValueError.
        guidance: guidance rules, applied in this order; each guided evaluation counts as one.
        refresh: number of steps between evaluations of all patches, for networks with a KV cache; 1 computes all
            patches in every step and is exact.
        margin: between refreshes, also recompute patches within this many patches of a moving one.

    Example:
        >>> from asyncdiff.denoising import Denoiser
        >>> from asyncdiff.networks import DiT
        >>> from asyncdiff.noise import RectifiedFlow
        >>> network = DiT(channels=1, patch_size=2, dim=32, depth=1, heads=2, uncertainty=True)
        >>> sampler = Adaptive(Tolerance(0.05, max_stride=4), steps=16, budget=8)
        >>> sampler(Denoiser(network, RectifiedFlow()), seeds=[0, 1], shape=(1, 8, 8)).shape
        torch.Size([2, 1, 8, 8])
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
        at_least("steps", steps, 1, "use 50, for example", MAX_STEPS)
        check_partial_updates(refresh, margin)
        self.step_rule = step_rule or Tolerance()
        self.solver = solver or DDIM()
        self.steps = steps
        self.budget = budget
        self.guidance = list(guidance)
        self.refresh = refresh
        self.margin = margin
        if budget is not None:
            at_least("budget", budget, self.solver.evaluations, "the solver needs this many for one step")

    def walk(self, start: Start) -> Iterator[Frame]:
        unknown = ~start.host_known_patches
        level = torch.full(unknown.shape, self.steps, device="cpu").masked_fill(~unknown, 0)
        ladder, calls = _Ladder(self.steps, start.source), self._max_calls(unknown)
        images = _ActiveImages.begin(start, self.solver, self.step_rule, ladder, level)
        x_t, t = start.x_t, images.t
        yield _frame(x_t, t, ladder.host[level], unknown)
        for calls_left in range(calls, 0, -1):
            images = images.without_finished()
            if not len(images.rows):
                return
            images = images.after_step(calls_left)
            x_t, t, level = images.within(x_t, t, level)
            if not level.any():
                images.checks.finish()
            yield _frame(x_t, t, ladder.host[level], unknown)
        if level.any():
            raise ValueError(
                f"{type(self.step_rule).__name__} left noise after its maximum of {calls} predictions: "
                "move at least one patch of every image in every call, or raise max_predictions"
            )

    def _max_calls(self, unknown: KnownPatches) -> int:
        """Return how many times the step rule may be called, given the budget; `unknown` is on the CPU."""
        max_calls = self.step_rule.max_predictions(self.steps, int(unknown.flatten(1).sum(1).max()))
        if self.budget is None:
            return max_calls
        calls = self.budget // self.solver.evaluations
        if calls < max_calls and not self.step_rule.adjusts_to_budget:
            raise ValueError(
                f"budget must be at least {max_calls * self.solver.evaluations} for {type(self.step_rule).__name__} "
                f"with {self.steps} steps, got {self.budget}: use fewer steps, or Tolerance, which takes larger strides"
            )
        return min(calls, max_calls)


class _Ladder:
    """Levels t = k / steps, on the host and on the device, bit for bit the numbers of `asyncdiff.sampling.Sampler`."""

    def __init__(self, steps: int, source: RandomSource):
        self.steps = steps
        self.host = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu").flip(0).to(source.dtype)
        self.device = torch.device(source.device)
        self._there = to_device(self.host, self.device)

    def t_of(self, level: Int64[Tensor, "n gh gw"]) -> LevelMap:
        """Return the level map on the device of levels there, which are clipped to 0 .. steps: others are errors."""
        return self._there[level.clamp(0, self.steps)]


@dataclass(frozen=True)
class _ActiveImages:
    """State of the unfinished images; `rows` are their indices in the entire batch, on the CPU.

    The level of every patch is known on the device, where the step rule chooses strides, and, as `host_level`, on the
    host. The host waits for it once per step.
    """

    start: Start
    solver: Solver
    step_rule: StepRule
    ladder: _Ladder
    checks: FiniteChecks
    rows: Int64[Tensor, " n"]
    x_t: Float[Tensor, "n c h w"]
    t: Float[Tensor, "n gh gw"]
    level: Int64[Tensor, "n gh gw"]
    host_level: Int64[Tensor, "n gh gw"]

    @classmethod
    def begin(
        cls, start: Start, solver: Solver, step_rule: StepRule, ladder: _Ladder, level: Int64[Tensor, "n gh gw"]
    ) -> "_ActiveImages":
        """Return the state before the first step, at levels of the host."""
        rows, there = torch.arange(len(level), device="cpu"), to_device(level, start.device)
        at = start.x_t, ladder.t_of(there), there, level
        return cls(start, solver.begin(), step_rule.begin(), ladder, FiniteChecks(), rows, *at)

    def without_finished(self) -> "_ActiveImages":
        """Return the state without finished images."""
        unfinished = self.host_level.flatten(1).any(1)
        if unfinished.all():
            return self
        rows = unfinished.nonzero()[:, 0]
        there = to_device(rows, self.start.device)
        return replace(
            self,
            start=self.start.select(rows),
            solver=self.solver.select(there),
            step_rule=self.step_rule.select(there),
            rows=self.rows[rows],
            x_t=self.x_t[there],
            t=self.t[there],
            level=self.level[there],
            host_level=self.host_level[rows],
        )

    def after_step(self, calls_left: int) -> "_ActiveImages":
        """Return the state after one more prediction, which `calls_left` includes."""
        start, steps = self.start, self.ladder.steps
        if start.partial_updates is not None:
            state = PatchState(self.host_level, ~start.host_known_patches, steps, calls_left)
            start.set_moving(self.step_rule.needs_prediction(state))
        t = hosted(self.ladder.host[self.host_level], start.device)
        prediction = self._evaluate(self.x_t, t)
        state = PatchState(self.level, ~start.known_patches, steps, calls_left)
        strides = self.step_rule(state, predicted_rms_error(prediction, type(self.step_rule).__name__))
        level = self.level - strides
        arriving = HostCopy(level)
        noise = start.noise() if self.solver.stochastic else None
        evaluate = _with_first_prediction(prediction, self._evaluate)
        # Further evaluations are at levels that the host must know, and so are those by which a solver decides.
        needs_levels = self.solver.evaluations > 1 or type(self.solver).between is not Solver.between
        if needs_levels:
            host_level = self._checked(arriving)
            to = hosted(self.ladder.host[host_level], start.device)
            x_t, to_levels = take_step(self.solver, evaluate, self.x_t, t, to, noise), to.levels
        else:
            to_levels = self.ladder.t_of(level)
            x_t = self.solver(evaluate, self.x_t, t.levels, to_levels, noise)
        x_t = start.with_known_pixels(x_t.to(self.x_t.dtype), to_levels)
        if not needs_levels:  # as late as possible: the device works while the host waits
            host_level = self._checked(arriving)
        return replace(self, x_t=x_t, t=to_levels, level=level, host_level=host_level)

    def within(
        self, x_t: Image, t: LevelMap, level: Int64[Tensor, "b gh gw"]
    ) -> tuple[Image, LevelMap, Int64[Tensor, "b gh gw"]]:
        """Return images, level maps and levels (on the host) of the entire batch, with those of unfinished images."""
        if len(self.rows) == len(level):
            return self.x_t, self.t, self.host_level
        rows = to_device(self.rows, self.start.device)
        return (
            x_t.index_copy(0, rows, self.x_t),
            t.index_copy(0, rows, self.t),
            level.index_copy(0, self.rows, self.host_level),
        )

    def _checked(self, arriving: HostCopy) -> Int64[Tensor, "n gh gw"]:
        """Wait for the new levels; raise ValueError unless they lie between 0 and the levels before."""
        level: Tensor = arriving.read()
        self.checks.look()  # a prediction that is not finite gives strides without meaning
        if ((level > self.host_level) | (level < 0)).any():
            raise ValueError(
                f"{type(self.step_rule).__name__} must return strides from 0 to each patch's level, got one outside "
                "this range: clamp the strides to [0, state.level]"
            )
        return level

    def _evaluate(self, x_t: Image, t: Levels) -> Prediction:
        prediction = self.start.evaluate(x_t, t)
        self.checks.add(prediction, self.rows)
        return prediction


def _with_first_prediction(first: Prediction, evaluate: Evaluate) -> Evaluate:
    """Wrap `evaluate` so that its first call returns the already computed prediction `first`."""
    computed = [first]

    def call(x_t: Image, t: Levels) -> Prediction:
        return computed.pop() if computed else evaluate(x_t, t)

    return call


def _frame(x_t: Image, t: LevelMap, host_t: LevelMap, unknown: KnownPatches) -> Frame:
    """Return a state; its progress is computed from levels and mask of the host."""
    return Frame(x_t, t, float(host_t.sum() / unknown.sum().clamp(min=1)))
