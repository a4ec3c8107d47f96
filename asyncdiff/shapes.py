"""The shapes that everything here speaks in, and the two ways between patches and pixels."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Image = Float[Tensor, "b c h w"]  # pixels in [-1, 1], or latents
Latents = Float[Tensor, "b lc lh lw"]  # beside the pixels that they are of
LevelMap = Float[Tensor, "b gh gw"]  # noise level of every patch: 0 clean .. 1 noise; (b, 1, 1) is one level per image
KnownPatches = Bool[Tensor, "b gh gw"]  # True = known
KnownPixels = Bool[Tensor, "b h w"]  # True = known
Progress = Float[Tensor, " b"]  # along a noise path: 0 clean image .. 1 pure noise
Labels = Int64[Tensor, " b"]


@dataclass(frozen=True)
class UniqueLevels:
    """A level map as the list of its distinct levels and, for every patch, which of them it has.

    Attributes:
        values: the levels, each once.
        index: of every patch's level among them.
    """

    values: Float[Tensor, " r"]
    index: Int64[Tensor, "b gh gw"]

    def padded(self) -> "UniqueLevels":
        """The same, filled up to a power of two, at least 2, with values of no patch: few shapes to compile for."""
        count = max(2, 1 << (len(self.values) - 1).bit_length())
        return UniqueLevels(torch.cat([self.values, self.values.new_zeros(count - len(self.values))]), self.index)


def unique_levels(t: LevelMap) -> UniqueLevels:
    """The distinct levels of `t`, found by sorting. Whoever draws a map often knows them already: pass those on.

    Where every image has one level all over, its index is 1x1.
    """
    values, index = t.unique(return_inverse=True)
    first = index[:, :1, :1]
    return UniqueLevels(values, first if bool((index == first).all()) else index)


def check_grid(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise ValueError unless a level grid divides an image of `size` into equal patches."""
    if size[0] % grid[0] or size[1] % grid[1]:
        raise ValueError(
            f"the level map's grid must divide the image into equal patches, got grid {grid[0]}x{grid[1]} "
            f"for an image of {size[0]}x{size[1]}: choose one that divides both sides"
        )


def to_pixels(per_patch: Shaped[Tensor, "b gh gw"], size: tuple[int, int]) -> Shaped[Tensor, "b 1 h w"]:
    """Every patch's value repeated over its pixels, with a channel axis to broadcast against an image of `size`."""
    b, gh, gw = per_patch.shape
    check_grid((gh, gw), size)
    cells = per_patch[:, :, None, :, None].expand(b, gh, size[0] // gh, gw, size[1] // gw)
    return cells.reshape(b, 1, *size)


def upsampled_to(
    coarse: Shaped[Tensor, "b gh gw"], grid: tuple[int, int], name: str = "map"
) -> Shaped[Tensor, "b fine_h fine_w"]:
    """A user's map repeated over the patches of a level map's `grid`; ValueError with its `name` unless it divides."""
    b, gh, gw = coarse.shape
    if grid[0] % gh or grid[1] % gw:
        raise ValueError(
            f"{name} must divide the level map of {grid[0]}x{grid[1]} patches into equal blocks, got {gh}x{gw}: "
            "give one value per patch or per block of patches"
        )
    blocks = coarse[:, :, None, :, None].expand(b, gh, grid[0] // gh, gw, grid[1] // gw)
    return blocks.reshape(b, *grid)


def mean_per_patch(image: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b gh gw"]:
    """Mean over the channels and pixels of each patch."""
    return _patches(image, grid).mean(dim=(1, 3, 5))


def sum_per_patch(image: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b gh gw"]:
    """Sum over the channels and pixels of each patch."""
    return _patches(image, grid).sum(dim=(1, 3, 5))


def known_patches(known: Bool[Tensor, "b h w"], grid: tuple[int, int]) -> Bool[Tensor, "b gh gw"]:
    """True where every pixel of the patch is known."""
    check_grid(grid, (known.shape[1], known.shape[2]))
    b, h, w = known.shape
    return known.reshape(b, grid[0], h // grid[0], grid[1], w // grid[1]).all(4).all(2)


def _patches(image: Tensor, grid: tuple[int, int]) -> Tensor:
    b, c, h, w = image.shape
    check_grid(grid, (h, w))
    return image.reshape(b, c, grid[0], h // grid[0], grid[1], w // grid[1])
