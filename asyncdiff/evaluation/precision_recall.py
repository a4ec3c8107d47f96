"""Precision, recall, density and coverage of one set of features with respect to another: fidelity and diversity."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least

Rows = Float[Tensor, "n d"]
OtherRows = Float[Tensor, "m e"]

DISTANCES = 1 << 25  # distances in memory at a time: 268 MB of float64, for any number of rows


class PrecisionRecall(NamedTuple):
    """Share of generated rows on the real manifold, and of real rows on the generated one, in [0, 1]."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, about 1 for equal distributions but not bounded by 1, and coverage in [0, 1]."""

    density: float
    coverage: float


@torch.no_grad()
def precision_recall(real: Rows, fake: OtherRows, *, k: int = 3) -> PrecisionRecall:
    """Return improved precision and recall (Kynkäänniemi et al., arXiv:1904.06991): fidelity and diversity.

    The manifold of a set is the union of closed balls around its rows; the radius of a ball is the distance to the
    row's k-th nearest neighbor within the set. Precision is the share of `fake` inside the manifold of `real`, recall
    vice versa. Both depend on the numbers of rows: compare only results with equal numbers. A single outlier creates a
    large ball; `density_coverage` is robust to this.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: number of the neighbor that defines the radius of a ball.

    Returns:
        Precision and recall.

    Raises:
        ValueError: a side has at most k rows, or the numbers of features differ.
    """
    real, fake = _checked(real, fake, k, sides=("real", "fake"))
    slack = _round_off(real, fake)
    real_radii, fake_radii = radii(real, k) + slack, radii(fake, k) + slack
    inside_real, inside_fake = [], torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in _blocks(len(fake), len(real)):
        distances = _squared(fake[rows], real)
        inside_real.append((distances <= real_radii).any(1))
        inside_fake |= (distances <= fake_radii[rows, None]).any(0)
    return PrecisionRecall(torch.cat(inside_real).double().mean().item(), inside_fake.double().mean().item())


@torch.no_grad()
def density_coverage(real: Rows, fake: OtherRows, *, k: int = 5) -> DensityCoverage:
    """Return density and coverage (Naeem et al., arXiv:2002.09797): fidelity and diversity, robust to outliers.

    There are balls around real rows only, with the distance to the row's k-th nearest real neighbor as radius. They are
    open, so that the density of equal sets is exactly 1. Density is the mean number of balls that contain a generated
    row, divided by k; coverage is the share of balls that contain a generated row. For n real and m generated samples
    of one distribution, the expected coverage is 1 - (n-1)...(n-k) / ((m+n-1)...(m+n-k)), 0.97 for k = 5 and n = m.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: number of the neighbor that defines the radius of a ball.

    Returns:
        Density and coverage.

    Raises:
        ValueError: `real` has at most k rows, `fake` has none, or the numbers of features differ.
    """
    real, fake = _checked(real, fake, k, sides=("real",))
    real_radii, within = radii(real, k) - _round_off(real, fake), 0
    covered = torch.zeros(len(real), dtype=torch.bool, device=real.device)
    for rows in _blocks(len(fake), len(real)):
        inside = _squared(fake[rows], real) < real_radii
        within += int(inside.sum())
        covered |= inside.any(0)
    return DensityCoverage(within / (k * len(fake)), covered.double().mean().item())


def expected_coverage(real: int, fake: int, k: int = 5) -> float:
    """Return the expected coverage, in [0, 1], of two samples of one distribution (arXiv:2002.09797, Lemma 2)."""
    return 1 - math.prod((real - i) / (fake + real - i) for i in range(1, k + 1))


def radii(rows: Rows, k: int) -> Float[Tensor, " n"]:
    """Return the squared distance of every row from its k-th nearest neighbor among the others."""
    squared_radii = []
    for block in _blocks(len(rows), len(rows)):
        distances = _squared(rows[block], rows)
        distances[torch.arange(len(distances)), torch.arange(len(rows))[block]] = 0  # exactly, without round-off
        squared_radii.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(squared_radii)


def _checked(real: Tensor, fake: Tensor, k: int, *, sides: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    at_least("k", k, 1, "3 and 5 are common")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(
            f"real and fake must have rows of one length, got {real.shape[1]} and {fake.shape[1]}: "
            "use the same features"
        )
    for name, rows in (("real", real), ("fake", fake)):
        least = k + 1 if name in sides else 1
        at_least(name, len(rows), least, f"rows, for {k} neighbors of each: use more images or a smaller k")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity: check the images")
    # A common shift does not change distances but worsens the cancellation in |a|^2 - 2ab + |b|^2.
    center = real.mean(0, dtype=torch.float64).to(real.dtype)
    return real - center, (fake.to(real) - center)


def _round_off(real: Tensor, fake: Tensor) -> Tensor:
    """Return the possible error of a squared distance, so that rows on the surface of a ball are counted as such."""
    largest = torch.stack([rows.square().sum(1).max() for rows in (real, fake)]).max()
    return 64 * torch.finfo(real.dtype).eps * largest


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, DISTANCES // columns)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _squared(a: Float[Tensor, "a d"], b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    """Return squared distances, computed by one matrix product."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True)).clamp_(min=0)
