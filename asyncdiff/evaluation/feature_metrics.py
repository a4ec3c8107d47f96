"""KID and Fréchet distance of two sets of features, and Inception score of one set of class predictions."""

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

SUBSETS, SUBSET_SIZE = 100, 1000  # KID as published (arXiv:1801.01401)
SPLITS = 10  # Inception score as published (arXiv:1606.03498)
NO_SYNC: dict[str, Any] = {"sync_on_compute": False}  # every process has all rows: there is nothing to gather


class Estimate(NamedTuple):
    """Mean over subsets or splits, and their standard deviation; the deviation is NaN for a single one."""

    mean: float
    deviation: float


class Moments:
    """Running mean and covariance of any number of rows, accumulated in float64 part by part.

    Deviations from the means are accumulated, so that a mean far from zero costs no precision.

    Args:
        dim: length of a row.

    Attributes:
        count: number of rows so far.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.count = 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def add(self, rows: Rows) -> None:
        """Add rows."""
        if not len(rows):
            return
        device = torch.device("cpu") if rows.device.type == "mps" else rows.device  # Apple's GPU has no float64
        self._mean, self._scatter = self._mean.to(device), self._scatter.to(device)
        rows = rows.to(device, torch.float64)
        mean = rows.mean(0)
        centered = rows - mean
        self._merge(len(rows), mean, centered.T @ centered)

    def merge(self, state: Float[Tensor, "state"]) -> None:
        """Add the rows of another `Moments`, given its `state()`."""
        count, mean, scatter = state.to(self._mean).split([1, self.dim, self.dim**2])
        self._merge(int(count), mean, scatter.reshape(self.dim, self.dim))

    def state(self) -> Float[Tensor, "state"]:
        """Return count, mean and scatter matrix as one float64 tensor on the CPU, for `merge`."""
        return torch.cat([torch.tensor([float(self.count)]).double(), self._mean.cpu(), self._scatter.flatten().cpu()])

    def gaussian(self) -> Gaussian:
        """Return mean and unbiased covariance; raise ValueError for fewer than 2 rows."""
        at_least("images", self.count, 2, "a covariance needs 2, a reliable one many more than there are features")
        return Gaussian(self._mean.cpu(), self._scatter.cpu() / (self.count - 1))

    def _merge(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        """Merge by Chan, Golub and LeVeque's update, which sums deviations from the means and never large squares."""
        total = self.count + count
        if not count:
            return
        shift = mean - self._mean
        self._scatter = self._scatter + scatter + torch.outer(shift, shift) * (self.count * count / total)
        self._mean = self._mean + shift * (count / total)
        self.count = total


def fit_gaussian(rows: Rows) -> Gaussian:
    """Return mean and unbiased covariance of rows, float64 on the CPU; raise ValueError for fewer than 2 rows."""
    moments = Moments(rows.shape[1])
    for part in rows.split(8192):  # a float64 copy of all rows would triple the memory
        moments.add(part)
    return moments.gaussian()


def frechet_distance(real: Gaussian, fake: Rows, *, real_count: int | None) -> float:
    """Return the squared Fréchet distance of generated features from real statistics (FID, arXiv:1706.08500).

    Warns if a side has fewer rows than features (2048 for Inception): its covariance is then rank-deficient, and the
    distance, although exact for these rows, is strongly biased upwards.

    Args:
        real: statistics of the real side.
        fake: features of generated images, (m, d).
        real_count: number of images behind `real`, None if unknown.

    Returns:
        The distance; 0 for equal sets.

    Raises:
        ValueError: there are fewer than 2 rows, or their length differs from that of the statistics.
    """
    if fake.shape[1] != len(real.mean):
        raise ValueError(
            f"reference statistics must have {fake.shape[1]} features, got {len(real.mean)}: "
            "use the same feature extractor"
        )
    for name, count in (("real", real_count), ("generated", len(fake))):
        if count is not None and count < fake.shape[1]:
            warnings.warn(
                f"the Fréchet distance of {count} {name} images in {fake.shape[1]} feature dimensions is biased "
                f"upwards and not comparable: use more than {fake.shape[1]} images, 50000 for published numbers",
                stacklevel=2,
            )
    return frechet(*real, *fit_gaussian(fake)).item()


def subset_size_for(*counts: int) -> int:
    """Return KID's subset size for the given numbers of images: 1000, or all of the smaller side."""
    return min(SUBSET_SIZE, *counts)


def kernel_distance(
    real: Rows, fake: OtherRows, *, subsets: int = SUBSETS, subset_size: int | None = None, seed: int = 0
) -> Estimate:
    """Return the kernel Inception distance (KID, arXiv:1801.01401), 0 in expectation for equal distributions.

    The unbiased squared MMD with the kernel (a.b / d + 1)^3, averaged over random subsets of both sides, in float64.
    Unlike the Fréchet distance its expectation does not depend on the number of images, and it can be negative. Papers
    often report it times 1000. The global random state is not touched.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        subsets: number of subsets; reduced to one if every subset would contain all rows.
        subset_size: images per side in a subset (default: 1000, or all of the smaller side).
        seed: seed of the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: a side has fewer than 2 rows or fewer than `subset_size`.
    """
    smaller = min(len(real), len(fake))
    at_least("images on either side", smaller, 2, "KID compares pairs: use more images")
    size = subset_size_for(len(real), len(fake)) if subset_size is None else subset_size
    at_least("subset_size", size, 2, "use 1000, for example")
    at_least("images on either side", smaller, size, f"subset_size is {size}: use more images or smaller subsets")
    if size == max(len(real), len(fake)):
        subsets = 1  # all subsets would be identical
    with _quiet_and_seeded(seed):
        metric = KernelInceptionDistance(nn.Identity(), subsets=subsets, subset_size=size, **NO_SYNC)
        metric.update(real.double(), real=True)
        metric.update(fake.to(real.device).double(), real=False)
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if subsets > 1 else float("nan"))


def inception_score(logits: Rows, *, splits: int = SPLITS, seed: int = 0) -> Estimate:
    """Return the Inception score exp E KL(p(y|x) || p(y)) (arXiv:1606.03498), between 1 and the number of classes.

    The score is averaged over `splits` equal parts of the shuffled images, each with its own p(y), in float64. It grows
    with the size of a part, and uses no real images. The global random state is not touched.

    Args:
        logits: unnormalized log-probabilities of the classes for every generated image, (m, k).
        splits: number of parts.
        seed: seed of the shuffle.

    Returns:
        Mean and standard deviation over the parts.

    Raises:
        ValueError: there are fewer images than `splits`.
    """
    at_least("splits", splits, 1, "use 10, for example")
    at_least("images", len(logits), splits, f"the Inception score has {splits} splits: use more images or fewer splits")
    with _quiet_and_seeded(seed):
        metric = InceptionScore(nn.Identity(), splits=splits, **NO_SYNC)
        metric.update(logits.double())
        mean, deviation = metric.compute()
    return Estimate(mean.item(), deviation.item() if splits > 1 else float("nan"))


@contextmanager
def _quiet_and_seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random state inside the context, and silence torchmetrics' warnings."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `.*` will save all extracted features")
        warnings.filterwarnings(
            "ignore", r"std\(\): degrees of freedom"
        )  # for a single part, whose deviation is not used
        torch.default_generator.manual_seed(seed)
        yield
