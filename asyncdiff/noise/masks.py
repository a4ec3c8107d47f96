"""Masks of what is known, True = known, by the names of the inpainting literature (RePaint, arXiv:2201.09865)."""

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

Known = Bool[Tensor, "h w"]


class Mask(ABC):
    """A rule that says which pixels of an image are known.

    Attributes:
        drawn: True where every seed has a mask of its own, False where all have the same.
    """

    drawn: bool = False

    @abstractmethod
    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """True = known, for an image of `height` x `width` pixels; the same for a seed on every machine."""

    def per_image(self, height: int, width: int, *, seeds: Sequence[int]) -> Bool[Tensor, "b h w"]:
        """The mask of every image by its seed."""
        if not self.drawn:
            return self(height, width).expand(len(seeds), -1, -1)
        return torch.stack([self(height, width, seed=seed) for seed in seeds])


class Half(Mask):
    """One half of the image is known.

    Args:
        side: the known half.
    """

    def __init__(self, side: Literal["left", "right", "top", "bottom"] = "left"):
        if side not in ("left", "right", "top", "bottom"):
            raise ValueError(f"side must be left, right, top or bottom, got {side!r}: choose one of them")
        self.side = side

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
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

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """False inside the box."""
        return ~_box(height, width, self.fraction)


class Extreme(Square):
    """Only a centred box is known: the complement of `Square`.

    Args:
        fraction: side of the box relative to the image's, in (0, 1).
    """

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """True inside the box."""
        return ~super().__call__(height, width)


class Lines(Mask):
    """Every second row is known, the first one among them.

    Args:
        every: one row of so many is known, at least 2.
        axis: rows or columns.
    """

    def __init__(self, every: int = 2, axis: Literal["rows", "columns"] = "rows"):
        at_least("every", every, 2, "2 is usual, with 1 everything would be known")
        if axis not in ("rows", "columns"):
            raise ValueError(f"axis must be rows or columns, got {axis!r}: choose one of them")
        self.every = every
        self.axis = axis

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """The known lines; no patch of more than one pixel is known with them."""
        known = torch.zeros(height, width, dtype=torch.bool)
        (known if self.axis == "rows" else known.T)[:: self.every] = True
        return known


class SuperResolution(Mask):
    """One pixel of every block is known, its upper left one: a smaller image, to be enlarged.

    Args:
        factor: side of a block in pixels, at least 2.
    """

    def __init__(self, factor: int = 2):
        at_least("factor", factor, 2, "2 is usual, with 1 everything would be known")
        self.factor = factor

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """The known pixels; no patch of more than one pixel is known with them."""
        known = torch.zeros(height, width, dtype=torch.bool)
        known[:: self.factor, :: self.factor] = True
        return known


# Strokes are drawn on a lattice of integers, on which the shorter side of an image is LATTICE long, however many pixels
# it has: a seed is one drawing at every size, and no floating-point library has a say in it.
LATTICE = 4096
SIDE = 256  # pixels of the images that LaMa's numbers are for
SEGMENTS = 5  # most of one stroke
SHORTEST, NARROWEST = 10, 5  # of segments, at SIDE pixels
BOXES, SMALLEST_BOX, LARGEST_BOX = 4, 30, 150  # most of one mask, and their sides at SIDE pixels
SMALLEST_IMAGE = 8  # below, hardly a drawing leaves half of the pixels known
ATTEMPTS = 200
MILLION = 1_000_000
# LATTICE times the cosine and sine of multiples of 22.5 degrees, in the first quadrant.
QUADRANT = ((4096, 0), (3784, 1567), (2896, 2896), (1567, 3784))
DIRECTIONS = tuple(turned for x, y in QUADRANT for turned in ((x, y), (-y, x), (-x, -y), (y, -x)))


class Thin(Mask):
    """Unknown under many thin strokes, as LaMa draws them for 256x256 pixels (arXiv:2109.07161), at any size.

    A stroke is a line of 1 to 5 segments with round ends, each of its own direction, length and width; lengths begin at
    10 and widths at 5, and the border ends a segment. A stroke is never narrower than a pixel. A drawing that hides
    more than half of the pixels, or none, is thrown away for the seed's next one. The numbers are LaMa's, the drawing
    is our own: these are not the masks of its authors.

    Args:
        fewest: smallest number of strokes, at least 1.
        most: largest number of strokes, at least `fewest`.
        length: of the longest segment, in pixels of an image whose shorter side has 256; at least 10.
        width: of the widest segment, in the same pixels; at least 5.
        boxes: probability that 1 to 4 unknown boxes with sides of 30 to 150 are added, in [0, 1].
    """

    drawn = True

    def __init__(self, fewest: int = 4, most: int = 50, length: int = 40, width: int = 10, boxes: float = 0.0):
        at_least("fewest", fewest, 1, "4 are thin's, 1 is wide's")
        at_least("most", most, fewest, "it is the largest number of strokes")
        at_least("length", length, SHORTEST, "40 is thin's, 200 is wide's")
        at_least("width", width, NARROWEST, "10 is thin's, 100 is wide's")
        within("boxes", boxes, 0, 1, "it is a probability, 0.3 is wide's")
        self.fewest = fewest
        self.most = most
        self.length = length
        self.width = width
        self.boxes = boxes

    def __call__(self, height: int, width: int, *, seed: int = 0) -> Known:
        """False under the seed's strokes; at least half of the pixels are known."""
        for name, side in (("height", height), ("width", width)):
            at_least(name, side, SMALLEST_IMAGE, "strokes need pixels, take Square or Half for fewer")
        draw = _Integers(self.fewest, self.most, self.length, self.width, seed)
        for _ in range(ATTEMPTS):
            canvas = _Canvas(height, width)
            self._strokes(canvas, draw)
            if draw(1, MILLION) <= self.boxes * MILLION:
                self._boxes(canvas, draw)
            if 0 < 2 * int(canvas.unknown.sum()) <= height * width:
                return ~canvas.unknown
        raise ValueError(f"{self.fewest} strokes as wide as {self.width} leave no half of an image known: draw fewer")

    def _strokes(self, canvas: "_Canvas", draw: "_Integers") -> None:
        for _ in range(draw(self.fewest, self.most)):
            place = (draw(0, canvas.height), draw(0, canvas.width))
            for _ in range(draw(1, SEGMENTS)):
                direction = DIRECTIONS[draw(0, len(DIRECTIONS) - 1)]
                length, width = _lattice(draw, SHORTEST, self.length), _lattice(draw, NARROWEST, self.width)
                place = canvas.segment(place, direction, length, width)

    @staticmethod
    def _boxes(canvas: "_Canvas", draw: "_Integers") -> None:
        for _ in range(draw(1, BOXES)):
            sides = _lattice(draw, SMALLEST_BOX, LARGEST_BOX), _lattice(draw, SMALLEST_BOX, LARGEST_BOX)
            canvas.box((draw(0, canvas.height - sides[0]), draw(0, canvas.width - sides[1])), sides)


class Wide(Thin):
    """Unknown under a few wide strokes and boxes, as LaMa draws them for 256x256 pixels; see `Thin`.

    Args:
        fewest: smallest number of strokes, at least 1.
        most: largest number of strokes, at least `fewest`.
        length: of the longest segment, in pixels of an image whose shorter side has 256; at least 10.
        width: of the widest segment, in the same pixels; at least 5.
        boxes: probability that 1 to 4 unknown boxes with sides of 30 to 150 are added, in [0, 1].
    """

    def __init__(self, fewest: int = 1, most: int = 5, length: int = 200, width: int = 100, boxes: float = 0.3):
        super().__init__(fewest, most, length, width, boxes)


MASKS: dict[str, Mask] = {
    "thin": Thin(),
    "wide": Wide(),
    "square": Square(),
    "extreme": Extreme(),
    "half": Half(),
    "lines": Lines(),
    "super_resolution": SuperResolution(),
}


def named(name: str) -> Mask:
    """The mask set of a name in `MASKS`; ValueError with the nearest name if there is none."""
    if name not in MASKS:
        close = difflib.get_close_matches(name.lower(), MASKS, 1)
        hint = f": did you mean {close[0]}?" if close else ": choose one of them"
        raise ValueError(f"masks must be named {', '.join(MASKS)}, got {name!r}{hint}")
    return MASKS[name]


class _Integers:
    """Integers that are a fixed function of the counters and of how many were drawn before."""

    def __init__(self, *counters: int):
        self._stream = self._words(",".join(map(str, counters)))

    def __call__(self, low: int, high: int) -> int:
        """Uniform from `low` to `high`, both included."""
        return low + next(self._stream) % (high - low + 1)

    @staticmethod
    def _words(key: str) -> Iterator[int]:
        block = 0
        while True:
            digest = hashlib.blake2b(f"{key};{block}".encode()).digest()
            yield from (int.from_bytes(digest[i : i + 8], "little") for i in range(0, len(digest), 8))
            block += 1


class _Canvas:
    """What is unknown so far: `unknown` in pixels, all other numbers in units of the lattice."""

    def __init__(self, height: int, width: int):
        shorter = min(height, width)
        self.unknown = torch.zeros(height, width, dtype=torch.bool)
        self.height, self.width = (LATTICE * side // shorter for side in (height, width))
        self._rows, self._columns = (_centres(side, shorter) for side in (height, width))
        self._half_pixel = -(-LATTICE // (2 * shorter))

    def segment(self, start: tuple[int, int], direction: tuple[int, int], length: int, width: int) -> tuple[int, int]:
        """Draw it as far as the border, and say where it ends."""
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

    def box(self, corner: tuple[int, int], sides: tuple[int, int]) -> None:
        """Draw a box from its upper left corner."""
        self._part(corner, (corner[0] + sides[0], corner[1] + sides[1]))[0].fill_(True)

    def _part(
        self, low: tuple[int, int], high: tuple[int, int]
    ) -> tuple[Known, Int64[Tensor, "h 1"], Int64[Tensor, "1 w"]]:
        """The pixels whose centres lie between two corners, as a view, and their centres."""
        rows = slice(bisect_left(self._rows, low[0]), bisect_right(self._rows, high[0]))
        columns = slice(bisect_left(self._columns, low[1]), bisect_right(self._columns, high[1]))
        centres = torch.tensor(self._rows[rows]), torch.tensor(self._columns[columns])
        return self.unknown[rows, columns], centres[0].long()[:, None], centres[1].long()[None]


def _centres(side: int, shorter: int) -> list[int]:
    return [LATTICE * (2 * i + 1) // (2 * shorter) for i in range(side)]


def _lattice(draw: _Integers, low: int, high: int) -> int:
    """A length between two numbers of pixels, in units of the lattice."""
    return draw(low * LATTICE // SIDE, high * LATTICE // SIDE)


def _box(height: int, width: int, fraction: float) -> Known:
    box = torch.zeros(height, width, dtype=torch.bool)
    rows, columns = round(height * fraction), round(width * fraction)
    top, left = (height - rows) // 2, (width - columns) // 2
    box[top : top + rows, left : left + columns] = True
    return box
