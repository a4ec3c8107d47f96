"""Arrange images in a grid, as torchvision.utils.make_grid does, which takes longer to import than a run to start."""

from collections.abc import Sequence

from jaxtyping import Shaped
from torch import Tensor

Tile = Shaped[Tensor, "c _ _"]  # of any type and size; sizes may differ within a call


def image_grid(tiles: Sequence[Tile], columns: int, *, gap: int, background: float) -> Shaped[Tensor, "c H W"]:
    """Arrange images in rows, each in the upper left corner of a cell as large as the largest image.

    Args:
        tiles: images (c, h, w) of the same type and number of channels.
        columns: maximum number of images per row.
        gap: number of pixels between and around the cells.
        background: value of all pixels outside of the images.

    Returns:
        Grid of the same type.
    """
    height, width = (max(tile.shape[axis] for tile in tiles) + gap for axis in (1, 2))
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    grid = tiles[0].new_full((len(tiles[0]), rows * height + gap, columns * width + gap), background)
    for number, tile in enumerate(tiles):
        top, left = gap + number // columns * height, gap + number % columns * width
        grid[:, top : top + tile.shape[1], left : left + tile.shape[2]] = tile
    return grid
