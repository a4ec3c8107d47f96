"""Random fields on the patch grid with values in [-1, 1], which set how noise levels vary within one image."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from asyncdiff.checks import at_least
from asyncdiff.noise.distribution import Distribution
from asyncdiff.randomness import RandomSource
from asyncdiff.shapes import LevelMap


class Field(Distribution[LevelMap]):
    """Random field u on the patch grid with marginal U(-1, 1) at every patch.

    Fields differ only in the dependence between patches. `AsyncPatch` maps them to levels.
    """


class IndependentField(Field):
    """Field of independent U(-1, 1) values: the noise levels of AsyncPatch Diffusion (arXiv:2606.07079)."""

    def sample(self, source: RandomSource) -> LevelMap:
        return 2 * source.uniform(*source.grid) - 1


class BlockwiseField(Field):
    """Field that is constant on square blocks, with an independent U(-1, 1) value per block.

    Block side (uniform on 1 .. max_block) and block offset are drawn separately for each image.

    Args:
        max_block: largest side of a block in patches, at least 1; default: the longer side of the grid.
    """

    def __init__(self, max_block: int | None = None):
        if max_block is not None:
            at_least("max_block", max_block, 1, "omit it to use the longer side of the grid")
        self.max_block = max_block

    def sample(self, source: RandomSource) -> LevelMap:
        gh, gw = source.grid
        side, down, right = source.uniform(3).unbind(1)
        block = 1 + (side * (self.max_block or max(gh, gw))).floor()
        rows = _block_index(gh, block, down * block)
        columns = _block_index(gw, block, right * block)
        values = source.uniform(gh * gw)  # one per block; there are at most as many blocks as patches
        index = rows[:, :, None] * gw + columns[:, None, :]
        return 2 * values.gather(1, index.flatten(1)).reshape(-1, gh, gw) - 1


class PerlinField(Field):
    """Spatially coherent field: Perlin noise of random scale, rank-transformed to uniform marginals.

    The noise (Perlin 2002: quintic fade, unit gradients; cells of U(1, max_cell) patches as in RAD, CVPR 2025) is drawn
    on a torus of twice the grid's sides, ranked there and cropped. All positions on a torus are equivalent, so every
    patch of the crop is exactly U(-1, 1). With ranks within the image alone, center patches would hardly ever be
    extreme.

    Args:
        max_cell: largest cell of the noise in patches, at least 1; default: the longer side of the grid.
        within_image: whether to rank among the image's own patches only. The mean of each image is then 0 up to 1 /
            (patches)^(3/2) and its values cover [-1, 1] evenly, but marginals are uniform only on average over the
            patches.
    """

    def __init__(self, max_cell: float | None = None, within_image: bool = False):
        if max_cell is not None:
            at_least("max_cell", max_cell, 1, "omit it to use the longer side of the grid")
        self.max_cell = max_cell
        self.within_image = within_image

    def sample(self, source: RandomSource) -> LevelMap:
        gh, gw = source.grid
        noise = self._noise(source, 2 * gh, 2 * gw)
        noise = noise[:, :gh, :gw] if self.within_image else noise
        rank = noise.flatten(1).argsort(1).argsort(1).reshape(noise.shape)[:, :gh, :gw]
        jitter = source.uniform(gh, gw)  # ranks are discrete, levels are not
        return (2 * (rank + jitter) / noise[0].numel() - 1).clamp(-1, 1)

    def _noise(self, source: RandomSource, height: int, width: int) -> Float[Tensor, "b torus_h torus_w"]:
        """Draw Perlin noise that is periodic in both directions, one value per patch of the torus."""
        scale, down, right = source.uniform(3).unbind(1)
        cell = 1 + scale * ((self.max_cell or max(source.grid)) - 1)
        angle = 2 * math.pi * source.uniform(height * width)  # directions of the gradients; at most one per patch
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
    """Positions of `side` equidistant patches in a periodic 1D lattice: nodes below and above, distance and fade."""

    def __init__(self, side: int, cell: Tensor, shift: Tensor):
        cells = (side / cell).round().clamp(1, side)
        # `shift` is a fraction of the period, so the offset of the lattice is uniform.
        place = (torch.arange(side, device=cell.device) + side * shift[:, None]) * (cells / side)[:, None]
        floor = place.floor()
        self.above = place - floor
        self.low = floor.remainder(cells[:, None]).long()
        self.high = (floor + 1).remainder(cells[:, None]).long()
        self.fade = self.above**3 * (self.above * (6 * self.above - 15) + 10)


def _block_index(side: int, block: Tensor, offset: Tensor) -> Tensor:
    """Return the index of the block that each of `side` rows or columns lies in, (b, side)."""
    return ((torch.arange(side, device=block.device) + offset.floor()[:, None]) // block[:, None]).long()
