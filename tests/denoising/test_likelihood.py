"""The bound equals the likelihood on every path for a perfect denoiser: unconditional, conditional and discrete."""

import math
from itertools import pairwise

import pytest
import torch
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
from asyncdiff.shapes import known_patches

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
NATS = GaussianDecoder()


@pytest.fixture
def cubature(monkeypatch):
    """Replace random noise by the 2 d points +-sqrt(d) e_j, and s by the midpoints of its strata.

    The mean of a quadratic function of the noise, such as the squared error of a Gaussian's denoiser, is then its exact
    expectation.
    """
    points = math.sqrt(DIMS) * torch.cat([torch.eye(DIMS), -torch.eye(DIMS)]).double()

    def noise(shape, **_):
        return points.repeat(shape[0] // len(points), 1).reshape(shape)

    monkeypatch.setattr(likelihood, "normal", noise)
    monkeypatch.setattr(likelihood, "uniform", lambda shape, **_: torch.full(shape, 0.5, dtype=torch.float64))


def copies(images: torch.Tensor) -> dict:
    """Every image once per point of the cubature, on the same curve at the same progress."""
    return {
        "x": images.repeat_interleave(2 * DIMS, 0),
        "generator": per_image([k for k in range(len(images)) for _ in range(2 * DIMS)]),
    }


def expected(nats: torch.Tensor) -> torch.Tensor:
    """Exact expectation over the noise, per image."""
    return nats.reshape(-1, 2 * DIMS).mean(1)


def off(path: Path, oracle=ORACLE, images: int = 2, points: int = 64, **options) -> torch.Tensor:
    """Excess of the bound over the true value for single images, relative to it."""
    options = {"progress_sampler": FluxProgress(1.0, oracle.process)} | options
    found = bound(oracle, **copies(X[:images]), path=path, points=points, decoder=NATS, **options)
    truth = -oracle.log_prob(X[:images])
    return (expected(found.total) - truth) / truth


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("path", [Synchronous(), AsyncPatch()], ids=["synchronous", "async"])
def test_bound_equals_the_likelihood_of_every_image(path):
    assert off(path, points=256).abs().max() < 1e-3


@pytest.mark.slow
@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("name", [name for name in PATHS if name not in ("synchronous", "async")])
def test_bound_equals_the_likelihood_on_every_path(name):
    """Kinks of paths limit the accuracy of the quadrature: 1e-2 with 64 points, 3e-3 with 256."""
    process = CosineVP() if name == "wavefront" else RectifiedFlow()
    assert off(PATHS[name], GaussianOracle(MEAN, COV, GRID, process), images=1, points=1024).abs().max() < 1e-3


@pytest.mark.usefixtures("cubature")
def test_bound_error_if_the_path_does_not_end_at_pure_noise():
    """The bound exceeds the true value by E log p(x_1) / N(x_1; 0, I): the end of the path counts as pure noise."""
    process = LinearVP(beta_end=0.005)  # alpha(1) = 0.28
    oracle = GaussianOracle(MEAN, COV, GRID, process)
    excess = off(Synchronous(), oracle) * -oracle.log_prob(X[:2])
    alpha, sigma = (float(k) for k in (process.alpha(torch.ones(()).double()), process.sigma(torch.ones(()).double())))
    noise = torch.eye(DIMS, dtype=torch.float64)
    end = MultivariateNormal(alpha * X[:2].flatten(1), sigma**2 * noise)
    believed, true = (
        MultivariateNormal(0 * MEAN, noise),
        MultivariateNormal(alpha * MEAN, alpha**2 * COV + sigma**2 * noise),
    )
    price = kl_divergence(end, believed) - kl_divergence(end, true)
    assert torch.allclose(excess, price, atol=5e-3)
    assert (price.abs() > 0.04).all()  # not negligible


def test_bound_equals_the_likelihood_of_a_mixture():
    oracle = MixtureOracle(*random_mixture(3, 4), (2, 2))
    x = oracle.sample(4000, (1, 2, 2), seeded(0))
    for path in (Synchronous(), AsyncPatch(), Ordered(Raster(), 0.5)):
        found = bound(oracle, x, path, points=24, decoder=NATS, generator=seeded(1), progress_sampler=FluxProgress(0.5))
        excess = found.total + oracle.log_prob(x)
        error = excess.std().item() / math.sqrt(len(x))
        assert error < 0.15
        assert abs(excess.mean().item()) < 4 * error


class _Slopeless(Path):
    """A path that reports the slopes of the synchronous one."""

    def __init__(self, path: Path):
        self.path = path

    def curve(self, source):
        inner = self.path.curve(source)

        def curve(s):
            t, slope = inner(s)
            return t, torch.ones_like(slope)

        return curve


@pytest.mark.usefixtures("cubature")
def test_wrong_slopes_break_the_bound():
    """Wrong slopes would be noticed by the tests above."""
    plain = {"progress_sampler": UniformProgress(), "t_min": 0.05, "points": 512}
    right, wrong = off(AsyncPatch(), **plain), off(_Slopeless(AsyncPatch()), **plain)
    assert right.abs().max() < 0.1  # a floor of 0.05 costs 1/2 log det(1 + S^-1 / SNR) nats, and s is drawn uniformly
    assert wrong.abs().min() > 0.3


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_worse_denoiser_has_a_larger_bound(path):
    class Attenuated(GaussianOracle):
        def __call__(self, x_t, t, label=None, *, unique=None):
            exact = super().__call__(x_t, t)
            return Prediction(exact.process, x_t, t, 0.9 * exact.v)

    assert off(path, Attenuated(MEAN, COV, GRID), images=8).mean() > 0.01


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("path", [Synchronous(), AsyncPatch(), Ordered(Raster())], ids=["sync", "async", "raster"])
def test_discrete_bound_converges_to_the_likelihood_with_order_one(path):
    floor = 0.2
    gaps = []
    for steps in (64, 128, 256):
        found = discrete_bound(ORACLE, **copies(X[:2]), path=path, steps=steps, t_min=floor, decoder=NATS)
        continuous = bound(
            ORACLE,
            **copies(X[:2]),
            path=path,
            points=128,
            t_min=floor,
            decoder=NATS,
            progress_sampler=FluxProgress(1.0),
        )
        gaps.append(expected(found.total - continuous.total).mean().item())
    assert gaps[0] > gaps[1] > gaps[2] > 0
    for coarse, fine in pairwise(gaps):
        assert math.log2(coarse / fine) == pytest.approx(1, abs=0.15)


def test_discrete_bound_with_one_step():
    """From pure noise: 1/2 (SNR(t_min) - 0) ||x - mean||^2 exactly, whatever the noise."""
    found = discrete_bound(ORACLE, X, Synchronous(), steps=1, t_min=0.1, decoder=NATS, generator=seeded(1))
    truth = 0.5 * (0.9 / 0.1) ** 2 * (X - MEAN.reshape(SHAPE)).square().sum((1, 2, 3))
    assert torch.allclose(found.diffusion, truth, rtol=1e-10)


@pytest.mark.usefixtures("cubature")
def test_flux_progress_tightens_the_discrete_bound():
    plain, flux = (
        expected(
            discrete_bound(
                ORACLE, **copies(X[:2]), path=AsyncPatch(), steps=100, progress_sampler=progress_sampler, decoder=NATS
            ).total
        )
        for progress_sampler in (UniformProgress(), FluxProgress(1.0))
    )
    truth = -ORACLE.log_prob(X[:2])
    assert (flux - truth).mean() < 0.3 * (plain - truth).mean()


MASKS = {
    "left half": Half()(4, 4),
    "one patch unknown": torch.tensor([[0, 0], [0, 1]]).repeat_interleave(2, 0).repeat_interleave(2, 1) < 1,
}


@pytest.mark.usefixtures("cubature")
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("path", [AsyncPatch(), Ordered(Raster(), 0.5)], ids=["async", "ordered"])
def test_conditional_bound_equals_the_conditional_likelihood(path, mask):
    known = mask.expand(2 * DIMS, 4, 4)
    found = bound(
        ORACLE, **copies(X[:1]), path=path, known=known, points=256, decoder=NATS, progress_sampler=FluxProgress(1.0)
    )
    truth = -ORACLE.conditional_log_prob(X[:1], mask)
    assert torch.allclose(expected(found.total), truth, rtol=1e-3)
    assert (found.dims == (~mask).sum()).all()
    assert (found.per_patch[known_patches(known, GRID)] == 0).all()


@pytest.mark.usefixtures("cubature")
def test_chain_rule_of_likelihoods_holds():
    """-log p(known) - log p(unknown | known) = -log p, each by a bound of its own."""
    mask = Half("top")(4, 4)
    options = {"path": AsyncPatch(), "points": 256, "decoder": NATS, "progress_sampler": FluxProgress(1.0)}
    rest = bound(ORACLE, **copies(X[:1]), known=mask.expand(2 * DIMS, 4, 4), **options)
    whole = bound(ORACLE, **copies(X[:1]), **options)
    # The lower half of every copy is independent of the upper one: the bound is the marginal's plus a constant.
    cov = COV.clone()
    cov[:8, 8:], cov[8:, :8] = 0, 0
    apart = GaussianOracle(MEAN, cov, GRID)
    first = bound(apart, **copies(X[:1]), **options).per_patch[:, 0].sum(1)
    assert torch.allclose(expected(first + rest.total), expected(whole.total), rtol=1e-3)
    assert torch.allclose(expected(first), -ORACLE.marginal_log_prob(X[:1], mask), rtol=1e-3)


def test_completely_known_images_have_a_bound_of_0():
    known = torch.ones(len(X), 4, 4, dtype=torch.bool)
    for found in (
        bound(ORACLE, X, AsyncPatch(), known=known, points=2, decoder=NATS),
        discrete_bound(ORACLE, X, AsyncPatch(), known=known, steps=2, decoder=NATS),
    ):
        assert (found.total == 0).all()
        assert (found.rate == 0).all()


def test_half_known_patches_count_as_unknown():
    known = Square(0.5)(4, 4).expand(8, 4, 4)  # the box overlaps all four patches
    found = bound(ORACLE, X[:8], known=known, points=2, decoder=NATS)
    assert (found.dims == 16).all()


def test_parts_add_up_to_the_bound():
    found = bound(ORACLE, X[:50], AsyncPatch(), points=16, decoder=NATS, generator=seeded(1))
    assert torch.allclose(found.per_patch.sum((1, 2)), found.total)
    assert torch.allclose(found.by_level.sum(1), found.diffusion)
    assert found.by_level.shape == (50, len(LEVEL_EDGES))
    assert (found.prior == 0).all()
    assert torch.allclose(found.rate, found.total / 16)


def test_standard_error_matches_repetitions():
    """Standard error of an image's integral, measured over 200 repetitions; it is smaller for stratified points."""
    x = X[:1].expand(200, -1, -1, -1)
    found = bound(
        ORACLE, x, AsyncPatch(), points=32, decoder=NATS, generator=seeded(1), progress_sampler=FluxProgress(1.0)
    )
    measured = found.diffusion.std().item()
    claimed = found.standard_error.square().mean().sqrt().item()
    assert 0.7 * claimed < measured < 1.2 * claimed


def test_importance_sampling_lowers_the_standard_error():
    plain, flux = (
        bound(ORACLE, X, AsyncPatch(), points=32, decoder=NATS, generator=seeded(1), progress_sampler=s)
        for s in (UniformProgress(), FluxProgress())
    )
    assert flux.standard_error.mean() < 0.3 * plain.standard_error.mean()


def test_bound_of_an_image_depends_only_on_its_seed():
    together = bound(ORACLE, X[:3], AsyncPatch(), points=4, decoder=NATS, generator=per_image([4, 5, 6]))
    alone = bound(ORACLE, X[1:2], AsyncPatch(), points=4, decoder=NATS, generator=per_image([5]))
    assert torch.allclose(together.total[1:2], alone.total, rtol=1e-12)


def test_the_noise_is_the_same_for_all_paths():
    """With one seed, a path that draws random numbers and one that draws none see the same noise."""
    found = [
        bound(
            ORACLE,
            X[:5],
            path,
            points=3,
            decoder=NATS,
            generator=per_image(range(5)),
            progress_sampler=UniformProgress(),
        )
        for path in (Synchronous(), AsyncPatch(spread=0.0))
    ]
    assert torch.allclose(found[0].total, found[1].total, rtol=1e-12)


# Discrete pixel values


def test_categorical_decoder_sums_to_one():
    values, t = 5, torch.tensor([[[0.3]]], dtype=torch.float64)
    x = torch.linspace(-1, 1, values, dtype=torch.float64).reshape(values, 1, 1, 1)
    x_t = torch.full_like(x, 0.37)
    nats = CategoricalDecoder(values)(RectifiedFlow(), x, x_t, t.expand(values, 1, 1))
    assert (-nats).exp().sum().item() == pytest.approx(1, abs=1e-12)
    logits = -((x_t - 0.7 * x).square()) / (2 * 0.3**2)
    assert torch.allclose(-nats, logits.log_softmax(0), atol=1e-12)


def test_independent_binary_pixels_cost_one_bit_each():
    """A perfect denoiser of independent pixels of +-1, tanh(alpha x_t / sigma^2), on every path: 1 bit per pixel."""

    class Coins:
        process = RectifiedFlow()

        def grid(self, size):
            return GRID

        def __call__(self, x_t, t, label=None, *, unique=None):
            from asyncdiff.shapes import to_pixels

            a, s = (to_pixels(k, (4, 4)) for k in (1 - t, t))
            x = (a * x_t / s.square().clamp(min=1e-30)).tanh()
            return Prediction(self.process, x_t, t, (x_t - x) / s.clamp(min=1e-30))

    x = (torch.rand(3000, *SHAPE, generator=seeded(0)) < 0.5).double() * 2 - 1
    for path in (Synchronous(), AsyncPatch(), Ordered(Raster(), 0.5)):
        found = bound(
            Coins(),
            x,
            path,
            points=64,
            progress_sampler=FluxProgress(1.0),
            decoder=CategoricalDecoder(2),
            generator=seeded(1),
        )
        error = found.rate.std().item() / math.sqrt(len(x))
        assert error < 0.01
        assert found.rate.mean().item() == pytest.approx(1, abs=4 * error)


def test_the_floor_does_not_matter_for_values_that_are_far_apart():
    """Reconstruction takes over what the diffusion leaves: coins at floors of 0.001 and 0.1 both lose nothing."""
    x = torch.ones(4, *SHAPE, dtype=torch.float64)
    for t_min in (1e-3, 0.1):
        found = bound(ORACLE, x, points=2, t_min=t_min, decoder=CategoricalDecoder(2), generator=seeded(0))
        assert (found.reconstruction < 1e-6).all()


def test_pixels_between_the_values_are_refused():
    with pytest.raises(ValueError, match=r"pixels must take 256 equidistant values.*0\.50 steps off"):
        bound(ORACLE, torch.full((1, *SHAPE), -1 + 1 / 255, dtype=torch.float64), points=1)


@pytest.mark.parametrize("wrong", [16.0, -1.2, math.nan])
def test_pixels_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="pixels must take 17 equidistant values"):
        CategoricalDecoder(17).check(torch.full((1, 1, 2, 2), wrong))


def test_half_precision_images_have_the_float32_bound():
    """Levels, noise and weights are those of the same image in float32; float16 is too coarse for levels near 0."""
    x = (torch.randint(0, 256, (8, *SHAPE), generator=seeded(0)) / 127.5 - 1).half()
    half, single = (bound(ORACLE, images, points=8, generator=seeded(1)).total for images in (x, x.float()))
    assert torch.equal(half, single)


def test_a_conditioned_path_is_refused():
    with pytest.raises(ValueError, match="pass its mask as known"):
        bound(ORACLE, X[:2], Conditioned(Synchronous(), torch.ones(1, 2, 2, dtype=torch.bool)), points=1)


def test_a_mask_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"known must have shape \(2, 4, 4\), True = known, got \(2, 8, 8\)"):
        bound(ORACLE, X[:2], known=torch.ones(2, 8, 8, dtype=torch.bool), points=1)


def test_with_floor_keeps_an_existing_floor():
    path = Floored(AsyncPatch(), 0.2)
    assert with_floor(path, 0.1) is path
    assert with_floor(AsyncPatch(), 0.3).t_min == 0.3
