"""What someone at the page asks for, and the words of the command that does it."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from asyncdiff.checks import within
from asyncdiff.tasks.photos import by, height_by_width, save_png

TOGETHER = "together"  # the order in which all patches move at once
FREE, KEPT = 255, 0  # of what is painted: white is drawn anew, black stays


@dataclass(frozen=True)
class Kind:
    """A kind of wish.

    Attributes:
        command: of `python -m asyncdiff`, where all patches move together.
        needs_photo: whether there is nothing to do without one.
        painted: whether something is painted on it.
        ordered: whether it can be drawn patch after patch.
    """

    command: str
    needs_photo: bool
    painted: bool
    ordered: bool


KINDS = {
    "new": Kind("sample", needs_photo=False, painted=False, ordered=True),
    "fill": Kind("inpaint", needs_photo=True, painted=True, ordered=True),
    "change": Kind("edit", needs_photo=True, painted=True, ordered=True),
    "extend": Kind("outpaint", needs_photo=True, painted=False, ordered=False),
    "texture": Kind("texture", needs_photo=False, painted=False, ordered=False),
}


@dataclass(frozen=True)
class Limits:
    """What one wish may ask for.

    Attributes:
        photo_pixels: of an uploaded photo.
        pixels: of a picture that is drawn.
        pictures: drawn at once.
        steps: of a walk, or of a patch's.
        waiting: wishes in the queue.
        megabytes: of an uploaded file.
    """

    photo_pixels: int = 40_000_000
    pixels: int = 1_048_576
    pictures: int = 6
    steps: int = 1000
    waiting: int = 8
    megabytes: int = 20


@dataclass(frozen=True)
class DrawRequest:
    """Pictures that are wanted.

    Attributes:
        kind: a name of `KINDS`.
        photo: 8-bit pixels at the size that they are drawn at, None without.
        painted: how much of each of its pixels may change, 0 = nothing .. 255 = everything; None where nothing is
            painted. To fill, 128 and more is drawn anew.
        seed: of the first picture.
        count: of pictures, with seeds one after the other.
        label: their class, None to tell none.
        order: `TOGETHER`, or an order of `asyncdiff.tasks.tasks.ORDERS`.
        overlap: share of a patch's time in which the next one moves, too.
        steps: from noise to clean where patches move together; None for the sampler's own.
        steps_per_patch: likewise of every patch where they follow each other.
        guidance: scale of guidance by the class; 1 is off.
        input_guidance: strength of guidance by what is given; 0 is off.
        sides: pixels to add above, at the right, below and at the left.
        size: HEIGHTxWIDTH of whole images and textures; the model's own if None.
        tileable: whether a texture closes upon itself.
        movie: whether a GIF is written.
    """

    kind: str = "new"
    photo: UInt8[Tensor, "c h w"] | None = None
    painted: UInt8[Tensor, "painted_h painted_w"] | None = None
    seed: int = 0
    count: int = 1
    label: int | None = None
    order: str = TOGETHER
    overlap: float = 0.75
    steps: int | None = None
    steps_per_patch: int = 16
    guidance: float = 1.0
    input_guidance: float = 0.0
    sides: tuple[int, int, int, int] = (0, 0, 0, 0)
    size: str | None = None
    tileable: bool = False
    movie: bool = True

    @property
    def seeds(self) -> str:
        """As commands take them."""
        return str(self.seed) if self.count == 1 else f"{self.seed}-{self.seed + self.count - 1}"

    @property
    def ordered(self) -> bool:
        """Whether patches follow each other."""
        return KINDS[self.kind].ordered and self.order != TOGETHER


def check(wish: DrawRequest, limits: Limits) -> None:
    """Raise ValueError, in words for the page, unless the wish is whole and within the limits.

    What the command refuses is left to it.
    """
    kind = KINDS[wish.kind]
    if kind.needs_photo and wish.photo is None:
        raise ValueError("a picture must be chosen first, got none: upload one or pick an example")
    if kind.painted:
        if wish.painted is None or not (wish.painted > KEPT).any():
            raise ValueError("something must be painted, got nothing: paint what may change")
        if wish.photo is None or wish.painted.shape != wish.photo.shape[1:]:
            raise ValueError(f"what is painted must have the picture's size, got {by(wish.painted.shape)}: paint anew")
    if wish.kind == "extend" and not any(wish.sides):
        raise ValueError("the sides must grow by some pixels, got 0 on all: move a slider")
    within("seed", wish.seed, 0, 2**63 - 1 - limits.pictures, "any whole number is another picture")
    within("pictures", wish.count, 1, limits.pictures, "draw more with another seed afterwards")
    within("steps", wish.steps or 1, 1, limits.steps, "50 are usual")
    within("steps per patch", wish.steps_per_patch, 1, limits.steps, "16 are usual")
    height, width = _size(wish)
    if height * width > limits.pixels:
        raise ValueError(
            f"the picture must have at most {limits.pixels} pixels, got {by((height, width))}: "
            "ask for less, or use the command line"
        )


def words(wish: DrawRequest, checkpoint: Path, folder: Path) -> list[str]:
    """The words of `python -m asyncdiff` that do it; what is given is written into the folder as PNG files.

    Args:
        wish: checked.
        checkpoint: that draws.
        folder: for the photo and what is painted on it.
    """
    said = ["autoregress" if wish.ordered else KINDS[wish.kind].command, str(checkpoint)]
    said += _GIVEN[wish.kind](wish, folder)
    if wish.ordered:
        said += ["--order", wish.order, "--overlap", f"{wish.overlap:g}"]
        said += ["--steps_per_patch", str(wish.steps_per_patch)]
    elif wish.steps is not None:
        said += ["--steps", str(wish.steps)]
    said += ["--seeds", wish.seeds, "--labels", "none" if wish.label is None else str(wish.label)]
    if wish.guidance != 1 and wish.label is not None:
        said += ["--guidance", f"{wish.guidance:g}"]
    if wish.input_guidance:
        said += ["--input_guidance", f"{wish.input_guidance:g}"]
    return [*said, "--gif"] if wish.movie else said


def line(said: Sequence[str]) -> str:
    """The words as they are typed into a shell."""
    return shlex.join(["python", "-m", "asyncdiff", *said])


def _size(wish: DrawRequest) -> tuple[int, int]:
    """(height, width) of the pictures, (1, 1) where it is the model's own."""
    if wish.kind in ("new", "texture"):
        return height_by_width("size", wish.size) if wish.size else (1, 1)
    assert wish.photo is not None, "checked before"
    (top, right, bottom, left), (height, width) = wish.sides, wish.photo.shape[1:]
    return (top + height + bottom, left + width + right) if wish.kind == "extend" else (height, width)


def _new(wish: DrawRequest, folder: Path) -> list[str]:
    return ["--size", wish.size] if wish.size else []


def _fill(wish: DrawRequest, folder: Path) -> list[str]:
    assert wish.painted is not None, "checked before"
    known = torch.where(wish.painted < 128, 255, 0).to(torch.uint8)
    save_png(known[None], folder / "known.png")
    return [*_photo(wish, folder), "--mask", str(folder / "known.png")]


def _change(wish: DrawRequest, folder: Path) -> list[str]:
    assert wish.painted is not None, "checked before"
    save_png(wish.painted[None], folder / "levels.png")
    return [*_photo(wish, folder), "--levels", str(folder / "levels.png")]


def _extend(wish: DrawRequest, folder: Path) -> list[str]:
    names = ("top", "right", "bottom", "left")
    sides = [word for name, n in zip(names, wish.sides, strict=True) if n for word in (f"--{name}", str(n))]
    return [*_photo(wish, folder), *sides]


def _texture(wish: DrawRequest, folder: Path) -> list[str]:
    said = ["--size", wish.size] if wish.size else []
    if wish.tileable:
        said += ["--tileable", "true"]
    if wish.photo is None:
        return said
    save_png(wish.photo, folder / "photo.png")
    return ["--exemplar", str(folder / "photo.png"), *said]


def _photo(wish: DrawRequest, folder: Path) -> list[str]:
    """It has its size already: what was seen when it was painted on is what is drawn on."""
    assert wish.photo is not None, "checked before"
    save_png(wish.photo, folder / "photo.png")
    return ["--image", str(folder / "photo.png"), "--fit", "keep"]


_GIVEN: dict[str, Callable[[DrawRequest, Path], list[str]]] = {
    "new": _new,
    "fill": _fill,
    "change": _change,
    "extend": _extend,
    "texture": _texture,
}
