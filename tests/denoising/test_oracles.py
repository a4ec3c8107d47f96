"""Exact denoisers compared with quadrature, automatic differentiation and torch.distributions."""

import math

import pytest
import torch
from noise.laws import every_process, off, refusals
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.noise.processes import LinearVP, RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.shapes import to_pixels

SHAPE, GRID = (1, 2, 2), (2, 2)
WEIGHTS, MEANS, COVS = random_mixture(3, 4)
ORACLE = MixtureOracle(WEIGHTS, MEANS, COVS, GRID)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=seeded(seed), dtype=torch.float64)


def noised(oracle: MixtureOracle, t: Tensor) -> Tensor:
    x = oracle.sample(len(t), SHAPE, seeded(3))
    return oracle.process.noised(x, torch.randn(x.shape, generator=seeded(4), dtype=torch.float64), t)


def density(weights: Tensor, means: Tensor, covs: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covs))


@every_process
@pytest.mark.parametrize("levels", [(0.3, 0.8), (0.05, 0.6), (0.9, 1.0), (1.0, 1.0)], ids=str)
def test_posterior_mean_matches_quadrature(process, levels):
    """E[x | x_t] of two pixels by the trapezoidal rule, which converges exponentially on Gaussians."""
    mixture = random_mixture(2, 2)
    oracle = MixtureOracle(*mixture, (1, 2), process)
    t, x_t = torch.tensor(levels, dtype=torch.float64), torch.tensor([0.7, -0.4], dtype=torch.float64)
    axis = torch.linspace(-9, 9, 501, dtype=torch.float64)
    x = torch.cartesian_prod(axis, axis)
    misfit = (x_t - process.alpha(t) * x) / process.sigma(t)
    share = (density(*mixture).log_prob(x) - 0.5 * misfit.square().sum(1)).softmax(0)
    prediction = oracle(x_t.reshape(1, 1, 1, 2), t.reshape(1, 1, 2))
    assert torch.allclose(prediction.x.flatten(), share @ x, atol=1e-10)
    assert torch.allclose(prediction.eps.flatten(), share @ misfit, atol=1e-10)


@every_process
def test_the_prediction_is_conditioned_on_clean_pixels(process):
    """One pixel is at t = 0; quadrature runs over the other one only."""
    mixture = random_mixture(2, 2)
    t, x_t = (torch.tensor(pair, dtype=torch.float64) for pair in ([0, 0.4], [0.7, -0.4]))
    other = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    x = torch.stack([x_t[0].expand_as(other), other], 1)
    misfit = ((x_t - process.alpha(t) * x) / process.sigma(t))[:, 1]
    share = (density(*mixture).log_prob(x) - 0.5 * misfit.square()).softmax(0)
    oracle = MixtureOracle(*mixture, (1, 2), process)
    x_hat = oracle(x_t.reshape(1, 1, 1, 2), t.reshape(1, 1, 2)).x.flatten()
    assert x_hat[0] == x_t[0]
    assert x_hat[1].item() == pytest.approx((share @ other).item(), abs=1e-10)


@every_process
def test_denoiser_matches_the_score(process):
    """Tweedie: E[eps | x_t] = -sigma grad log p(x_t), by automatic differentiation of the noised mixture."""
    oracle = MixtureOracle(WEIGHTS, MEANS, COVS, GRID, process)
    t = 0.02 + 0.98 * uniform(6, *GRID)
    x_t = noised(oracle, t).requires_grad_()
    alpha, sigma = (to_pixels(k, (2, 2)).flatten(1)[:, None] for k in (process.alpha(t), process.sigma(t)))
    covs = alpha[..., None] * COVS * alpha[:, :, None] + torch.diag_embed(sigma.square())
    log_prob = density(WEIGHTS.expand(6, 3), alpha * MEANS, covs).log_prob(x_t.flatten(1))
    (score,) = torch.autograd.grad(log_prob.sum(), x_t)
    prediction = oracle(x_t.detach(), t)
    assert torch.allclose(prediction.eps, -to_pixels(process.sigma(t), (2, 2)) * score, atol=1e-11)
    x_hat = (x_t + to_pixels(process.sigma(t), (2, 2)) ** 2 * score)[t[:, None] < 1]
    assert torch.allclose((to_pixels(process.alpha(t), (2, 2)) * prediction.x)[t[:, None] < 1], x_hat, atol=1e-11)


@every_process
def test_mixture_of_one_component_equals_the_gaussian(process):
    mean, cov = random_gaussian(4)
    one = MixtureOracle(torch.ones(1, dtype=torch.float64), mean[None], cov[None], GRID, process)
    twice = MixtureOracle(torch.tensor([0.3, 0.7]).double(), mean.expand(2, 4), cov.expand(2, 4, 4), GRID, process)
    oracle = GaussianOracle(mean, cov, GRID, process)
    t = uniform(5, *GRID)
    x_t = noised(oracle, t)
    assert torch.equal(oracle(x_t, t).v, one(x_t, t).v)
    assert torch.allclose(oracle(x_t, t).v, twice(x_t, t).v, atol=1e-13)


@every_process
def test_predictions_at_t_0_and_1(process):
    """Clean: the image itself and no noise, v = alpha'/W x_t. Pure noise: the mean of all images, or nearly so."""
    oracle = MixtureOracle(WEIGHTS, MEANS, COVS, GRID, process)
    x_t, zero = 3 * torch.randn(4, *SHAPE, generator=seeded(0), dtype=torch.float64), torch.zeros(4, 1, 1).double()
    clean, noise = oracle(x_t, zero), oracle(x_t, zero + 1)
    assert torch.allclose(clean.v, process.velocity(x_t, torch.zeros_like(x_t), zero), atol=1e-12)
    assert torch.equal(clean.x, x_t)
    if isinstance(process, RectifiedFlow):
        assert torch.allclose(clean.v, -x_t, atol=1e-12)
    near = oracle(x_t, zero + 1e-9)
    root = isinstance(process, LinearVP)  # sigma grows as the square root of t, and alpha(1) > 0
    assert torch.allclose(near.v, clean.v, atol=1e-3 if root else 1e-7)
    tolerance = 0.1 if root else 1e-12
    assert torch.allclose(noise.x.flatten(1), (WEIGHTS @ MEANS).expand(4, 4), atol=tolerance)
    assert torch.allclose(noise.eps, x_t, atol=tolerance)


def test_coarse_level_maps_equal_repeated_ones():
    t = uniform(3, 1, 1)
    x_t = noised(ORACLE, t)
    assert torch.allclose(ORACLE(x_t, t).v, ORACLE(x_t, t.expand(3, 2, 2)).v, atol=1e-14)


def test_channels_of_a_patch_share_its_level():
    """Three channels, 1x2 patches: checks the flattening of (c, h, w)."""
    oracle = GaussianOracle(torch.arange(12.0).double(), torch.eye(12).double(), (1, 2))
    t = torch.tensor([[[1.0, 0.0]]]).double()
    x = oracle(torch.zeros(1, 3, 2, 2).double(), t).x
    assert torch.equal(x[..., 0].flatten(), torch.tensor([0.0, 2, 4, 6, 8, 10]).double())
    assert torch.equal(x[..., 1], torch.zeros(1, 3, 2).double())


def test_labels_select_components_and_the_null_label_selects_all():
    t = uniform(4, *GRID)
    x_t = noised(ORACLE, t)
    labeled = ORACLE(x_t, t, torch.tensor([0, 1, 2, 3])).v
    for k in range(3):
        alone = GaussianOracle(MEANS[k], COVS[k], GRID)(x_t[k : k + 1], t[k : k + 1]).v
        assert torch.allclose(labeled[k : k + 1], alone, atol=1e-13)
    assert torch.allclose(labeled[3:], ORACLE(x_t, t).v[3:], atol=1e-13)


@every_process
def test_predictions_have_the_precision_of_the_images(process):
    oracle = MixtureOracle(WEIGHTS, MEANS, COVS, GRID, process)
    t = uniform(64, *GRID)
    t[:, 0, 0], t[:, 0, 1] = 0, 1
    x_t = noised(oracle, t)
    exact, single = oracle(x_t, t).v, oracle(x_t.float(), t.float()).v
    assert single.dtype == torch.float32
    assert torch.allclose(single.double(), exact, atol=2e-4)
    half = oracle(x_t.bfloat16(), t.float()).v
    assert half.dtype == torch.bfloat16
    assert (half.double() - exact).abs().max() < 0.2


def test_predictions_far_from_the_data_are_finite():
    x_t = 1e6 * torch.randn(8, *SHAPE, generator=seeded(0))
    for t in (0.0, 0.5, 1.0):
        assert ORACLE(x_t, torch.full((8, 1, 1), t)).v.isfinite().all()
    assert ORACLE.log_prob(x_t).isfinite().all()


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 1, 2)], ids=str)
def test_marginal_log_prob_matches_torch_distributions(shape):
    """A known pixel is known in all channels."""
    x = 3 * torch.randn(4, *shape, generator=seeded(0), dtype=torch.float64)
    masks = torch.tensor([[1, 1, 0, 1], [0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()[:, : shape[1] * shape[2]]
    known = masks.repeat(1, shape[0])
    spoiled = x.flatten(1).masked_fill(~known, torch.nan).reshape(x.shape)
    values = ORACLE.marginal_log_prob(spoiled, masks.reshape(4, *shape[1:]))
    for value, row, k in zip(values, x.flatten(1), known, strict=True):
        part = density(WEIGHTS, MEANS[:, k], COVS[:, k][:, :, k]).log_prob(row[k]) if k.any() else torch.zeros(())
        assert value.item() == pytest.approx(part.item(), abs=1e-11)
    assert torch.allclose(ORACLE.log_prob(x), density(WEIGHTS, MEANS, COVS).log_prob(x.flatten(1)), atol=1e-11)


def test_conditional_log_prob_matches_torch_distributions():
    """log p(unknown | known) from the conditional weights, means and covariances of the components."""
    x = 2 * torch.randn(5, *SHAPE, generator=seeded(0), dtype=torch.float64)
    k = torch.tensor([True, False, False, True])
    flat, values = x.flatten(1), ORACLE.conditional_log_prob(x, k.reshape(2, 2))
    seen = MultivariateNormal(MEANS[:, k], COVS[:, k][:, :, k])
    weights = (WEIGHTS.log() + seen.log_prob(flat[:, None, k])).softmax(1)
    gain = COVS[:, ~k][:, :, k] @ torch.linalg.inv(COVS[:, k][:, :, k])
    means = MEANS[:, ~k] + ((flat[:, None, k] - MEANS[:, k])[:, :, None] @ gain.mT)[:, :, 0]
    covs = COVS[:, ~k][:, :, ~k] - gain @ COVS[:, k][:, :, ~k]
    expected = density(weights, means, covs.expand(5, 3, 2, 2)).log_prob(flat[:, ~k])
    assert torch.allclose(values, expected, atol=1e-11)
    assert (ORACLE.conditional_log_prob(x, torch.ones(5, 2, 2, dtype=torch.bool)) == 0).all()


def test_samples_have_the_moments_of_the_mixture():
    n = 100_000
    x = ORACLE.sample(n, SHAPE, seeded(0)).flatten(1)
    mean = WEIGHTS @ MEANS
    centered = MEANS - mean
    cov = torch.einsum("k,kij->ij", WEIGHTS, COVS + centered[:, :, None] * centered[:, None])
    assert off(x - mean, 0) < 4
    assert (x.T.cov() - cov).abs().max() < 4 * 2**0.5 * cov.diagonal().max() / n**0.5
    assert torch.equal(x[:5], ORACLE.sample(n, SHAPE, seeded(0)).flatten(1)[:5])


def test_oracles_are_denoisers_with_a_grid():
    oracle = GaussianOracle(*random_gaussian(16), (2, 4))
    assert isinstance(oracle, DenoiserLike)
    assert oracle.grid((8, 8)) == (2, 4)


def test_random_data_are_well_conditioned():
    weights, means, covs = random_mixture(5, 16, seed=2)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    assert weights.min() >= 0.1
    assert means.shape == (5, 16)
    assert torch.linalg.cond(covs).max() < 200
    assert not torch.equal(random_gaussian(4, 0)[0], random_gaussian(4, 1)[0])


def mixture(weights: Tensor = WEIGHTS, means: Tensor = MEANS, covs: Tensor = COVS) -> MixtureOracle:
    return MixtureOracle(weights, means, covs, GRID)


ASYMMETRIC, INDEFINITE = COVS + torch.eye(4).roll(1, 0).triu(1), -torch.eye(4).expand(3, 4, 4)
ZEROS, NOBODY = torch.zeros(3, *SHAPE), torch.zeros(2, 2, 2, dtype=torch.bool)
PIXELS = "must have (c, h, w) with 4 values in all, as the means have, got"
test_invalid_arguments_are_refused = refusals(
    {
        "weights must sum to 1, got a sum of 2: divide them by their sum": lambda: mixture(weights=2 * WEIGHTS),
        "weights must be positive, got [-1.0, -1.0, -1.0]: remove": lambda: mixture(weights=-torch.ones(3)),
        "one number per mean, got shape (4,) for 3 means": lambda: mixture(weights=torch.ones(4) / 4),
        "means must be finite, got NaN": lambda: mixture(means=MEANS * math.nan),
        "covs must have shape (3, 4, 4), got (3, 3, 4)": lambda: mixture(covs=COVS[:, :3]),
        "covs must be symmetric, got a difference of 1 in covs[0]": lambda: mixture(covs=ASYMMETRIC),
        "covs must be symmetric, got a difference of nan": lambda: mixture(covs=COVS * math.nan),
        "covs must be positive definite, got an eigenvalue of -1 in covs[0]": lambda: mixture(covs=INDEFINITE),
        f"x_t {PIXELS} (2, 2, 2)": lambda: ORACLE(torch.zeros(3, 2, 2, 2), torch.zeros(3, 1, 1)),
        f"shape {PIXELS} (1, 4, 4)": lambda: ORACLE.sample(3, (1, 4, 4)),
        "count must be at least 1, got 0": lambda: ORACLE.sample(0, SHAPE),
        "known must be bool, True = known, got torch.float32": lambda: ORACLE.marginal_log_prob(ZEROS, ZEROS[:2, 0]),
        "known must have shape (2, 2) or (3, 2, 2), got (2, 2, 2)": lambda: ORACLE.conditional_log_prob(ZEROS, NOBODY),
        "label must lie in 0 .. 3, got [4, 0, 0]": lambda: ORACLE(ZEROS, ZEROS[:, 0], torch.tensor([4, 0, 0])),
        "2x2 patches does not divide an image of 4x5 pixels into equal patches": lambda: ORACLE.grid((4, 5)),
    }
)
