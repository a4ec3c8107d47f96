"""Tasks whose images may be larger than the model's training size: they are sampled in overlapping windows."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from asyncdiff.checks import at_least
from asyncdiff.sampling.engine import evaluation_mode
from asyncdiff.sampling.tiling import TiledSampler, TilingState
from asyncdiff.shapes import Image
from asyncdiff.tasks.image_tasks import Task, check_batch_size, check_fit, photo_requests, requested_size
from asyncdiff.tasks.photo_inputs import load_photos
from asyncdiff.tasks.photos import (
    Fit,
    PhotoFit,
    fit_photo,
    format_size,
    parse_size,
    photo_files,
    plan_fit,
    read_photo,
    to_model,
)
from asyncdiff.tasks.pixel_space import (
    check_image_channels,
    check_size,
    covered_pixels,
    decode_images,
    encode_exemplar,
    patch_of,
    size_in_space,
    stack_known_images,
    window_of,
)
from asyncdiff.tasks.requests import Model, Request, State, assign_labels, device_of, file_stem


class TiledTask(Task):
    """Task that samples images larger than the model's training size in overlapping windows."""

    overlap: float
    tileable: bool

    def needs_tiling(self, model: Model, request: Request) -> bool:
        """Return whether the image is larger than one window."""
        _, height, width = window_of(model)
        return request.size[0] > height or request.size[1] > width

    def batches(self, model: Model, requests: Sequence[Request]) -> list[list[Request]]:
        """Group the requests into batches; a tiled image is its own batch, since its windows are sampled together."""
        if any(self.needs_tiling(model, request) for request in requests):
            return [[request] for request in requests]
        return super().batches(model, requests)

    @torch.no_grad()
    def states(self, model: Model, batch: Sequence[Request]) -> Iterator[State]:
        """Yield the state after every batch of windows; an image of a single window is sampled as in `Task`."""
        if not self.needs_tiling(model, batch[0]):
            yield from super().states(model, batch)
            return
        (request,) = batch
        device, photo = device_of(model), stack_known_images(batch, model)
        exemplar, place = encode_exemplar(request, model)

        def show(state: TilingState) -> Image:
            return decode_images(state.canvas[None], request.size, model, photo=photo, tileable=self.tileable)

        tiled = TiledSampler(
            self.sampler(model), self.overlap, self.tileable, check_batch_size(model.batch_size)
        )
        with evaluation_mode(model.denoiser), model.sampling_context():
            for state in tiled.steps(
                model.denoiser,
                size=size_in_space(request.size, model),
                shape=model.shape,
                seed=request.seed,
                label=request.label,
                exemplar=exemplar,
                place=place,
                device=device,
            ):
                yield State(partial(show, state), None, state.done, state.windows)


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
        if (to is not None) == any((top, bottom, left, right)):
            raise ValueError(
                "set either to, the size of the result, or at least one of top, bottom, left, right, the pixels to add"
            )
        check_fit(fit, size)
        TiledSampler(overlap=overlap)  # raises ValueError for an invalid overlap

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        check_image_channels(model)
        photos = load_photos(self.image, model, size=requested_size(self.size, model), fit=self.fit)
        extended = [self._extend(photo, patch_of(model)) for photo in photos]
        requests = photo_requests(extended, model, seeds, labels)
        for request in requests:
            if self.needs_tiling(model, request):
                _check_tiled_size(request, model)
            else:
                check_size(request.size, model)
        return requests

    def _extend(self, photo: Request, patch: tuple[int, int]) -> Request:
        """Set the size of the result, and the position of the photo in it."""
        height, width = photo.size
        if self.to is None:
            size = (self.top + height + self.bottom, self.left + width + self.right)
            return photo._replace(size=size, place=(self.top, self.left))
        size = parse_size("to", self.to)
        if size[0] < height or size[1] < width or size == (height, width):
            raise ValueError(
                f"to must be larger than the photo of {format_size((height, width))}, got {self.to}: increase it, or "
                "make the photo smaller with size"
            )
        return photo._replace(size=size, place=center_offset(size, (height, width), patch))


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
        TiledSampler(overlap=overlap)  # raises ValueError for an invalid overlap
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}: use 1 to leave the exemplar unchanged")
        if exemplar is None and (scale != 1 or piece is not None):
            raise ValueError("scale and piece need an exemplar, got none: set exemplar, or omit them")

    def needs_tiling(self, model: Model, request: Request) -> bool:
        """Return True: a texture may be tileable, and is at least as large as a window."""
        return True

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Return one request per seed; labels are cycled over the seeds, and by default textures are unconditional."""
        check_image_channels(model)
        size = parse_size("size", self.size)
        classes = assign_labels(labels, len(seeds), model, cycle=False, per="seed")
        exemplar = None if self.exemplar is None else self._read_exemplar(self.exemplar, model)
        requests = []
        for seed, label in zip(seeds, classes, strict=True):
            if exemplar is None:
                request = Request(file_stem(f"{seed:06d}", label), int(seed), label, size)
            else:
                name = file_stem(f"{exemplar.name}_seed{seed}", label)
                place = center_offset(size, exemplar.size, patch_of(model))
                request = exemplar._replace(name=name, seed=int(seed), label=label, size=size, place=place)
            _check_tiled_size(request, model, self.tileable)
            requests.append(request)
        return requests

    def _read_exemplar(self, exemplar: str, model: Model) -> Request:
        """Read the exemplar and crop it to its center, at most to the requested size."""
        channels, height, width = window_of(model)
        patch = patch_of(model)
        files = photo_files("exemplar", exemplar)
        if len(files) > 1:
            raise ValueError(f"exemplar must be one image file, got {len(files)} in {exemplar}: choose one of them")
        (file,) = files
        pixels = read_photo(file, channels)
        if self.scale != 1:
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
        return Request(file.stem, 0, None, plan.size, to_model(plan.crop(pixels)), known, group=file.stem, note=note)


def center_offset(size: tuple[int, int], part: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Return the position of a centered part's upper left pixel, rounded down to a multiple of the patch size."""
    top, left = ((a - b) // 2 // p * p for a, b, p in zip(size, part, patch, strict=True))
    return top, left


def _check_tiled_size(request: Request, model: Model, tileable: bool = False) -> None:
    """Raise ValueError if the image is smaller than a window, or if its photo covers no complete patch."""
    size, (_, height, width) = request.size, window_of(model)
    if size[0] < height or size[1] < width:
        raise ValueError(
            f"size must be at least the training size {format_size((height, width))}, got {format_size(size)}: "
            "generate that size and crop the result"
        )
    if tileable:
        check_size(size, model)  # a cropped image would not be tileable
    if model.codec is not None and request.image is not None:
        covered_pixels(request, model)
