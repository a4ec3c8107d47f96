"""The bound equals the likelihood on every path for a perfect denoiser: unconditional, conditional and discrete."""

import math
from itertools import pairwise

import pytest
import torch
from noise.laws import Stub, off, refusals
from torch.distributions import MultivariateNormal, kl_divergence

from asyncdiff.denoising import likelihood
from asyncdiff.denoising.denoiser import Prediction
from asyncdiff.denoising.likelihood import (
    LEVEL_EDGES,
    CategoricalDecoder,
    GaussianDecoder,
    bound,
    discrete_bound,
    with_floor,
)
from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.noise.masks import Half, Square
from asyncdiff.noise.orders import Raster, Shuffled, Wavefront
from asyncdiff.noise.paths import AsyncPatch, Conditioned, Floored, Ordered, Path, Synchronous, Waypoints
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress, UniformProgress
from asyncdiff.randomness import per_image, seeded
from asyncdiff.shapes import known_patches, to_pixels

SHAPE, GRID, DIMS, N = (1, 4, 4), (2, 2), 16, 400
MEAN, COV = random_gaussian(DIMS)
ORACLE = GaussianOracle(MEAN, COV, GRID)
X = ORACLE.sample(N, SHAPE, seeded(0))
PATHS = {
    "synchronous": Synchronous(),
    "async": AsyncPatch(),
    "raster": Ordered(Raster()),
    "wavefront": Ordered(Wavefront(), overlap=0.5),
    "shuffled": Ordered(Shuffled(), overlap=0.25),
    "user": Waypoints([[[0.0, 0.6], [0.9, 0.2]]], progress=[0.7]),
}
NATS, FLUX = {"decoder": GaussianDecoder()}, {"progress_sampler": FluxProgress(1.0)}
every_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
three_paths = pytest.mark.parametrize(
    "path", [Synchronous(), AsyncPatch(), Ordered(Raster(), 0.5)], ids=["synchronous", "async", "ordered"]
)

STRATA = 32  # midpoints of each of the bound's intervals that are evaluated at once


@pytest.fixture
def cubature(monkeypatch):
    """Replace random noise by the 2 d points +-sqrt(d) e_j, and s by the midpoints of `STRATA` parts of its strata.

    The mean of a quadratic function of the noise, such as the squared error of a Gaussian's denoiser, is then its exact
    expectation. Use with `copies` and `expected`.
    """
    points = math.sqrt(DIMS) * torch.cat([torch.eye(DIMS), -torch.eye(DIMS)]).double()

    def noise(shape, **_):
        return points.repeat(shape[0] // len(points), 1).reshape(shape)

    def midpoints(shape, **_):
        part = torch.arange(shape[0], dtype=torch.float64).div(2 * DIMS, rounding_mode="floor") % STRATA
        return (part + 0.5) / STRATA

    monkeypatch.setattr(likelihood, "normal", noise)
    monkeypatch.setattr(likelihood, "uniform", midpoints)


def copies(images: torch.Tensor, strata: int = STRATA) -> dict:
    """Every image once per stratum and point of the cubature, on the same curve."""
    count = strata * 2 * DIMS
    return {
        "x": images.repeat_interleave(count, 0),
        "generator": [generator for k in range(len(images)) for generator in per_image([k] * count)],
    }


def expected(nats: torch.Tensor, images: int) -> torch.Tensor:
    """Exact expectation over the noise, and mean over the strata, per image."""
    return nats.reshape(images, -1).mean(1)


def excess(path: Path, oracle=ORACLE, images: int = 2, points: int = 64, **options) -> torch.Tensor:
    """Excess of the bound over the true value for single images, relative to it."""
    options = {"progress_sampler": FluxProgress(1.0, oracle.process)} | NATS | options
    found = bound(oracle, **copies(X[:images]), path=path, points=points // STRATA, **options)
    truth = -oracle.log_prob(X[:images])
    return (expected(found.total, images) - truth) / truth


@pytest.mark.usefixtures("cubature")
@every_path
def test_bound_equals_the_likelihood_of_every_image(path):
    """Kinks of paths limit the accuracy of the quadrature: 1e-2 with 64 points, 3e-3 with 256."""
    smooth = isinstance(path, Synchronous | AsyncPatch)
    process = CosineVP() if path is PATHS["wavefront"] else RectifiedFlow()
    oracle = GaussianOracle(MEAN, COV, GRID, process)
    found = excess(path, oracle, images=2 if smooth else 1, points=256 if smooth else 1024)
    assert found.abs().max() < 1e-3


@pytest.mark.usefixtures("cubature")
def test_bound_error_if_the_path_does_not_end_at_pure_noise():
    """The bound exceeds the true value by E log p(x_1) / N(x_1; 0, I): the end of the path counts as pure noise."""
    process = LinearVP(beta_end=0.005)  # alpha(1) = 0.28
    oracle = GaussianOracle(MEAN, COV, GRID, process)
    gap = excess(Synchronous(), oracle) * -oracle.log_prob(X[:2])
    alpha, sigma = (float(k) for k in (process.alpha(torch.ones(()).double()), process.sigma(torch.ones(()).double())))
    noise = torch.eye(DIMS, dtype=torch.float64)
    end = MultivariateNormal(alpha * X[:2].flatten(1), sigma**2 * noise)
    believed = MultivariateNormal(0 * MEAN, noise)
    true = MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * noise)
    price = kl_divergence(end, believed) - kl_divergence(end, true)
    assert torch.allclose(gap, price, atol=5e-3)
    assert (price.abs() > 0.04).all()  # not negligible


@three_paths
def test_bound_equals_the_likelihood_of_a_mixture(path):
    oracle = MixtureOracle(*random_mixture(3, 4), (2, 2))
    x = oracle.sample(12_000, (1, 2, 2), seeded(0))
    found = bound(oracle, x, path, points=8, generator=seeded(1), progress_sampler=FluxProgress(0.5), **NATS)
    gap = found.total + oracle.log_prob(x)
    assert gap.std() / math.sqrt(len(x)) < 0.15
    assert off(gap, 0) < 4


class _Slopeless(AsyncPatch):
    """A path that reports the slopes of the synchronous one."""

    def curve(self, source):
        curve = super().curve(source)
        return lambda s: (curve(s)[0], torch.ones_like(curve(s)[1]))


@pytest.mark.usefixtures("cubature")
def test_wrong_slopes_break_the_bound():
    """Wrong slopes would be noticed by the tests above."""
    plain = {"progress_sampler": UniformProgress(), "t_min": 0.05, "points": 512}
    right, wrong = excess(AsyncPatch(), **plain), excess(_Slopeless(), **plain)
    assert right.abs().max() < 0.1  # a floor of 0.05 costs 1/2 log det(1 + S^-1 / SNR) nats, and s is drawn uniformly
    assert wrong.abs().min() > 0.3


@pytest.mark.usefixtures("cubature")
@every_path
def test_a_worse_denoiser_has_a_larger_bound(path):
    class Attenuated(GaussianOracle):
        def __call__(self, x_t, t, label=None):
            exact = super().__call__(x_t, t)
            return Prediction(exact.process, x_t, t, 0.9 * exact.v)

    assert excess(path, Attenuated(MEAN, COV, GRID), images=8).mean() > 0.01


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("path", [Synchronous(), AsyncPatch(), Ordered(Raster())], ids=["sync", "async", "raster"])
def test_discrete_bound_converges_to_the_likelihood_with_order_one(path):
    options = {"path": path, "t_min": 0.2} | NATS
    continuous = expected(bound(ORACLE, **copies(X[:2]), points=128 // STRATA, **options, **FLUX).total, 2)
    discrete = [
        expected(discrete_bound(ORACLE, **copies(X[:2], strata=1), steps=steps, **options).total, 2)
        for steps in (64, 128, 256)
    ]
    gaps = [(total - continuous).mean().item() for total in discrete]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    for coarse, fine in pairwise(gaps):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_discrete_bound_with_one_step():
    """From pure noise: 1/2 (SNR(t_min) - 0) ||x - mean||^2 exactly, whatever the noise."""
    found = discrete_bound(ORACLE, X, Synchronous(), steps=1, t_min=0.1, generator=seeded(1), **NATS)
    truth = 0.5 * (0.9 / 0.1) ** 2 * (X - MEAN.reshape(SHAPE)).square().sum((1, 2, 3))
    assert torch.allclose(found.diffusion, truth, rtol=1e-10)


@pytest.mark.usefixtures("cubature")
def test_flux_progress_tightens_the_discrete_bound():
    options = copies(X[:2], strata=1) | {"path": AsyncPatch(), "steps": 50} | NATS
    plain, flux = (discrete_bound(ORACLE, **options, **by).total for by in ({}, FLUX))
    truth = -ORACLE.log_prob(X[:2])
    assert (expected(flux, 2) - truth).mean() < 0.3 * (expected(plain, 2) - truth).mean()


MASKS = {
    "left half": Half()(4, 4),
    "one patch unknown": to_pixels(torch.tensor([[[True, True], [True, False]]]), (4, 4))[0, 0],
}


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("path", [AsyncPatch(), Ordered(Raster(), 0.5)], ids=["async", "ordered"])
def test_conditional_bound_equals_the_conditional_likelihood(path, mask):
    images = copies(X[:1])
    known = mask.expand(len(images["x"]), 4, 4)
    found = bound(ORACLE, **images, path=path, known=known, points=256 // STRATA, **NATS, **FLUX)
    truth = -ORACLE.conditional_log_prob(X[:1], mask)
    assert torch.allclose(expected(found.total, 1), truth, rtol=1e-3)
    assert (found.dims == (~mask).sum()).all()
    assert (found.per_patch[known_patches(known, GRID)] == 0).all()


@pytest.mark.usefixtures("cubature")
def test_chain_rule_of_likelihoods_holds():
    """-log p(known) - log p(unknown | known) = -log p, each by a bound of its own."""
    mask, images = Half("top")(4, 4), copies(X[:1])
    options = images | {"path": AsyncPatch(), "points": 256 // STRATA} | NATS | FLUX
    rest = bound(ORACLE, known=mask.expand(len(images["x"]), 4, 4), **options).total
    whole = bound(ORACLE, **options).total
    # The lower half of every copy is independent of the upper one: the bound is the marginal's plus a constant.
    cov = COV.clone()
    cov[:8, 8:], cov[8:, :8] = 0, 0
    first = bound(GaussianOracle(MEAN, cov, GRID), **options).per_patch[:, 0].sum(1)
    assert torch.allclose(expected(first + rest, 1), expected(whole, 1), rtol=1e-3)
    assert torch.allclose(expected(first, 1), -ORACLE.marginal_log_prob(X[:1], mask), rtol=1e-3)


def test_completely_known_images_have_a_bound_of_0():
    known = torch.ones(len(X), 4, 4, dtype=torch.bool)
    for found in (
        bound(ORACLE, X, AsyncPatch(), known=known, points=2, **NATS),
        discrete_bound(ORACLE, X, AsyncPatch(), known=known, steps=2, **NATS),
    ):
        assert (found.total == 0).all()
        assert (found.rate == 0).all()


def test_half_known_patches_count_as_unknown():
    known = Square(0.5)(4, 4).expand(8, 4, 4)  # the box overlaps all four patches
    assert (bound(ORACLE, X[:8], known=known, points=2, **NATS).dims == 16).all()


def test_parts_add_up_to_the_bound():
    found = bound(ORACLE, X[:50], AsyncPatch(), points=16, generator=seeded(1), **NATS)
    assert torch.allclose(found.per_patch.sum((1, 2)), found.total)
    assert torch.allclose(found.by_level.sum(1), found.diffusion)
    assert found.by_level.shape == (50, len(LEVEL_EDGES))
    assert (found.prior == 0).all()
    assert torch.allclose(found.rate, found.total / 16)


def test_standard_error_matches_repetitions():
    """Standard error of an image's integral, measured over 200 repetitions; it is smaller for stratified points."""
    x = X[:1].expand(200, -1, -1, -1)
    found = bound(ORACLE, x, AsyncPatch(), points=32, generator=seeded(1), **NATS, **FLUX)
    measured = found.diffusion.std().item()
    claimed = found.standard_error.square().mean().sqrt().item()
    assert 0.7 * claimed < measured < 1.2 * claimed


def test_importance_sampling_lowers_the_standard_error():
    plain, flux = (
        bound(ORACLE, X, AsyncPatch(), points=32, generator=seeded(1), progress_sampler=s, **NATS).standard_error.mean()
        for s in (UniformProgress(), FluxProgress())
    )
    assert flux < 0.3 * plain


def test_bound_of_an_image_depends_only_on_its_seed():
    together, alone = (
        bound(ORACLE, x, AsyncPatch(), points=4, generator=per_image(seeds), **NATS).total
        for x, seeds in ((X[:3], [4, 5, 6]), (X[1:2], [5]))
    )
    assert torch.allclose(together[1:2], alone, rtol=1e-12)


def test_the_noise_is_the_same_for_all_paths():
    """With one seed, a path that draws random numbers and one that draws none see the same noise."""
    options = {"points": 3, "progress_sampler": UniformProgress()} | NATS
    first, second = (
        bound(ORACLE, X[:5], path, generator=per_image(range(5)), **options).total
        for path in (Synchronous(), AsyncPatch(spread=0.0))
    )
    assert torch.allclose(first, second, rtol=1e-12)


# Discrete pixel values


def test_categorical_decoder_sums_to_one():
    values, t = 5, torch.tensor([[[0.3]]], dtype=torch.float64)
    x = torch.linspace(-1, 1, values, dtype=torch.float64).reshape(values, 1, 1, 1)
    x_t = torch.full_like(x, 0.37)
    nats = CategoricalDecoder(values)(RectifiedFlow(), x, x_t, t.expand(values, 1, 1))
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-12)
    logits = -((x_t - 0.7 * x).square()) / (2 * 0.3**2)
    assert torch.allclose(-nats, logits.log_softmax(0), atol=1e-12)


@three_paths
def test_independent_binary_pixels_cost_one_bit_each(path):
    """A perfect denoiser of independent pixels of +-1, tanh(alpha x_t / sigma^2), on every path: 1 bit per pixel."""

    def velocity(x_t, t):
        a, s = (to_pixels(k, (4, 4)) for k in (1 - t, t))
        x = (a * x_t / s.square().clamp(min=1e-30)).tanh()
        return (x_t - x) / s.clamp(min=1e-30)

    x = (torch.rand(12_000, *SHAPE, generator=seeded(0)) < 0.5).double() * 2 - 1
    found = bound(
        Stub(velocity, patches=GRID), x, path, points=16, decoder=CategoricalDecoder(2), generator=seeded(1), **FLUX
    )
    assert found.rate.std() / math.sqrt(len(x)) < 0.01
    assert off(found.rate, 1) < 4


def test_the_floor_does_not_matter_for_values_that_are_far_apart():
    """Reconstruction takes over what the diffusion leaves: coins at floors of 0.001 and 0.1 both lose nothing."""
    x = torch.ones(4, *SHAPE, dtype=torch.float64)
    for t_min in (1e-3, 0.1):
        found = bound(ORACLE, x, points=2, t_min=t_min, decoder=CategoricalDecoder(2), generator=seeded(0))
        assert (found.reconstruction < 1e-6).all()


def test_half_precision_images_have_the_float32_bound():
    """Levels, noise and weights are those of the same image in float32; float16 is too coarse for levels near 0."""
    x = (torch.randint(0, 256, (8, *SHAPE), generator=seeded(0)) / 127.5 - 1).half()
    half, single = (bound(ORACLE, images, points=8, generator=seeded(1)).total for images in (x, x.float()))
    assert torch.equal(half, single)


def test_with_floor_keeps_an_existing_floor():
    path = Floored(AsyncPatch(), 0.2)
    assert with_floor(path, 0.1) is path
    assert with_floor(AsyncPatch(), 0.3).t_min == 0.3


EVERYTHING, VALUES = torch.ones(2, 2, 2, dtype=torch.bool), CategoricalDecoder(17)
BETWEEN = torch.full((1, *SHAPE), -1 + 1 / 255, dtype=torch.float64)
test_invalid_arguments_are_refused = refusals(
    {
        "pass its mask as known": lambda: bound(ORACLE, X[:2], Conditioned(Synchronous(), EVERYTHING), points=1),
        "known must have shape (2, 4, 4), True = known, got (2, 2, 2)": lambda: bound(ORACLE, X[:2], known=EVERYTHING),
        "256 equidistant values from -1 to 1, got one 0.50 steps off": lambda: bound(ORACLE, BETWEEN, points=1),
        "17 equidistant values from -1 to 1, got one 120": lambda: VALUES.check(16 + 0 * BETWEEN),
        "17 equidistant values from -1 to 1, got one 1.6": lambda: VALUES.check(0 * BETWEEN - 1.2),
        "17 equidistant values from -1 to 1, got one nan": lambda: VALUES.check(X[:1] * math.nan),
    }
)
