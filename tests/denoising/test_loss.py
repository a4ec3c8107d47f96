"""Loss of the uncertainty head: its minimum, and no effect on the velocity."""

import math

import pytest
import torch
from conftest import randomize_weights

from asyncdiff.denoising.denoiser import Denoiser, Prediction
from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.weightings import Velocity
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.level_samplers import LevelDraw
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.shapes import mean_per_patch


def batch(images: int = 4):
    x, eps = torch.randn(2, images, 1, 8, 8, generator=seeded(0), dtype=torch.float64)
    t = torch.rand(images, 4, 4, generator=seeded(1), dtype=torch.float64)
    t[0] = 0  # a completely clean image
    t[1, :2] = 0
    return x, eps, LevelDraw(t)


def dit(**options) -> DiT:
    torch.manual_seed(0)
    return DiT(channels=1, patch_size=2, dim=32, depth=2, heads=4, **options).double()


class Overconfident:
    """Predicts a velocity of 0, and its true error times a factor."""

    process = RectifiedFlow()

    def __init__(self, x, eps, factor):
        self.error = mean_per_patch((eps - x).square(), (4, 4))
        self.factor = factor

    def __call__(self, x_t, t, label=None, *, unique=None):
        return Prediction(self.process, x_t, t, torch.zeros_like(x_t), (self.factor * self.error).log())

    def grid(self, size):
        return 4, 4


def test_the_true_error_minimizes_the_loss():
    x, eps, draw = batch()
    truth = training_loss(Overconfident(x, eps, 1.0), x, eps, draw, Velocity())
    noisy = draw.t > 0
    expected = 0.5 * (truth.error.log() + 1)
    for i in range(1, 4):
        assert float(truth.uncertainty[i]) == pytest.approx(float(expected[i][noisy[i]].mean()), rel=1e-12)
    assert truth.uncertainty[0] == 0  # nothing to predict, no loss
    for factor in (0.5, 2.0):
        off = training_loss(Overconfident(x, eps, factor), x, eps, draw, Velocity()).uncertainty
        cost = 0.5 * (math.log(factor) + 1 / factor - 1)
        assert torch.allclose(off[1:] - truth.uncertainty[1:], torch.full((3,), cost, dtype=torch.float64))


def test_the_velocity_gets_no_gradient_from_the_uncertainty():
    x, eps, draw = batch()
    network = randomize_weights(dit(uncertainty=True))
    training_loss(Denoiser(network, RectifiedFlow()), x, eps, draw, Velocity()).uncertainty.sum().backward()
    assert network.head.weight.grad is None or not network.head.weight.grad.any()
    assert network.uncertainty_head.weight.grad.any()


def test_uncertainty_head_keeps_the_velocity_and_starts_at_variance_1():
    x, _, draw = batch()
    plain, headed = dit(), dit(uncertainty=True)
    missing = headed.load_state_dict(randomize_weights(plain).state_dict(), strict=False).missing_keys
    assert missing == ["uncertainty_head.weight", "uncertainty_head.bias"]
    v, logvar = headed(x, draw.t)
    assert torch.allclose(v, plain(x, draw.t), rtol=0, atol=1e-12)
    assert torch.equal(logvar, torch.zeros(4, 4, 4, dtype=torch.float64))


def test_on_coarser_level_maps_variances_are_averaged():
    x, _, _ = batch()
    fine, coarse = dit(uncertainty=True), dit(uncertainty=True, level_patch_size=4)
    coarse.load_state_dict(randomize_weights(fine).state_dict())
    t = torch.rand(4, 1, 1, generator=seeded(2), dtype=torch.float64)
    per_token, per_patch = fine(x, t)[1], coarse(x, t)[1]
    mean = per_token.exp().reshape(4, 2, 2, 2, 2).mean(dim=(2, 4))
    assert torch.allclose(per_patch.exp(), mean, rtol=1e-12, atol=0)


def test_one_level_per_image_has_an_uncertainty_per_patch():
    x, eps, _ = batch()
    t = torch.rand(4, 1, 1, generator=seeded(2), dtype=torch.float64)
    network = randomize_weights(dit(uncertainty=True))
    coarse = training_loss(Denoiser(network, RectifiedFlow()), x, eps, LevelDraw(t), Velocity())
    fine = training_loss(Denoiser(network, RectifiedFlow()), x, eps, LevelDraw(t.expand(4, 4, 4)), Velocity())
    assert coarse.error.shape == (4, 1, 1)
    assert torch.allclose(coarse.uncertainty, fine.uncertainty, rtol=0, atol=1e-12)


def test_log_variances_are_bounded():
    network = dit(uncertainty=True)
    torch.nn.init.constant_(network.uncertainty_head.bias, 1e4)
    x, _, draw = batch()
    with torch.no_grad():
        assert float(Denoiser(network, RectifiedFlow())(x, draw.t).logvar.max()) == 20
