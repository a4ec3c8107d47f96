"""Tasks whose pictures may be larger than what the model was trained on: window after window on a canvas."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch

from asyncdiff.checks import at_least
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.sampling.tiling import TiledSampler, TilingState
from asyncdiff.shapes import Image
from asyncdiff.tasks.photo_inputs import Photo, photos_of
from asyncdiff.tasks.photos import Fit, Fitting, by, fitted, fitting, height_by_width, photo_files, read_photo, to_model
from asyncdiff.tasks.pixel_space import (
    check_pictures,
    check_size,
    exemplar_of,
    known_image,
    patch_of,
    pictures,
    size_in_space,
    whole_latents,
    window_of,
)
from asyncdiff.tasks.requests import Model, Request, State, device_of, labels_in_turn, named_for
from asyncdiff.tasks.tasks import Task, at_least_one, check_fit, from_photos, size_for


class Windowed(Task):
    """A task whose pictures are canvases of windows where they exceed the size that the model was trained on."""

    overlap: float
    tileable: bool

    def on_canvas(self, model: Model, request: Request) -> bool:
        """Whether the picture exceeds one window."""
        _, height, width = window_of(model)
        return request.size[0] > height or request.size[1] > width

    def batches(self, model: Model, requests: Sequence[Request]) -> list[list[Request]]:
        """Canvases alone: their windows are what is drawn together."""
        if any(self.on_canvas(model, request) for request in requests):
            return [[request] for request in requests]
        return super().batches(model, requests)

    @torch.no_grad()
    def states(self, model: Model, batch: Sequence[Request]) -> Iterator[State]:
        """The canvas after every batch of windows; one walk where a window is enough."""
        if not self.on_canvas(model, batch[0]):
            yield from super().states(model, batch)
            return
        (request,) = batch
        device, given = device_of(model), known_image(batch, model)
        exemplar, place = exemplar_of(request, model)

        def shown(stage: TilingState) -> Image:
            return pictures(stage.canvas[None], request.size, model, given=given, tileable=self.tileable)

        canvas = TiledSampler(self.sampler(model), self.overlap, self.tileable, at_least_one(model.predict_batch_size))
        with evaluation_mode(model.denoiser), model.sampling_context():
            for stage in canvas.steps(
                model.denoiser,
                size=size_in_space(request.size, model),
                shape=model.shape,
                seed=request.seed,
                label=request.label,
                exemplar=exemplar,
                place=place,
                device=device,
            ):
                yield State(partial(shown, stage), None, stage.done, stage.windows)


class Outpaint(Windowed):
    """Photos continued beyond their edges; the photos themselves stay bit for bit.

    Args:
        image: a file, a folder or a pattern such as "photos/*.jpg"; any size, turned upright.
        top: pixels to add above.
        bottom: pixels to add below.
        left: pixels to add at the left.
        right: pixels to add at the right.
        to: HEIGHTxWIDTH of the result instead, with the photo in its middle, on whole patches.
        overlap: share of a window that is known when it is drawn, where the result takes several windows; in (0, 1).
        size: HEIGHTxWIDTH that photos are brought to first; the size that the model was trained on by default.
        fit: "crop" resizes photos until they cover that size and cuts the rest, "resize" stretches them to it, "keep"
            leaves them as they are, but for what exceeds whole patches.
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
            at_least(name, pixels, 0, "it is what to add to the photo")
        if (to is not None) == any((top, bottom, left, right)):
            raise ValueError("one of to and top, bottom, left, right must be given: what to add, or the result's size")
        check_fit(fit, size)
        TiledSampler(overlap=overlap)  # refuses what it cannot be

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Of every photo one per seed."""
        check_pictures(model)
        size, patch = size_for(self.size, model), patch_of(model)
        photos = photos_of("image", self.image, window_of(model)[0], size=size, fit=self.fit, patch=patch)
        frames = [self._placed(photo, patch) for photo in photos]
        requests = from_photos(photos, model, seeds, labels, frames)
        for request in requests:
            if self.on_canvas(model, request):
                _check_canvas(request, model)
            else:
                check_size(request.size, model)
        return requests

    def _placed(self, photo: Photo, patch: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """The result's size, and where in it the photo lies."""
        height, width = photo.known.shape
        if self.to is None:
            return (self.top + height + self.bottom, self.left + width + self.right), (self.top, self.left)
        whole = height_by_width("to", self.to)
        if whole[0] < height or whole[1] < width or whole == (height, width):
            raise ValueError(f"to must exceed the photo, got {self.to} for {by((height, width))}: reduce it with size")
        return whole, middle(whole, (height, width), patch)


class Texture(Windowed):
    """Textures of any size, grown from an exemplar or from nothing.

    Args:
        exemplar: an image file whose middle is continued in all directions, itself bit for bit; none by default.
        size: HEIGHTxWIDTH of the result in pixels; at least what the model was trained on, a tileable one on patches.
        tileable: the result closes upon itself both ways.
        overlap: share of a window that is known when it is drawn, in (0, 1).
        scale: factor that the exemplar is resized by first: what the model was trained on is one scale of a material.
        piece: HEIGHTxWIDTH of the exemplar's middle that is kept, whole patches of it; one window by default.
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
        TiledSampler(overlap=overlap)  # refuses what it cannot be
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}: 1 leaves the exemplar as it is")
        if exemplar is None and (scale != 1 or piece is not None):
            raise ValueError("exemplar must be given with scale or piece: leave them out without")

    def on_canvas(self, model: Model, request: Request) -> bool:
        """Always: a texture may close upon itself, and is never smaller than a window."""
        return True

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """One per seed; labels are taken in turn over the seeds, none by default."""
        check_pictures(model)
        size = height_by_width("size", self.size)
        classes = labels_in_turn(labels, len(seeds), model, cycle=False, per="seed")
        given = None if self.exemplar is None else self._given(self.exemplar, model)
        requests = []
        for seed, label in zip(seeds, classes, strict=True):
            request = Request(named_for(f"{seed:06d}", label), int(seed), label, size)
            if given is not None:
                place = middle(size, (given.known.shape[0], given.known.shape[1]), patch_of(model))
                request = request._replace(
                    name=named_for(f"{given.name}_seed{seed}", label),
                    image=given.image,
                    known=given.known,
                    place=place,
                    group=given.name,
                    note=given.note,
                )
            _check_canvas(request, model, self.tileable)
            requests.append(request)
        return requests

    def _given(self, exemplar: str, model: Model) -> Photo:
        """The middle of the exemplar, as much as is wanted and as is there."""
        channels, height, width = window_of(model)
        patch = patch_of(model)
        files = photo_files("exemplar", exemplar)
        if len(files) > 1:
            raise ValueError(f"exemplar must be one image file, got {len(files)} in {exemplar}: name one of them")
        (file,) = files
        pixels = read_photo(file, channels)
        if self.scale != 1:
            resized = (max(1, round(pixels.shape[1] * self.scale)), max(1, round(pixels.shape[2] * self.scale)))
            pixels = fitted(pixels, fitting((pixels.shape[1], pixels.shape[2]), resized, "resize", patch))
        wanted = height_by_width("piece", self.piece) if self.piece else (height, width)
        kept = [min(a, b) // p * p for a, b, p in zip(pixels.shape[1:], wanted, patch, strict=True)]
        if 0 in kept:
            raise ValueError(
                f"exemplar must hold a patch of {by(patch)} pixels, got {by(pixels.shape[1:])}, of which {by(wanted)} "
                "is kept: set scale or piece"
            )
        how = Fitting((pixels.shape[1], pixels.shape[2]), (pixels.shape[1], pixels.shape[2]), (kept[0], kept[1]))
        known = torch.ones(how.size, dtype=torch.bool)
        scaled = f" times {self.scale:g}:" if self.scale != 1 else ":"
        return Photo(file.stem, to_model(how.cut(pixels)), known, f"{file}{scaled} {how.told()}")


def middle(whole: tuple[int, int], part: tuple[int, int], patch: tuple[int, int]) -> tuple[int, int]:
    """Where the upper left pixel of a part comes to lie in the middle of the whole, on a whole patch."""
    top, left = ((a - b) // 2 // p * p for a, b, p in zip(whole, part, patch, strict=True))
    return top, left


def _check_canvas(request: Request, model: Model, tileable: bool = False) -> None:
    """Raise ValueError for a canvas that cannot be drawn: smaller than its windows, or around too little of a photo."""
    size, (_, height, width) = request.size, window_of(model)
    if size[0] < height or size[1] < width:
        raise ValueError(f"size must be at least the model's {by((height, width))}, got {by(size)}: cut it afterwards")
    if tileable:
        check_size(size, model)  # what is cut does not close upon itself
    if model.codec is not None and request.image is not None:
        whole_latents(request, model)
