"""Generation orders of patches, given by ranks: rank 0 is generated first, equal ranks together.

`noise.paths.Ordered` turns an order into a noise path.
"""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least, finite
from asyncdiff.devices import constant
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import upsampled_to

Ranks = Int64[Tensor, "b gh gw"]  # b is 1 if all images have the same order


class Order(ABC):
    """Rule that assigns every patch of a grid a rank in 0 .. groups - 1; every rank is used at least once.

    Examples:
        >>> Spiral().ranks(RandomSource(1, (3, 3)))[0]
        tensor([[8, 7, 6],
                [1, 0, 5],
                [2, 3, 4]])
    """

    @abstractmethod
    def ranks(self, source: RandomSource) -> Ranks:
        """Return the rank of every patch; a single map for all images unless the order is random."""

    @abstractmethod
    def groups(self, grid: tuple[int, int]) -> int:
        """Return the number of ranks on a grid of (gh, gw)."""


class FixedOrder(Order):
    """Order that is the same for all images. Subclasses define `ranks_on` and `groups`."""

    @abstractmethod
    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        """Return the rank of every patch of a grid, (1, gh, gw) on the CPU; computed once per grid."""

    def ranks(self, source: RandomSource) -> Ranks:
        return _fixed_ranks(self, tuple(source.grid), source.device).clone()  # callers may change it


@constant
def _fixed_ranks(order: FixedOrder, grid: tuple[int, int], device: torch.device) -> Ranks:
    return order.ranks_on(grid).to(device)


class Raster(FixedOrder):
    """Raster order: row by row from the top, each from left to right, one patch at a time."""

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        rows, columns = _rows_and_columns(grid)
        return (rows * grid[1] + columns)[None]

    def groups(self, grid: tuple[int, int]) -> int:
        return grid[0] * grid[1]


class Snake(Raster):
    """Snake order: row by row from the top, alternately from left and right, so that neighbors follow each other."""

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        rows, columns = _rows_and_columns(grid)
        width = grid[1]
        return (rows * width + torch.where(rows % 2 == 0, columns, width - 1 - columns))[None]


class Spiral(Raster):
    """Spiral order from the center outwards, or from the upper left corner inwards, one patch at a time.

    Args:
        inward: whether to start at the corner.
    """

    def __init__(self, inward: bool = False):
        self.inward = inward

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        gh, gw = grid
        rows, columns = _rows_and_columns(grid)
        ring = _ring(grid)
        height, width = gh - 2 * ring, gw - 2 * ring  # of the rectangle inside the outer rings
        row, column = rows - ring, columns - ring
        top, right = row == 0, column == width - 1
        bottom = row == height - 1
        down, along = width - 1 + row, width + height - 2 + (width - 1 - column)
        up = 2 * width + height - 3 + (height - 1 - row)
        turn = torch.where(top, column, torch.where(right, down, torch.where(bottom, along, up)))
        inwards = gh * gw - height * width + turn
        return (inwards if self.inward else gh * gw - 1 - inwards)[None]


class CenterOut(FixedOrder):
    """Order of square rings from the center outwards; the patches of a ring move together."""

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        return (self.groups(grid) - 1 - _ring(grid))[None]

    def groups(self, grid: tuple[int, int]) -> int:
        return (min(grid) + 1) // 2


class Wavefront(FixedOrder):
    """Wavefront order from the upper left corner: rank = column + row_delay * row, so rows lag behind the row above.

    Args:
        row_delay: number of patches by which a row lags, at least 1. 1 gives anti-diagonals; the number of columns
            (or more) gives raster order.
    """

    def __init__(self, row_delay: int = 1):
        at_least("row_delay", row_delay, 1, "use 1 for anti-diagonals")
        self.row_delay = row_delay

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        rows, columns = _rows_and_columns(grid)
        return (columns + min(self.row_delay, grid[1]) * rows)[None]

    def groups(self, grid: tuple[int, int]) -> int:
        return grid[1] + min(self.row_delay, grid[1]) * (grid[0] - 1)


class Shuffled(Order):
    """Random order, different for every image.

    Args:
        together: number of patches that share a rank, at least 1; the last group may be smaller.
    """

    def __init__(self, together: int = 1):
        at_least("together", together, 1, "use 1 for one patch at a time")
        self.together = together

    def ranks(self, source: RandomSource) -> Ranks:
        return (source.uniform(source.grid[0] * source.grid[1]).argsort(1) // self.together).reshape(-1, *source.grid)

    def groups(self, grid: tuple[int, int]) -> int:
        return -(-grid[0] * grid[1] // self.together)


class CustomOrder(FixedOrder):
    """Order given as a grid of ranks.

    Args:
        grid: rows of nonnegative integers: lower ones are generated first, equal ones together; gaps are skipped.
            Each entry of a grid that is coarser than the level map applies to a block of patches.

    Examples:
        >>> CustomOrder([[0, 5], [5, 9]]).ranks(RandomSource(1, (2, 4)))[0]
        tensor([[0, 0, 1, 1],
                [1, 1, 2, 2]])
    """

    def __init__(self, grid: Sequence[Sequence[int]]):
        widths = {len(row) for row in grid}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(
                f"grid must have rows of equal length, got {[len(row) for row in grid]}: pad the short rows"
            )
        for i, row in enumerate(grid):
            for j, rank in enumerate(row):
                if isinstance(rank, bool) or not float(rank).is_integer() or rank < 0:
                    raise ValueError(
                        f"grid must contain nonnegative integers, got {rank} in row {i}, column {j}: use 0 for the "
                        "patches to generate first"
                    )
                finite(f"grid (row {i}, column {j})", int(rank), "number the patches from 0")
        self.grid = [[int(rank) for rank in row] for row in grid]
        self._unique, self._ranks = torch.tensor(self.grid).unique(return_inverse=True)

    def ranks_on(self, grid: tuple[int, int]) -> Ranks:
        return upsampled_to(self._ranks[None], grid, "grid")

    def groups(self, grid: tuple[int, int]) -> int:
        return len(self._unique)


def _rows_and_columns(grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every patch, (gh, gw) each."""
    gh, gw = grid
    rows, columns = torch.arange(gh, device="cpu"), torch.arange(gw, device="cpu")
    return rows[:, None].expand(gh, gw), columns[None, :].expand(gh, gw)


def _ring(grid: tuple[int, int]) -> Tensor:
    """Return the number of square rings of patches around each patch."""
    rows, columns = _rows_and_columns(grid)
    gh, gw = grid
    return torch.stack([rows, columns, gh - 1 - rows, gw - 1 - columns]).amin(0)


ORDERS: dict[str, Order] = {
    "raster": Raster(),
    "snake": Snake(),
    "spiral": Spiral(),
    "center_out": CenterOut(),
    "wavefront": Wavefront(),
    "shuffled": Shuffled(),
}


def order_by_name(name: str) -> Order:
    """Return the order with this name in `ORDERS`; raise ValueError with the closest name if there is none."""
    name = name.replace("centre", "center")  # as 0.1.0 spelled it
    if name not in ORDERS:
        close = difflib.get_close_matches(name.lower(), ORDERS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {name}{hint}")
    return ORDERS[name]
