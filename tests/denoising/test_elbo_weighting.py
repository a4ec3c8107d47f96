"""ELBO weighting, slopes and floor together: the loss of a perfect denoiser along any path is the true bound."""

import math

import pytest
import torch

from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.weightings import ELBO
from asyncdiff.noise.level_samplers import AlongPath, LevelDraw
from asyncdiff.noise.paths import AsyncPatch, Floored, Synchronous
from asyncdiff.noise.processes import CosineVP, LinearVP, RectifiedFlow
from asyncdiff.randomness import seeded

T_MIN, DIMS, N = 0.05, 16, 60_000
MEAN, COV = random_gaussian(DIMS)


def loss(path, process, *, slopes: bool = True) -> tuple[float, float]:
    """Mean ELBO loss in nats per dimension on exact samples, and its standard error."""
    oracle = GaussianOracle(MEAN, COV, (2, 2), process)
    x = oracle.sample(N, (1, 4, 4), seeded(1))
    eps = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    levels = AlongPath(Floored(path, T_MIN))(N, (2, 2), generator=seeded(3))
    t, slope = levels.t.double(), levels.slope.double()
    sample = LevelDraw(t, slope if slopes else torch.ones_like(slope))
    values = training_loss(oracle, x, eps, sample, ELBO()).per_image
    return values.mean().item(), values.std().item() / math.sqrt(N)


@pytest.mark.parametrize("process", [RectifiedFlow(), CosineVP(), LinearVP()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("path", [Synchronous(), AsyncPatch(), AsyncPatch(spread=0.5)], ids=["sync", "async", "half"])
def test_elbo_loss_equals_the_mutual_information_on_every_path(path, process):
    """Integral of the MMSE over SNR: I(x; x at the floor) = 1/2 log det(1 + SNR S) (Guo, Shamai & Verdu, 2005)."""
    snr = process.snr(torch.tensor(T_MIN, dtype=torch.float64))
    truth = 0.5 * torch.logdet(torch.eye(DIMS) + snr * COV).item() / DIMS
    value, error = loss(path, process)
    assert error < 0.02 * truth
    assert abs(value - truth) < 4 * error


def test_omitting_the_slope_breaks_the_elbo_loss():
    process = RectifiedFlow()
    truth = 0.5 * torch.logdet(torch.eye(DIMS) + process.snr(torch.tensor(T_MIN).double()) * COV).item() / DIMS
    value, error = loss(AsyncPatch(), process, slopes=False)
    assert abs(value - truth) > 8 * error
