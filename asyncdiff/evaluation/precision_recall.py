"""Compute precision, recall, density and coverage of generated features: fidelity and diversity."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least

FeatureArray = Float[Tensor, "n d"]
FakeFeatureArray = Float[Tensor, "m e"]

DISTANCES = 1 << 25  # distances in memory at a time: 268 MB of float64, for any number of images


class PrecisionRecall(NamedTuple):
    """Precision and recall in [0, 1]: shares of generated images on the real manifold, and vice versa."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, about 1 for equal distributions but unbounded, and coverage in [0, 1]."""

    density: float
    coverage: float


@torch.no_grad()
def precision_recall(real: FeatureArray, fake: FakeFeatureArray, *, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkäänniemi et al., arXiv:1904.06991): fidelity and diversity.

    The manifold of a set is the union of closed balls around its points; the radius of a ball is the distance from the
    point to its k-th nearest neighbor within the set. Precision is the share of `fake` inside the manifold of `real`,
    recall vice versa. Both depend on the numbers of images: compare only results with equal numbers. A single outlier
    creates a large ball; `density_coverage` is robust to this.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: rank of the neighbor whose distance is the radius of a ball.

    Returns:
        The precision and the recall.

    Raises:
        ValueError: a side has at most k images, or the numbers of features differ.
    """
    real, fake = _check_and_center(real, fake, k, sides=("real", "fake"))
    slack = _round_off_bound(real, fake)
    real_radii, fake_radii = squared_radii(real, k) + slack, squared_radii(fake, k) + slack
    inside_real, inside_fake = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for block in _row_blocks(len(fake), len(real)):
        distances = _squared_distances(fake[block], real)
        inside_real.append((distances <= real_radii).any(1))
        inside_fake |= (distances <= fake_radii[block, None]).any(0)
    return PrecisionRecall(torch.cat(inside_real).double().mean().item(), inside_fake.double().mean().item())


@torch.no_grad()
def density_coverage(real: FeatureArray, fake: FakeFeatureArray, *, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al., arXiv:2002.09797): fidelity and diversity, robust to outliers.

    The balls are centered on real points only; their radius is the distance to the k-th nearest real neighbor. They are
    open, so that the density of equal sets is exactly 1. Density is the mean number of balls around a generated point,
    divided by k; coverage is the share of balls that contain a generated point. For n real and m generated samples
    from one distribution, the expected coverage is 1 - (n-1)...(n-k) / ((m+n-1)...(m+n-k)), 0.97 for k = 5 and n = m.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: rank of the neighbor whose distance is the radius of a ball.

    Returns:
        The density and the coverage.

    Raises:
        ValueError: `real` has at most k images, `fake` has none, or the numbers of features differ.
    """
    real, fake = _check_and_center(real, fake, k, sides=("real",))
    real_radii, within = squared_radii(real, k) - _round_off_bound(real, fake), 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for block in _row_blocks(len(fake), len(real)):
        inside = _squared_distances(fake[block], real) < real_radii
        within += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(within / (k * len(fake)), covered.double().mean().item())


def squared_radii(points: FeatureArray, k: int) -> Float[Tensor, " n"]:
    """Return the squared distance of each point from its k-th nearest neighbor among the others."""
    radii = []
    for block in _row_blocks(len(points), len(points)):
        distances = _squared_distances(points[block], points)
        distances[torch.arange(len(distances)), torch.arange(len(points))[block]] = 0  # exactly, without round-off
        radii.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(radii)


def _check_and_center(real: Tensor, fake: Tensor, k: int, *, sides: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    at_least("k", k, 1, "3 and 5 are common")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must have the same number of features, got {real.shape[1]} and {fake.shape[1]}: "
            "use the same feature extractor"
        )
    for name, features in (("real", real), ("fake", fake)):
        minimum = k + 1 if name in sides else 1
        at_least(f"number of {name} images", len(features), minimum, f"use more images, or k smaller than {k}")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinite ones: check the images")
    # A common shift does not change distances but worsens the cancellation in |a|^2 - 2ab + |b|^2.
    center = real.mean(0, dtype=torch.float64).to(real.dtype)
    return real - center, fake.to(real) - center


def _round_off_bound(real: Tensor, fake: Tensor) -> Tensor:
    """Return a bound on the rounding error of squared distances, to recognize points on the surface of a ball."""
    largest = torch.stack([points.square().sum(1).max() for points in (real, fake)]).max()
    return 64 * torch.finfo(real.dtype).eps * largest


def _row_blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, DISTANCES // columns)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _squared_distances(a: Float[Tensor, "a d"], b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    """Return squared distances between all pairs, computed with one matrix product."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True)).clamp_(min=0)
