"""Laws of orders: every rank is used, and consecutive patches are neighbors where an order promises it."""

import inspect
from itertools import pairwise

import pytest
import torch
from noise.laws import grid_name, rebuilt, refusals
from scipy import stats
from torch._subclasses.fake_tensor import FakeTensorMode

from asyncdiff.noise.orders import CenterOut, CustomOrder, Order, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.randomness import RandomSource, per_image, seeded

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
    "custom": CustomOrder([[0]]),
}
every_grid = pytest.mark.parametrize(
    "grid", [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (4, 4), (5, 3), (6, 9)], ids=grid_name
)


def ranks(order: Order, grid: tuple[int, int], batch: int = 1) -> torch.Tensor:
    return order.ranks(RandomSource(batch, grid, seeded(0)))


def trail(order: Order, grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Patches of a one-by-one order, from first to last."""
    found = ranks(order, grid)[0]
    return [tuple((found == k).nonzero()[0].tolist()) for k in range(order.groups(grid))]


@every_grid
@pytest.mark.parametrize("order", ORDERS.values(), ids=ORDERS)
def test_every_rank_is_used(order, grid):
    found = ranks(order, grid, batch=3)
    assert found.shape[0] in (1, 3)
    assert found.shape[1:] == grid
    for image in found:
        assert image.unique().tolist() == list(range(order.groups(grid)))


@every_grid
def test_raster_and_snake_orders(grid):
    rows = ranks(Raster(), grid)
    assert rows.flatten().tolist() == list(range(grid[0] * grid[1]))
    assert torch.equal(ranks(Snake(), grid)[:, ::2], rows[:, ::2])
    assert torch.equal(ranks(Snake(), grid)[:, 1::2], rows[:, 1::2].flip(2))


@every_grid
def test_spirals_visit_neighbors_ring_by_ring(grid):
    """From the upper left corner inwards, or the same way back; the distance from the border never falls."""
    gh, gw = grid
    inwards = trail(Spiral(inward=True), grid)
    assert inwards[0] == (0, 0)
    assert all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in pairwise(inwards))
    border = [min(row, column, gh - 1 - row, gw - 1 - column) for row, column in inwards]
    assert border == sorted(border)
    assert trail(Spiral(), grid) == inwards[::-1]


def test_spirals_turn_clockwise():
    assert ranks(Spiral(inward=True), (3, 4))[0].tolist() == [[0, 1, 2, 3], [9, 10, 11, 4], [8, 7, 6, 5]]


@every_grid
def test_center_out_is_symmetric(grid):
    found = ranks(CenterOut(), grid)
    assert torch.equal(found, found.flip(1))
    assert torch.equal(found, found.flip(2))
    assert (found[:, 0] == CenterOut().groups(grid) - 1).all()  # the border comes last


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


def test_ranks_may_be_changed_and_used_in_training_whatever_was_first():
    """They are computed once per grid; what is first drawn without data, or in inference mode, is not kept as such."""
    order, source = CustomOrder([[1, 0]]), RandomSource(1, (2, 2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        order.ranks(source)
    with torch.inference_mode():
        order.ranks(source)
    first = order.ranks(source)
    assert not first.is_inference()
    first += 1
    assert order.ranks(source).tolist() == [[[1, 0], [1, 0]]]


@pytest.mark.parametrize("order", [*ORDERS.values(), CustomOrder([[3, 1], [0, 3]])], ids=[*ORDERS, "blocks"])
def test_order_of_an_image_depends_only_on_its_seed(order):
    again, grid = rebuilt(order), (4, 6)
    together = order.ranks(RandomSource(3, grid, per_image([1, 2, 3])))
    alone = again.ranks(RandomSource(1, grid, per_image([2])))
    assert torch.equal(together[1:2] if len(together) == 3 else together, alone)
    assert again.groups(grid) == order.groups(grid)


def test_custom_orders_close_gaps_and_repeat_coarse_grids_over_their_blocks():
    order = CustomOrder([[7, 2], [2, 30]])
    assert order.groups((2, 2)) == 3
    assert ranks(order, (2, 2)).tolist() == [[[1, 0], [0, 2]]]
    coarse = CustomOrder([[0, 1]])
    assert ranks(coarse, (2, 6))[0].tolist() == [[0, 0, 0, 1, 1, 1]] * 2
    assert coarse.groups((2, 6)) == 2


@pytest.mark.parametrize("rank", [-1, 1.5, float("nan"), True])
def test_invalid_ranks_are_refused_with_their_position(rank):
    unchecked = inspect.unwrap(CustomOrder.__init__)  # as users run it, without the type checks of the tests
    with pytest.raises(ValueError, match=rf"nonnegative integers, got {rank} in row 1, column 2"):
        unchecked(CustomOrder.__new__(CustomOrder), [[0, 1, 2], [3, 4, rank]])


FOUR = CustomOrder([[0, 1], [2, 3]])
test_invalid_arguments_are_refused = refusals(
    {
        "rows of equal length, got [2, 1]": lambda: CustomOrder([[0, 1], [2]]),
        "rows of equal length, got []": lambda: CustomOrder([]),
        "rows of equal length, got [0, 0]": lambda: CustomOrder([[], []]),
        "grid has 2x2 values, which do not divide the level map of 3x4 patches": lambda: ranks(FOUR, (3, 4)),
        "grid has 2x2 values, which do not divide the level map of 4x3 patches": lambda: ranks(FOUR, (4, 3)),
        "grid has 2x2 values, which do not divide the level map of 1x2 patches": lambda: ranks(FOUR, (1, 2)),
        "together must be at least 1, got 0": lambda: Shuffled(0),
        "row_delay must be at least 1, got 0": lambda: Wavefront(0),
    }
)
