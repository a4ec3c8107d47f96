"""Laws of random fields: every patch is U(-1, 1) in all of them, and only the dependence between patches differs."""

import pytest
import torch
from noise.laws import grid_name, off, p_value, rebuilt, refusals
from scipy import stats
from scipy.special import xlogy

from asyncdiff.noise.fields import BlockwiseField, Field, IndependentField, PerlinField
from asyncdiff.noise.level_samplers import Perlin
from asyncdiff.noise.paths import AsyncPatch
from asyncdiff.randomness import per_image, seeded

N = 20_000
FIELDS = {
    "independent": IndependentField(),
    "blockwise": BlockwiseField(),
    "small blocks": BlockwiseField(max_block=2),
    "huge blocks": BlockwiseField(max_block=50),
    "perlin": PerlinField(),
    "fine perlin": PerlinField(max_cell=2.5),
    "huge perlin": PerlinField(max_cell=40.0),
}
ALL = FIELDS | {"within": PerlinField(within_image=True)}
UNIFORM = stats.uniform(-1, 2).cdf
KS_LEVEL = 1e-4  # smaller p-values fail; with about 100 tests, a correct field fails in 1 of 100 test sets
every_uniform_field = pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
every_field = pytest.mark.parametrize("field", ALL.values(), ids=ALL)
coherent_grids = pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 7)], ids=grid_name)


def draw(field: Field, count: int, grid: tuple[int, int]) -> torch.Tensor:
    return field(count, grid, generator=seeded(0), dtype=torch.float64)


def corners_and_middles(values: torch.Tensor) -> torch.Tensor:
    """Values (n, 4) of two corners, the middle of an edge and the center."""
    gh, gw = values.shape[1:]
    return values[:, [0, gh - 1, 0, gh // 2], [0, gw - 1, gw // 2, gw // 2]]


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7), (1, 1)], ids=grid_name)
@every_uniform_field
def test_every_patch_is_uniform(field, grid):
    assert p_value(corners_and_middles(draw(field, N, grid)), UNIFORM) > KS_LEVEL


def test_ranks_within_the_image_are_not_uniform_at_every_patch():
    """Why ranks are taken on a torus: ranked within the image, extremes lie at the border and the center varies less.

    Variances on 8x8 patches are 0.30 at the center and 0.37 at the corner; on the torus they are 1/3 at both.
    """
    within, torus = (draw(PerlinField(within_image=flag), N // 2, (8, 8)).square() for flag in (True, False))
    assert within[:, 4, 4].mean() < 1 / 3 < within[:, 0, 0].mean()
    for row, column in ((4, 4), (0, 0)):
        assert off(within[:, row, column], 1 / 3) > 8
        assert off(torus[:, row, column], 1 / 3) < 4


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)], ids=grid_name)
def test_ranks_within_the_image_cover_the_range_evenly(grid):
    """One value in each of D equal shares of [-1, 1] in every image; so its mean is 0 to a sd of 1 / (sqrt 3 D^1.5)."""
    patches = grid[0] * grid[1]
    u = draw(PerlinField(within_image=True), N, grid).flatten(1)
    shares = ((u.sort(1).values + 1) / 2 * patches).clamp(max=patches - 1e-9).floor().long()
    assert torch.equal(shares, torch.arange(patches).expand(N, -1))
    assert off(u.mean(1).square(), 1 / (3 * patches**3)) < 4
    assert off(u.mean(1), 0) < 4
    assert p_value(u.flatten(), UNIFORM) > KS_LEVEL  # pooled over the patches


def neighbors(field: Field, grid: tuple[int, int]) -> torch.Tensor:
    """Correlation of neighbors along the middle row, per image; the variance of U(-1, 1) is 1/3."""
    u = draw(field, N // 4, grid)[:, grid[0] // 2]
    return 3 * (u[:, 1:] * u[:, :-1]).mean(1)


@coherent_grids
def test_neighbor_correlation_is_the_probability_of_sharing_a_block(grid):
    """It is the mean of 1 - 1 / side: 0.66 for sides up to 8, and 0 for independent patches, which are blocks of 1."""
    fields = {1: IndependentField(), max(grid): BlockwiseField(), 2: BlockwiseField(2), 50: BlockwiseField(50)}
    for largest, field in fields.items():
        assert off(neighbors(field, grid), 1 - sum(1 / side for side in range(1, largest + 1)) / largest) < 4


@coherent_grids
def test_neighbors_are_correlated_in_perlin_noise(grid):
    """0.67 on 8x8, 0.46 on 3x5; 0.58 and 0.25 if ranked within the image, where ranks repel each other."""
    for field in (PerlinField(), PerlinField(max_cell=40.0), PerlinField(within_image=True)):
        assert neighbors(field, grid).mean() > 0.2


def test_blocks_are_constant_squares():
    """Values change at straight lines across the entire grid, one block's side apart in both directions."""
    u = draw(BlockwiseField(max_block=4), 2000, (24, 24))
    lines = torch.cat([u, u.mT])
    changes = lines[:, 1:] != lines[:, :-1]
    assert torch.equal(changes.any(2), changes.all(2))
    image, place = changes.any(2).nonzero().T
    same = image.diff() == 0
    gaps, image = place.diff()[same], image[1:][same] % len(u)
    side, largest = (
        torch.zeros(2000).long().scatter_reduce(0, image, gaps, kind, include_self=False) for kind in ("amin", "amax")
    )
    assert torch.equal(side, largest)
    assert stats.chisquare(side.bincount(minlength=5)[1:]).pvalue > KS_LEVEL  # sides are uniform, too


def test_offsets_of_blocks_are_uniform():
    """An edge of a block runs between any two columns with the same probability, the mean of 1 / side."""
    u = draw(BlockwiseField(max_block=5), N, (1, 6))
    assert off(u[:, 0, 1:] != u[:, 0, :-1], sum(1 / side for side in range(1, 6)) / 5) < 4


@every_field
def test_fields_are_symmetric_under_reflection(field):
    """Neither rows nor columns nor directions are special: u_a u_b has the same mean when the grid is turned."""
    u = draw(field, N, (3, 3))
    right, left, up = (u[:, 1, 1] * other for other in (u[:, 1, 2], u[:, 1, 0], u[:, 0, 1]))
    assert off(torch.stack([right - left, right - up], 1), 0) < 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@every_field
def test_fields_lie_in_their_range_and_depend_only_on_the_seed_of_the_image(field, dtype):
    u = field(4000, (5, 5), generator=seeded(1), dtype=dtype)
    assert u.dtype == dtype
    assert u.abs().max() <= 1
    together = field(4, (3, 5), generator=per_image([5, 6, 7, 8]), dtype=dtype)
    assert torch.equal(together[2:3], rebuilt(field)(1, (3, 5), generator=per_image([7]), dtype=dtype))
    assert not torch.equal(together[0], together[1])


# As the field of AsyncPatch


def cdf(t):
    """F(t) = t + ((1 - t) ln(1 - t) - t ln t) / 2, the marginal of one patch of AsyncPatch at uniform progress."""
    return t + 0.5 * (xlogy(1 - t, 1 - t) - xlogy(t, t))


@every_uniform_field
def test_the_marginal_of_async_patch_does_not_depend_on_the_field(field):
    s = torch.rand(N, generator=seeded(1), dtype=torch.float64)
    t = AsyncPatch(field=field).draw(N, (3, 5), generator=seeded(2), dtype=torch.float64)(s)[0]
    assert p_value(corners_and_middles(t), cdf) > KS_LEVEL
    assert off(corners_and_middles(t), 0.5) < 4


SPREADS = {
    "async": (AsyncPatch(), 1, 1),
    "async 0.3": (AsyncPatch(spread=0.3), 0.3, 1),
    "perlin": (Perlin().path, 1, 3),
    "perlin 0.4": (Perlin(0.4).path, 0.4, 3),
}


@pytest.mark.parametrize("s", [0.2, 0.5, 0.7])
@pytest.mark.parametrize(("path", "spread", "power"), SPREADS.values(), ids=SPREADS)
def test_spread_within_an_image(path, spread, power, s):
    """With m = spread min(s, 1 - s), the sd of the patches is m / sqrt 3.

    The sd of their mean is m / sqrt(3 D) if they are independent, m / (sqrt 3 D^1.5) if ranked within the image.
    """
    m, patches = spread * min(s, 1 - s), 16
    curve = path.draw(N, (4, 4), generator=seeded(3), dtype=torch.float64)
    t = curve(torch.full((N,), s, dtype=torch.float64))[0] - s
    assert off(t.square().mean((1, 2)), m**2 / 3) < 4
    assert off(t.mean((1, 2)).square(), m**2 / (3 * patches**power)) < 4


test_sizes_below_one_patch_are_refused = refusals(
    {
        "max_block must be at least 1, got 0": lambda: BlockwiseField(0),
        "max_cell must be at least 1, got 0": lambda: PerlinField(0),
    }
)
