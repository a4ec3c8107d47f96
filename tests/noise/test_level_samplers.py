"""Laws of level samplers: marginals, means, slopes and known patches; tests/denoising has their likelihood bound."""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from noise.laws import Stub, grid_name, off, p_value, rebuilt, refusals
from scipy import integrate, stats
from scipy.special import expit, ndtr, ndtri

from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import ELBO, Velocity
from asyncdiff.noise import level_samplers
from asyncdiff.noise.clean_patches import MixedCleanPatches, RandomBoxes, RandomMasks, RandomRegions
from asyncdiff.noise.fields import BlockwiseField, IndependentField, PerlinField
from asyncdiff.noise.halvings import symmetric_beta
from asyncdiff.noise.level_samplers import (
    AlongPath,
    Gaussian,
    Homogeneous,
    Independent,
    LevelDraw,
    LevelSampler,
    LogitNormalTruncated,
    Perlin,
    Shared,
    SumBeta,
    TruncatedGaussian,
    WithCleanPatches,
)
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import CustomOrder, Raster, Shuffled
from asyncdiff.noise.paths import AsyncPatch, Conditioned, Floored, Ordered, Path, Synchronous, Waypoints
from asyncdiff.noise.progress_samplers import FluxProgress
from asyncdiff.randomness import RandomSource, per_image, seeded

N = 20_000
FLOORED = AlongPath(Floored(AsyncPatch(), 0.01), FluxProgress())
SAMPLERS: dict[str, LevelSampler] = {
    "shared": Shared(),
    "logit-normal": Shared(loc=0.5, scale=1.0),
    "independent": Independent(),
    "async": AlongPath(),
    "async floored": FLOORED,
    "blockwise": AlongPath(AsyncPatch(field=BlockwiseField())),
    "synchronous": AlongPath(Floored(Synchronous(), 0.01)),
    "raster": AlongPath(Floored(Ordered(Raster()), 0.01), FluxProgress()),
    "shuffled": AlongPath(Ordered(Shuffled(together=3), overlap=0.5)),
    "given": AlongPath(Ordered(CustomOrder([[0, 1], [1, 2]]))),
    "waypoints": AlongPath(Waypoints([[[0.2, 0.4], [0.1, 0.9]]])),
    "perlin": Perlin(),
    "sum-beta": SumBeta(),
    "sharp sum-beta": SumBeta(sharpness=30.0),
    "truncated": TruncatedGaussian(),
    "logit-normal truncated": LogitNormalTruncated(),
    "gaussian": Gaussian(),
    "context": WithCleanPatches(AlongPath()),
    "context around shared": WithCleanPatches(Shared(), 1.0, RandomMasks([Half()])),
    "context with a bound": WithCleanPatches(
        FLOORED, 0.7, MixedCleanPatches([RandomBoxes(), RandomRegions(PerlinField())])
    ),
    "homogeneous": Homogeneous(Independent()),
    "homogeneous with a bound": Homogeneous(FLOORED),
    "both": Homogeneous(WithCleanPatches(FLOORED, clean_patches=RandomRegions(IndependentField())), 0.4),
    "both the other way": WithCleanPatches(Homogeneous(FLOORED), 0.4),
}
every_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
KS_LEVEL = 1e-3  # smaller p-values fail; there are about 30 of them


def draw(sampler: LevelSampler, count: int, grid: tuple[int, int] = (4, 4), seed: int = 0) -> LevelDraw:
    return sampler(count, grid, generator=seeded(seed), dtype=torch.float64)


def stratified(count: int, grid: tuple[int, int] = (4, 4), dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The first numbers that many samplers draw, one per image."""
    return RandomSource(count, grid, seeded(0), dtype=dtype).stratified()


def distance(values: torch.Tensor, cdf) -> float:
    """sup |F_n - F| at 200 points inside (0, 1), in units of 1 / sqrt n.

    With the right F it exceeds 1.95 once in 1000 (Dvoretzky, Kiefer & Wolfowitz). Steps of F at 0 and 1, where levels
    are clamped, show next to them.
    """
    places = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    below = torch.searchsorted(values.flatten().sort().values, places, right=True) / values.numel()
    return (below - torch.tensor([cdf(x) for x in places.tolist()])).abs().max().item() * math.sqrt(values.numel())


# Every sampler


@every_sampler
def test_draws_are_complete_and_in_their_range(sampler):
    """Levels lie between the floor and 1, or are known and 0; only paths provide slopes."""
    sampler.check((4, 4))
    for dtype in (torch.float32, torch.float64):
        maps = sampler(2048, (4, 4), generator=seeded(0), dtype=dtype)
        known = torch.zeros(2048, 4, 4, dtype=torch.bool) if maps.known is None else maps.known
        t = maps.t.expand(2048, 4, 4)
        assert t.dtype == dtype
        assert (t[known] == 0).all()
        assert (t[~known] >= torch.tensor(sampler.t_min, dtype=dtype)).all()
        assert (t <= 1).all()
        assert (maps.slope is not None) == sampler.has_slopes
        if maps.slope is not None:
            assert maps.slope.shape == maps.t.shape
            assert (maps.slope >= 0).all()
        if maps.importance is not None:
            assert (maps.importance >= 0).all()
            assert maps.importance.isfinite().all()


@every_sampler
def test_elbo_accepts_only_samplers_with_slopes_and_a_floor(sampler):
    if sampler.has_slopes and sampler.t_min > 0:
        ELBO().check(sampler)
        return
    reason = "which reaches t = 0.*Floored" if sampler.has_slopes else "which does not provide them"
    with pytest.raises(ValueError, match=rf"{type(sampler).__name__}, {reason}"):
        ELBO().check(sampler)


@every_sampler
def test_levels_of_an_image_depend_only_on_its_seed(sampler):
    again = rebuilt(sampler)
    assert (again.has_slopes, again.t_min) == (sampler.has_slopes, sampler.t_min)
    together = sampler(3, (4, 4), generator=per_image([1, 2, 3]))
    alone = again(1, (4, 4), generator=per_image([3]))
    for name in ("t", "slope", "importance", "known"):
        many, one = getattr(together, name), getattr(alone, name)
        assert (many is None) == (one is None)
        assert many is None or torch.equal(many[2:], one)
    assert not torch.equal(together.t[0], together.t[1])


@every_sampler
def test_levels_are_on_the_requested_device(sampler):
    """All tensors of a draw are on the requested device: mixing devices with PyTorch's meta device is an error."""
    maps = sampler(2, (4, 4), generator=per_image(range(2)), device="meta")
    parts = [maps.t, maps.slope, maps.importance, maps.known, maps.quantized(8).t]
    assert {part.device.type for part in parts if part is not None} == {"meta"}


# Marginals and means


def test_uniform_and_logit_normal_marginals():
    generators = per_image(range(3000))  # independent: stratified levels are too evenly spread
    for sampler in (Shared(), Independent(), AlongPath(Synchronous())):
        assert p_value(sampler(3000, (2, 2), generator=generators).t[:, 0, 0], "uniform") > KS_LEVEL
    logits = draw(Shared(loc=0.7, scale=1.3), N, (2, 2)).t.flatten().logit()
    assert p_value(logits, stats.norm(0.7, 1.3).cdf) > KS_LEVEL


def test_means_of_images_are_almost_constant_for_independent_levels_and_uniform_along_a_path():
    """The sd of the mean of independent levels is 1 / sqrt(12 patches), 0.018 at 256: no image is nearly clean."""
    independent, along = (draw(sampler, 4000, (16, 16)).t.mean((1, 2)) for sampler in (Independent(), AlongPath()))
    assert off((independent - 0.5).square(), 1 / (12 * 256)) < 4
    assert independent.min() > 0.4
    assert stats.kstest(along.numpy(), "uniform").statistic < 0.02  # off s by at most 0.5 / sqrt(3 * 256)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)], ids=grid_name)
def test_mean_of_a_perlin_map_is_its_progress(grid):
    """|mean - s| <= min(s, 1 - s) / D, and the mean of the slopes is 1 up to 1 / D."""
    patches, s = grid[0] * grid[1], torch.rand(2000, generator=seeded(1), dtype=torch.float64)
    t, slope = Perlin().path.draw(2000, grid, generator=seeded(0), dtype=torch.float64)(s)
    assert ((t.mean((1, 2)) - s).abs() <= torch.minimum(s, 1 - s) / patches + 1e-12).all()
    assert ((slope.mean((1, 2)) - 1).abs() <= 1 / patches + 1e-12).all()
    mean = draw(Perlin(), 2000, grid).t.mean((1, 2))  # of stratified s: one in every 1/2000
    assert stats.kstest(mean.numpy(), "uniform").statistic <= 1 / 2000 + 0.5 / patches


# SumBeta


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (7, 7), (1, 1), (1, 3)], ids=grid_name)
def test_sum_beta_keeps_its_mean(grid):
    """Uniform: one mean in each of B equal shares of (0, 1), as they are stratified; the map's mean is that to 1e-6."""
    batch = 512
    for dtype in (torch.float32, torch.float64):
        t = SumBeta()(batch, grid, generator=seeded(0), dtype=dtype).t
        s = stratified(batch, grid, dtype)
        assert ((t.double().mean((1, 2)) - s.double()).abs() < 1e-6).all()
        assert torch.equal((s * batch).long().sort().values, torch.arange(batch))


@pytest.mark.parametrize("grid", [(3, 5), (2, 4)], ids=grid_name)
def test_sum_beta_has_equal_moments_for_all_patches_and_pairs(grid):
    """Moments of every patch and pair agree with those of all; z-scores of about 100 pairs stay below 4.5."""
    t = draw(SumBeta(), N, grid).t.flatten(1)
    first, second = torch.tensor([*combinations(range(t.shape[1]), 2)]).T
    for values in (t, t.square(), t[:, first] * t[:, second]):
        assert off(values - values.mean(1, keepdim=True), 0) < 4.5


def halved(total: np.ndarray, d: int, generator: np.random.Generator) -> np.ndarray:
    """SRM's recursion as in the paper, with NumPy's Beta: d levels (n, d) that sum to total (n,)."""
    if d == 1:
        return total[:, None]
    h, a = d // 2, float(d - 1 - d % 2) ** 1.05
    low, high = np.maximum(0, total - (d - h)), np.minimum(total, h)
    first = low + (high - low) * generator.beta(a, a, len(total))
    return np.concatenate([halved(first, h, generator), halved(total - first, d - h, generator)], 1)


@pytest.mark.parametrize("grid", [(1, 2), (1, 3), (3, 5), (4, 4)], ids=grid_name)
def test_sum_beta_matches_a_numpy_reference(grid):
    """Two-sample Kolmogorov-Smirnov tests of one level, the largest level and the spread of a map."""
    generator, patches = np.random.default_rng(0), grid[0] * grid[1]
    theirs = generator.permuted(halved(patches * generator.random(N), patches, generator), axis=1)
    ours = draw(SumBeta(), N, grid).t.flatten(1).numpy()
    for statistic in (lambda t: t[:, 0], lambda t: t.max(1), lambda t: t.std(1)):
        assert stats.ks_2samp(statistic(theirs), statistic(ours)).pvalue > KS_LEVEL
    if patches == 2:  # half of the difference, relative to its largest value, is 2 Beta(1, 1) - 1
        mean = ours.mean(1)
        relative = torch.as_tensor((ours[:, 0] - mean) / np.minimum(mean, 1 - mean))
        assert p_value(relative, stats.uniform(-1, 2).cdf) > KS_LEVEL


def test_sum_beta_uses_the_beta_parameters_of_the_paper(monkeypatch):
    """(d - 1 - d % 2)^1.05 for parts of d patches, 15 = 7 + 8 and so on; samples hardly show the exponent."""
    shapes = []
    monkeypatch.setattr(
        level_samplers, "symmetric_beta", lambda a, u: shapes.extend(a.tolist()) or symmetric_beta(a, u)
    )
    draw(SumBeta(sharpness=2.0), 1, (3, 5))
    parts = [15, 7, 8, 3, 4, 4, 4]
    assert shapes[:7] == pytest.approx([2 * (d - 1 - d % 2) ** 1.05 for d in parts])
    assert shapes[7:] == [2.0] * 8  # pairs, and a single patch, for which it does not matter


def test_sharp_sum_beta_is_constant_on_powers_of_two():
    """Half of the sum goes to half of the patches; of 15 to 7, so that maps of 15 patches are never constant (SRM)."""
    for grid in ((4, 4), (1, 8)):
        t = draw(SumBeta(sharpness=1e10), 500, grid).t
        assert (t.amax((1, 2)) - t.amin((1, 2))).max() < 1e-4
    assert draw(SumBeta(sharpness=1e10), 500, (3, 5)).t.std((1, 2)).mean() > 0.03


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("a", [0.05, 0.3, 0.5, 1.0, 3.7, 300.0])
def test_symmetric_beta_has_the_beta_distribution(a, dtype):
    """Kolmogorov-Smirnov test inside (0, 1): at a = 0.05, 8 % of the numbers are 0 or 1 to all digits."""
    uniform = torch.rand(40_000, 2, 1, generator=seeded(0), dtype=dtype)
    values = symmetric_beta(torch.tensor([a], dtype=dtype), uniform)
    assert ((values >= 0) & (values <= 1)).all()
    assert distance(values.double(), stats.beta(a, a).cdf) < 1.95
    assert off((values - 0.5).square().flatten(), 1 / (4 * (2 * a + 1))) < 4  # the variance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_symmetric_beta_at_extreme_uniform_numbers(dtype):
    top = 1 - torch.finfo(dtype).eps / 2
    ends = torch.tensor([[u, v] for u in (0.0, 0.5, top) for v in (0.0, 0.25, 0.5, top)], dtype=dtype)
    for a in (1e-3, 0.05, 1.0, 300.0, 1e8):
        values = symmetric_beta(torch.tensor([a], dtype=dtype), ends[:, :, None])
        assert ((values >= 0) & (values <= 1)).all()  # NaN is not


# Gaussian levels

MIDPOINTS = (np.arange(N) + 0.5) / N  # a quadrature of U(0, 1)


def tau_below(x: float, top: np.ndarray, std: float) -> np.ndarray:
    """P(tau <= x | tau_max = top) of Patch Forcing's one-sided levels, those below 0 redrawn."""
    spread = np.minimum(top / 2, std)
    negative = 2 * ndtr(-top / spread)
    return np.where(x < top, 2 * ndtr(-(top - x) / spread) - negative + negative * x / top, 1)


@pytest.mark.parametrize("std", [0.1, 0.6])
def test_truncated_gaussian_levels_are_half_normal_above_the_cleanest(std):
    """(tau_max - tau) / min(tau_max / 2, std) is half-normal, except for redrawn levels; the marginal by quadrature."""
    top, tau = stratified(N)[:, None, None], 1 - draw(TruncatedGaussian(std), N).t
    assert distance(tau[:, 1, 2], lambda x: tau_below(x, MIDPOINTS, std).mean()) < 1.95
    spread = (top / 2).clamp(max=std)
    far = (top / spread).flatten().numpy()  # where tau = 0
    z = (top - tau) / spread
    assert distance(z / 2, lambda x: np.mean(1 - 2 * ndtr(-2 * x) + 2 * ndtr(-far) * 2 * x / far)) < 1.95


def logit_normal_below(x: float) -> float:
    """P(tau <= x) of Patch Forcing's sampler, loc 0.7, scale 1, std 0.6."""
    return tau_below(x, expit(0.7 + ndtri(MIDPOINTS)), 0.6).mean()


def test_logit_normal_truncated_marginal():
    assert distance(1 - draw(LogitNormalTruncated(), N).t[:, 1, 2], logit_normal_below) < 1.95


def test_patch_forcing_hardly_ever_draws_clean_patches():
    """Patches cleaner than tau = 0.9, our t < 0.1: 0.34495 % by quadrature (0.35 %); to 4 standard errors."""

    def density(z: float) -> float:
        return stats.norm.pdf(z) * (1 - tau_below(0.9, expit(0.7 + z), 0.6))

    share = integrate.quad(density, math.log(9) - 0.7, 12, epsabs=1e-12)[0]  # where tau_max > 0.9
    assert share == pytest.approx(0.0034495, abs=1e-7)
    assert 1 - logit_normal_below(0.9) == pytest.approx(share, abs=1e-5)
    t = draw(LogitNormalTruncated(), N, (8, 8)).t
    assert off((t < 0.1).double().mean((1, 2)), share) < 4


@pytest.mark.parametrize("std", [0.1, 0.2, 0.6])
def test_gaussian_levels_are_normal_around_their_mean(std):
    """(t - m) / min(m / 2, (1 - m) / 2, std) is normal up to the clamping, two spreads away or more."""
    mean, t = stratified(N)[:, None, None], draw(Gaussian(std), N).t
    z = (t - mean) / (torch.minimum(mean, 1 - mean) / 2).clamp(max=std)
    assert distance((z + 1.9) / 3.8, lambda x: ndtr(3.8 * x - 1.9)) < 1.95
    spread = np.minimum(np.minimum(MIDPOINTS, 1 - MIDPOINTS) / 2, std)
    assert distance(t[:, 1, 2], lambda x: ndtr((x - MIDPOINTS) / spread).mean()) < 1.95
    assert off(t[:, 1, 2], 0.5) < 4


# Clean patches and constant maps


def test_the_requested_share_of_images_has_clean_patches():
    """With masks that always know something, the number of images with known patches is binomial; 4 standard errors."""
    for probability in (0.0, 0.3, 1.0):
        maps = draw(WithCleanPatches(AlongPath(), probability, RandomMasks([Half(), Half("top")])), 10_000)
        got = maps.known.any(2).any(1).double()
        assert abs(got.mean() - probability) <= 4 * math.sqrt(probability * (1 - probability) / 10_000)
        assert (maps.known[got > 0].sum((1, 2)) == 8).all()


@pytest.mark.parametrize("inner", [AlongPath(), FLOORED, Shared(), SumBeta()], ids=lambda s: type(s).__name__)
def test_patches_that_are_not_clean_keep_the_wrapped_sampler_s_levels(inner):
    maps, plain = draw(WithCleanPatches(inner, 0.5), 500), draw(inner, 500)
    assert 0.1 < maps.known.double().mean() < 0.5
    assert (maps.t[maps.known] == 0).all()
    assert torch.equal(maps.t[~maps.known], plain.t.expand(500, 4, 4)[~maps.known])
    if plain.slope is not None:
        assert (maps.slope[maps.known] == 0).all()
        assert torch.equal(maps.slope[~maps.known], plain.slope[~maps.known])
    if plain.importance is not None:
        assert torch.equal(maps.importance, plain.importance)


@pytest.mark.parametrize("weighting", [Velocity(), ELBO()], ids=lambda w: type(w).__name__)
def test_known_patches_have_no_loss(weighting):
    """Gradients are exactly 0 there, and nowhere else; errors there do not change the loss."""
    contexts = MixedCleanPatches([RandomBoxes(), RandomRegions(low=1.0)])  # some images are completely known
    maps = draw(WithCleanPatches(FLOORED, 1.0, contexts), 64)
    x, eps = torch.randn(2, 64, 1, 8, 8, generator=seeded(1), dtype=torch.float64)
    v = torch.zeros_like(x, requires_grad=True)
    found = training_loss(Stub(lambda x_t, t: v), x, eps, maps, weighting).per_image
    (gradient,) = torch.autograd.grad(found.sum(), v)
    known = maps.known.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    assert (gradient[known] == 0).all()
    bears = ~known & (maps.importance > 0)[:, None, None, None]
    assert (gradient[bears] != 0).all()
    elsewhere = Stub(lambda x_t, t: torch.where(known, 1e6, v))
    assert torch.equal(training_loss(elsewhere, x, eps, maps, weighting).per_image, found)
    everything = maps.known.all(2).all(1)
    assert everything.any()
    assert (found[everything] == 0).all()


@pytest.mark.parametrize("t_min", [0.0, 0.2])
def test_constant_maps_have_their_probability_and_uniform_levels(t_min):
    path: Path = Floored(AsyncPatch(), t_min) if t_min else AsyncPatch()
    maps, inner = draw(Homogeneous(AlongPath(path), 0.3), 10_000), draw(AlongPath(path), 10_000)
    constant = (maps.t == maps.t[:, :1, :1]).all(2).all(1)
    assert off(constant, 0.3) < 4
    assert p_value(maps.t[constant, 0, 0], stats.uniform(t_min, 1 - t_min).cdf) > KS_LEVEL
    assert (maps.slope[constant] == 1 - t_min).all()
    assert torch.equal(maps.t[~constant], inner.t[~constant])
    assert torch.equal(maps.slope[~constant], inner.slope[~constant])
    never, always = (draw(Homogeneous(AlongPath(path), probability), 200).t for probability in (0.0, 1.0))
    assert not (never == never[:, :1, :1]).all(2).all(1).any()
    assert (always == always[:, :1, :1]).all()


def test_constant_maps_have_no_clean_patches_and_the_same_progress_sampler():
    maps = draw(Homogeneous(WithCleanPatches(FLOORED, 1.0, RandomMasks([Half()])), 0.5), 500)
    constant = (maps.slope == 0.99).all(2).all(1)
    assert 0.3 < constant.double().mean() < 0.7
    assert not maps.known[constant].any()
    # With FluxProgress for N(0, 0.1) pixels, their integrand divided by the density is the same everywhere.
    t = maps.t[constant][:, 0, 0].double()
    snr = ((1 - t) / t).square()
    integrand = 0.5 * 0.1 * 2 * (1 - t) / t**3 / (1 + 0.1 * snr) * 0.99
    shares = maps.importance[constant].double() * integrand
    assert torch.allclose(shares, shares[:1].expand_as(shares), rtol=1e-4)
    assert maps.known[~constant].any(2).any(1).all()


# Rounding


def test_quantized_levels_are_few_and_close():
    maps = draw(AlongPath(), 512)
    rounded = maps.quantized(256)
    values = rounded.levels.values
    assert len(values) == 256
    assert (values[0], values[-1]) == (0, 1)
    assert (rounded.t - maps.t).abs().max() <= 0.5 / 255 + 1e-6
    assert rounded.slope is None


def test_rounding_keeps_known_patches_importance_and_the_floor():
    maps = draw(WithCleanPatches(AlongPath(Floored(AsyncPatch(), 0.003), FluxProgress())), 4000)
    rounded = maps.quantized(256, t_min=0.003)
    assert torch.equal(rounded.known, maps.known)
    assert torch.equal(rounded.importance, maps.importance)
    assert (rounded.t[rounded.known] == 0).all()
    assert rounded.t[~rounded.known].min() == pytest.approx(1 / 255)


def test_maps_with_few_levels_are_not_quantized():
    maps = draw(Shared(), 16)
    assert torch.equal(maps.quantized(16).t, maps.t)
    assert maps.quantized(15).levels.values.tolist() == [k / 14 for k in range(15)]


HALVES = Waypoints([[[0.2, 0.4]]])
ALL_KNOWN = Conditioned(Synchronous(), torch.ones(1, 4, 4, dtype=torch.bool))
test_invalid_arguments_are_refused = refusals(
    {
        "loc needs a scale, got loc 0.7 with scale None": lambda: Shared(loc=0.7),
        "scale must be positive, got 0.0: use None for uniform": lambda: Shared(scale=0.0),
        "sharpness must be positive, got 0": lambda: SumBeta(0.0),
        "std must be positive, got -1": lambda: TruncatedGaussian(-1.0),
        "scale must be positive, got 0.0: omit it": lambda: LogitNormalTruncated(scale=0.0),
        "std must be positive, got 0": lambda: Gaussian(0.0),
        "probability must lie in [0, 1], got 1.1": lambda: WithCleanPatches(Shared(), 1.1),
        "probability must lie in [0, 1], got -0.1": lambda: Homogeneous(Shared(), -0.1),
        "spread must lie in [0, 1], or levels would leave [0, 1], got 1.5": lambda: Perlin(spread=1.5),
        "count must be at least 2, got 1": lambda: draw(AlongPath(), 2).quantized(1),
        "FluxProgress needs a path with a floor, got t_min 0.0": lambda: AlongPath(AsyncPatch(), FluxProgress()),
        "use asyncdiff.noise.Floored(path, t_min=0.001)": lambda: AlongPath(ALL_KNOWN, FluxProgress()),
        "do not divide the level map of 4x5 patches": lambda: AlongPath(HALVES).check((4, 5)),
        "1x2 values, which do not divide the level map of 4x5": lambda: WithCleanPatches(AlongPath(HALVES)).check(
            (4, 5)
        ),
        "maps has 1x2 values, which do not divide": lambda: Homogeneous(AlongPath(HALVES)).check((4, 5)),
    }
)
