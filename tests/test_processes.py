import pytest
import torch
from torch.autograd.functional import jacobian

from asyncdiff.processes import CosineVP, RectifiedFlow

PROCESSES = [RectifiedFlow(), CosineVP()]
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
def test_ends(process):
    ends = torch.tensor([0.0, 1.0])
    assert process.alpha(ends).tolist() == pytest.approx([1.0, 0.0], abs=1e-7)
    assert process.sigma(ends).tolist() == pytest.approx([0.0, 1.0], abs=1e-7)
    assert process.alpha(ends)[1] == 0  # exactly: the prior term of the bound is zero
    assert process.sigma(ends)[0] == 0  # exactly: a clean patch is its image


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize(
    ("value", "slope"), [("alpha", "dalpha"), ("sigma", "dsigma"), ("logsnr", "dlogsnr"), ("snr", "dsnr")]
)
def test_derivatives(process, value, slope):
    assert torch.allclose(derivative(getattr(process, value), T), getattr(process, slope)(T), rtol=1e-10)


@pytest.mark.parametrize("process", PROCESSES)
def test_x_eps_and_v_are_one_thing_in_three_forms(process, pair):
    x, eps, t = pair
    x_t, v = process.noised(x, eps, t), process.velocity(x, eps, t)
    assert torch.allclose(process.x_from_v(x_t, v, t), x, atol=1e-12)
    assert torch.allclose(process.eps_from_v(x_t, v, t), eps, atol=1e-12)
    assert torch.allclose(process.v_from_x(x_t, x, t), v, atol=1e-11)
    assert torch.allclose(process.v_from_eps(x_t, eps, t), v, atol=1e-11)


@pytest.mark.parametrize("process", PROCESSES)
def test_velocity_times_wronskian_is_the_flow(process, pair):
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
