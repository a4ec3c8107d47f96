"""Orders in which patches are generated: the rank of every patch, 0 first. Patches of one rank move together."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Int64
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import upsampled_to

Ranks = Int64[Tensor, "b gh gw"]  # b may be 1: the same for every image


class Order(ABC):
    """A rule that gives every patch of a grid its rank, 0 .. groups - 1, each taken by at least one patch."""

    @abstractmethod
    def ranks(self, source: RandomSource) -> Ranks:
        """The rank of every patch; one map for all images where nothing is random."""

    @abstractmethod
    def groups(self, grid: tuple[int, int]) -> int:
        """Number of ranks on a grid of (gh, gw)."""


class Raster(Order):
    """Row by row from the top, each from the left."""

    def ranks(self, source: RandomSource) -> Ranks:
        """0 .. patches - 1 in reading order."""
        rows, columns = _places(source)
        return (rows * source.grid[1] + columns)[None]

    def groups(self, grid: tuple[int, int]) -> int:
        """One per patch."""
        return grid[0] * grid[1]


class Snake(Raster):
    """Row by row from the top, alternately from the left and from the right: every patch touches the last one."""

    def ranks(self, source: RandomSource) -> Ranks:
        """0 .. patches - 1 along the snake."""
        rows, columns = _places(source)
        width = source.grid[1]
        return (rows * width + torch.where(rows % 2 == 0, columns, width - 1 - columns))[None]


class Spiral(Raster):
    """From the centre outwards along a spiral, or from the upper left corner inwards.

    Args:
        inward: start at the corner.
    """

    def __init__(self, inward: bool = False):
        self.inward = inward

    def ranks(self, source: RandomSource) -> Ranks:
        """0 .. patches - 1 along the spiral."""
        gh, gw = source.grid
        rows, columns = _places(source)
        ring = _ring(source)
        height, width = gh - 2 * ring, gw - 2 * ring  # of what is left inside the outer rings
        row, column = rows - ring, columns - ring
        top, right = row == 0, column == width - 1
        bottom = row == height - 1
        down, along = width - 1 + row, width + height - 2 + (width - 1 - column)
        up = 2 * width + height - 3 + (height - 1 - row)
        turn = torch.where(top, column, torch.where(right, down, torch.where(bottom, along, up)))
        inwards = gh * gw - height * width + turn
        return (inwards if self.inward else gh * gw - 1 - inwards)[None]


class CenterOut(Order):
    """Square rings around the centre, one after the other, each at once."""

    def ranks(self, source: RandomSource) -> Ranks:
        """0 for the innermost ring."""
        return (self.groups(source.grid) - 1 - _ring(source))[None]

    def groups(self, grid: tuple[int, int]) -> int:
        """Half of the shorter side, rounded up."""
        return (min(grid) + 1) // 2


class Wavefront(Order):
    """Anti-diagonals from the upper left corner; every row runs `row_delay` patches behind the one above it.

    Args:
        row_delay: 1 is the anti-diagonal, the number of columns is raster order.
    """

    def __init__(self, row_delay: int = 1):
        at_least("row_delay", row_delay, 1, "1 is the anti-diagonal wavefront")
        self.row_delay = row_delay

    def ranks(self, source: RandomSource) -> Ranks:
        """column + row_delay row, without gaps."""
        rows, columns = _places(source)
        return (columns + min(self.row_delay, source.grid[1]) * rows)[None]

    def groups(self, grid: tuple[int, int]) -> int:
        """Columns and the delays of all rows."""
        return grid[1] + min(self.row_delay, grid[1]) * (grid[0] - 1)


class Shuffled(Order):
    """A random order for every image.

    Args:
        together: patches that share a rank.
    """

    def __init__(self, together: int = 1):
        at_least("together", together, 1, "1 is one patch after the other")
        self.together = together

    def ranks(self, source: RandomSource) -> Ranks:
        """Uniform random permutations, in groups."""
        return (source.uniform(source.grid[0] * source.grid[1]).argsort(1) // self.together).reshape(-1, *source.grid)

    def groups(self, grid: tuple[int, int]) -> int:
        """Patches divided by the group's size, rounded up."""
        return -(-grid[0] * grid[1] // self.together)


class CustomOrder(Order):
    """The order of a user's grid.

    Args:
        grid: rows of whole numbers from 0, lower ones first; equal ones move together, and gaps are closed. A grid that
            is coarser than the level map is repeated over it.
    """

    def __init__(self, grid: Sequence[Sequence[int]]):
        widths = {len(row) for row in grid}
        if len(widths) != 1 or 0 in widths:
            raise ValueError(f"grid must have rows of one length, got lengths {[len(row) for row in grid]}: fill them")
        for i, row in enumerate(grid):
            for j, rank in enumerate(row):
                if isinstance(rank, bool) or not float(rank).is_integer() or rank < 0:
                    raise ValueError(
                        f"grid must hold whole numbers from 0, got {rank} at row {i}, column {j}: 0 is generated first"
                    )
        self.grid = [[int(rank) for rank in row] for row in grid]
        self._distinct, self._ranks = torch.tensor(self.grid).unique(return_inverse=True)

    def ranks(self, source: RandomSource) -> Ranks:
        """The user's ranks without gaps."""
        return upsampled_to(self._ranks[None].to(source.device), source.grid, "grid")

    def groups(self, grid: tuple[int, int]) -> int:
        """Number of distinct ranks."""
        return len(self._distinct)


def _places(source: RandomSource) -> tuple[Tensor, Tensor]:
    gh, gw = source.grid
    rows, columns = torch.arange(gh, device=source.device), torch.arange(gw, device=source.device)
    return rows[:, None].expand(gh, gw), columns[None, :].expand(gh, gw)


def _ring(source: RandomSource) -> Tensor:
    """How many square rings lie around each patch."""
    rows, columns = _places(source)
    gh, gw = source.grid
    return torch.stack([rows, columns, gh - 1 - rows, gw - 1 - columns]).amin(0)
