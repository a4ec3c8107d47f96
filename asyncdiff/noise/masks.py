"""Inpainting masks, True = known, named as in the inpainting literature (RePaint, arXiv:2201.09865)."""

import difflib
import hashlib
from abc import ABC, abstractmethod
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from asyncdiff.checks import at_least, within
from asyncdiff.shapes import known_patches

Known = Bool[Tensor, "h w"]


class Mask(ABC):
    """Rule that marks the known pixels of an image of any size, for inpainting and outpainting.

    Attributes:
        seed_dependent: whether the mask is random and depends on the seed; if False, seeds are ignored.

    Examples:
        >>> Half("left")(2, 4)
        tensor([[ True,  True, False, False],
                [ True,  True, False, False]])
        >>> Thin().per_image(64, 64, seeds=[0, 1, 2]).shape
        torch.Size([3, 64, 64])
    """

    seed_dependent: bool = False

    @abstractmethod
    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """Return the mask for an image of `height` x `width` pixels, True = known.

        A seed gives the same mask on every machine.
        """

    def per_image(self, height: int, width: int, *, seeds: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """Return one mask per seed."""
        if not self.seed_dependent:
            return self(height, width).expand(len(seeds), -1, -1)
        return torch.stack([self(height, width, seed=seed) for seed in seeds])


class Half(Mask):
    """Mask with one half of the image known; the middle row or column of an odd number is unknown.

    Args:
        side: which half is known.
    """

    def __init__(self, side: Literal["left", "right", "top", "bottom"] = "left"):
        if side not in ("left", "right", "top", "bottom"):
            raise ValueError(f"side must be left, right, top or bottom, got {side!r}: choose one of them")
        self.side = side

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
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
    """Mask with everything known except a centered box.

    Args:
        fraction: side of the box as a fraction of the image's, in (0, 1).
    """

    def __init__(self, fraction: float = 0.5):
        if not 0 < fraction < 1:
            raise ValueError(f"fraction must lie in (0, 1), got {fraction}: use 0.5 for a box of half the side")
        self.fraction = fraction

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        return ~_centered_box(height, width, self.fraction)


class Extreme(Square):
    """Mask with only a centered box known: the complement of `Square`.

    Args:
        fraction: side of the box as a fraction of the image's, in (0, 1).
    """

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        return ~super().__call__(height, width)


class Lines(Mask):
    """Mask with every second row known, starting with the first.

    Known lines are one pixel thick, so no patch larger than a pixel is fully known.

    Args:
        every: distance between known lines in pixels, at least 2.
        axis: whether rows or columns are known.
    """

    def __init__(self, every: int = 2, axis: Literal["rows", "columns"] = "rows"):
        at_least("every", every, 2, "use 2 for every second line; with 1 everything would be known")
        if axis not in ("rows", "columns"):
            raise ValueError(f"axis must be rows or columns, got {axis!r}: choose one of them")
        self.every = every
        self.axis = axis

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        known = torch.zeros(height, width, dtype=torch.bool)
        (known if self.axis == "rows" else known.T)[:: self.every] = True
        return known


class SuperResolution(Mask):
    """Mask with the upper left pixel of every block known: together, a smaller image to be enlarged.

    No patch larger than a pixel is fully known.

    Args:
        factor: side of a block in pixels, at least 2.
    """

    def __init__(self, factor: int = 2):
        at_least("factor", factor, 2, "use 2 to double the size; with 1 everything would be known")
        self.factor = factor

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        known = torch.zeros(height, width, dtype=torch.bool)
        known[:: self.factor, :: self.factor] = True
        return known


# Strokes are drawn in integer coordinates in which the shorter side of an image has length LATTICE, whatever its size
# in pixels. A seed therefore gives the same drawing at every size, independently of the floating-point library.
LATTICE = 4096
SIDE = 256  # image size in pixels that LaMa's numbers refer to
MAX_STROKES = 10_000  # many times what half of the largest image has room for
MAX_SEGMENTS = 5  # segments of one stroke
MIN_LENGTH, MIN_WIDTH = 10, 5  # limits of segments, at SIDE pixels
MAX_BOXES, MIN_BOX, MAX_BOX = 4, 30, 150  # boxes of one mask, and their sides at SIDE pixels
MIN_IMAGE = 8  # in smaller images, hardly any drawing leaves half of the pixels known
ATTEMPTS = 200
MILLION = 1_000_000
# LATTICE times the cosine and sine of multiples of 22.5 degrees, in the first quadrant.
QUADRANT = ((4096, 0), (3784, 1567), (2896, 2896), (1567, 3784))
DIRECTIONS = tuple(rotated for x, y in QUADRANT for rotated in ((x, y), (-y, x), (-x, -y), (y, -x)))


class Thin(Mask):
    """Random mask with many thin unknown strokes, as LaMa draws them at 256x256 pixels (arXiv:2109.07161), at any size.

    A stroke is a line of 1 to 5 segments with round ends, each with its own direction, length and width; lengths start
    at 10 and widths at 5 pixels, and segments stop at the border. A stroke is never narrower than a pixel. A drawing
    that hides more than half of the pixels, or none, is replaced by the seed's next one. The numbers are LaMa's, but
    the drawing routine is not, so these masks differ from its authors'.

    Args:
        fewest: smallest number of strokes, at least 1.
        most: largest number of strokes, at least `fewest`.
        length: length of the longest segment, at least 10, in pixels of an image whose shorter side has 256.
        width: width of the widest segment, at least 5, in the same pixels.
        boxes: probability, in [0, 1], that 1 to 4 unknown boxes with sides of 30 to 150 of these pixels are added.
    """

    seed_dependent = True

    def __init__(self, fewest: int = 4, most: int = 50, length: int = 40, width: int = 10, boxes: float = 0.0):
        at_least("fewest", fewest, 1, "Thin uses 4, Wide uses 1")
        at_least("most", most, fewest, "raise most or lower fewest; Thin uses 50, Wide uses 5", MAX_STROKES)
        at_least("length", length, MIN_LENGTH, "Thin uses 40, Wide uses 200")
        at_least("width", width, MIN_WIDTH, "Thin uses 10, Wide uses 100")
        within("boxes", boxes, 0, 1, "it is a probability; Wide uses 0.3")
        self.fewest = fewest
        self.most = most
        self.length = length
        self.width = width
        self.boxes = boxes

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        for name, side in (("height", height), ("width", width)):
            at_least(name, side, MIN_IMAGE, "use Square or Half for smaller images")
        draw = _RandomIntegers(self.fewest, self.most, self.length, self.width, seed)
        for _ in range(ATTEMPTS):
            canvas = _Canvas(height, width)
            self._draw_strokes(canvas, draw)
            if draw(1, MILLION) <= self.boxes * MILLION:
                self._draw_boxes(canvas, draw)
            if 0 < 2 * int(canvas.unknown.sum()) <= height * width:
                return ~canvas.unknown
        raise ValueError(
            f"no drawing with at least {self.fewest} strokes of up to {self.width} pixels left half of the image known "
            f"in {ATTEMPTS} attempts: lower fewest or width"
        )

    def _draw_strokes(self, canvas: "_Canvas", draw: "_RandomIntegers") -> None:
        for _ in range(draw(self.fewest, self.most)):
            position = (draw(0, canvas.height), draw(0, canvas.width))
            for _ in range(draw(1, MAX_SEGMENTS)):
                direction = DIRECTIONS[draw(0, len(DIRECTIONS) - 1)]
                length, width = _draw_length(draw, MIN_LENGTH, self.length), _draw_length(draw, MIN_WIDTH, self.width)
                position = canvas.draw_segment(position, direction, length, width)

    @staticmethod
    def _draw_boxes(canvas: "_Canvas", draw: "_RandomIntegers") -> None:
        for _ in range(draw(1, MAX_BOXES)):
            sides = _draw_length(draw, MIN_BOX, MAX_BOX), _draw_length(draw, MIN_BOX, MAX_BOX)
            canvas.draw_box((draw(0, canvas.height - sides[0]), draw(0, canvas.width - sides[1])), sides)


class Wide(Thin):
    """Random mask with a few wide unknown strokes and boxes, as LaMa draws them at 256x256 pixels; see `Thin`.

    Args:
        fewest: smallest number of strokes, at least 1.
        most: largest number of strokes, at least `fewest`.
        length: length of the longest segment, at least 10, in pixels of an image whose shorter side has 256.
        width: width of the widest segment, at least 5, in the same pixels.
        boxes: probability, in [0, 1], that 1 to 4 unknown boxes with sides of 30 to 150 of these pixels are added.
    """

    def __init__(self, fewest: int = 1, most: int = 5, length: int = 200, width: int = 100, boxes: float = 0.3):
        super().__init__(fewest, most, length, width, boxes)


class OnPixels(Mask):
    """Mask of latents, made from a mask of pixels: a latent is known if all of its pixels are.

    Args:
        mask: mask of pixels.
        factor: number of pixels per latent along each side.
    """

    def __init__(self, mask: Mask, factor: int):
        at_least("factor", factor, 1, "use that of the codec")
        self.mask = mask
        self.factor = factor
        self.seed_dependent = mask.seed_dependent

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        pixels = self.mask(height * self.factor, width * self.factor, seed=seed)
        return known_patches(pixels[None], (height, width))[0]


MASKS: dict[str, Mask] = {
    "thin": Thin(),
    "wide": Wide(),
    "square": Square(),
    "extreme": Extreme(),
    "half": Half(),
    "lines": Lines(),
    "super_resolution": SuperResolution(),
}


def mask_by_name(name: str) -> Mask:
    """Return the mask with this name in `MASKS`; raise ValueError, suggesting the nearest name, if there is none."""
    if name not in MASKS:
        close = difflib.get_close_matches(name.lower(), MASKS, 1)
        hint = f": did you mean {close[0]}?" if close else ": choose one of them"
        raise ValueError(f"mask must be one of {', '.join(MASKS)}, got {name!r}{hint}")
    return MASKS[name]


class _RandomIntegers:
    """Random integers derived from a hash of the counters; the same on every machine."""

    def __init__(self, *counters: int):
        self._stream = self._uint64s(",".join(map(str, counters)))

    def __call__(self, low: int, high: int) -> int:
        """Draw an integer, uniform from `low` to `high`, both included."""
        return low + next(self._stream) % (high - low + 1)

    @staticmethod
    def _uint64s(key: str) -> Iterator[int]:
        block = 0
        while True:
            digest = hashlib.blake2b(f"{key};{block}".encode()).digest()
            yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
            block += 1


class _Canvas:
    """Drawing of unknown pixels. `unknown` has one value per pixel; lengths and positions are in lattice units."""

    def __init__(self, height: int, width: int):
        shorter = min(height, width)
        self.unknown = torch.zeros(height, width, dtype=torch.bool)
        self.height, self.width = (LATTICE * side // shorter for side in (height, width))
        self._rows, self._columns = (_pixel_centers(side, shorter) for side in (height, width))
        self._half_pixel = -(-LATTICE // (2 * shorter))

    def draw_segment(
        self, start: tuple[int, int], direction: tuple[int, int], length: int, width: int
    ) -> tuple[int, int]:
        """Draw a segment that stops at the border, and return its end point."""
        radius = max(width // 2, self._half_pixel)
        for at, slope, side in zip(start, direction, (self.height, self.width), strict=True):
            if slope:
                length = min(length, (side - at if slope > 0 else at) * LATTICE // abs(slope))
        y, x = (at + length * slope // LATTICE for at, slope in zip(start, direction, strict=True))
        low, high = (min(start[0], y) - radius, min(start[1], x) - radius), (max(start[0], y), max(start[1], x))
        part, rows, columns = self._part(low, (high[0] + radius, high[1] + radius))
        down, right = rows - start[0], columns - start[1]
        along = down * direction[0] + right * direction[1]
        across = (right * direction[0] - down * direction[1]).abs()
        inside = (along >= 0) & (along <= length * LATTICE) & (across <= radius * LATTICE)
        for dy, dx in ((down, right), (rows - y, columns - x)):
            inside |= dy.square() + dx.square() <= radius * radius
        part |= inside
        return y, x

    def draw_box(self, corner: tuple[int, int], sides: tuple[int, int]) -> None:
        """Draw a box from its upper left corner."""
        self._part(corner, (corner[0] + sides[0], corner[1] + sides[1]))[0].fill_(True)

    def _part(
        self, low: tuple[int, int], high: tuple[int, int]
    ) -> tuple[Known, Int64[Tensor, "h 1"], Int64[Tensor, "1 w"]]:
        """Return a view of the pixels whose centers lie between two corners, and these centers' rows and columns."""
        rows = slice(bisect_left(self._rows, low[0]), bisect_right(self._rows, high[0]))
        columns = slice(bisect_left(self._columns, low[1]), bisect_right(self._columns, high[1]))
        centers = torch.tensor(self._rows[rows]), torch.tensor(self._columns[columns])
        return self.unknown[rows, columns], centers[0].long()[:, None], centers[1].long()[None]


def _pixel_centers(side: int, shorter: int) -> list[int]:
    return [LATTICE * (2 * i + 1) // (2 * shorter) for i in range(side)]


def _draw_length(draw: _RandomIntegers, low: int, high: int) -> int:
    """Draw a length between `low` and `high` pixels, in lattice units."""
    return draw(low * LATTICE // SIDE, high * LATTICE // SIDE)


def _centered_box(height: int, width: int, fraction: float) -> Known:
    box = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = round(height * fraction), round(width * fraction)
    top, left = (height - rows) // 2, (width - columns) // 2
    box[top : top + rows, left : left + columns] = True
    return box
