"""Numbers for two sets of features, and for one set of class predictions: KID, Inception score, Fréchet distance."""

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
from asyncdiff.evaluation.frechet import Gaussian, frechet

Rows = Float[Tensor, "n d"]
OtherRows = Float[Tensor, "m d"]

SUBSETS, SUBSET_SIZE = 100, 1000  # of KID, as published (arXiv:1801.01401)
SPLITS = 10  # of the Inception score, as published (arXiv:1606.03498)
ALONE: dict[str, Any] = {"sync_on_compute": False}  # all rows are here: nothing to be gathered from other processes


class Estimate(NamedTuple):
    """A mean, and the standard deviation over the parts that it is the mean of; NaN for one part."""

    mean: float
    deviation: float


class Moments:
    """Mean and covariance of any number of rows, from sums in float64 that are added up part by part.

    Deviations from the parts' means are added up, so that a mean far from zero costs no digits.

    Args:
        dim: length of a row.

    Attributes:
        count: rows so far.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        if not len(rows):
            return
        place = torch.device("cpu") if rows.device.type == "mps" else rows.device  # Apple's GPU has no float64
        self._mean, self._scatter = self._mean.to(place), self._scatter.to(place)
        rows = rows.to(place, torch.float64)
        mean = rows.mean(0)
        centred = rows - mean
        self._merge(len(rows), mean, centred.T @ centred)

    def merge(self, state: Float[Tensor, "state"]) -> None:
        """Take in what `state` of another part returned."""
        count, mean, scatter = state.to(self._mean).split([1, self.dim, self.dim**2])
        self._merge(int(count), mean, scatter.reshape(self.dim, self.dim))

    def state(self) -> Float[Tensor, "state"]:
        """All of it as one tensor on the CPU."""
        return torch.cat([torch.tensor([float(self.count)]).double(), self._mean.cpu(), self._scatter.flatten().cpu()])

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance; ValueError for fewer than 2 rows."""
        at_least("images", self.count, 2, "a covariance needs two, a reliable one many more than features")
        return Gaussian(self._mean.cpu(), self._scatter.cpu() / (self.count - 1))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Chan, Golub and LeVeque's update, which adds up deviations from the means and never large squares."""
        total = self.count + count
        if not count:
            return
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total


def gaussian_of(rows: Rows) -> Gaussian:
    """Mean and unbiased covariance of rows, float64 on the CPU; ValueError for fewer than 2."""
    moments = Moments(rows.shape[1])
    for part in rows.split(8192):  # a float64 copy of all would take as much again as they do twice
        moments.add(part)
    return moments.gaussian()


def frechet_distance(real: Gaussian, fake: Rows, *, real_count: int | None) -> float:
    """Squared Fréchet distance of generated rows from real statistics, 0 for equal ones (FID, arXiv:1706.08500).

    Warns where a side has fewer rows than features, 2048 for Inception: its covariance has no full rank then, and the
    distance, exact as it is for these rows, is biased upwards by far.

    Args:
        real: statistics of the real side.
        fake: features of generated images, (m, d).
        real_count: images that `real` is of, None where nobody told.

    Raises:
        ValueError: fewer than 2 rows, or features of another length than the statistics.
    """
    if fake.shape[1] != len(real.mean):
        raise ValueError(
            f"reference statistics must be of {fake.shape[1]} features, got {len(real.mean)}: of other features?"
        )
    for name, count in (("real", real_count), ("generated", len(fake))):
        if count is not None and count < fake.shape[1]:
            warnings.warn(
                f"the Fréchet distance of {count} {name} images in {fake.shape[1]} feature dimensions is biased "
                f"upwards and not comparable: use more than {fake.shape[1]} images, 50000 for published numbers",
                stacklevel=2,
            )
    return frechet(*real, *gaussian_of(fake)).item()


def subset_size_for(*counts: int) -> int:
    """KID's subset size for so many images a side: 1000, or all of the smaller side."""
    return min(SUBSET_SIZE, *counts)


def kernel_distance(
    real: Rows, fake: OtherRows, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> Estimate:
    """The kernel Inception distance (KID, arXiv:1801.01401) in float64: 0 on average for equal distributions.

    The unbiased squared MMD of the kernel (a.b / d + 1)^3, a mean over random subsets of both sides. Unlike the Fréchet
    distance it has no bias by the number of images, and may be negative. Papers often report it times 1000. The global
    random state is left alone.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        subsets: number of subsets; one where each would be all of both sides.
        subset_size: images of either side in a subset; 1000, or all of the smaller side, by default.
        seed: of the subsets.

    Raises:
        ValueError: a side has fewer than 2 rows or fewer than `subset_size`.
    """
    smaller = min(len(real), len(fake))
    at_least("images on either side", smaller, 2, "KID compares pairs: use more images")
    size = subset_size_for(len(real), len(fake)) if subset_size is None else subset_size
    at_least("subset_size", size, 2, "1000 is usual")
    at_least("images on either side", smaller, size, f"subset_size is {size}: use more images or smaller subsets")
    if size == max(len(real), len(fake)):
        subsets = 1  # each of them would be the same
    with _quiet_and_seeded(seed):
        metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size, **ALONE)
        metric.update(real.double(), real=True)
        metric.update(fake.to(real.device).double(), real=False)
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if subsets > 1 else float("nan"))


def inception_score(logits: Rows, *, splits: int = SPLITS, seed: int = 0) -> Estimate:
    """The Inception score exp E KL(p(y|x) || p(y)) (arXiv:1606.03498) in float64: from 1 to the number of classes.

    The mean over `splits` equal parts of the images in random order, each with its own p(y), and their standard
    deviation; it grows with the size of a part. It looks at no real image. The global random state is left alone.

    Args:
        logits: unnormalised log-probabilities of the classes for every generated image, (m, k).
        splits: number of parts.
        seed: of the order.

    Raises:
        ValueError: fewer images than `splits`.
    """
    at_least("splits", splits, 1, "10 is usual")
    at_least("images", len(logits), splits, f"the Inception score has {splits} splits: use more images or fewer splits")
    with _quiet_and_seeded(seed):
        metric = InceptionScore(nn.Identity(), splits=splits, **ALONE)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if splits > 1 else float("nan"))


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """The CPU's random state starts at `seed` inside; nobody is told that the features are held in memory."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `.*` will save all extracted features")
        warnings.filterwarnings("ignore", r"std\(\): degrees of freedom")  # of one part, whose deviation is not told
        torch.default_generator.manual_seed(seed)
        yield
