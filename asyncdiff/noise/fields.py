"""Random fields on the patch grid, each value uniform on [-1, 1]: how the levels within one image scatter."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.randomness import Generators, RandomSource
from asyncdiff.shapes import LevelMap


class Field(ABC):
    """A random field u whose marginals are U(-1, 1) at every patch; only the dependence between patches differs."""

    def __call__(
        self,
        batch: int,
        grid: tuple[int, int],
        *,
        generator: Generators = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> LevelMap:
        """`batch` fields on a grid of (gh, gw) patches, in [-1, 1]."""
        return self.sample(RandomSource(batch, grid, generator, device, dtype))

    @abstractmethod
    def sample(self, source: RandomSource) -> LevelMap:
        """One field per image; all its randomness comes from `source`."""


class IndependentField(Field):
    """Every patch for itself."""

    def sample(self, source: RandomSource) -> LevelMap:
        """Independent U(-1, 1) values."""
        return 2 * source.uniform(*source.grid) - 1


class BlockwiseField(Field):
    """Square blocks that share a value; their side is uniform on 1 .. max_block and their offset random, per image.

    Args:
        max_block: largest side of a block in patches; the longer side of the grid by default.
    """

    def __init__(self, max_block: int | None = None):
        if max_block is not None:
            at_least("max_block", max_block, 1, "1 is IndependentField")
        self.max_block = max_block

    def sample(self, source: RandomSource) -> LevelMap:
        """Fields that are constant on blocks."""
        gh, gw = source.grid
        side, down, right = source.uniform(3).unbind(1)
        block = 1 + (side * (self.max_block or max(gh, gw))).floor()
        rows = _cells(gh, block, down * block)
        columns = _cells(gw, block, right * block)
        values = source.uniform(gh * gw)  # one per block, at most as many as patches
        index = rows[:, :, None] * gw + columns[:, None, :]
        return 2 * values.gather(1, index.flatten(1)).reshape(-1, gh, gw) - 1


class PerlinField(Field):
    """Perlin noise of random scale, mapped to uniform marginals by its ranks.

    The noise (Perlin 2002: quintic fade, unit gradients; cells of U(1, max_cell) patches as in RAD, CVPR 2025) is drawn
    on a torus of twice the grid's sides, ranked there and cropped. All places of a torus are alike, so that every patch
    of the crop is exactly U(-1, 1). Ranked within the image alone, centre patches would hardly ever be extreme.

    Args:
        max_cell: largest cell of the noise in patches; the longer side of the grid by default.
        within_image: rank among the image's own patches: its mean is then 0 up to 1 / (patches)^(3/2) and its values
            cover [-1, 1] evenly in every image, but the marginals are uniform only on average over the patches.
    """

    def __init__(self, max_cell: float | None = None, within_image: bool = False):
        if max_cell is not None:
            at_least("max_cell", max_cell, 1, "1 is IndependentField up to the lattice")
        self.max_cell = max_cell
        self.within_image = within_image

    def sample(self, source: RandomSource) -> LevelMap:
        """Coherent fields."""
        gh, gw = source.grid
        noise = self._noise(source, 2 * gh, 2 * gw)
        noise = noise[:, :gh, :gw] if self.within_image else noise
        rank = noise.flatten(1).argsort(1).argsort(1).reshape(noise.shape)[:, :gh, :gw]
        jitter = source.uniform(gh, gw)  # ranks are discrete, levels are not
        return (2 * (rank + jitter) / noise[0].numel() - 1).clamp(-1, 1)

    def _noise(self, source: RandomSource, height: int, width: int) -> Float[Tensor, "b torus_h torus_w"]:
        """Perlin noise that is periodic in both directions, at the places of the patches."""
        scale, down, right = source.uniform(3).unbind(1)
        cell = 1 + scale * ((self.max_cell or max(source.grid)) - 1)
        angle = 2 * math.pi * source.uniform(height * width)  # of the gradients, at most one per patch
        y, x = (_Lattice(side, cell, shift) for side, shift in ((height, down), (width, right)))
        corners = []
        for iy, dy, fade_y in ((y.low, y.above, 1 - y.fade), (y.high, y.above - 1, y.fade)):
            for ix, dx, fade_x in ((x.low, x.above, 1 - x.fade), (x.high, x.above - 1, x.fade)):
                index = iy[:, :, None] * width + ix[:, None, :]
                a = angle.gather(1, index.flatten(1)).reshape(index.shape)
                slope = a.cos() * dx[:, None, :] + a.sin() * dy[:, :, None]
                corners.append(fade_y[:, :, None] * fade_x[:, None, :] * slope)
        return torch.stack(corners).sum(0)


class _Lattice:
    """Where `side` equidistant places lie in a periodic lattice: cells below and above, distance and fade."""

    def __init__(self, side: int, cell: Tensor, shift: Tensor):
        cells = (side / cell).round().clamp(1, side)
        # A shift by any multiple of the period is none: all places are alike.
        place = (torch.arange(side, device=cell.device) + side * shift[:, None]) * (cells / side)[:, None]
        floor = place.floor()
        self.above = place - floor
        self.low = floor.remainder(cells[:, None]).long()
        self.high = (floor + 1).remainder(cells[:, None]).long()
        self.fade = self.above**3 * (self.above * (6 * self.above - 15) + 10)


def _cells(side: int, block: Tensor, offset: Tensor) -> Tensor:
    """Index of the block that each of `side` places lies in, (b, side)."""
    return ((torch.arange(side, device=block.device) + offset.floor()[:, None]) // block[:, None]).long()
