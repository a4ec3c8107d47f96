"""Exact denoisers of 4x4 images, small networks, and one call for all samplers, in float64."""

import torch
from conftest import randomize_weights
from torch import Tensor

from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.networks.dit import DiT
from asyncdiff.noise.processes import RectifiedFlow
from asyncdiff.randomness import seeded
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.sampling.trajectories import Frame

SHAPE, GRID = (1, 4, 4), (2, 2)
MEAN, COV = random_gaussian(16)
GAUSSIAN = GaussianOracle(MEAN, COV, GRID)
MIXTURE = MixtureOracle(*random_mixture(3, 16), GRID)


def run(sampler: ImageSampler, denoiser, seeds=(0, 1, 2), shape=SHAPE, **request) -> Tensor:
    return sampler(denoiser, seeds=list(seeds), shape=shape, dtype=torch.float64, **request)


def frames(sampler: ImageSampler, denoiser, seeds=(0, 1, 2), shape=SHAPE, **request) -> list[Frame]:
    return list(sampler.frames(denoiser, seeds=list(seeds), shape=shape, dtype=torch.float64, **request))


def random_images(count: int, shape=SHAPE, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=seeded(seed), dtype=torch.float64)


def network_denoiser(**options) -> Denoiser:
    """A denoiser of 8x8 gray images with random weights and an uncertainty head."""
    torch.manual_seed(0)
    network = DiT(**{"channels": 1, "dim": 32, "depth": 2, "heads": 4, "classes": 10, "uncertainty": True} | options)
    return Denoiser(randomize_weights(network.double()).requires_grad_(False).eval(), RectifiedFlow())


def conditional(image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the unknown pixels of `GAUSSIAN`, given the known pixels of one image."""
    k = known.flatten()
    gain = COV[~k][:, k] @ torch.linalg.inv(COV[k][:, k])
    return MEAN[~k] + gain @ (image.flatten()[k] - MEAN[k]), COV[~k][:, ~k] - gain @ COV[k][:, ~k]
