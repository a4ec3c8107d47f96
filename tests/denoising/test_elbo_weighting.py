"""ELBO weighting, slopes, floor and clean patches together: the loss of a perfect denoiser is the true bound.

The bound is the mutual information of an image and its noised version at the floor: the integral of the MMSE over SNR,
1/2 log det(1 + SNR S), whatever the path (Guo, Shamai & Verdu, 2005).
"""

import math

import pytest
import torch
from noise.laws import every_process, off

from asyncdiff.denoising.loss import training_loss
from asyncdiff.denoising.oracles import GaussianOracle, random_gaussian
from asyncdiff.denoising.weightings import ELBO
from asyncdiff.noise.clean_patches import RandomMasks
from asyncdiff.noise.fields import PerlinField
from asyncdiff.noise.level_samplers import AlongPath, Homogeneous, LevelSampler, WithCleanPatches
from asyncdiff.noise.masks import Half
from asyncdiff.noise.orders import CenterOut, Raster
from asyncdiff.noise.paths import AsyncPatch, Floored, Ordered, Synchronous
from asyncdiff.noise.processes import Process, RectifiedFlow
from asyncdiff.noise.progress_samplers import FluxProgress
from asyncdiff.randomness import seeded

PIXELS, FLOOR = 16, 0.05
MEAN, COV = random_gaussian(PIXELS)
KNOWN = Half()(4, 4).flatten()
GAIN = COV[~KNOWN][:, KNOWN] @ torch.linalg.inv(COV[KNOWN][:, KNOWN])
COV_GIVEN_KNOWN = COV[~KNOWN][:, ~KNOWN] - GAIN @ COV[KNOWN][:, ~KNOWN]


def losses(sampler: LevelSampler, count: int, process: Process | None = None) -> torch.Tensor:
    """ELBO losses of a perfect denoiser of correlated Gaussian images, in nats per dimension."""
    oracle = GaussianOracle(MEAN, COV, (2, 2), process)
    x = oracle.sample(count, (1, 4, 4), seeded(1))
    eps = torch.randn(x.shape, generator=seeded(2), dtype=torch.float64)
    draw = sampler(count, (2, 2), generator=seeded(3), dtype=torch.float64)
    return training_loss(oracle, x, eps, draw, ELBO()).per_image


def information(cov: torch.Tensor = COV, process: Process | None = None, floor: float = FLOOR) -> float:
    """Information of an image at the floor about itself, per dimension of the entire image."""
    snr = (process or RectifiedFlow()).snr(torch.tensor(floor, dtype=torch.float64))
    return 0.5 * torch.logdet(torch.eye(len(cov)) + snr * cov).item() / PIXELS


@every_process
@pytest.mark.parametrize("path", [Synchronous(), AsyncPatch(), AsyncPatch(spread=0.5)], ids=["sync", "async", "half"])
def test_elbo_loss_equals_the_mutual_information_on_every_path(path, process):
    truth, values = information(process=process), losses(AlongPath(Floored(path, FLOOR)), 60_000, process)
    assert values.std() / math.sqrt(len(values)) < 0.02 * truth
    assert off(values, truth) < 4


ALONG = AlongPath(Floored(AsyncPatch(), FLOOR), FluxProgress(1.0))
MIXTURES = {
    "constant maps among others": (Homogeneous(ALONG, 0.4), information()),
    "constant maps alone": (Homogeneous(ALONG, 1.0), information()),
    "constant maps among ordered": (Homogeneous(AlongPath(Floored(Ordered(Raster()), FLOOR))), information()),
    "perlin": (AlongPath(Floored(AsyncPatch(field=PerlinField(within_image=True)), FLOOR)), information()),
    "given the left half": (WithCleanPatches(ALONG, 1.0, RandomMasks([Half()])), information(COV_GIVEN_KNOWN)),
    "given it at times": (
        WithCleanPatches(Homogeneous(ALONG, 0.4), 0.5, RandomMasks([Half()])),
        (information() + information(COV_GIVEN_KNOWN)) / 2,
    ),
}


@pytest.mark.parametrize(("sampler", "truth"), MIXTURES.values(), ids=MIXTURES)
def test_elbo_loss_of_mixtures_is_the_information_given_the_clean_patches(sampler, truth):
    values = losses(sampler, 20_000)
    assert values.std() / math.sqrt(len(values)) < 0.02 * truth
    assert off(values, truth) < 4


PATHS = {"async": AsyncPatch(), "raster": Ordered(Raster()), "center": Ordered(CenterOut(), 0.5)}


@every_process
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_importance_sampling_keeps_the_loss_and_lowers_its_noise(path, process):
    """Both are the mutual information to 4 standard errors; the variance falls at least to a fifth."""
    truth, path = information(process=process, floor=0.01), Floored(path, 0.01)
    plain, weighted = (losses(AlongPath(path, by), 8000, process) for by in (None, FluxProgress(1.0, process)))
    assert off(plain, truth) < 4
    assert off(weighted, truth) < 4
    assert weighted.var() < plain.var() / 5
    assert weighted.std() / math.sqrt(len(weighted)) < 0.01 * truth
