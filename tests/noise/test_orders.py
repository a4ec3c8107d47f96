"""Laws of orders: every rank is used, and consecutive patches are neighbors where an order promises it."""

import inspect
import re
from itertools import pairwise

import pytest
import torch
from scipy import stats

from asyncdiff.checkpoints import object_config
from asyncdiff.noise.orders import CenterOut, CustomOrder, Order, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.randomness import RandomSource, per_image, seeded

GRIDS = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (4, 4), (5, 3), (6, 9)]
ORDERS = {
    "raster": Raster(),
    "snake": Snake(),
    "spiral": Spiral(),
    "inward": Spiral(inward=True),
    "center": CenterOut(),
    "wavefront": Wavefront(),
    "delayed": Wavefront(row_delay=2),
    "far delayed": Wavefront(row_delay=100),
    "shuffled": Shuffled(),
    "threes": Shuffled(together=3),
    "all at once": Shuffled(together=1000),
}
every_grid = pytest.mark.parametrize("grid", GRIDS, ids=lambda g: f"{g[0]}x{g[1]}")
every_order = pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)


def ranks(order: Order, grid: tuple[int, int], batch: int = 1) -> torch.Tensor:
    return order.ranks(RandomSource(batch, grid, seeded(0)))


def trail(order: Order, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Patches of a one-by-one order, from first to last."""
    found = ranks(order, grid)[0]
    return [tuple((found == k).nonzero()[0].tolist()) for k in range(order.groups(grid))]


@every_grid
@every_order
def test_every_rank_is_used(order, grid):
    found = ranks(order, grid, batch=3)
    assert found.shape[0] in (1, 3)
    assert found.shape[1:] == grid
    for image in found:
        assert image.unique().tolist() == list(range(order.groups(grid)))


@every_grid
@pytest.mark.parametrize("order", [Snake(), Spiral(), Spiral(inward=True)], ids=["snake", "spiral", "inward"])
def test_consecutive_patches_are_neighbors(order, grid):
    steps = trail(order, grid)
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(steps))


@every_grid
def test_outward_spiral_is_the_reversed_inward_spiral(grid):
    outwards, inwards = trail(Spiral(), grid), trail(Spiral(inward=True), grid)
    assert outwards == inwards[::-1]
    assert inwards[0] == (0, 0)


@every_grid
def test_spirals_finish_ring_by_ring(grid):
    """The distance from the border never falls on the way in."""
    gh, gw = grid
    border = [min(row, column, gh - 1 - row, gw - 1 - column) for row, column in trail(Spiral(inward=True), grid)]
    assert border == sorted(border)


def test_spiral_of_3x4():
    assert ranks(Spiral(inward=True), (3, 4))[0].tolist() == [[0, 1, 2, 3], [9, 10, 11, 4], [8, 7, 6, 5]]


@every_grid
def test_center_out_is_symmetric(grid):
    found = ranks(CenterOut(), grid)
    assert torch.equal(found, found.flip(1))
    assert torch.equal(found, found.flip(2))
    assert (found[:, 0] == CenterOut().groups(grid) - 1).all()  # the border comes last


@every_grid
def test_raster_and_snake_orders(grid):
    gh, gw = grid
    assert ranks(Raster(), grid).flatten().tolist() == list(range(gh * gw))
    assert torch.equal(ranks(Snake(), grid)[:, ::2], ranks(Raster(), grid)[:, ::2])
    assert torch.equal(ranks(Snake(), grid)[:, 1::2], ranks(Raster(), grid)[:, 1::2].flip(2))


@every_grid
def test_wavefront_delayed_by_a_row_is_raster_order(grid):
    assert torch.equal(ranks(Wavefront(row_delay=grid[1]), grid), ranks(Raster(), grid))
    diagonal = torch.arange(grid[0])[:, None] + torch.arange(grid[1])
    assert torch.equal(ranks(Wavefront(), grid)[0], diagonal)


def test_shuffled_is_uniform_and_differs_between_images():
    """Chi-square on the rank of a corner and on the pair of ranks of two patches, 24,000 images of 2x3 patches."""
    found = ranks(Shuffled(), (2, 3), batch=24_000).flatten(1)
    pairs = (6 * found[:, 1] + found[:, 5]).bincount(minlength=36).reshape(6, 6)
    assert (pairs.diagonal() == 0).all()
    assert stats.chisquare(found[:, 0].bincount(minlength=6)).pvalue > 1e-3
    assert stats.chisquare(pairs[~torch.eye(6, dtype=torch.bool)]).pvalue > 1e-3


def test_all_groups_of_a_shuffled_order_except_the_last_are_full():
    for image in ranks(Shuffled(together=4), (3, 5), batch=5):
        assert image.flatten().bincount().tolist() == [4, 4, 4, 3]


def test_order_of_an_image_depends_only_on_its_seed():
    together = Shuffled().ranks(RandomSource(3, (4, 4), per_image([1, 2, 3])))
    assert torch.equal(together[1:2], Shuffled().ranks(RandomSource(1, (4, 4), per_image([2]))))


def test_gaps_of_a_custom_order_are_closed():
    order = CustomOrder([[7, 2], [2, 30]])
    assert order.groups((2, 2)) == 3
    assert ranks(order, (2, 2)).tolist() == [[[1, 0], [0, 2]]]


def test_a_coarse_custom_order_is_repeated_over_its_blocks():
    order = CustomOrder([[0, 1]])
    assert ranks(order, (2, 6))[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert order.groups((2, 6)) == 2


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (1, 2)], ids=lambda g: f"{g[0]}x{g[1]}")
def test_a_custom_order_that_does_not_divide_the_grid_is_refused(grid):
    with pytest.raises(
        ValueError, match=rf"grid has 2x2 values, which do not divide the level map of {grid[0]}x{grid[1]} patches"
    ):
        ranks(CustomOrder([[0, 1], [2, 3]]), grid)


@pytest.mark.parametrize("rank", [-1, 1.5, float("nan"), True])
def test_invalid_ranks_are_refused_with_their_position(rank):
    unchecked = inspect.unwrap(CustomOrder.__init__)  # as users run it, without the type checks of the tests
    with pytest.raises(ValueError, match=rf"nonnegative integers, got {rank} in row 1, column 2"):
        unchecked(CustomOrder.__new__(CustomOrder), [[0, 1, 2], [3, 4, rank]])


@pytest.mark.parametrize(("grid", "lengths"), [([[0, 1], [2]], "[2, 1]"), ([], "[]"), ([[], []], "[0, 0]")])
def test_ragged_orders_are_refused(grid, lengths):
    with pytest.raises(ValueError, match=re.escape(f"rows of equal length, got {lengths}")):
        CustomOrder(grid)


@pytest.mark.parametrize(("make", "name"), [(lambda: Shuffled(0), "together"), (lambda: Wavefront(0), "row_delay")])
def test_sizes_below_one_are_refused(make, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        make()


@pytest.mark.parametrize("order", [*ORDERS.values(), CustomOrder([[3, 1], [0, 3]])], ids=[*ORDERS, "given"])
def test_a_rebuilt_object_gives_the_same_order(order):
    again = object_config.build(object_config.describe(order))
    assert torch.equal(ranks(again, (4, 6), batch=2), ranks(order, (4, 6), batch=2))
    assert again.groups((4, 6)) == order.groups((4, 6))
