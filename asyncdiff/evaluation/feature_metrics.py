"""Compute KID and Fréchet distance between two sets of features, and the Inception score of class predictions."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from asyncdiff.checks import at_least
from asyncdiff.evaluation.frechet import Gaussian, Moments, frechet, warn_if_biased

FeatureArray = Float[Tensor, "n d"]
FakeFeatureArray = Float[Tensor, "m d"]

SUBSETS, SUBSET_SIZE = 100, 1000  # KID as published (arXiv:1801.01401)
SPLITS = 10  # Inception score as published (arXiv:1606.03498)
NO_SYNC: dict[str, Any] = {"sync_on_compute": False}  # every process has all features, so none are gathered


class Estimate(NamedTuple):
    """Mean and standard deviation of a metric over subsets or splits; the deviation is NaN if there is only one."""

    mean: float
    deviation: float


def fit_gaussian(features: FeatureArray) -> Gaussian:
    """Return the mean and unbiased covariance, float64 on the CPU; raise ValueError for fewer than 2 images."""
    moments = Moments(features.shape[1])
    for part in features.split(8192):  # a float64 copy of all features would triple the memory
        moments.add(part)
    return moments.gaussian()


def frechet_distance(real: Gaussian, fake: FeatureArray, *, real_count: int | None) -> float:
    """Return the squared Fréchet distance of generated features from real statistics (FID, arXiv:1706.08500).

    Warns if a side has fewer images than features (2048 for Inception): its covariance is then rank-deficient, and the
    distance, although exact for these images, is strongly biased upwards.

    Args:
        real: feature statistics of real images.
        fake: features of generated images, (m, d).
        real_count: number of images behind `real`, None if unknown.

    Returns:
        The distance; 0 for equal sets.

    Raises:
        ValueError: `fake` has fewer than 2 images, or not as many features as the statistics.
    """
    if fake.shape[1] != len(real.mean):
        raise ValueError(
            f"reference statistics have {len(real.mean)} features, but generated images have {fake.shape[1]}: "
            "use the same feature extractor"
        )
    for name, count in (("real", real_count), ("generated", len(fake))):
        if count is not None:
            warn_if_biased(count, name, fake.shape[1])
    return frechet(*real, *fit_gaussian(fake)).item()


def subset_size_for(*counts: int) -> int:
    """Return the subset size of KID for the given numbers of images: 1000, or all of the smaller side."""
    return min(SUBSET_SIZE, *counts)


def kernel_distance(
    real: FeatureArray, fake: FakeFeatureArray, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> Estimate:
    """Return the kernel Inception distance (KID, arXiv:1801.01401), 0 in expectation for equal distributions.

    KID is the unbiased squared MMD with the kernel (a.b / d + 1)^3, averaged over random subsets of both sides, in
    float64. Unlike the Fréchet distance, its expectation does not depend on the number of images, and it can be
    negative. Papers often report it times 1000. The global random state is not changed.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        subsets: number of subsets; reduced to one if each would contain all images.
        subset_size: images in a subset from each side (default: 1000, or all of the smaller side).
        seed: random seed of the subsets.

    Returns:
        The mean and standard deviation over the subsets.

    Raises:
        ValueError: a side has fewer than 2 images or fewer than `subset_size`.
    """
    smaller = min(len(real), len(fake))
    at_least("number of images on each side", smaller, 2, "KID compares pairs: use more images")
    size = subset_size_for(len(real), len(fake)) if subset_size is None else subset_size
    at_least("subset_size", size, 2, "use 1000, for example")
    at_least(
        "number of images on each side", smaller, size, f"subset_size is {size}: use more images or smaller subsets"
    )
    if size == max(len(real), len(fake)):
        subsets = 1  # all subsets would be identical
    with _quiet_and_seeded(seed):
        metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size, **NO_SYNC)
        metric.update(real.double(), real=True)
        metric.update(fake.to(real.device).double(), real=False)
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if subsets > 1 else float("nan"))


def inception_score(logits: FeatureArray, *, splits: int = SPLITS, seed: int = 0) -> Estimate:
    """Return the Inception score exp E KL(p(y|x) || p(y)) (arXiv:1606.03498), between 1 and the number of classes.

    The score is averaged over `splits` equal parts of the shuffled images, each with its own p(y), in float64. It grows
    with the size of the parts and does not use real images. The global random state is not changed.

    Args:
        logits: unnormalized log-probabilities of the classes for each generated image, (m, k).
        splits: number of parts.
        seed: random seed of the shuffle.

    Returns:
        The mean and standard deviation over the parts.

    Raises:
        ValueError: there are fewer images than `splits`.
    """
    at_least("splits", splits, 1, "use 10, for example")
    at_least(
        "number of images",
        len(logits),
        splits,
        f"the Inception score has {splits} splits: use more images or fewer splits",
    )
    with _quiet_and_seeded(seed):
        metric = InceptionScore(nn.Identity(), splits=splits, **NO_SYNC)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if splits > 1 else float("nan"))


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random state and silence torchmetrics' warnings inside the context."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `.*` will save all extracted features")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")  # the deviation of a single part is not used
        torch.default_generator.manual_seed(seed)
        yield
