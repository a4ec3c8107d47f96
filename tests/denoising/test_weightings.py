"""Laws of loss weightings: equal losses in terms of x, eps and v, and which level samplers they accept."""

import math

import pytest
import torch
from noise.laws import every_process

from asyncdiff.denoising.weightings import ELBO, Epsilon, Sigmoid, Velocity
from asyncdiff.noise.level_samplers import AlongPath, Homogeneous, WithCleanPatches
from asyncdiff.noise.paths import AsyncPatch, Floored
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress
from asyncdiff.randomness import seeded

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).reshape(1, 9, 11)
X, EPS, X_HAT = torch.randn(3, 1, 1, 9, 11, generator=seeded(0), dtype=torch.float64)


@every_process
@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_losses_are_equal_in_x_eps_and_v_form(process, bias):
    """The same loss in terms of the error of x, of eps and of v, without the leading 1/2 of Sigmoid's definition."""
    x_t = process.noised(X, EPS, T)
    v, v_hat = process.velocity(X, EPS, T), process.v_from_x(x_t, X_HAT, T)
    eps_hat = process.eps_from_v(x_t, v_hat, T)
    on_x, on_eps, on_v = ((true - found)[:, 0].square() for true, found in ((X, X_HAT), (EPS, eps_hat), (v, v_hat)))
    weight = -process.dlogsnr(T) * torch.sigmoid(bias - process.logsnr(T))
    found = Sigmoid(bias)(process, T, None) * on_v
    assert torch.allclose(weight * on_eps, found, rtol=1e-9)
    assert torch.allclose(weight * process.snr(T) * on_x, found, rtol=1e-9)
    assert torch.allclose(Epsilon()(process, T, None) * on_v, on_eps, rtol=1e-9)
    elbo = ELBO()(process, T, torch.ones_like(T)) * on_v
    assert torch.allclose(-0.5 * process.dsnr(T) * on_x, elbo, rtol=1e-9)  # half the decrease of the SNR
    assert torch.equal(Velocity()(process, T, None) * on_v, on_v)


@every_process
def test_epsilon_ends_at_1_and_almost_0(process):
    clean, noise = Epsilon()(process, torch.tensor([[[0.0, 1.0]]]), None).flatten()
    assert clean == 1
    assert noise < 1e-4


@pytest.mark.parametrize("bias", [-2.0, 0.0, 2.0])
def test_sigmoid_of_the_rectified_flow(bias):
    odds = math.exp(bias)
    t = torch.linspace(0, 1, 20_001, dtype=torch.float64).reshape(1, 1, -1)
    weight = Sigmoid(bias)(RectifiedFlow(), t, None)
    assert torch.allclose(weight, 2 * t * (1 - t) * odds / ((1 - t) ** 2 + odds * t**2))
    assert weight.max().item() == pytest.approx(math.exp(bias / 2), rel=1e-6)
    assert t.flatten()[weight.argmax()].item() == pytest.approx(1 / (1 + math.exp(bias / 2)), abs=1e-4)
    assert weight[0, 0, 0] == weight[0, 0, -1] == 0


def test_elbo_of_the_rectified_flow():
    slope = torch.rand_like(T)
    assert torch.allclose(ELBO()(RectifiedFlow(), T, slope), (1 - T) / T * slope)


@pytest.mark.parametrize("weighting", [Velocity(), Sigmoid(), Epsilon()], ids=lambda w: type(w).__name__)
def test_other_weightings_refuse_flux_progress(weighting):
    """It draws few levels where other weightings are large, so that losses would be noisier."""
    levels = AlongPath(Floored(AsyncPatch(), 0.01), FluxProgress())
    ELBO().check(levels)
    for sampler in (levels, WithCleanPatches(levels), Homogeneous(levels)):
        with pytest.raises(ValueError, match="progress_sampler FluxProgress needs the weighting ELBO, got"):
            weighting.check(sampler)
