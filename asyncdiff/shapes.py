"""Tensor types shared by all modules (images, level maps, masks), and conversions between patches and pixels.

A level map has one value per patch of an image; `known` masks are True where pixels or patches are known.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

Image = Float[Tensor, "b c h w"]  # pixels in [-1, 1], or latents
Latents = Float[Tensor, "b lc lh lw"]  # latents, in signatures where `Image` means pixels
LevelMap = Float[Tensor, "b gh gw"]  # noise level of every patch: 0 clean .. 1 noise; (b, 1, 1) is one level per image
KnownPatches = Bool[Tensor, "b gh gw"]  # True = known
KnownPixels = Bool[Tensor, "b h w"]  # True = known
Progress = Float[Tensor, " b"]  # along a noise path: 0 clean image .. 1 pure noise
Labels = Int64[Tensor, " b"]  # class of every image

GRID_ERROR = 1e-3  # more than the rounding error of 255 * (k / 255) in float32
# Operators of tensors that `IndexedLevels` have, too.
REFLECTED = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
OPERATORS: tuple[str, ...] = (
    "getitem",
    "len",
    "iter",
    "neg",
    "abs",
    "invert",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    *REFLECTED,
)
OPERATORS += tuple(f"r{name}" for name in REFLECTED)
FEW = 64  # values that may be multiples of 1/255 in [0, 1] by chance, such as known pixels of gray 0 and 1


@dataclass(frozen=True, eq=False)
class IndexedLevels:
    """Level map stored as its distinct levels and the index of every patch's level.

    A network embeds each distinct level once instead of once per patch. Every denoiser and network takes level maps in
    either form, as `Levels`. Operators, functions of PyTorch and other attributes are those of the tensor `t`, so that
    code that expects a tensor works, too.

    Attributes:
        values: distinct levels.
        index: index into `values` for every patch; (b, 1, 1) if every image has a single level.
    """

    values: Float[Tensor, " r"]
    index: Int64[Tensor, "b gh gw"]

    @classmethod
    def per_image(cls, t: Progress) -> "IndexedLevels":
        """Return the map (b, 1, 1) with a single level `t` for every image."""
        return cls(t, torch.arange(len(t), device=t.device)[:, None, None])

    @cached_property
    def t(self) -> LevelMap:
        """The level map as a tensor, in the shape of `index`."""
        return self.values[self.index]

    def repeat(self, *sizes: int) -> "IndexedLevels":
        """Return the map repeated along its three axes, like the repeat of a tensor."""
        return IndexedLevels(self.values, self.index.repeat(*sizes))

    def padded(self) -> "IndexedLevels":
        """Return a copy padded to a power of two (at least 2) with unused values, so that few shapes are compiled."""
        count = max(2, 1 << (len(self.values) - 1).bit_length())
        return IndexedLevels(torch.cat([self.values, self.values.new_zeros(count - len(self.values))]), self.index)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(f"{type(self).__name__} has no attribute {name}")
        return getattr(self.t, name)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*_with_tensors(args), **{name: _with_tensors(value) for name, value in (kwargs or {}).items()})


def _operator(name: str) -> Any:
    return lambda self, *others: getattr(self.t, name)(*_with_tensors(others))


def _with_tensors(x: Any) -> Any:
    """Return an argument, or a sequence of them, with tensors in place of `IndexedLevels`."""
    if type(x) in (list, tuple):
        return type(x)(map(_with_tensors, x))
    return x.t if isinstance(x, IndexedLevels) else x


for _name in OPERATORS:
    setattr(IndexedLevels, f"__{_name}__", _operator(f"__{_name}__"))


Levels: TypeAlias = LevelMap | IndexedLevels  # a level map, with its distinct levels if they are known


def level_map(t: Levels) -> LevelMap:
    """Return a level map as a tensor."""
    return t.t if isinstance(t, IndexedLevels) else t


def indexed(t: Levels) -> IndexedLevels:
    """Return a level map as its distinct levels and their index; the levels of a tensor are found by sorting.

    Args:
        t: level map.

    Returns:
        The map itself if its levels are known. Otherwise its levels in ascending order, and the index of every patch's
        level, in the shape (b, 1, 1) if every image has a single level.

    Examples:
        >>> levels = indexed(torch.tensor([[[0.0, 0.5], [0.5, 1.0]]]))
        >>> levels.values, levels.index
        (tensor([0.0000, 0.5000, 1.0000]), tensor([[[0, 1],
                 [1, 2]]]))
    """
    if isinstance(t, IndexedLevels):
        return t
    values, index = t.unique(return_inverse=True)
    first = index[:, :1, :1]
    return IndexedLevels(values, first if bool((index == first).all()) else index)


def check_pixels(name: str, images: Shaped[Tensor, "*n c h w"], known: Bool[Tensor, "*m h w"] | None = None) -> None:
    """Raise ValueError if images are certainly not floats in [-1, 1] but bytes, or floats in [0, 255] or [0, 1].

    Generated images may exceed [-1, 1], bright ones have no negative value, and images of other channels than 1 and 3
    are latents, of any range. Floats are refused only if none is negative and some exceed 2, or if at least `FEW` are
    different multiples of 1/255 in [0, 1] of which some are even: an 8-bit image in [-1, 1] has odd ones only.

    Args:
        name: argument to name in the error.
        images: one image or a batch.
        known: True for the pixels to check; one mask for all images or one per image; None checks all.
    """
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floats in [-1, 1], got {images.dtype}: pass images / 127.5 - 1 of bytes")
    if images.ndim not in (3, 4) or images.shape[-3] not in (1, 3):
        return
    values = images
    if known is not None:
        known = known.any(0) if known.ndim > images.ndim - 1 else known.expand(*images.shape[:-3], *images.shape[-2:])
        values = images.movedim(-3, -1)[known.to(images.device)]
    if not values.numel() or not (low := float(values.min())) >= 0:  # also of NaN
        return
    high = float(values.max())
    if high > 2:
        raise ValueError(f"{name} must lie in [-1, 1], got values from {low:g} to {high:g}: pass images / 127.5 - 1")
    if low == high or high > 1 or values.numel() < FEW:
        return
    steps = values.float() * 255
    if (steps - steps.round()).abs().max() < GRID_ERROR and (steps.round() % 2 == 0).any():
        raise ValueError(
            f"{name} must lie in [-1, 1], got multiples of 1/255 from {low:g} to {high:g}: pass 2 * images - 1"
        )


def check_grid(grid: tuple[int, int], size: tuple[int, int]) -> None:
    """Raise ValueError unless `grid` (gh, gw) divides an image of `size` (h, w) into equal patches."""
    if size[0] % grid[0] or size[1] % grid[1]:
        raise ValueError(
            f"a level map of {grid[0]}x{grid[1]} patches does not divide an image of {size[0]}x{size[1]} pixels into "
            "equal patches: choose a grid that divides both sides"
        )


def to_pixels(per_patch: Shaped[Tensor, "b gh gw"], size: tuple[int, int]) -> Shaped[Tensor, "b 1 h w"]:
    """Return each patch's value repeated over its pixels, with a channel axis to broadcast against images.

    Args:
        per_patch: one value per patch, of any type.
        size: (h, w) of the images.

    Returns:
        One value per pixel, (b, 1, h, w).

    Examples:
        >>> t = torch.tensor([[[0.0, 1.0]]])  # one image, 1 x 2 patches
        >>> to_pixels(t, (2, 4))[0, 0]
        tensor([[0., 0., 1., 1.],
                [0., 0., 1., 1.]])
    """
    b, gh, gw = per_patch.shape
    check_grid((gh, gw), size)
    pixels = per_patch[:, :, None, :, None].expand(b, gh, size[0] // gh, gw, size[1] // gw)
    return pixels.reshape(b, 1, *size)


def upsampled_to(
    coarse: Shaped[Tensor, "b gh gw"], grid: tuple[int, int], name: str = "map"
) -> Shaped[Tensor, "b fine_h fine_w"]:
    """Repeat each value of a coarse map over a block of patches, so that the result has the sides of `grid`.

    Args:
        coarse: user-supplied map; its sides must divide those of `grid`.
        grid: (gh, gw) of the level map.
        name: name of the map in the error message.

    Returns:
        One value per patch, (b, gh, gw).

    Raises:
        ValueError: the map does not divide the grid into equal blocks.
    """
    b, gh, gw = coarse.shape
    if grid[0] % gh or grid[1] % gw:
        raise ValueError(
            f"{name} has {gh}x{gw} values, which do not divide the level map of {grid[0]}x{grid[1]} patches into equal "
            "blocks: use one value per patch or per block of patches"
        )
    blocks = coarse[:, :, None, :, None].expand(b, gh, grid[0] // gh, gw, grid[1] // gw)
    return blocks.reshape(b, *grid)


def mean_per_patch(image: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b gh gw"]:
    """Return the mean over the channels and pixels of each patch."""
    return _split_patches(image, grid).mean(dim=(1, 3, 5))


def sum_per_patch(image: Float[Tensor, "b c h w"], grid: tuple[int, int]) -> Float[Tensor, "b gh gw"]:
    """Return the sum over the channels and pixels of each patch."""
    return _split_patches(image, grid).sum(dim=(1, 3, 5))


def known_patches(known: Bool[Tensor, "b h w"], grid: tuple[int, int]) -> Bool[Tensor, "b gh gw"]:
    """Return a mask that is True for patches whose pixels are all known."""
    check_grid(grid, (known.shape[1], known.shape[2]))
    b, h, w = known.shape
    return known.reshape(b, grid[0], h // grid[0], grid[1], w // grid[1]).all(4).all(2)


def _split_patches(image: Tensor, grid: tuple[int, int]) -> Tensor:
    """Reshape images to (b, c, gh, patch height, gw, patch width)."""
    b, c, h, w = image.shape
    check_grid(grid, (h, w))
    return image.reshape(b, c, grid[0], h // grid[0], grid[1], w // grid[1])
