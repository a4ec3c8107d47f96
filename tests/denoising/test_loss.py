"""Loss of the uncertainty head: its minimum, and no effect on the velocity."""

import math

import pytest
import torch
from noise.laws import Stub
from small_runs import small_dit

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.loss import Loss, training_loss
from asyncdiff.denoising.weightings import Velocity
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.level_samplers import LevelDraw
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.shapes import mean_per_patch

X, EPS = torch.randn(2, 4, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
T = torch.rand(4, 4, 4, generator=seeded(1), dtype=torch.float64)
T[0] = 0  # a completely clean image
T[1, :2] = 0
ONE_LEVEL = torch.rand(4, 1, 1, generator=seeded(2), dtype=torch.float64)


def network(**options) -> DiT:
    return small_dit(**{"classes": 0, "uncertainty": True, **options}).double()


def loss(denoiser, t: torch.Tensor = T) -> Loss:
    return training_loss(denoiser, X, EPS, LevelDraw(t), Velocity())


def overconfident(factor: float) -> Stub:
    """Predicts a velocity of 0, and its true error times a factor."""
    logvar = (factor * mean_per_patch((EPS - X).square(), (4, 4))).log()
    return Stub(lambda x_t, t: torch.zeros_like(x_t), lambda x_t, t: logvar)


def test_the_true_error_minimizes_the_loss():
    truth = loss(overconfident(1.0))
    expected = 0.5 * (truth.error.log() + 1)
    for i in range(1, 4):
        assert float(truth.uncertainty[i]) == pytest.approx(float(expected[i][T[i] > 0].mean()), rel=1e-12)
    assert truth.uncertainty[0] == 0  # nothing to predict, no loss
    for factor in (0.5, 2.0):
        excess = loss(overconfident(factor)).uncertainty - truth.uncertainty
        cost = 0.5 * (math.log(factor) + 1 / factor - 1)
        assert torch.allclose(excess[1:], torch.full((3,), cost, dtype=torch.float64))


def test_the_velocity_gets_no_gradient_from_the_uncertainty():
    net = network()
    loss(Denoiser(net, RectifiedFlow())).uncertainty.sum().backward()
    assert net.head.weight.grad is None or not net.head.weight.grad.any()
    assert net.uncertainty_head.weight.grad.any()


def test_uncertainty_head_keeps_the_velocity_and_starts_at_variance_1():
    plain, headed = network(uncertainty=False), DiT(1, 2, 32, 1, 2, uncertainty=True).double()
    missing = headed.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["uncertainty_head.weight", "uncertainty_head.bias"]
    v, logvar = headed(X, T)
    assert torch.allclose(v, plain(X, T), rtol=0, atol=1e-12)
    assert torch.equal(logvar, torch.zeros(4, 4, 4, dtype=torch.float64))


def test_on_coarser_level_maps_variances_are_averaged():
    fine, coarse = network(), network(level_patch_size=4)
    coarse.load_state_dict(fine.state_dict())
    per_token, per_patch = fine(X, ONE_LEVEL)[1], coarse(X, ONE_LEVEL)[1]
    mean = per_token.exp().reshape(4, 2, 2, 2, 2).mean(dim=(2, 4))
    assert torch.allclose(per_patch.exp(), mean, rtol=1e-12, atol=0)


def test_one_level_per_image_has_an_uncertainty_per_patch():
    denoiser = Denoiser(network(), RectifiedFlow())
    coarse, fine = loss(denoiser, ONE_LEVEL), loss(denoiser, ONE_LEVEL.expand(4, 4, 4))
    assert coarse.error.shape == (4, 1, 1)
    assert torch.allclose(coarse.uncertainty, fine.uncertainty, rtol=0, atol=1e-12)


def test_log_variances_are_bounded():
    for bias, bound in ((1e4, 20), (-1e4, -30)):
        net = network()
        torch.nn.init.constant_(net.uncertainty_head.bias, bias)
        with torch.no_grad():
            assert (Denoiser(net, RectifiedFlow())(X, T).logvar == bound).all()
