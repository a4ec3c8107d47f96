"""Masks of what is known, True = known, by the names of the inpainting literature (RePaint, arXiv:2201.09865)."""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

Known = Bool[Tensor, "h w"]


class Mask(ABC):
    """A rule that says which pixels of an image are known."""

    @abstractmethod
    def __call__(self, height: int, width: int) -> Known:
        """True = known, for an image of `height` x `width` pixels."""


class Half(Mask):
    """One half of the image is known.

    Args:
        side: the known half.
    """

    def __init__(self, side: Literal["left", "right", "top", "bottom"] = "left"):
        if side not in ("left", "right", "top", "bottom"):
            raise ValueError(f"side must be left, right, top or bottom, got {side!r}: choose one of them")
        self.side = side

    def __call__(self, height: int, width: int) -> Known:
        """The known half; of an odd number of rows or columns the middle one is unknown."""
        known = torch.zeros(height, width, dtype=torch.bool)
        columns, rows = width // 2, height // 2
        part = {
            "left": known[:, :columns],
            "right": known[:, width - columns :],
            "top": known[:rows],
            "bottom": known[height - rows :],
        }
        part[self.side].fill_(True)
        return known


class Square(Mask):
    """Everything is known but a centred box.

    Args:
        fraction: side of the box relative to the image's, in (0, 1).
    """

    def __init__(self, fraction: float = 0.5):
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie in (0, 1), got {fraction}: 0.5 is the usual box")
        self.fraction = fraction

    def __call__(self, height: int, width: int) -> Known:
        """False inside the box."""
        return ~_box(height, width, self.fraction)


class Extreme(Square):
    """Only a centred box is known: the complement of `Square`.

    Args:
        fraction: side of the box relative to the image's, in (0, 1).
    """

    def __call__(self, height: int, width: int) -> Known:
        """True inside the box."""
        return ~super().__call__(height, width)


def _box(height: int, width: int, fraction: float) -> Known:
    box = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = round(height * fraction), round(width * fraction)
    top, left = (height - rows) // 2, (width - columns) // 2
    box[top : top + rows, left : left + columns] = True
    return box
