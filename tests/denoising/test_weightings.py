import math

import pytest
import torch

from asyncdiff.denoising.weightings import ELBO, Epsilon, Sigmoid, Velocity
from asyncdiff.noise.level_samplers import AlongPath, Homogeneous, Independent, Shared, WithCleanPatches
from asyncdiff.noise.paths import AsyncPatch, Floored
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress

T = torch.linspace(0.01, 0.99, 99, dtype=torch.float64).reshape(1, 9, 11)


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), LinearVP()])
@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
def test_sigmoid_loss_is_equal_in_x_eps_and_v_form(process, bias):
    """The same loss in terms of the error of x, of eps and of v, without the leading 1/2 of the definition."""
    g = torch.Generator().manual_seed(0)
    x, eps, x_hat = (torch.randn(1, 1, 9, 11, generator=g, dtype=torch.float64) for _ in range(3))
    x_t = process.noised(x, eps, T)
    v, v_hat = process.velocity(x, eps, T), process.v_from_x(x_t, x_hat, T)
    eps_hat = process.eps_from_v(x_t, v_hat, T)
    on_eps = -process.dlogsnr(T) * torch.sigmoid(bias - process.logsnr(T))
    on_x = on_eps * process.snr(T)
    on_v = Sigmoid(bias)(process, T, None)
    losses = [on_eps * (eps - eps_hat)[:, 0] ** 2, on_x * (x - x_hat)[:, 0] ** 2, on_v * (v - v_hat)[:, 0] ** 2]
    assert torch.allclose(losses[0], losses[2], rtol=1e-9)
    assert torch.allclose(losses[1], losses[2], rtol=1e-9)


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


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), LinearVP()])
def test_elbo_weights_the_error_of_x_by_half_the_snr_decrease(process):
    weight = -0.5 * process.dsnr(T) * process.sigma(T) ** 2  # x - x_hat = -sigma (v - v_hat)
    assert torch.allclose(ELBO()(process, T, torch.ones_like(T)), weight, rtol=1e-9)


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), LinearVP()])
def test_epsilon_is_the_squared_error_of_the_noise(process):
    g = torch.Generator().manual_seed(0)
    x, eps, eps_hat = (torch.randn(1, 1, 9, 11, generator=g, dtype=torch.float64) for _ in range(3))
    error = process.velocity(x, eps, T) - process.v_from_eps(process.noised(x, eps, T), eps_hat, T)
    weighted = Epsilon()(process, T, None) * error[:, 0].square()
    assert torch.allclose(weighted, (eps - eps_hat)[:, 0].square(), rtol=1e-9)
    ends = Epsilon()(process, torch.tensor([[[0.0, 1.0]]]), None).flatten()
    assert ends[0] == 1
    assert ends[1] < 1e-4


def test_velocity_weight_is_one():
    assert (Velocity()(RectifiedFlow(), T, None) == 1).all()


@pytest.mark.parametrize("levels", [Shared(), Independent()])
def test_elbo_refuses_levels_without_slopes_and_names_both(levels):
    with pytest.raises(
        ValueError, match=rf"ELBO needs the slopes .* got {type(levels).__name__}, which does not provide them"
    ):
        ELBO().check(levels)


def test_elbo_refuses_levels_without_a_floor():
    with pytest.raises(ValueError, match="ELBO is infinite at t = 0.*Floored"):
        ELBO().check(AlongPath(AsyncPatch()))
    ELBO().check(AlongPath(Floored(AsyncPatch(), t_min=1e-3)))


@pytest.mark.parametrize("weighting", [Velocity(), Sigmoid(), Epsilon()], ids=lambda w: type(w).__name__)
def test_other_weightings_refuse_flux_progress(weighting):
    """It draws few levels where other weightings are large, so that losses would be noisier."""
    levels = AlongPath(Floored(AsyncPatch(), 0.01), FluxProgress())
    ELBO().check(levels)
    for sampler in (levels, WithCleanPatches(levels), Homogeneous(levels)):
        with pytest.raises(ValueError, match="progress_sampler FluxProgress needs the weighting ELBO, got"):
            weighting.check(sampler)
