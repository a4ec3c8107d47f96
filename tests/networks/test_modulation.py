"""The fused modulation against plain autograd."""

import pytest
import torch

from asyncdiff.networks.modulation import IndexedVectors, add_gated, modulate
from asyncdiff.randomness import seeded


def rows(dim: int = 6, levels: int = 5, label: bool = True) -> tuple[IndexedVectors, list[torch.Tensor]]:
    """Vectors for 3 images of 8 tokens, and the leaves that they are computed from."""
    table = torch.randn(levels, dim, generator=seeded(1), dtype=torch.float64, requires_grad=True)
    by_image = torch.randn(3, dim, generator=seeded(2), dtype=torch.float64, requires_grad=True) if label else None
    index = torch.randint(levels, (3, 8), generator=seeded(3))
    return IndexedVectors(table, index, by_image), [table] + ([by_image] if label else [])


def tokens(seed: int = 0) -> torch.Tensor:
    return torch.randn(3, 8, 6, generator=seeded(seed), dtype=torch.float64, requires_grad=True)


def naive(row: IndexedVectors) -> torch.Tensor:
    vectors = row.table[row.index]
    return vectors if row.label is None else vectors + row.label[:, None]


@pytest.mark.parametrize("label", [True, False])
def test_fused_gather_matches_the_naive_one(label):
    """Values and gradients of every input, against gathering with plain autograd."""
    x, change = tokens(), tokens(9)
    shift, leaves = rows(label=label)
    scale = IndexedVectors(shift.table.detach() * 2 + 1, shift.index, shift.label)
    scale.table.requires_grad_()
    leaves = [x, change, *leaves, scale.table]
    fused = add_gated(x, shift, modulate(x, shift, scale) + change)
    plain = x + naive(shift) * (x * (1 + naive(scale)) + naive(shift) + change)
    assert torch.allclose(fused, plain, rtol=0, atol=1e-13)
    weight = torch.randn(plain.shape, generator=seeded(4), dtype=torch.float64)
    gradients = (torch.autograd.grad((value * weight).sum(), leaves) for value in (fused, plain))
    assert all(torch.allclose(got, expected, rtol=0, atol=1e-12) for got, expected in zip(*gradients, strict=True))


def test_numerical_gradients():
    (shift, leaves), x = rows(), tokens()

    def run(x, table, label):
        row = IndexedVectors(table, shift.index, label)
        return add_gated(x, row, modulate(x, row, row))

    assert torch.autograd.gradcheck(run, (x, *leaves))
