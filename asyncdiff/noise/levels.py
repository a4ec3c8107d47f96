"""Training distributions over level maps. All are level samplers behind one call, so that they can be ablated.

Everywhere t = 0 is clean and t = 1 noise; where a source counts the other way its levels are turned round.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.noise.clean_patches import CleanPatches, MixedCleanPatches, RandomBoxes, RandomRegions
from asyncdiff.noise.fields import IndependentField, PerlinField
from asyncdiff.noise.paths import AsyncPatch, Floored, Path, Synchronous, check_path
from asyncdiff.noise.progress import ProgressSampler, UniformProgress
from asyncdiff.randomness import Generators, RandomSource
from asyncdiff.shapes import KnownPatches, LevelMap, Progress, UniqueLevels


@dataclass(frozen=True)
class LevelDraw:
    """One training batch of level maps.

    Attributes:
        t: level of every patch, (b, gh, gw), or (b, 1, 1) where an image has one level.
        slope: dt/ds along the path the maps were drawn from; None where the sampler follows no path.
        distinct: the distinct levels and their index, where the sampler knows them; spares the network a sort.
        importance: 1 / density of the progress that was drawn, where it was not uniform: a factor of each image's loss.
        known: patches that are given clean; None for none. No patch at t = 0 bears any loss, these included.
    """

    t: LevelMap
    slope: LevelMap | None = None
    unique: UniqueLevels | None = None
    importance: Progress | None = None
    known: KnownPatches | None = None

    def quantized(self, count: int, t_min: float = 0.0) -> "LevelDraw":
        """The levels rounded to `count` equidistant values from 0 to 1, so that a network needs `count` conditionings.

        The image is then noised at the rounded levels: training stays exact, only the distribution of levels is
        discrete. The slopes are dropped, since the rounded levels no longer lie on the path. No level comes below
        `t_min`, but for those of known patches.
        """
        at_least("count", count, 2, "the levels 0 and 1 are needed")
        if self.unique is not None and len(self.unique.values) <= count:
            return replace(self, slope=None)  # few enough as they are
        index = (self.t * (count - 1)).round().long()
        if t_min > 0:
            lifted = index.clamp(min=math.ceil(t_min * (count - 1)))
            index = lifted if self.known is None else torch.where(self.known, index, lifted)
        values = torch.arange(count, device=self.t.device, dtype=self.t.dtype) / (count - 1)
        return replace(self, t=values[index], slope=None, unique=UniqueLevels(values, index))


class LevelSampler(ABC):
    """A distribution over level maps.

    Attributes:
        has_slopes: whether its draws carry dt/ds, which the exact bound (`ELBO`) needs.
        t_min: no level is drawn below it, but for patches that are given clean.
        spacing: law of the progress along the path.
        weighted: whether losses are weighted for that law.
    """

    has_slopes: bool = False
    weighted: bool = True
    t_min: float = 0.0
    progress_sampler: ProgressSampler = UniformProgress()  # of the progress along its path, if it follows one

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LevelDraw:
        """Level maps for `batch` images on a grid of (gh, gw) patches."""
        return self.sample(RandomSource(batch, grid, generator, device, dtype))

    @abstractmethod
    def sample(self, source: RandomSource) -> LevelDraw:
        """One level map per image; all randomness comes from `source`."""

    def check(self, grid: tuple[int, int]) -> None:  # noqa: B027  most samplers go with every grid
        """Raise ValueError if the sampler cannot draw maps of `grid`."""


class Shared(LevelSampler):
    """One level for the whole image, as in usual diffusion: t ~ U(0, 1), or logit-normal where `scale` is given.

    Args:
        loc: mean of logit(t); larger means noisier. Used with `scale` only.
        scale: standard deviation of logit(t) (Esser et al., arXiv:2403.03206); None draws t uniformly.
    """

    def __init__(self, loc: float = 0.0, scale: float | None = None):
        if scale is None and loc != 0:
            raise ValueError(f"loc shifts the logit-normal only, got loc {loc} without a scale: give scale, say 1.0")
        if scale is not None and scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}: leave it out for uniform levels")
        self.loc = loc
        self.scale = scale

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps of shape (batch, 1, 1)."""
        t = source.stratified() if self.scale is None else (self.loc + self.scale * source.normal()).sigmoid()
        index = torch.arange(source.batch, device=t.device)[:, None, None]
        return LevelDraw(t[:, None, None], None, UniqueLevels(t, index))


class Independent(LevelSampler):
    """t_i ~ U(0, 1) for every patch (Diffusion Forcing, arXiv:2407.01392; "Patchwise" in arXiv:2606.07079).

    The mean level of an image then has a standard deviation of 1 / sqrt(12 patches): nearly clean and nearly noisy
    images, through which every generation passes, are never seen.
    """

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps of independent uniform levels."""
        return LevelDraw(source.uniform(*source.grid))


class AlongPath(LevelSampler):
    """A point on a random curve of a path family, its progress s stratified over the batch.

    Args:
        path: the family; `AsyncPatch()` is the sampler of AsyncPatch Diffusion (arXiv:2606.07079).
        spacing: law of s, uniform by default. With another the losses are weighted by 1 / density: the objective stays
            what it is and its noise changes. `FluxProgress` goes with `ELBO`.
        weighted: False leaves these weights out, so that the law of s decides how much each part of the path counts, as
            logit-normal levels do in usual diffusion: `LogitNormalProgress`. No bound is left then, so that `ELBO`
            refuses.
    """

    def __init__(
        self, path: Path | None = None, progress_sampler: ProgressSampler | None = None, weighted: bool = True
    ):
        self.path = path or AsyncPatch()
        self.progress_sampler = progress_sampler or UniformProgress()
        self.weighted = self.has_slopes = weighted
        self.t_min = self.path.t_min
        if self.progress_sampler.needs_floor and self.t_min <= 0:
            raise ValueError(
                f"progress_sampler {type(self.progress_sampler).__name__} needs a path with a floor, got t_min {self.t_min}: "
                "lift it, asyncdiff.noise.Floored(path, t_min=0.001)"
            )

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps on the curves, with their slopes."""
        curve = self.path.curve(source)
        s, density = self.progress_sampler(curve, source.stratified())
        t, slope = curve(s)
        if not self.weighted:
            return LevelDraw(t)
        if isinstance(self.progress_sampler, UniformProgress):
            return LevelDraw(t, slope)
        return LevelDraw(t, slope, importance=density.reciprocal().nan_to_num(posinf=0))

    def check(self, grid: tuple[int, int]) -> None:
        """Refuse what is no noise path on this grid, with the patch named."""
        check_path(self.path, grid)


class Perlin(AlongPath):
    """Coherent maps around a uniform mean: s + spread u min(s, 1 - s) with u the ranks of Perlin noise in the image.

    The "Perlin" of the ablation in arXiv:2606.07079. Every map's mean is its s, its levels cover their range evenly.

    Args:
        spread: half-width of the levels within an image relative to min(s, 1 - s), in [0, 1].
        max_cell: largest cell of the noise in patches; the longer side of the grid by default.
    """

    def __init__(self, spread: float = 1.0, max_cell: float | None = None):
        super().__init__(AsyncPatch(spread, PerlinField(max_cell, within_image=True)))
        self.spread = spread
        self.max_cell = max_cell


class SumBeta(LevelSampler):
    """A uniform mean level, shared out among the patches by recursive halving (SRM, arXiv:2502.21075).

    Of d patches with levels of sum S the first h = d // 2 get lo + (hi - lo) Beta(a, a), lo = max(0, S - (d - h)),
    hi = min(S, h), a = (d - 1 - d % 2)^1.05 sharpness; in the end the patches are permuted. The mean is exact.

    Args:
        sharpness: larger brings the patches of an image nearer together, to one level if there are 2^k of them.
    """

    def __init__(self, sharpness: float = 1.0):
        if sharpness <= 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}: 1 is SRM's")
        self.sharpness = sharpness

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps whose mean is uniform and exact."""
        gh, gw = source.grid
        # The sums of 2^k patches need more digits than single levels.
        wide = replace(source, dtype=torch.float32 if torch.device(source.device).type == "mps" else torch.float64)
        sizes, sums = [gh * gw], source.stratified().to(wide.dtype)[:, None] * (gh * gw)
        while max(sizes) > 1:
            sizes, sums = self._halved(wide, sizes, sums)
        order = source.uniform(gh * gw).argsort(1)
        return LevelDraw(sums.gather(1, order).clamp(0, 1).to(source.dtype).reshape(-1, gh, gw))

    def _halved(self, source: RandomSource, sizes: list[int], sums: Tensor) -> tuple[list[int], Tensor]:
        """Every part of more than one patch split in two: sizes of the parts and their sums (b, parts)."""
        d = torch.tensor(sizes, device=sums.device, dtype=sums.dtype)
        h = (d / 2).floor()
        low, high = (sums - (d - h)).clamp(min=0), torch.minimum(sums, h)
        a = (d - 1 - d % 2).clamp(min=1) ** 1.05 * self.sharpness
        first = low + (high - low) * symmetric_beta(a, source.uniform(2, len(sizes)))
        parts = torch.stack([first, sums - first], dim=2).flatten(1)
        both = [part for size in sizes for part in (size // 2, size - size // 2)]
        kept = [k for k, size in enumerate(both) if size]
        return [both[k] for k in kept], parts[:, kept]


class TruncatedGaussian(LevelSampler):
    """Levels above a uniform lowest level: t_i = 1 - tau_i, tau_i = tau_max - min(tau_max / 2, std) |n_i|.

    The one-sided sampler of Patch Forcing (arXiv:2604.19141), where tau = 1 is clean; tau_i below 0 are drawn anew from
    U(0, tau_max). Here 1 - tau_max is the level of an image's cleanest patches.

    Args:
        std: largest standard deviation of the levels within an image.
    """

    def __init__(self, std: float = 0.2):
        _check_positive("std", std)
        self.std = std

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps whose levels thin out from the cleanest ones upwards."""
        cleanest = self._cleanest(source)[:, None, None]
        tau = cleanest - (cleanest / 2).clamp(max=self.std) * source.normal(*source.grid).abs()
        return LevelDraw(1 - torch.where(tau < 0, cleanest * source.uniform(*source.grid), tau))

    def _cleanest(self, source: RandomSource) -> Progress:
        """tau_max of each image."""
        return source.stratified()


class LogitNormalTruncated(TruncatedGaussian):
    """`TruncatedGaussian` whose tau_max is logit-normal: Patch Forcing's choice (arXiv:2604.19141).

    Args:
        loc: mean of logit(tau_max); larger means cleaner.
        scale: standard deviation of logit(tau_max).
        std: largest standard deviation of the levels within an image.
    """

    def __init__(self, loc: float = 0.7, scale: float = 1.0, std: float = 0.6):
        super().__init__(std)
        _check_positive("scale", scale)
        self.loc = loc
        self.scale = scale

    def _cleanest(self, source: RandomSource) -> Progress:
        return (self.loc + self.scale * source.normal()).sigmoid()


class Gaussian(LevelSampler):
    """Levels on both sides of a uniform mean m: m + min(m/2, (1 - m)/2, std) n_i, clamped (Patch Forcing's ablation).

    Args:
        std: largest standard deviation of the levels within an image.
    """

    def __init__(self, std: float = 0.2):
        _check_positive("std", std)
        self.std = std

    def sample(self, source: RandomSource) -> LevelDraw:
        """Maps that scatter about their means."""
        mean = source.stratified()[:, None, None]
        spread = (torch.minimum(mean, 1 - mean) / 2).clamp(max=self.std)
        return LevelDraw((mean + spread * source.normal(*source.grid)).clamp(0, 1))


class WithCleanPatches(LevelSampler):
    """Another sampler's maps in which, with some probability, a random part is given clean and bears no loss.

    What inpainting needs and paths hardly visit: level 0 beside high levels (TD-Paint; `add_zeros` of SRM,
    arXiv:2502.21075). With slopes the objective is the bound on the rest given the context.

    Args:
        levels: the other sampler.
        probability: share of the images that get a context, in [0, 1].
        context: distribution of the clean parts; boxes, irregular regions and single patches by default.
    """

    def __init__(self, levels: LevelSampler, probability: float = 0.5, clean_patches: CleanPatches | None = None):
        within("probability", probability, 0, 1, "0.5 gives half of the images a context")
        self.levels = levels
        self.probability = probability
        self.clean_patches = clean_patches or MixedCleanPatches(
            [RandomBoxes(), RandomRegions(), RandomRegions(IndependentField())]
        )
        self.has_slopes, self.t_min = levels.has_slopes, levels.t_min
        self.progress_sampler, self.weighted = levels.progress_sampler, levels.weighted

    def sample(self, source: RandomSource) -> LevelDraw:
        """The other sampler's maps, 0 on the known patches."""
        draw = _filled(self.levels.sample(source), source.grid)
        known = self.clean_patches.sample(source) & (source.uniform() < self.probability)[:, None, None]
        slope = None if draw.slope is None else draw.slope.masked_fill(known, 0)
        known_before = known if draw.known is None else known | draw.known
        return replace(draw, t=draw.t.masked_fill(known, 0), slope=slope, unique=None, known=known_before)

    def check(self, grid: tuple[int, int]) -> None:
        """What the other sampler checks."""
        self.levels.check(grid)


class Homogeneous(LevelSampler):
    """Another sampler's maps, of which with some probability one is constant, its level uniform on [t_min, 1].

    AsyncPatch maps are nearly constant at the ends only, generation on a synchronous path needs constant ones between.
    A mixture of paths is a path, so that slopes stay (1 - t_min on the constant maps).

    Args:
        levels: the other sampler.
        probability: share of constant maps, in [0, 1].
    """

    def __init__(self, levels: LevelSampler, probability: float = 0.25):
        within("probability", probability, 0, 1, "0.25 makes a quarter of the maps constant")
        self.levels = levels
        self.probability = probability
        self.has_slopes, self.t_min = levels.has_slopes, levels.t_min
        self.progress_sampler, self.weighted = levels.progress_sampler, levels.weighted
        synchronous = Synchronous()
        floored = Floored(synchronous, self.t_min) if self.t_min else synchronous
        self._constant = AlongPath(floored, self.progress_sampler, self.weighted)

    def sample(self, source: RandomSource) -> LevelDraw:
        """The mixture."""
        draw = _filled(self.levels.sample(source), source.grid)
        constant = (source.uniform() < self.probability)[:, None, None]
        level = self._constant.sample(source)
        t = torch.where(constant, level.t, draw.t)
        slope = None if draw.slope is None or level.slope is None else torch.where(constant, level.slope, draw.slope)
        importance = None
        if draw.importance is not None and level.importance is not None:
            importance = torch.where(constant[:, 0, 0], level.importance, draw.importance)
        known = None if draw.known is None else draw.known & ~constant
        return LevelDraw(t, slope, importance=importance, known=known)

    def check(self, grid: tuple[int, int]) -> None:
        """What the other sampler checks."""
        self.levels.check(grid)


def symmetric_beta(a: Tensor, uniform: Tensor) -> Tensor:
    """Beta(a, a) numbers (b, n) for a (n,), exact for every a > 0, from two uniforms each: `uniform` is (b, 2, n).

    (1 + T / sqrt(2 a + T^2)) / 2 with T of Student's t with 2 a degrees of freedom, drawn as
    sqrt(2 a (U^(-1/a) - 1)) cos(2 pi V) (Bailey, Math. Comp. 62, 1994): needs no rejection and no private API.
    """
    u, v = uniform.unbind(1)
    # 1 - U lies in (0, 1]; the exponent is cut where the result is 0 or 1 to every digit.
    radius2 = torch.expm1((-torch.log1p(-u) / a).clamp(max=80))
    ratio2 = radius2 * (2 * math.pi * v).cos().square()
    sign = (2 * math.pi * v).cos().sign()
    return 0.5 + 0.5 * sign * (ratio2 / (1 + ratio2)).sqrt()


def _filled(draw: LevelDraw, grid: tuple[int, int]) -> LevelDraw:
    """A draw with one value per patch, also where the sampler gives one per image."""
    t = draw.t.expand(-1, *grid)
    slope = None if draw.slope is None else draw.slope.expand(-1, *grid)
    return replace(draw, t=t, slope=slope, unique=None)


def _check_positive(name: str, value: float) -> None:
    if value <= 0:
        raise ValueError(f"{name} must be positive, got {value}: leave it out for the paper's value")
