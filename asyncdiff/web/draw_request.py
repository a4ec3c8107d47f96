"""Draw requests from the page, and their translation to command lines."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor

from asyncdiff.checks import MAX_SEED, within
from asyncdiff.tasks.arguments import format_size, parse_size
from asyncdiff.tasks.photos import save_png
from asyncdiff.web.limits import Limits

TOGETHER = "together"  # the order in which all patches are denoised at once


@dataclass(frozen=True)
class RequestKind:
    """Kind of draw request.

    Attributes:
        command: command of `python -m asyncdiff` if all patches are denoised together.
        needs_photo: whether a photo is required.
        painted: whether the visitor paints on the photo.
        orderable: whether patches can be denoised one after the other.
    """

    command: str
    needs_photo: bool
    painted: bool
    orderable: bool


KINDS = {
    "new": RequestKind("sample", needs_photo=False, painted=False, orderable=True),
    "fill": RequestKind("inpaint", needs_photo=True, painted=True, orderable=True),
    "change": RequestKind("edit", needs_photo=True, painted=True, orderable=True),
    "extend": RequestKind("outpaint", needs_photo=True, painted=False, orderable=False),
    "texture": RequestKind("texture", needs_photo=False, painted=False, orderable=False),
}


@dataclass(frozen=True)
class DrawRequest:
    """Request for one or more images.

    Attributes:
        kind: key of `KINDS`.
        photo: 8-bit pixels, already at the size used for drawing; None without a photo.
        paint: how much each pixel of the photo may change, 0 = not at all .. 255 = regenerated; None if nothing is
            painted. Inpainting regenerates pixels of 128 and above.
        seed: seed of the first image.
        count: number of images, with consecutive seeds.
        label: class label; None for unconditional sampling.
        order: `TOGETHER`, or a key of `asyncdiff.noise.orders.ORDERS`.
        overlap: share of a patch's sampling steps during which the next patch is denoised too.
        steps: sampling steps if all patches are denoised together; None for the sampler's default.
        steps_per_patch: sampling steps of each patch if patches are denoised one after the other.
        guidance: classifier-free guidance scale; 1 means no guidance.
        input_guidance: strength of guidance by the known pixels; 0 means no guidance.
        sides: pixels to add at the top, right, bottom and left.
        size: HEIGHTxWIDTH of new images and textures; None for the model's size.
        tileable: whether a texture wraps around at its edges.
        movie: whether a GIF is written.
    """

    kind: str = "new"
    photo: UInt8[Tensor, "c h w"] | None = None
    paint: UInt8[Tensor, "paint_h paint_w"] | None = None
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
        """Value of the option `--seeds`."""
        return str(self.seed) if self.count == 1 else f"{self.seed}-{self.seed + self.count - 1}"

    @property
    def ordered(self) -> bool:
        """Whether patches are denoised one after the other."""
        return KINDS[self.kind].orderable and self.order != TOGETHER


def check(request: DrawRequest, limits: Limits) -> None:
    """Raise ValueError, with a message for the visitor, unless the request is complete and within the limits.

    All other arguments are validated by the command itself.
    """
    height, width = requested_size(request) or (1, 1)
    if KINDS[request.kind].painted:
        if request.paint is None or not request.paint.any():
            raise ValueError("nothing is painted yet: paint the parts that may change")
        if request.paint.shape != (height, width):
            raise ValueError(
                f"the paint must have the image's size, got {format_size(request.paint.shape)}: reload the page"
            )
    if request.kind == "extend" and not any(request.sides):
        raise ValueError("all four sides are 0 pixels: move at least one slider")
    within("seed", request.seed, 0, MAX_SEED + 1 - limits.images, "use any non-negative integer")
    within("images", request.count, 1, limits.images, "draw more images with other seeds afterwards")
    within("steps", request.steps or 1, 1, limits.steps, "50 is a good default")
    within("steps per patch", request.steps_per_patch, 1, limits.steps, "16 is a good default")
    if height * width > limits.pixels:
        raise ValueError(
            f"the image must have at most {limits.pixels} pixels, got {format_size((height, width))}: "
            "choose a smaller size, or use the command line"
        )


def command_argv(request: DrawRequest, checkpoint: Path, folder: Path) -> list[str]:
    """Return the arguments of `python -m asyncdiff` for a request, and write its photo and paint as PNG files.

    Args:
        request: request that `check` accepts.
        checkpoint: checkpoint to sample from.
        folder: folder for the photo and the paint.

    Returns:
        Command name, checkpoint and options.
    """
    argv = ["autoregress" if request.ordered else KINDS[request.kind].command, str(checkpoint)]
    argv += _input_argv(request, folder)
    if request.ordered:
        argv += ["--order", request.order, "--overlap", f"{request.overlap:g}"]
        argv += ["--steps_per_patch", str(request.steps_per_patch)]
    elif request.steps is not None:
        argv += ["--steps", str(request.steps)]
    argv += ["--seeds", request.seeds, "--labels", "none" if request.label is None else str(request.label)]
    if request.guidance != 1 and request.label is not None:
        argv += ["--guidance", f"{request.guidance:g}"]
    if request.input_guidance:
        argv += ["--input_guidance", f"{request.input_guidance:g}"]
    return [*argv, "--gif"] if request.movie else argv


def shell_command(argv: Sequence[str]) -> str:
    """Return a command line with these arguments, quoted for a shell."""
    return shlex.join(["python", "-m", "asyncdiff", *argv])


def requested_size(request: DrawRequest) -> tuple[int, int] | None:
    """Return (height, width) of the images to draw; None stands for the model's own size."""
    if not KINDS[request.kind].needs_photo:
        return parse_size("size", request.size) if request.size else None
    if request.photo is None:
        raise ValueError("choose an image first: upload one or pick an example")
    (top, right, bottom, left), (height, width) = request.sides, request.photo.shape[1:]
    return (top + height + bottom, left + width + right) if request.kind == "extend" else (height, width)


def _input_argv(request: DrawRequest, folder: Path) -> list[str]:
    """Write the photo and the paint, and return the options that name them, or the size."""
    argv, photo = [], str(folder / "photo.png")
    if request.photo is not None and request.kind != "new":
        save_png(request.photo, folder / "photo.png")
        # --fit keep uses exactly the pixels that the visitor painted on.
        argv = ["--exemplar", photo] if request.kind == "texture" else ["--image", photo, "--fit", "keep"]
    if request.kind == "extend":
        for name, pixels in zip(("top", "right", "bottom", "left"), request.sides, strict=True):
            argv += [f"--{name}", str(pixels)] if pixels else []
    if request.paint is not None and KINDS[request.kind].painted:
        name, option = ("known.png", "--mask") if request.kind == "fill" else ("levels.png", "--levels")
        values = torch.where(request.paint < 128, 255, 0).byte() if request.kind == "fill" else request.paint
        save_png(values[None], folder / name)
        argv += [option, str(folder / name)]
    if request.size and request.kind in ("new", "texture"):
        argv += ["--size", request.size]
    return [*argv, "--tileable", "true"] if request.tileable and request.kind == "texture" else argv
