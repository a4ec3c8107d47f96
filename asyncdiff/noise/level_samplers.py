"""Level samplers: interchangeable training distributions over level maps.

Start with `AlongPath()`, the sampler of AsyncPatch Diffusion; `Shared` trains a standard diffusion model. t = 0
is always clean and t = 1 is noise; papers with the opposite convention are converted.
"""

import math
from dataclasses import dataclass, replace

import torch

from asyncdiff.checks import at_least, finite, positive, within
from asyncdiff.noise.clean_patches import CleanPatches, MixedCleanPatches, RandomBoxes, RandomRegions
from asyncdiff.noise.distribution import Distribution
from asyncdiff.noise.fields import IndependentField, PerlinField
from asyncdiff.noise.halvings import beta_parameters, halvings, split, symmetric_beta
from asyncdiff.noise.paths import AsyncPatch, Floored, Path, Synchronous, check_path
from asyncdiff.noise.progress_samplers import ProgressSampler, UniformProgress
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import IndexedLevels, KnownPatches, LevelMap, Levels, Progress, level_map

PAPER = "omit it to use the paper's value"


@dataclass(frozen=True)
class LevelDraw:
    """Level maps for one training batch.

    Attributes:
        levels: level of every patch, (b, gh, gw), or (b, 1, 1) if every image has a single level; as `IndexedLevels` if
            the sampler knows the distinct levels, which saves a sort.
        slope: dt/ds along the path that the maps were drawn from; None if the sampler follows no path.
        importance: 1 / density of the drawn progress, a factor of each image's loss; None if progress is uniform.
        known: patches kept clean as known context; None if there are none. Patches at t = 0, including these, have no
            loss.
    """

    levels: Levels
    slope: LevelMap | None = None
    importance: Progress | None = None
    known: KnownPatches | None = None

    @property
    def t(self) -> LevelMap:
        """The levels as a tensor."""
        return level_map(self.levels)

    def quantized(self, count: int, t_min: float = 0.0) -> "LevelDraw":
        """Return the maps with levels rounded to `count` equidistant values from 0 to 1.

        A network then embeds at most `count` levels. Images are noised at the rounded levels, so that training stays
        exact for a discrete distribution of levels. Slopes are dropped, since rounded levels do not lie on the path.

        Args:
            count: number of values, at least 2.
            t_min: lower limit of the rounded levels of patches that are not known.

        Returns:
            The rounded maps, or the same maps without slopes if they have at most `count` distinct levels already.
        """
        at_least("count", count, 2, "levels 0 and 1 are always included")
        if isinstance(self.levels, IndexedLevels) and len(self.levels.values) <= count:
            return replace(self, slope=None)
        index = (self.t * (count - 1)).round().long()
        if t_min > 0:
            lifted = index.clamp(min=math.ceil(t_min * (count - 1)))
            index = lifted if self.known is None else torch.where(self.known, index, lifted)
        values = torch.arange(count, device=self.t.device, dtype=self.t.dtype) / (count - 1)
        return replace(self, levels=IndexedLevels(values, index), slope=None)


class LevelSampler(Distribution[LevelDraw]):
    """Distribution over level maps; each training step draws from it.

    Subclasses define `sample`.

    Attributes:
        has_slopes: whether draws include the slopes dt/ds, which the weighting `ELBO` needs.
        t_min: lower limit of the levels of patches that are not known.
        progress_sampler: distribution of the progress s along the path; uniform if there is no path.
        weighted: whether losses are weighted by 1 / density of s.

    Examples:
        >>> draw = AlongPath()(8, (4, 4))  # 8 images of 4 x 4 patches
        >>> draw.t.shape, bool((draw.slope >= 0).all())
        (torch.Size([8, 4, 4]), True)
    """

    has_slopes: bool = False
    weighted: bool = True
    t_min: float = 0.0
    progress_sampler: ProgressSampler = UniformProgress()

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError if the sampler cannot draw valid maps on `grid`."""


class Shared(LevelSampler):
    """One level per image, as in standard diffusion: t ~ U(0, 1), or logit-normal if `scale` is given.

    Args:
        loc: mean of logit(t); larger means noisier. Only with `scale`.
        scale: standard deviation of logit(t) (Esser et al., arXiv:2403.03206); None draws t uniformly.
    """

    def __init__(self, loc: float = 0.0, scale: float | None = None):
        finite("loc", loc, "use 0 for levels around 1/2")
        if scale is None and loc != 0:
            raise ValueError(f"loc needs a scale, got loc {loc} with scale None: set scale to 1.0, for example")
        if scale is not None:
            positive("scale", scale, "use None for uniform levels")
        self.loc = loc
        self.scale = scale

    def sample(self, source: RandomSource) -> LevelDraw:
        t = source.stratified() if self.scale is None else (self.loc + self.scale * source.normal()).sigmoid()
        return LevelDraw(IndexedLevels.per_image(t))


class Independent(LevelSampler):
    """Independent levels t_i ~ U(0, 1) (Diffusion Forcing, arXiv:2407.01392; "Patchwise" in arXiv:2606.07079).

    The mean level of an image has a standard deviation of only 1 / sqrt(12 patches): training never sees the nearly
    clean and nearly noisy images that every sampling trajectory passes through. `AlongPath` controls the mean instead.
    """

    def sample(self, source: RandomSource) -> LevelDraw:
        return LevelDraw(source.uniform(*source.grid))


class AlongPath(LevelSampler):
    """Level maps t(s) at a random progress s, stratified over the batch, on a random curve of a path family.

    With the default path this is the level sampler of AsyncPatch Diffusion (arXiv:2606.07079).

    Args:
        path: path family; default: `AsyncPatch()`.
        progress_sampler: distribution of s; default: uniform. With any other, losses are weighted by 1 / density,
            which changes the variance of the loss but not its expectation. Use `FluxProgress` with the weighting
            `ELBO`.
        weighted: whether to weight losses by 1 / density. If False, the distribution of s sets how much each part of
            the path counts, as with `LogitNormalProgress` in standard diffusion. The loss is then not a bound, so
            `ELBO` raises an error.

    Examples:
        >>> from asyncdiff.randomness import seeded
        >>> draw = AlongPath(AsyncPatch(spread=0.5))(16, (8, 8), generator=seeded(0))
        >>> draw.t.shape
        torch.Size([16, 8, 8])
        >>> draw.t.mean((1, 2)).sort().values.round(decimals=1)[[0, 7, 15]]  # mean levels are spread over [0, 1]
        tensor([0.0000, 0.5000, 1.0000])
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
                f"progress_sampler {type(self.progress_sampler).__name__} needs a path with a floor, "
                f"got t_min {self.t_min}: use asyncdiff.noise.Floored(path, t_min=0.001)"
            )

    def sample(self, source: RandomSource) -> LevelDraw:
        curve = self.path.curve(source)
        s, density = self.progress_sampler(curve, source.stratified())
        t, slope = curve(s)
        if not self.weighted:
            return LevelDraw(t)
        if isinstance(self.progress_sampler, UniformProgress):
            return LevelDraw(t, slope)
        return LevelDraw(t, slope, importance=density.reciprocal().nan_to_num(posinf=0))

    def check(self, grid: tuple[int, int]) -> None:
        """Raise ValueError unless `path` is a noise path on `grid`."""
        check_path(self.path, grid)


class Perlin(AlongPath):
    """Spatially coherent levels s + spread u_i min(s, 1 - s), with u the ranks of Perlin noise within the image.

    "Perlin" in the ablation of arXiv:2606.07079. Each map has mean s, and its levels cover their range evenly.

    Args:
        spread: half-width of the levels within an image relative to min(s, 1 - s), in [0, 1].
        max_cell: largest cell of the noise in patches, at least 1; default: the longer side of the grid.
    """

    def __init__(self, spread: float = 1.0, max_cell: float | None = None):
        super().__init__(AsyncPatch(spread, PerlinField(max_cell, within_image=True)))
        self.spread = spread
        self.max_cell = max_cell


class SumBeta(LevelSampler):
    """Uniform mean level, distributed over the patches by recursive halving (SRM, arXiv:2502.21075).

    If the levels of d patches sum to S, those of the first h = d // 2 sum to lo + (hi - lo) Beta(a, a) with
    lo = max(0, S - (d - h)), hi = min(S, h) and a = (d - 1 - d % 2)^1.05 sharpness. Finally the patches are permuted.
    The mean is exact.

    Args:
        sharpness: positive; the larger, the closer the levels of an image, down to one level if there are 2^k patches.
    """

    def __init__(self, sharpness: float = 1.0):
        positive("sharpness", sharpness, "use 1 as in SRM")
        self.sharpness = sharpness

    def sample(self, source: RandomSource) -> LevelDraw:
        gh, gw = source.grid
        # Sums over 2^k patches need more digits than single levels.
        wide = replace(source, dtype=torch.float32 if torch.device(source.device).type == "mps" else torch.float64)
        sums = source.stratified().to(wide.dtype)[:, None] * (gh * gw)
        if steps := halvings(gh * gw):
            parts = [len(sizes) for sizes in steps]
            uniform = torch.cat([wide.uniform(2, count) for count in parts], dim=2)
            beta = symmetric_beta(beta_parameters(gh * gw, wide.dtype, sums.device) * self.sharpness, uniform)
            for sizes, share in zip(steps, beta.split(parts, 1), strict=True):
                sums = split(sums, share, sizes)
        order = source.uniform(gh * gw).argsort(1)
        return LevelDraw(sums.gather(1, order).clamp(0, 1).to(source.dtype).reshape(-1, gh, gw))


class TruncatedGaussian(LevelSampler):
    """Half-normal levels above a uniform lowest level: t_i = 1 - tau_i, tau_i = tau_max - min(tau_max / 2, std) |n_i|.

    The one-sided sampler of Patch Forcing (arXiv:2604.19141), in which tau = 1 is clean and n_i is standard normal;
    tau_i below 0 are redrawn from U(0, tau_max). The cleanest patches of an image are at about level 1 - tau_max.

    Args:
        std: largest factor of |n_i|, positive.
    """

    def __init__(self, std: float = 0.2):
        positive("std", std, PAPER)
        self.std = std

    def sample(self, source: RandomSource) -> LevelDraw:
        tau_max = self._draw_tau_max(source)[:, None, None]
        tau = tau_max - (tau_max / 2).clamp(max=self.std) * source.normal(*source.grid).abs()
        return LevelDraw(1 - torch.where(tau < 0, tau_max * source.uniform(*source.grid), tau))

    def _draw_tau_max(self, source: RandomSource) -> Progress:
        """Draw one tau_max per image."""
        return source.stratified()


class LogitNormalTruncated(TruncatedGaussian):
    """`TruncatedGaussian` with a logit-normal tau_max: the choice of Patch Forcing (arXiv:2604.19141).

    Args:
        loc: mean of logit(tau_max); larger means cleaner.
        scale: standard deviation of logit(tau_max), positive.
        std: largest factor of |n_i|, positive.
    """

    def __init__(self, loc: float = 0.7, scale: float = 1.0, std: float = 0.6):
        super().__init__(std)
        finite("loc", loc, PAPER)
        positive("scale", scale, PAPER)
        self.loc = loc
        self.scale = scale

    def _draw_tau_max(self, source: RandomSource) -> Progress:
        return (self.loc + self.scale * source.normal()).sigmoid()


class Gaussian(LevelSampler):
    """Normal levels around a uniform mean m: m + min(m/2, (1 - m)/2, std) n_i, clamped to [0, 1].

    Source: the ablation of Patch Forcing (arXiv:2604.19141).

    Args:
        std: largest standard deviation of the levels within an image, positive.
    """

    def __init__(self, std: float = 0.2):
        positive("std", std, PAPER)
        self.std = std

    def sample(self, source: RandomSource) -> LevelDraw:
        mean = source.stratified()[:, None, None]
        spread = (torch.minimum(mean, 1 - mean) / 2).clamp(max=self.std)
        return LevelDraw((mean + spread * source.normal(*source.grid)).clamp(0, 1))


class _Wrapper(LevelSampler):
    """Level sampler that changes the maps of another one with some probability, and keeps its path's properties."""

    def __init__(self, levels: LevelSampler, probability: float, remedy: str):
        within("probability", probability, 0, 1, remedy)
        self.levels = levels
        self.probability = probability
        self.has_slopes, self.t_min = levels.has_slopes, levels.t_min
        self.progress_sampler, self.weighted = levels.progress_sampler, levels.weighted

    def check(self, grid: tuple[int, int]) -> None:
        self.levels.check(grid)


class WithCleanPatches(_Wrapper):
    """Level maps from another sampler, with random clean patches (without loss) in some images.

    Trains inpainting with clean patches next to noisy ones, which hardly ever occur on paths (TD-Paint; `add_zeros` in
    SRM, arXiv:2502.21075). With the weighting `ELBO` the loss bounds -log p(unknown patches | clean patches).

    Args:
        levels: sampler of the level maps.
        probability: probability that an image has clean patches, in [0, 1].
        clean_patches: distribution of the clean patches; default: boxes, irregular regions or single patches.

    Examples:
        >>> from asyncdiff.randomness import seeded
        >>> draw = WithCleanPatches(AlongPath(), probability=1.0)(4, (8, 8), generator=seeded(0))
        >>> bool((draw.t[draw.known] == 0).all())
        True
    """

    def __init__(self, levels: LevelSampler, probability: float = 0.5, clean_patches: CleanPatches | None = None):
        super().__init__(levels, probability, "0.5 gives half of the images clean patches")
        self.clean_patches = clean_patches or MixedCleanPatches(
            [RandomBoxes(), RandomRegions(), RandomRegions(IndependentField())]
        )

    def sample(self, source: RandomSource) -> LevelDraw:
        draw = _per_patch(self.levels.sample(source), source.grid)
        known = self.clean_patches.sample(source) & (source.uniform() < self.probability)[:, None, None]
        slope = None if draw.slope is None else draw.slope.masked_fill(known, 0)
        all_known = known if draw.known is None else known | draw.known
        return replace(draw, levels=draw.t.masked_fill(known, 0), slope=slope, known=all_known)


class Homogeneous(_Wrapper):
    """Level maps from another sampler, mixed with constant maps at a uniform level on [t_min, 1].

    AsyncPatch maps are nearly constant only near s = 0 and 1, while sampling on a synchronous path needs constant maps
    in between, too. A mixture of path families is a path family, so slopes are kept (1 - t_min on constant maps).

    Args:
        levels: sampler of the other maps.
        probability: probability of a constant map, in [0, 1].
    """

    def __init__(self, levels: LevelSampler, probability: float = 0.25):
        super().__init__(levels, probability, "0.25 makes a quarter of the maps constant")
        synchronous = Synchronous()
        floored = Floored(synchronous, self.t_min) if self.t_min else synchronous
        self._constant = AlongPath(floored, self.progress_sampler, self.weighted)

    def sample(self, source: RandomSource) -> LevelDraw:
        draw = _per_patch(self.levels.sample(source), source.grid)
        constant = (source.uniform() < self.probability)[:, None, None]
        level = self._constant.sample(source)
        t = torch.where(constant, level.t, draw.t)
        slope = None if draw.slope is None or level.slope is None else torch.where(constant, level.slope, draw.slope)
        importance = None
        if draw.importance is not None and level.importance is not None:
            importance = torch.where(constant[:, 0, 0], level.importance, draw.importance)
        known = None if draw.known is None else draw.known & ~constant
        return LevelDraw(t, slope, importance=importance, known=known)


def _per_patch(draw: LevelDraw, grid: tuple[int, int]) -> LevelDraw:
    """Expand maps with one level per image to one level per patch."""
    slope = None if draw.slope is None else draw.slope.expand(-1, *grid)
    return replace(draw, levels=draw.t.expand(-1, *grid), slope=slope)
