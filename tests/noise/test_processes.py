"""Laws of noise processes: derivatives, conversions between x, eps and v, and both ends; DDPM's betas."""

import pytest
import torch
from noise.laws import every_process, refusals
from torch.autograd.functional import jacobian

from asyncdiff.noise.processes import LinearVP, RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.shapes import to_pixels

T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)
X, EPS = torch.randn(2, 6, 3, 8, 8, generator=seeded(0), dtype=torch.float64)
LEVELS = 0.05 + 0.9 * torch.rand(6, 4, 2, generator=seeded(1), dtype=torch.float64)


@every_process
def test_alpha_and_sigma_at_both_ends(process):
    ends = torch.tensor([0.0, 1.0])
    left = 0.00635 if isinstance(process, LinearVP) else 0  # of the image at t = 1
    assert process.alpha(ends).tolist() == pytest.approx([1.0, left], abs=1e-5)
    assert process.sigma(ends).tolist() == pytest.approx([0.0, (1 - left**2) ** 0.5], abs=1e-7)
    assert (process.alpha(ends)[1] == 0) == (left == 0)  # exactly: the prior term of the bound is zero
    assert process.sigma(ends)[0] == 0  # exactly: a clean patch is its image


@every_process
@pytest.mark.parametrize("value", ["alpha", "sigma", "logsnr", "snr"])
def test_derivatives_match_automatic_differentiation(process, value):
    derivative = jacobian(lambda t: getattr(process, value)(t).sum(), T)
    assert torch.allclose(derivative, getattr(process, f"d{value}")(T), rtol=1e-10)


@every_process
def test_conversions_between_x_eps_and_v_are_consistent(process):
    x_t, v = process.noised(X, EPS, LEVELS), process.velocity(X, EPS, LEVELS)
    assert torch.allclose(process.x_from_v(x_t, v, LEVELS), X, atol=1e-12)
    assert torch.allclose(process.eps_from_v(x_t, v, LEVELS), EPS, atol=1e-12)
    assert torch.allclose(process.v_from_x(x_t, X, LEVELS), v, atol=1e-11)
    assert torch.allclose(process.v_from_eps(x_t, EPS, LEVELS), v, atol=1e-11)


@every_process
def test_a_floor_does_not_change_the_velocity_above_it(process):
    x_t, v = process.noised(X, EPS, LEVELS), process.velocity(X, EPS, LEVELS)
    floored = process.v_from_x(x_t, X, LEVELS, floor=0.5)
    low = to_pixels(process.sigma(LEVELS), (8, 8)) < 0.5
    assert low.any()
    assert torch.allclose(floored.masked_fill(low, 0), v.masked_fill(low, 0), atol=1e-11)
    assert (floored.abs() <= v.abs() + 1e-11).all()


@every_process
def test_velocity_times_wronskian_is_the_ode_slope(process):
    t, h = torch.full((6, 1, 1), 0.3, dtype=torch.float64), 1e-6
    flow = (process.noised(X, EPS, t + h) - process.noised(X, EPS, t - h)) / (2 * h)
    assert torch.allclose(process.wronskian(t)[:, None] * process.velocity(X, EPS, t), flow, atol=1e-8)


def test_rectified_flow_formulas():
    process = RectifiedFlow()
    assert torch.equal(process.velocity(X, EPS, LEVELS), EPS - X)
    assert torch.allclose(process.logsnr(T), 2 * ((1 - T) / T).log())
    assert torch.allclose(process.dsnr(T), -2 * (1 - T) / T**3)


def test_score_of_a_gaussian():
    process, t = RectifiedFlow(), torch.full((6, 1, 1), 0.4, dtype=torch.float64)
    variance = 0.6**2 + 0.4**2  # x ~ N(0, 1)
    v = process.v_from_eps(X, 0.4 / variance * X, t)
    assert torch.allclose(process.score_from_v(X, v, t), -X / variance, atol=1e-12)


@every_process
def test_nothing_is_infinite_at_the_ends(process):
    x_t = v = torch.ones(2, 1, 2, 2)
    t = torch.tensor([0.0, 1.0])[:, None, None]
    assert process.x_from_v(x_t, v, t).isfinite().all()
    assert process.eps_from_v(x_t, v, t).isfinite().all()
    assert process.velocity(x_t, x_t, t).isfinite().all()
    assert process.v_from_x(x_t, x_t, t, floor=0.1).isfinite().all()
    assert (process.wronskian(t) * process.sigma(t)).isfinite().all()  # loss weights are multiples of it
    assert (0 * process.wronskian(t) * v[:, 0] == 0).all()  # a patch with slope 0 does not move


@every_process
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_level_is_the_inverse_of_logsnr(process, dtype, tolerance):
    t = torch.cat([torch.logspace(-6, 0, 200, dtype=dtype), 1 - torch.logspace(-3, -1, 50, dtype=dtype)])
    assert torch.allclose(process.level(process.logsnr(t)), t, rtol=tolerance, atol=tolerance / 10)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    assert process.level(ends).tolist() == [0, 1]


# DDPM's betas

STEPS = (torch.arange(1, 1001, dtype=torch.float64) / 1000).reshape(1, 20, 50)


def test_linear_vp_equals_ddpm_at_its_steps():
    log_alphabar = torch.log1p(-torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumsum(0).reshape(STEPS.shape)
    process = LinearVP()
    assert torch.allclose(2 * process.alpha(STEPS).log(), log_alphabar, rtol=1e-6, atol=0)
    alpha, sigma = (factor.double() for factor in (process.alpha(STEPS.float()), process.sigma(STEPS.float())))
    assert torch.allclose(alpha, (log_alphabar / 2).exp(), atol=2e-7, rtol=0)
    assert torch.allclose(sigma, (-torch.expm1(log_alphabar)).sqrt(), rtol=1e-6, atol=0)


def test_linear_vp_keeps_the_variance():
    process = LinearVP()
    alpha, sigma = process.alpha(STEPS), process.sigma(STEPS)
    assert torch.allclose(alpha**2 + sigma**2, torch.ones_like(STEPS), atol=1e-14)
    x, eps = torch.randn(2, 1, 1, 20, 50, generator=seeded(0), dtype=torch.float64)
    assert torch.allclose(process.velocity(x, eps, STEPS), alpha[:, None] * eps - sigma[:, None] * x, atol=1e-14)


def test_linear_vp_sigma_is_accurate_near_the_clean_end():
    """sigma^2 = 1 - alpha^2 in float32, where 1 - alpha is below its precision."""
    t = torch.logspace(-9, -3, 50, dtype=torch.float64)
    process = LinearVP()
    assert torch.allclose(process.sigma(t.float()).double(), process.sigma(t), rtol=1e-6)
    assert torch.allclose(process.dsigma(t.float()).double(), process.dsigma(t), rtol=1e-6)


test_invalid_betas_are_refused = refusals(
    {
        "must satisfy 0 < beta_start < beta_end <= 0.05, got 0.0 and 0.02": lambda: LinearVP(0.0, 0.02),
        "must satisfy 0 < beta_start < beta_end <= 0.05, got 0.02 and 0.0001": lambda: LinearVP(0.02, 1e-4),
        "must satisfy 0 < beta_start < beta_end <= 0.05, got 0.0001 and 0.5": lambda: LinearVP(1e-4, 0.5),
        "steps must be at least 101 for beta from 0.0001 to 0.02, got 100": lambda: LinearVP(1e-4, 0.02, 100),
    }
)
