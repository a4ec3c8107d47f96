import pytest
import torch
from torch.autograd.functional import jacobian

from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow

PROCESSES = [RectifiedFlow(), CosineVP(), LinearVP()]
T = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


def derivative(f, t):
    return jacobian(lambda s: f(s).sum(), t, create_graph=False)


@pytest.fixture
def pair():
    g = torch.Generator().manual_seed(0)
    x, eps = (torch.randn(6, 3, 8, 8, generator=g, dtype=torch.float64) for _ in range(2))
    t = 0.05 + 0.9 * torch.rand(6, 4, 2, generator=g, dtype=torch.float64)
    return x, eps, t


@pytest.mark.parametrize("process", PROCESSES)
def test_alpha_and_sigma_at_both_ends(process):
    ends = torch.tensor([0.0, 1.0])
    left = 0.00635 if isinstance(process, LinearVP) else 0  # of the image at t = 1
    assert process.alpha(ends).tolist() == pytest.approx([1.0, left], abs=1e-5)
    assert process.sigma(ends).tolist() == pytest.approx([0.0, (1 - left**2) ** 0.5], abs=1e-7)
    assert (process.alpha(ends)[1] == 0) == (left == 0)  # exactly: the prior term of the bound is zero
    assert process.sigma(ends)[0] == 0  # exactly: a clean patch is its image


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("value", "slope"), [("alpha", "dalpha"), ("sigma", "dsigma"), ("logsnr", "dlogsnr"), ("snr", "dsnr")]
)
def test_derivatives_match_automatic_differentiation(process, value, slope):
    assert torch.allclose(derivative(getattr(process, value), T), getattr(process, slope)(T), rtol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_conversions_between_x_eps_and_v_are_consistent(process, pair):
    x, eps, t = pair
    x_t, v = process.noised(x, eps, t), process.velocity(x, eps, t)
    assert torch.allclose(process.x_from_v(x_t, v, t), x, atol=1e-12)
    assert torch.allclose(process.eps_from_v(x_t, v, t), eps, atol=1e-12)
    assert torch.allclose(process.v_from_x(x_t, x, t), v, atol=1e-11)
    assert torch.allclose(process.v_from_eps(x_t, eps, t), v, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES)
def test_velocity_times_wronskian_is_the_ode_slope(process, pair):
    x, eps, _ = pair
    t, h = torch.full((6, 1, 1), 0.3, dtype=torch.float64), 1e-6
    flow = (process.noised(x, eps, t + h) - process.noised(x, eps, t - h)) / (2 * h)
    assert torch.allclose(process.wronskian(t)[:, None] * process.velocity(x, eps, t), flow, atol=1e-8)


def test_rectified_flow_formulas(pair):
    x, eps, t = pair
    process = RectifiedFlow()
    assert torch.equal(process.velocity(x, eps, t), eps - x)
    assert torch.allclose(process.logsnr(T), 2 * ((1 - T) / T).log())
    assert torch.allclose(process.dsnr(T), -2 * (1 - T) / T**3)


def test_score_of_a_gaussian():
    process, t = RectifiedFlow(), torch.full((1, 1, 1), 0.4, dtype=torch.float64)
    x_t = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    variance = 0.6**2 + 0.4**2  # x ~ N(0, 1)
    eps_hat = 0.4 / variance * x_t
    v = process.v_from_eps(x_t, eps_hat, t)
    assert torch.allclose(process.score_from_v(x_t, v, t), -x_t / variance, atol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_nothing_is_infinite_at_the_ends(process):
    x_t = v = torch.ones(2, 1, 2, 2)
    t = torch.tensor([0.0, 1.0])[:, None, None]
    assert process.x_from_v(x_t, v, t).isfinite().all()
    assert process.eps_from_v(x_t, v, t).isfinite().all()
    assert process.velocity(x_t, x_t, t).isfinite().all()
    assert process.v_from_x(x_t, x_t, t, floor=0.1).isfinite().all()
    assert (process.wronskian(t) * process.sigma(t)).isfinite().all()  # loss weights are multiples of it
    assert (0 * process.wronskian(t) * v[:, 0] == 0).all()  # a patch with slope 0 does not move


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_level_is_the_inverse_of_logsnr(process, dtype, tolerance):
    t = torch.cat([torch.logspace(-6, 0, 200, dtype=dtype), 1 - torch.logspace(-3, -1, 50, dtype=dtype)])
    assert torch.allclose(process.level(process.logsnr(t)), t, rtol=tolerance, atol=tolerance / 10)
    ends = torch.tensor([torch.inf, -torch.inf], dtype=dtype)
    assert process.level(ends).tolist() == [0, 1]


@pytest.mark.parametrize("process", PROCESSES)
def test_a_floor_does_not_change_the_velocity_above_it(process, pair):
    x, eps, t = pair
    x_t, v = process.noised(x, eps, t), process.velocity(x, eps, t)
    floored = process.v_from_x(x_t, x, t, floor=0.5)
    low = process.sigma(t)[:, :, None, :, None].expand(6, 4, 2, 2, 4).reshape(6, 1, 8, 8) < 0.5
    assert low.any()
    assert torch.allclose(floored.masked_fill(low, 0), v.masked_fill(low, 0), atol=1e-11)
    assert (floored.abs() <= v.abs() + 1e-11).all()


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
    assert torch.allclose(process.alpha(STEPS) ** 2 + process.sigma(STEPS) ** 2, torch.ones_like(STEPS), atol=1e-14)
    x, eps = (torch.randn(1, 1, 20, 50, dtype=torch.float64) for _ in range(2))
    v = (process.alpha(STEPS) * eps[:, 0] - process.sigma(STEPS) * x[:, 0])[:, None]
    assert torch.allclose(process.velocity(x, eps, STEPS), v, atol=1e-14)


def test_linear_vp_sigma_is_accurate_near_the_clean_end():
    """sigma^2 = 1 - alpha^2 in float32, where 1 - alpha is below its precision."""
    t = torch.logspace(-9, -3, 50, dtype=torch.float64)
    process = LinearVP()
    assert torch.allclose(process.sigma(t.float()).double(), process.sigma(t), rtol=1e-6)
    assert torch.allclose(process.dsigma(t.float()).double(), process.dsigma(t), rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0.0, 0.02), "must satisfy 0 < beta_start < beta_end <= 0.05, got 0.0 and 0.02"),
        ((0.02, 1e-4), "must satisfy 0 < beta_start < beta_end <= 0.05"),
        ((1e-4, 0.5), "must satisfy 0 < beta_start < beta_end <= 0.05"),
        ((1e-4, 0.02, 100), "steps must be at least 101 for beta from 0.0001 to 0.02, got 100"),
    ],
)
def test_invalid_betas_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        LinearVP(*given)
