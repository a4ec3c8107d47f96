"""How much of one set of features lies on the manifold of the other, by balls around every row: quality and variety."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least

Rows = Float[Tensor, "n d"]
OtherRows = Float[Tensor, "m e"]

DISTANCES = 1 << 25  # held at a time: 268 MB of float64, whatever the number of rows


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: generated rows on the real manifold, and real rows on the generated one."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density, about 1 for equal distributions and not bounded by it, and coverage in [0, 1]."""

    density: float
    coverage: float


@torch.no_grad()
def precision_recall(real: Rows, fake: OtherRows, *, k: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al., arXiv:1904.06991): realism and variety.

    The manifold of a set is the union of closed balls around its rows, each as large as the distance to the row's k-th
    nearest neighbour within the set. Precision is the share of `fake` inside the manifold of `real`, recall the other
    way round. Both depend on the numbers of rows: compare only results of equal ones. One outlier among the rows makes
    a large ball, which `density_coverage` does not suffer from.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: neighbours that a ball reaches over.

    Raises:
        ValueError: a side has not more than k rows, or the widths differ.
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
    """Density and coverage (Naeem et al., arXiv:2002.09797): realism and variety, robust to outliers.

    Balls stand around real rows only, as large as the distance to the row's k-th nearest real neighbour, and open:
    of equal sets the density is exactly 1. Density is the mean number of balls that a generated row lies in, over k;
    coverage the share of balls that hold a generated row. Of two samples of one distribution with n and m rows coverage
    is 1 - (n-1)...(n-k) / ((m+n-1)...(m+n-k)), 0.97 for k = 5 and n = m.

    Args:
        real: features of real images, (n, d).
        fake: features of generated images, (m, d).
        k: neighbours that a ball reaches over.

    Raises:
        ValueError: `real` has not more than k rows, `fake` none, or the widths differ.
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
    """The coverage that samples of one and the same distribution have (arXiv:2002.09797, Lemma 2), in [0, 1]."""
    return 1 - math.prod((real - i) / (fake + real - i) for i in range(1, k + 1))


def radii(rows: Rows, k: int) -> Float[Tensor, " n"]:
    """Squared distance of every row from its k-th nearest neighbour among the others."""
    found = []
    for block in _blocks(len(rows), len(rows)):
        distances = _squared(rows[block], rows)
        distances[torch.arange(len(distances)), torch.arange(len(rows))[block]] = 0  # not a rounding error above it
        found.append(distances.kthvalue(k + 1, dim=1).values)
    return torch.cat(found)


def _checked(real: Tensor, fake: Tensor, k: int, *, sides: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    at_least("k", k, 1, "3 and 5 are usual")
    if real.shape[1] != fake.shape[1]:
        raise ValueError(f"real and fake must have rows of one length, got {real.shape[1]} and {fake.shape[1]}")
    for name, rows in (("real", real), ("fake", fake)):
        least = k + 1 if name in sides else 1
        at_least(name, len(rows), least, f"rows, for {k} neighbours of each: use more images or a smaller k")
    if not (real.isfinite().all() and fake.isfinite().all()):
        raise ValueError("features must be finite, got NaN or infinity: check the images")
    # Distances do not see a common shift, but the cancellation in |a|^2 - 2ab + |b|^2 does.
    centre = real.mean(0, dtype=torch.float64).to(real.dtype)
    return real - centre, (fake.to(real) - centre)


def _round_off(real: Tensor, fake: Tensor) -> Tensor:
    """How far a squared distance may be off: what lies on the surface of a ball is to count as being there."""
    largest = torch.stack([rows.square().sum(1).max() for rows in (real, fake)]).max()
    return 64 * torch.finfo(real.dtype).eps * largest


def _blocks(rows: int, columns: int) -> Iterator[slice]:
    size = max(1, DISTANCES // columns)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def _squared(a: Float[Tensor, "a d"], b: Float[Tensor, "b d"]) -> Float[Tensor, "a b"]:
    """Squared distances, by one product of matrices."""
    return torch.addmm(b.square().sum(1), a, b.T, alpha=-2).add_(a.square().sum(1, keepdim=True)).clamp_(min=0)
