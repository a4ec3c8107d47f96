"""Denoisers, targets, loss weightings, training loss, likelihood bound, and exact denoisers for tests.

Depends only on `asyncdiff.noise`, PyTorch and jaxtyping.
"""

from asyncdiff.denoising.denoiser import Denoiser, DenoiserLike, Prediction
from asyncdiff.denoising.likelihood import Bound, CategoricalDecoder, Decoder, GaussianDecoder, bound, discrete_bound
from asyncdiff.denoising.loss import Loss, training_loss
from asyncdiff.denoising.oracles import GaussianOracle, MixtureOracle, random_gaussian, random_mixture
from asyncdiff.denoising.targets import CleanTarget, NoiseTarget, Target, VelocityTarget
from asyncdiff.denoising.validation import held_out_errors
from asyncdiff.denoising.weightings import ELBO, Epsilon, Sigmoid, Velocity, Weighting

__all__ = [
    "ELBO",
    "Bound",
    "CategoricalDecoder",
    "CleanTarget",
    "Decoder",
    "Denoiser",
    "DenoiserLike",
    "Epsilon",
    "GaussianDecoder",
    "GaussianOracle",
    "Loss",
    "MixtureOracle",
    "NoiseTarget",
    "Prediction",
    "Sigmoid",
    "Target",
    "Velocity",
    "VelocityTarget",
    "Weighting",
    "bound",
    "discrete_bound",
    "held_out_errors",
    "random_gaussian",
    "random_mixture",
    "training_loss",
]
