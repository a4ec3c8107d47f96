"""Tasks whose images may be larger than the model's training size: they are sampled in overlapping windows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from asyncdiff.checks import at_least, below_one, positive, within
from asyncdiff.tasks.arguments import (
    BYTES_PER_VALUE,
    Fit,
    check_fit,
    check_pixels,
    format_size,
    parse_size,
    photo_files,
)
from asyncdiff.tasks.image_tasks import Task
from asyncdiff.tasks.requests import Canvas, Photo, Request, State

if TYPE_CHECKING:
    from asyncdiff.model import Model
    from asyncdiff.tasks.pixel_space import PixelSpace


class TiledTask(Task):
    """Task that samples images larger than the model's training size in overlapping windows."""

    overlap: float
    tileable: bool

    def needs_tiling(self, space: PixelSpace, size: tuple[int, int]) -> bool:
        """Return whether an image of (height, width) in pixels is larger than one window."""
        _, height, width = space.window
        return size[0] > height or size[1] > width

    def batches(self, model: Model, requests: Sequence[Request], batch_size: int = 64) -> list[list[Request]]:
        """Group the requests into batches; a tiled image is its own batch, since its windows are sampled together."""
        from asyncdiff.tasks.pixel_space import PixelSpace

        space = PixelSpace(model)
        if any(self.needs_tiling(space, request.size) for request in requests):
            return [[request] for request in requests]
        return super().batches(model, requests, batch_size)

    def states(self, model: Model, batch: Sequence[Request], batch_size: int = 64) -> Iterator[State]:
        """Return an iterator over the states; an image of a single window is sampled as in `Task`."""
        from asyncdiff.sampling.tiling import TiledSampler
        from asyncdiff.tasks.drawing import draw_in_windows
        from asyncdiff.tasks.pixel_space import PixelSpace

        if not self.needs_tiling(PixelSpace(model), batch[0].size):
            return super().states(model, batch, batch_size)
        (request,) = batch
        sampler = TiledSampler(self.sampler(model), self.overlap, self.tileable, batch_size)
        return draw_in_windows(model, sampler, request)


class Outpaint(TiledTask):
    """Outpaint photos: extend them beyond their edges and keep the photos themselves bit for bit.

    Args:
        image: photos: a file, a folder or a pattern such as "photos/*.jpg", of any size and orientation.
        top: number of pixels to add above.
        bottom: number of pixels to add below.
        left: number of pixels to add on the left.
        right: number of pixels to add on the right.
        to: HEIGHTxWIDTH of the result, instead of the pixels to add, with the photo at its center, aligned to patches.
        overlap: fraction by which neighboring windows overlap, in [0, 1), if the result needs several windows.
        size: HEIGHTxWIDTH that photos are resized and cropped to first; the training size of the model by default.
        fit: "crop" resizes photos until they cover that size and crops the rest, "resize" stretches them to it, "keep"
            only crops to a multiple of the patch size.
    """

    tileable = False

    def __init__(
        self,
        image: str,
        top: int = 0,
        bottom: int = 0,
        left: int = 0,
        right: int = 0,
        to: str | None = None,
        overlap: float = 0.5,
        size: str | None = None,
        fit: Fit = "crop",
    ):
        self.image = image
        self.top = top
        self.bottom = bottom
        self.left = left
        self.right = right
        self.to = to
        self.overlap = overlap
        self.size = size
        self.fit: Fit = fit
        for name, pixels in (("top", top), ("bottom", bottom), ("left", left), ("right", right)):
            at_least(name, pixels, 0, "set the number of pixels to add")
        check_pixels("size of the result", (top + bottom + 1, left + right + 1), BYTES_PER_VALUE)  # with any photo
        if (to is not None) == any((top, bottom, left, right)):
            raise ValueError(
                "set either to, the size of the result, or at least one of top, bottom, left, right, the pixels to add"
            )
        check_fit(fit, size)
        below_one("overlap", overlap, "use 0.5, for example")

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        from asyncdiff.tasks.photo_inputs import load_photos

        photos = load_photos(self.image, space, size=space.requested_size(self.size), fit=self.fit)
        canvases = [self._extend(photo, space.patch) for photo in photos]
        for canvas in canvases:
            if self.needs_tiling(space, canvas.size):
                _check_tiled_size(canvas, space)
            else:
                space.check_size(canvas.size)
        return canvases

    def _extend(self, photo: Photo, patch: tuple[int, int]) -> Canvas:
        """Return the size of the result, and the photo with its position in it."""
        height, width = photo.size
        if self.to is None:
            size = (self.top + height + self.bottom, self.left + width + self.right)
            return Canvas(size, photo._replace(place=(self.top, self.left)))
        size = parse_size("to", self.to)
        if size[0] < height or size[1] < width or size == (height, width):
            raise ValueError(
                f"to must be larger than the photo of {format_size((height, width))}, got {self.to}: increase it, or "
                "make the photo smaller with size"
            )
        return Canvas(size, photo._replace(place=center_offset(size, (height, width), patch)))


class Texture(TiledTask):
    """Generate textures of any size, optionally around an exemplar.

    Args:
        exemplar: image file whose center is kept bit for bit and extended in all directions (default: none).
        size: HEIGHTxWIDTH of the result in pixels, at least the training size of the model; a tileable result needs a
            multiple of the patch size.
        tileable: make opposite edges of the result match.
        overlap: fraction by which neighboring windows overlap, in [0, 1).
        scale: factor by which the exemplar is resized first, to match the scale of the training textures.
        piece: HEIGHTxWIDTH of the part of the exemplar to keep, its center, cropped to a multiple of the patch size
            (default: the training size of the model).
    """

    class_per_seed = False  # textures are unconditional by default, and labels are cycled over the seeds

    def __init__(
        self,
        exemplar: str | None = None,
        size: str = "128x128",
        tileable: bool = False,
        overlap: float = 0.5,
        scale: float = 1.0,
        piece: str | None = None,
    ):
        self.exemplar = exemplar
        self.size = size
        self.tileable = tileable
        self.overlap = overlap
        self.scale = scale
        self.piece = piece
        below_one("overlap", overlap, "use 0.5, for example")
        positive("scale", scale, "use 1 to leave the exemplar unchanged")
        if exemplar is None and (scale != 1 or piece is not None):
            raise ValueError("scale and piece need an exemplar, got none: set exemplar, or omit them")

    def needs_tiling(self, space: PixelSpace, size: tuple[int, int]) -> bool:
        """Return True: a texture may be tileable, and is at least as large as a window."""
        return True

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        size, photo = parse_size("size", self.size), None
        if self.exemplar is not None:
            exemplar = self._read_exemplar(self.exemplar, space)
            photo = exemplar._replace(place=center_offset(size, exemplar.size, space.patch))
        canvas = Canvas(size, photo)
        _check_tiled_size(canvas, space, self.tileable)
        return [canvas]

    def _read_exemplar(self, exemplar: str, space: PixelSpace) -> Photo:
        """Read the exemplar and crop it to its center, at most to the requested size."""
        import torch

        from asyncdiff.tasks.photos import MAX_PIXELS, PhotoFit, fit_photo, plan_fit, read_photo, to_model

        channels, height, width = space.window
        patch = space.patch
        files = photo_files("exemplar", exemplar)
        if len(files) > 1:
            raise ValueError(f"exemplar must be one image file, got {len(files)} in {exemplar}: choose one of them")
        (file,) = files
        pixels = read_photo(file, channels)
        if self.scale != 1:
            largest = math.sqrt(MAX_PIXELS / math.prod(pixels.shape[1:]))
            within("scale", self.scale, 0, largest, f"a larger one needs a smaller exemplar than {file}")
            resized = (max(1, round(pixels.shape[1] * self.scale)), max(1, round(pixels.shape[2] * self.scale)))
            pixels = fit_photo(pixels, plan_fit((pixels.shape[1], pixels.shape[2]), resized, "resize", patch))
        requested = parse_size("piece", self.piece) if self.piece else (height, width)
        kept_size = [min(a, b) // p * p for a, b, p in zip(pixels.shape[1:], requested, patch, strict=True)]
        if 0 in kept_size:
            raise ValueError(
                f"exemplar must contain at least one patch of {format_size(patch)} pixels, got "
                f"{format_size(pixels.shape[1:])}, cropped to at most {format_size(requested)}: increase scale or piece"
            )
        plan = PhotoFit(
            (pixels.shape[1], pixels.shape[2]), (pixels.shape[1], pixels.shape[2]), (kept_size[0], kept_size[1])
        )
        known = torch.ones(plan.size, dtype=torch.bool)
        scaled = f" scaled by {self.scale:g}:" if self.scale != 1 else ":"
        note = f"{file}{scaled} {plan.describe()}"
        return Photo(file.stem, to_model(plan.crop(pixels)), known, note=note)


def center_offset(size: tuple[int, int], part: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Return the position of a centered part's upper left pixel, rounded down to a multiple of the patch size."""
    top, left = ((a - b) // 2 // p * p for a, b, p in zip(size, part, patch, strict=True))
    return top, left


def _check_tiled_size(canvas: Canvas, space: PixelSpace, tileable: bool = False) -> None:
    """Raise ValueError if the image is smaller than a window, or if its photo covers no complete patch."""
    size, (_, height, width) = canvas.size, space.window
    if size[0] < height or size[1] < width:
        raise ValueError(
            f"size must be at least the training size {format_size((height, width))}, got {format_size(size)}: "
            "generate that size and crop the result"
        )
    if tileable:
        space.check_size(size)  # a cropped image would not be tileable
    if space.model.codec is not None and canvas.photo is not None:
        space.covered_pixels(canvas.photo)
