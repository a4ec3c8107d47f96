"""Clocks of patches that follow the network's own uncertainty: where it is sure, a patch runs ahead.

All walks here stand on one grid of levels, t = k / steps: a rule says after every prediction how many of its steps each
patch takes now. Images that are done leave the batch; what they leave behind changes nothing for the others.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.denoiser import Denoise, Prediction
from asyncdiff.guidance import Guidance, Guided, narrowed
from asyncdiff.randomness import Source
from asyncdiff.sampling import Frame, ImageSampler, Start
from asyncdiff.shapes import Distinct, Image, KnownPatches, Labels, LevelMap, to_pixels
from asyncdiff.solvers import Ddim, Evaluate, Solver

# What one image's log-variance differs by between batch sizes is rounding, and must not decide between equal patches.
LOGVAR_STEP = 1 / 1024
ROUNDING = 1e-6  # of counts that are whole but for rounding, such as 0.7 * 10

Strides = Int64[Tensor, "b gh gw"]  # in steps of the grid


@dataclass(frozen=True)
class Standing:
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


class Clocks(ABC):
    """A rule for how far each patch goes with one prediction. It decides for every image by that image alone.

    Attributes:
        elastic: whether it keeps to a budget below `count` by larger strides; others refuse one.
    """

    elastic: bool = False

    def begin(self) -> "Clocks":
        """A rule ready for one walk: one that remembers returns a fresh copy, without any memory."""
        return self

    def narrowed(self, rows: Int64[Tensor, " n"]) -> "Clocks":
        """The rule for some of the images of the walk; one that remembers forgets the others."""
        return self

    def count(self, steps: int, patches: int) -> int:
        """Predictions that images of up to `patches` unknown patches take at most, without a budget."""
        return steps

    def wanted(self, at: Standing) -> KnownPatches:
        """Patches of which the next call needs a fresh prediction: all unfinished ones, unless a rule knows better."""
        return at.unfinished

    @abstractmethod
    def __call__(self, at: Standing, uncertainty: LevelMap) -> Strides:
        """Steps that each patch takes now, from 0 (it waits) to its level; `uncertainty` is the predicted rms error."""


class Tolerance(Clocks):
    """Strides inverse to the predicted error: dt = tolerance / u, rounded down to the grid, one step at least.

    u is the predicted rms error of the velocity: what a stride gets wrong has an rms of `tolerance` at most, where the
    grid is fine enough. With equal uncertainties all patches stride alike, on a uniform grid. The noisiest patch of an
    image moves in every call, so that a walk takes `steps` predictions at most; a smaller budget is kept by strides of
    at least (levels left) / (predictions left), beyond `max_stride` if need be.

    Args:
        tolerance: of one stride; the larger, the fewer predictions. In pure noise u is about the standard deviation of
            the data, next to the clean image about 1, that of the noise.
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

    def __call__(self, at: Standing, uncertainty: LevelMap) -> Strides:
        """At least one step for the noisiest patches."""
        wanted = (self.tolerance * at.steps / uncertainty + ROUNDING).clamp(1, self.max_stride).long()
        least = (at.level + at.left - 1) // at.left
        to = (at.level - wanted.maximum(least)).clamp(min=0)
        floor = to.amax(dim=(1, 2), keepdim=True) - int(self.lead * at.steps + ROUNDING)
        return at.level - to.maximum(floor).minimum(at.level)


class DualLoop(Clocks):
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

    def wanted(self, at: Standing) -> KnownPatches:
        """All where an outer step begins, those behind within it."""
        return torch.where(at.highest == at.lowest, at.unfinished, at.level > at.lowest)

    def __call__(self, at: Standing, uncertainty: LevelMap) -> Strides:
        """The outer step of sure patches while the others wait, or one step of those behind."""
        sure = surest(uncertainty, at.unfinished, self.share)
        any_sure = sure.flatten(1).any(1)[:, None, None]
        outer = torch.where(sure, self.inner, torch.where(any_sure, 0, 1))
        follow = (at.level > at.lowest).long()
        return torch.where(at.highest == at.lowest, outer, follow).minimum(at.level)


class Sequential(Clocks):
    """Patch after patch, in the order that the network finds easiest: of those that wait, the surest start.

    Patches wait at pure noise; when the next group may start, the `together` waiting patches of the lowest predicted
    uncertainty do. Each then takes every step of the grid. With overlap a group starts before the last is done, at the
    steps of `asyncdiff.paths.Ordered`. The sequential order by uncertainty of SRM (arXiv:2502.21075).

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

    def wanted(self, at: Standing) -> KnownPatches:
        """Those on their way, and where others may start those that wait."""
        waiting = at.unknown & (at.level == at.steps)
        due = (self._due(at) > 0)[:, None, None]
        return at.unfinished & (~waiting | due)

    def __call__(self, at: Standing, uncertainty: LevelMap) -> Strides:
        """One step for every patch on its way or about to start."""
        waiting = at.unknown & (at.level == at.steps)
        order = uncertainty.masked_fill(~waiting, math.inf).flatten(1).argsort(dim=1, stable=True)
        rank = order.argsort(dim=1).reshape(waiting.shape)
        moving = at.unfinished & (~waiting | (rank < self._due(at)[:, None, None]))
        return moving.long()

    def _due(self, at: Standing) -> Int64[Tensor, " b"]:
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
    """

    def __init__(
        self,
        clocks: Clocks | None = None,
        solver: Solver | None = None,
        steps: int = 50,
        budget: int | None = None,
        guidance: Sequence[Guidance] = (),
        refresh: int = 1,
    ):
        at_least("steps", steps, 1, "50 is usual")
        at_least("refresh", refresh, 1, "1 computes all patches every time")
        self.clocks = clocks or Tolerance()
        self.solver = solver or Ddim()
        self.steps = steps
        self.budget = budget
        self.guidance = list(guidance)
        self.refresh = refresh
        if budget is not None:
            at_least("budget", budget, self.solver.evaluations, "one step is the least")

    def walk(self, start: Start) -> Iterator[Frame]:
        """The states after every prediction, until the last image is done."""
        level = torch.full(start.held.shape, self.steps, device=start.held.device).masked_fill(start.held, 0)
        rows = torch.arange(len(level), device=level.device)
        ladder = _ladder(self.steps, start.source)
        images = _Images(start, self.solver.begin(), self.clocks.begin(), rows, start.x_t, level, ladder)
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
                f"{type(self.clocks).__name__} must end within its count, got noise left after {calls} predictions: "
                "move some patch of every image in every call"
            )

    def _calls(self, unknown: KnownPatches) -> int:
        """How often the rule may be asked."""
        most = self.clocks.count(self.steps, int(unknown.flatten(1).sum(1).max()))
        if self.budget is None:
            return most
        calls = self.budget // self.solver.evaluations
        if calls < most and not self.clocks.elastic:
            raise ValueError(
                f"budget must be at least {most * self.solver.evaluations} for {type(self.clocks).__name__} on "
                f"{self.steps} steps, got {self.budget}: take fewer steps, or Tolerance, which strides to fit"
            )
        return min(calls, most)


@dataclass(frozen=True)
class _Images:
    """Those images of a walk that are on their way, at the places `rows` of the whole batch."""

    start: Start
    solver: Solver
    clocks: Clocks
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
            start=self.start.narrowed(rows),
            solver=self.solver.narrowed(rows),
            clocks=self.clocks.narrowed(rows),
            rows=self.rows[rows],
            x_t=self.x_t[rows],
            level=self.level[rows],
        )

    def moved(self, left: int) -> "_Images":
        """One prediction further; `left` are allowed, this one included."""
        at = Standing(self.level, ~self.start.held, len(self.ladder) - 1, left)
        self.start.moving(self.clocks.wanted(at))
        t = self.ladder[self.level]
        prediction = self._evaluate(self.x_t, t)
        strides = self.clocks(at, _uncertainty(prediction, type(self.clocks).__name__))
        if ((strides < 0) | (strides > self.level)).any():
            raise ValueError(f"{type(self.clocks).__name__} must give strides from 0 to a patch's level, got others")
        level = self.level - strides
        to = self.ladder[level]
        noise = self.start.noise() if self.solver.stochastic else None
        moved = self.solver(_made(prediction, self._evaluate), self.x_t, t, to, noise)
        return replace(self, x_t=self.start.replaced(moved.to(self.x_t.dtype), to), level=level)

    def _evaluate(self, x_t: Image, t: LevelMap) -> Prediction:
        prediction = self.start.evaluate(x_t, t)
        _check_finite(prediction, self.rows)
        return prediction


class LookAhead(Guidance):
    """Uncertain patches are predicted with the sure ones shown further ahead than they are.

    The patches whose uncertainty lies below the `share` quantile of their image are taken ahead provisionally, by their
    own prediction: 1 - t grows by the factor `ratio`, cut at clean. A second evaluation sees them so; the velocity of
    the others is taken from it, that of the sure ones from the first. All then take the step that the sampler asks for:
    any sampler, solver and path. Images whose noisiest patch that has started is within the first `skipped` of the
    levels are predicted as usual, and so are those in which no patch is surer than the rest. The look-ahead of Patch
    Forcing (arXiv:2604.19141), where times count from noise: t here is 1 - t there.

    Args:
        share: quantile of the uncertainty below which a patch is sure; in [0, 1], 0 changes nothing.
        ratio: growth of 1 - t; at least 1, which changes nothing.
        skipped: share of the levels below pure noise in which nobody looks ahead.
    """

    def __init__(self, share: float = 0.4, ratio: float = 1.5, skipped: float = 0.05):
        within("share", share, 0, 1, "0.4 is usual, 0 is off")
        at_least("ratio", ratio, 1, "1.5 is the paper's, 1 is off")
        within("skipped", skipped, 0, 1, "0.05 is the paper's")
        self.share = share
        self.ratio = ratio
        self.skipped = skipped

    def begin(self, denoiser: Denoise, source: Source, shape: tuple[int, int, int]) -> Denoise:
        """The denoiser itself at share 0 or ratio 1."""
        return denoiser if self.share == 0 or self.ratio == 1 else _LookingAhead(denoiser, self)


class _LookingAhead(Guided):
    def __init__(self, denoiser: Denoise, rule: LookAhead):
        super().__init__(denoiser)
        self.rule = rule

    def __call__(
        self, x_t: Image, t: LevelMap, label: Labels | None = None, *, distinct: Distinct | None = None
    ) -> Prediction:
        """Two evaluations, one after the other; one where nobody looks ahead."""
        first = self.denoiser(x_t, t, label, distinct=distinct)
        _check_finite(first, torch.arange(len(t), device=t.device))
        noisiest = t.masked_fill(t >= 1, 0).amax(dim=(1, 2), keepdim=True)  # of those that do not wait
        begun = (noisiest > 0) & (noisiest <= 1 - self.rule.skipped)
        sure = surest(_uncertainty(first, "LookAhead"), t > 0, self.rule.share) & begun
        uncertain = sure.flatten(1).any(1)[:, None, None] & (t > 0) & ~sure
        if not uncertain.any() and not self.steady:
            return first
        sure = sure & uncertain.flatten(1).any(1)[:, None, None]
        size = (x_t.shape[2], x_t.shape[3])
        t_ahead = torch.where(sure, (1 - self.rule.ratio * (1 - t)).clamp(min=0), t)
        ahead = self.process.noised(first.x, first.eps, t_ahead.to(x_t.dtype))
        second = self.denoiser(torch.where(to_pixels(sure, size), ahead, x_t), t_ahead, label)
        v = torch.where(to_pixels(uncertain, size), second.v, first.v)
        return Prediction(self.process, x_t, t, v, first.logvar)

    def narrowed(self, rows: Int64[Tensor, " n"]) -> Denoise:
        return _LookingAhead(narrowed(self.denoiser, rows), self.rule)


def surest(uncertainty: LevelMap, among: Bool[Tensor, "b gh gw"], share: float) -> Bool[Tensor, "b gh gw"]:
    """True for the patches `among` which are below the `share` quantile of their image's uncertainties.

    The quantile is one of the values, the next one after `share` of them: equal patches are never told apart, and with
    share 1 all are sure.
    """
    ranked = uncertainty.masked_fill(~among, math.inf).flatten(1).sort(dim=1).values
    ranked = torch.cat([ranked, torch.full_like(ranked[:, :1], math.inf)], dim=1)
    place = (share * among.flatten(1).sum(1) + ROUNDING).long()
    return among & (uncertainty < ranked.gather(1, place[:, None])[:, :, None])


def _uncertainty(prediction: Prediction, rule: str) -> LevelMap:
    """Predicted rms error of the velocity, per patch."""
    if prediction.logvar is None:
        raise ValueError(
            f"{rule} needs a network that predicts its uncertainty, got one without: train with uncertainty: true"
        )
    logvar = (prediction.logvar.to(prediction.t.dtype) / LOGVAR_STEP).round() * LOGVAR_STEP
    return (logvar / 2).exp()


def _check_finite(prediction: Prediction, rows: Int64[Tensor, " n"]) -> None:
    """Raise FloatingPointError, with the place named, where noisy patches have predictions that are not numbers."""
    t, finite = prediction.t, {"velocity": prediction.v.isfinite().all(1, keepdim=True)}
    if prediction.logvar is not None:
        finite["log-variance"] = to_pixels(prediction.logvar.isfinite(), (prediction.v.shape[2], prediction.v.shape[3]))
    for name, numbers in finite.items():
        b, gh, gw = t.shape
        patches = numbers.reshape(b, gh, numbers.shape[2] // gh, gw, -1).all(4).all(2)
        wrong = ~patches & (t > 0)
        if wrong.any():
            image, row, column = wrong.nonzero()[0].tolist()
            raise FloatingPointError(
                f"the predicted {name} must be finite, got NaN or infinity in image {int(rows[image])} of the batch at "
                f"row {row}, column {column}, level {float(t[image, row, column]):g}: take an earlier checkpoint"
            )


def _made(first: Prediction, evaluate: Evaluate) -> Evaluate:
    """`evaluate`, whose first call gives the prediction that is made already."""
    made = [first]

    def call(x_t: Image, t: LevelMap) -> Prediction:
        return made.pop() if made else evaluate(x_t, t)

    return call


def _ladder(steps: int, source: Source) -> Float[Tensor, " levels"]:
    """t of every level, 0 .. steps: the numbers of `asyncdiff.sampling.Sampler`, to the last bit."""
    return torch.linspace(1, 0, steps + 1, dtype=torch.float64, device="cpu").flip(0).to(source.device, source.dtype)


def _frame(x_t: Image, t: LevelMap, unknown: KnownPatches) -> Frame:
    return Frame(x_t, t, float(t.sum() / unknown.sum().clamp(min=1)))
