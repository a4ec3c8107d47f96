"""Laws of random fields: every patch is U(-1, 1) in all of them, and only the dependence between patches differs."""

import math

import pytest
import torch
from scipy import stats
from scipy.special import xlogy

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.fields import BlockwiseField, Field, IndependentField, PerlinField
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
GRIDS = [(4, 4), (3, 5), (1, 7), (1, 1)]
KS_LEVEL = 1e-4  # smaller p-values fail; with about 100 tests, a correct field fails in 1 of 100 test sets


def draw(field: Field, count: int, grid: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return field(count, grid, generator=seeded(seed), dtype=torch.float64)


def positions(grid: tuple[int, int]) -> set[tuple[int, int]]:
    """Two corners, the middle of an edge and the center."""
    gh, gw = grid
    return {(0, 0), (gh - 1, gw - 1), (0, gw // 2), (gh // 2, gw // 2)}


def p_value(values: torch.Tensor, low: float = -1, high: float = 1) -> float:
    """p-value of the Kolmogorov-Smirnov test that `values` come from U(low, high)."""
    return stats.kstest(values.flatten().numpy(), stats.uniform(low, high - low).cdf).pvalue


def off(values: torch.Tensor, expected: float) -> float:
    """Distance of the mean of `values` (n,) from its expectation, in standard errors."""
    return abs(values.mean().item() - expected) / (values.std().item() / math.sqrt(len(values)))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_every_patch_is_uniform(field, grid):
    u = draw(field, N, grid)
    for row, column in positions(grid):
        assert p_value(u[:, row, column]) > KS_LEVEL, (row, column)


def test_ranks_within_the_image_are_not_uniform_at_every_patch():
    """Why ranks are taken on a torus: ranked within the image, extremes lie at the border and the center varies less.

    Variances on 8x8 patches are 0.30 at the center and 0.37 at the corner; on the torus they are 1/3 at both.
    """
    within, torus = (draw(PerlinField(within_image=flag), N // 2, (8, 8)).square() for flag in (True, False))
    assert within[:, 4, 4].mean() < 1 / 3 < within[:, 0, 0].mean()
    for row, column in ((4, 4), (0, 0)):
        assert off(within[:, row, column], 1 / 3) > 8
        assert off(torus[:, row, column], 1 / 3) < 4


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 7)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_ranks_within_the_image_cover_the_range_evenly(grid):
    """One value in each of D equal shares of [-1, 1] in every image; so its mean is 0 to a sd of 1 / (sqrt 3 D^1.5)."""
    patches = grid[0] * grid[1]
    u = draw(PerlinField(within_image=True), N, grid).flatten(1)
    shares = ((u.sort(1).values + 1) / 2 * patches).clamp(max=patches - 1e-9).floor().long()
    assert torch.equal(shares, torch.arange(patches).expand(N, -1))
    assert off(u.mean(1).square(), 1 / (3 * patches**3)) < 4
    assert off(u.mean(1), 0) < 4
    assert p_value(u) > KS_LEVEL  # pooled over the patches


def neighbors(field: Field, grid: tuple[int, int]) -> torch.Tensor:
    """Correlation of neighbors along the middle row, per image; the variance of U(-1, 1) is 1/3."""
    u = draw(field, N // 4, grid)[:, grid[0] // 2]
    return 3 * (u[:, 1:] * u[:, :-1]).mean(1)


COHERENT_GRIDS = pytest.mark.parametrize("grid", [(8, 8), (3, 5), (1, 7)], ids=lambda g: f"{g[0]}x{g[1]}")


@COHERENT_GRIDS
def test_independent_neighbors_are_uncorrelated(grid):
    assert off(neighbors(IndependentField(), grid), 0) < 4


@COHERENT_GRIDS
def test_neighbor_correlation_is_the_probability_of_sharing_a_block(grid):
    """Correlation = probability of lying in one block = mean of 1 - 1 / side: 0.66 for sides up to 8."""
    for field, largest in ((BlockwiseField(), max(grid)), (BlockwiseField(2), 2), (BlockwiseField(50), 50)):
        assert off(neighbors(field, grid), 1 - sum(1 / side for side in range(1, largest + 1)) / largest) < 4


@COHERENT_GRIDS
def test_neighbors_are_correlated_in_perlin_noise(grid):
    """0.67 on 8x8, 0.46 on 3x5; 0.58 and 0.25 if ranked within the image, where ranks repel each other."""
    for field in (PerlinField(), PerlinField(max_cell=40.0), PerlinField(within_image=True)):
        assert neighbors(field, grid).mean() > 0.2


def test_blocks_are_constant_squares():
    """Values change at straight lines across the entire grid, one block's side apart in both directions."""
    u = draw(BlockwiseField(max_block=4), 2000, (24, 24))
    sides = []
    for image in u:
        gaps = []
        for lines in (image, image.T):
            changes = lines[1:] != lines[:-1]
            assert torch.equal(changes.any(1), changes.all(1))
            gaps += changes.any(1).nonzero()[:, 0].diff().unique().tolist()
        assert len(set(gaps)) == 1
        sides.append(gaps[0])
    assert stats.chisquare([sides.count(k) for k in (1, 2, 3, 4)]).pvalue > KS_LEVEL  # sides are uniform, too


def test_offsets_of_blocks_are_uniform():
    """An edge of a block runs between any two columns with the same probability, the mean of 1 / side."""
    u = draw(BlockwiseField(max_block=5), N, (1, 6))
    edge = (u[:, 0, 1:] != u[:, 0, :-1]).double()
    for k in range(5):
        assert off(edge[:, k], sum(1 / b for b in range(1, 6)) / 5) < 4


@pytest.mark.parametrize("field", ALL.values(), ids=ALL)
def test_fields_are_symmetric_under_reflection(field):
    """Neither rows nor columns nor directions are special: u_a u_b has the same mean when the grid is turned."""
    u = draw(field, N, (3, 3))
    pairs = {"right": u[:, 1, 1] * u[:, 1, 2], "left": u[:, 1, 1] * u[:, 1, 0], "up": u[:, 1, 1] * u[:, 0, 1]}
    for name in ("left", "up"):
        assert off(pairs["right"] - pairs[name], 0) < 4, name


@pytest.mark.parametrize("field", ALL.values(), ids=ALL)
def test_field_of_an_image_depends_only_on_its_seed(field):
    together = field(4, (3, 5), generator=per_image([5, 6, 7, 8]))
    alone = field(1, (3, 5), generator=per_image([7]))
    assert torch.equal(together[2:3], alone)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("field", ALL.values(), ids=ALL)
def test_values_lie_between_minus_one_and_one(field):
    for dtype in (torch.float32, torch.float64):
        u = field(4000, (5, 5), generator=seeded(1), dtype=dtype)
        assert u.dtype == dtype
        assert u.abs().max() <= 1


@pytest.mark.parametrize("field", ALL.values(), ids=ALL)
def test_a_rebuilt_object_draws_the_same_fields(field):
    again = object_config.build(object_config.describe(field))
    assert torch.equal(draw(again, 8, (4, 6)), draw(field, 8, (4, 6)))


# As the field of AsyncPatch


def cdf(t):
    """F(t) = t + ((1 - t) ln(1 - t) - t ln t) / 2, the marginal of one patch of AsyncPatch at uniform progress."""
    return t + 0.5 * (xlogy(1 - t, 1 - t) - xlogy(t, t))


@pytest.mark.parametrize("field", FIELDS.values(), ids=FIELDS)
def test_the_marginal_of_async_patch_does_not_depend_on_the_field(field):
    s = torch.rand(N, generator=seeded(1), dtype=torch.float64)
    t = AsyncPatch(field=field).draw(N, (3, 5), generator=seeded(2), dtype=torch.float64)(s)[0]
    for row, column in positions((3, 5)):
        assert stats.kstest(t[:, row, column].numpy(), cdf).pvalue > KS_LEVEL
        assert off(t[:, row, column], 0.5) < 4


@pytest.mark.parametrize("s", [0.2, 0.5, 0.7])
def test_spread_within_an_image(s):
    """sd m(s) / sqrt 3 of the patches; of the mean m(s) / sqrt(3 D) if independent, m(s) / (sqrt 3 D^1.5) if ranked."""
    m, patches, progress = min(s, 1 - s), 16, torch.full((N,), s, dtype=torch.float64)
    for field, power in ((IndependentField(), 1), (PerlinField(within_image=True), 3)):
        t = AsyncPatch(field=field).draw(N, (4, 4), generator=seeded(3), dtype=torch.float64)(progress)[0] - s
        assert off(t.square().mean((1, 2)), m**2 / 3) < 4
        assert off(t.mean((1, 2)).square(), m**2 / (3 * patches**power)) < 4


@pytest.mark.parametrize("kind", [BlockwiseField, PerlinField])
def test_sizes_below_one_patch_are_refused(kind):
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        kind(0)
