"""Laws of progress samplers: density, inverse CDF, and the same expectation with less variance."""

import math

import pytest
import torch
from noise.laws import every_process, grid_name, rebuilt, refusals

from asyncdiff.denoising.weightings import ELBO
from asyncdiff.noise import progress_samplers
from asyncdiff.noise.level_samplers import AlongPath, Homogeneous, WithCleanPatches
from asyncdiff.noise.orders import Raster, Shuffled, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Conditioned, Floored, Ordered, Path, Synchronous, Waypoints
from asyncdiff.noise.processes import CosineVP, RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress, LogitNormalProgress, ProgressSampler, UniformProgress
from asyncdiff.randomness import seeded

GRID, T_MIN = (4, 4), 1e-3
KNOWN = torch.zeros(1, 4, 4, dtype=torch.bool)
KNOWN[0, :, :3] = True
FREE = {
    "synchronous": Synchronous(),
    "async": AsyncPatch(),
    "raster": Ordered(Raster()),
    "overlapping": Ordered(Wavefront(), overlap=0.6),
    "shuffled": Ordered(Shuffled(together=3), overlap=0.1),
    "waypoints": Waypoints([[[0, 0.6], [0.9, 0.2]], [[0.5, 0.6], [1, 0.2]]], progress=[0.2, 0.71]),
}
PATHS: dict[str, Path] = {name: Floored(path, T_MIN) for name, path in FREE.items()}
PATHS |= {f"{name}, conditioned": Conditioned(PATHS[name], KNOWN) for name in ("async", "raster")}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def information(t: torch.Tensor, variance: float, process) -> torch.Tensor:
    """G: mean over the patches of the information of an N(m, variance) pixel at level t; 0 for known patches."""
    snr = process.snr(t.masked_fill(t == 0, 1))
    return 0.5 * torch.log1p(variance * snr).mean((1, 2))


def single(path: Path, dtype: torch.dtype = torch.float64, grid: tuple[int, int] = GRID):
    """One curve, to be evaluated at many s."""
    return path.draw(1, grid, generator=seeded(0), dtype=dtype)


def inner(count: int) -> torch.Tensor:
    return torch.rand(count, generator=seeded(1), dtype=torch.float64)


def shares(curve, s: torch.Tensor, variance: float, process) -> torch.Tensor:
    """Share of G between 0 and s."""
    start, end = (information(curve(torch.full((1,), at).double())[0], variance, process) for at in (0, 1))
    return (start - information(curve(s)[0], variance, process)) / (start - end)


@every_process
@every_path
def test_flux_progress_inverts_its_cdf(path, process):
    """At s(u) the share is u: s is the inverse of a CDF, exactly, and the density is the derivative of that CDF.

    So the density integrates to 1, as the CDF rises from 0 to 1.
    """
    curve, u = single(path), inner(500)
    s, density = FluxProgress(0.3, process)(curve, u)
    excess = shares(curve, s, 0.3, process) - u
    assert excess.abs().max() < 1e-6  # 30 bisections leave an error of 1e-9 in s, times the density, below 700
    assert density.max() < 700
    assert (s[u.argsort()].diff() >= 0).all()
    s.requires_grad_()
    (slope,) = torch.autograd.grad(shares(curve, s, 0.3, process).sum(), s)
    assert torch.allclose(density, slope, rtol=1e-9)


@every_process
@every_path
def test_sections_find_the_progress_of_bisection(path, process, monkeypatch):
    """On GPUs, s is found by dividing intervals into many sections: the same s to 1e-12, if both go on for so long."""
    monkeypatch.setattr(progress_samplers, "BISECTIONS", 45)
    monkeypatch.setattr(progress_samplers, "BITS", 45)
    curve, u, sampler = single(path), inner(60), FluxProgress(0.3, process)
    (s, total), (expected, expected_total) = sampler._sectioned(curve, u), sampler._bisected(curve, u)
    assert (s - expected).abs().max() < 1e-12
    assert torch.equal(total, expected_total)


@every_path
@pytest.mark.parametrize("images", [200, 1100, 4200])  # rounds of 8, 6 and 4 bits
def test_sections_are_exact_to_the_rounding_of_single_precision(path, images):
    curve = path.draw(1, GRID, generator=seeded(0))
    u, sampler = inner(images).float(), FluxProgress()
    s, expected = sampler._sectioned(curve, u)[0], sampler._bisected(curve, u)[0]
    assert (s - expected).abs().max() <= torch.finfo(torch.float32).eps
    t, slope = curve(s)
    assert ((sampler._gain_rate(t) * slope).mean((1, 2)) > 0).all()  # no s between two groups, where nothing moves


def test_uniform_progress_is_uniform():
    u = inner(50)
    s, density = UniformProgress()(single(PATHS["async"]), u)
    assert torch.equal(s, u)
    assert (density == 1).all()


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (0.7, 0.5), (-2.0, 2.0)])
def test_logit_normal_progress_has_its_quantiles_and_density(loc, scale):
    u = inner(1000).clamp(1e-6, 1 - 1e-6).requires_grad_()
    s, density = LogitNormalProgress(loc, scale)(single(AsyncPatch()), u)
    law = torch.distributions.Normal(loc, scale)
    assert torch.allclose(law.cdf(torch.logit(s)), u, atol=1e-12)
    (slope,) = torch.autograd.grad(s.sum(), u)
    assert torch.allclose(slope * density, torch.ones_like(u), rtol=1e-6)


def test_extreme_u_give_s_inside_0_and_1():
    for dtype in (torch.float32, torch.float64):
        s, density = LogitNormalProgress()(single(AsyncPatch(), dtype), torch.tensor([0.0, 1.0], dtype=dtype))
        assert ((s > 0) & (s < 1)).all()
        assert density.isfinite().all()


def test_without_weights_the_distribution_of_s_defines_the_loss():
    """Without weights, draws have neither loss factors nor slopes, and give no bound; with weights they have both."""
    plain = AlongPath(Synchronous(), LogitNormalProgress(0.5, 0.8), weighted=False)
    draw = plain(4096, GRID, generator=seeded(0))
    assert draw.slope is None
    assert draw.importance is None
    logits = torch.logit(draw.t[:, 0, 0])
    assert logits.mean().item() == pytest.approx(0.5, abs=0.01)  # stratified: far below 0.8 / sqrt(4096)
    assert logits.std().item() == pytest.approx(0.8, abs=0.01)
    with pytest.raises(ValueError, match="ELBO"):
        ELBO().check(plain)
    weighted = AlongPath(Synchronous(), LogitNormalProgress(0.5, 0.8))(4096, GRID, generator=seeded(0))
    assert torch.equal(weighted.t, draw.t)
    law = torch.distributions.Normal(0.5, 0.8)
    density = law.log_prob(logits).exp() / (draw.t[:, 0, 0] * (1 - draw.t[:, 0, 0]))
    assert torch.allclose(weighted.importance * density, torch.ones(4096), rtol=1e-3)
    for mixed in (Homogeneous(plain, 0.5), WithCleanPatches(plain, 0.5)):
        drawn = mixed(64, GRID, generator=seeded(0))
        assert not mixed.has_slopes
        assert drawn.importance is None


def relative_integrand(
    path: Path, progress_sampler: ProgressSampler, u: torch.Tensor, variance: float, process, grid=GRID
):
    """The bound's integrand divided by the density, for a perfect denoiser of independent N(m, variance) pixels."""
    curve = single(path, u.dtype, grid)
    s, density = progress_sampler(curve, u)
    t, slope = curve(s)
    alpha, sigma = process.alpha(t), process.sigma(t)
    error = variance / (variance * alpha.square() + sigma.square())  # E(x - x_hat)^2 / sigma^2 = E(v - v_hat)^2
    weight = ELBO()(process, t, slope).masked_fill(t == 0, 0)
    return (weight * error).mean((1, 2)) / density


@every_process
@every_path
def test_the_weighted_integrand_is_constant_for_independent_gaussian_pixels(path, process):
    """Every single s gives the entire integral, G at the floor minus G at the end, on every path."""
    values = relative_integrand(path, FluxProgress(0.1, process), inner(300), 0.1, process)
    floor, end = (information(single(path)(torch.full((1,), s).double())[0], 0.1, process) for s in (0, 1))
    assert torch.allclose(values, (floor - end).expand(300), rtol=1e-9)


@pytest.mark.parametrize("grid", [(4, 4), (16, 16), (32, 32)], ids=grid_name)
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_the_weighted_integrand_is_constant_in_single_precision_on_ordered_paths(grid, overlap):
    """float32 resolves s to 6e-5 of the time of one of 1024 patches, and t_min is 1e-3: no level may be skipped.

    All values agree to rounding, and none is 0. Skipping the width of the rounding error at the ends of each patch
    would lose 1.2 % of the nats on 16x16 patches and 4 % on 32x32.
    """
    places = 256_000 // (grid[0] * grid[1])
    path = Floored(Ordered(Raster(), overlap), T_MIN)
    values = relative_integrand(path, FluxProgress(0.1), inner(places).float(), 0.1, RectifiedFlow(), grid)
    total = 0.5 * math.log1p(0.1 * ((1 - T_MIN) / T_MIN) ** 2)
    assert (values / total - 1).abs().max() < 1e-5


@pytest.mark.parametrize("path", [AsyncPatch(), Ordered(Raster())], ids=["async", "raster"])
def test_completely_known_images_have_density_0(path):
    everything = torch.ones(3, 4, 4, dtype=torch.bool)
    s, density = FluxProgress()(
        Conditioned(Floored(path), everything).draw(3, GRID), torch.rand(3, generator=seeded(0))
    )
    assert ((s >= 0) & (s <= 1)).all()
    assert (density == 0).all()
    some = torch.stack([KNOWN[0], everything[0]])
    drawn = AlongPath(Conditioned(Floored(path), some), FluxProgress())(2, GRID, generator=seeded(0))
    assert drawn.importance[0] > 0
    assert drawn.importance[1] == 0
    assert drawn.importance.isfinite().all()


@pytest.mark.parametrize("progress_sampler", [UniformProgress(), FluxProgress(0.2), FluxProgress(0.2, CosineVP())])
def test_a_rebuilt_object_gives_the_same_progress(progress_sampler):
    curve, u = single(PATHS["async"]), inner(20)
    for theirs, ours in zip(rebuilt(progress_sampler)(curve, u), progress_sampler(curve, u), strict=True):
        assert torch.equal(theirs, ours)


test_invalid_arguments_are_refused = refusals(
    {
        "variance must be positive, got 0.0": lambda: FluxProgress(0.0),
        "scale must be positive, got 0.0": lambda: LogitNormalProgress(scale=0.0),
    }
)
