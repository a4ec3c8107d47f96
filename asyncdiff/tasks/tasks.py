"""Tasks that are one walk of the sampler: whole images, completed photos, patch after patch."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch

from asyncdiff.checks import at_least
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.orders import CenterOut, Order, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.sampling.batched import evaluation_mode
from asyncdiff.sampling.samplers import Autoregressive, Frame, ImageSampler, Sampler
from asyncdiff.shapes import Image
from asyncdiff.tasks.photo_inputs import Photo, check_masks, edited_of, levels_for, mask_for, photos_of
from asyncdiff.tasks.photos import Fit, height_by_width
from asyncdiff.tasks.pixel_space import (
    check_pictures,
    check_size,
    encoded,
    factor_of,
    known_image,
    patch_of,
    pictures,
    size_in_space,
    window_of,
)
from asyncdiff.tasks.requests import Model, Request, State, device_of, labels_in_turn, named_for

ORDERS: dict[str, Order] = {
    "raster": Raster(),
    "snake": Snake(),
    "spiral": Spiral(),
    "centre_out": CenterOut(),
    "wavefront": Wavefront(),
    "shuffled": Shuffled(),
}


class Task(ABC):
    """What to draw. Subclasses say which pictures, and how a batch of them comes about where it is no single walk."""

    @property
    def name(self) -> str:
        """In small letters: the folder of its pictures."""
        return type(self).__name__.lower()

    @abstractmethod
    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Every picture that is asked for, photos read; all that can be refused is refused here.

        Args:
            model: what draws.
            seeds: one per picture; of every photo one picture per seed.
            labels: taken in turn, over the photos or else over the seeds; an empty list tells none. Without any, whole
                images have all classes in turn, photos none.
        """

    def sampler(self, model: Model) -> ImageSampler:
        """The model's own."""
        return model.sampler

    def batches(self, model: Model, requests: Sequence[Request]) -> list[list[Request]]:
        """The requests in batches that are drawn together: of one kind and size."""
        batch_size = at_least_one(model.predict_batch_size)
        kinds = groupby(requests, key=lambda r: (r.size, r.image is None, r.label is None))
        return [
            rows[first : first + batch_size]
            for rows in (list(rows) for _, rows in kinds)
            for first in range(0, len(rows), batch_size)
        ]

    @torch.no_grad()
    def states(self, model: Model, batch: Sequence[Request]) -> Iterator[State]:
        """How a batch comes about, from noise to the result."""
        sampler, device, size = self.sampler(model), device_of(model), batch[0].size
        within = size_in_space(size, model)
        total = sampler.count(model.denoiser.grid(within)) if isinstance(sampler, Sampler) else None
        given = known_image(batch, model)
        image, known, levels = (None, None, None) if given is None else encoded(given, model)

        def shown(frame: Frame) -> Image:
            x_t = frame.x_t
            if frame.t.any():  # on its way; what is known in part is as noisy as its patch
                return pictures(x_t, size, model)
            if image is not None and known is not None:
                x_t = torch.where(known[:, None], image, x_t)
            return pictures(x_t, size, model, given=given)

        with evaluation_mode(model.denoiser), model.sampling_context():
            frames = sampler.frames(
                model.denoiser,
                seeds=[r.seed for r in batch],
                shape=(model.shape[0], *within),
                label=None if batch[0].label is None else torch.tensor([r.label for r in batch], device=device),
                image=image,
                known=known,
                levels=levels,
                device=device,
            )
            for done, frame in enumerate(frames):
                yield State(partial(shown, frame), frame.t, done, total)

    def finished(self, model: Model, batch: Sequence[Request]) -> Image:
        """The pictures of a batch, in about [-1, 1]."""
        state = None
        for state in self.states(model, batch):  # noqa: B007  the last one is wanted
            pass
        assert state is not None, "a walk has at least one state"
        return state.images

    def draw(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> Image:
        """All pictures, in about [-1, 1], in the order of the requests; refused if they differ in size.

        Args:
            model: what draws.
            seeds: as `requests` takes them.
            labels: as `requests` takes them.
        """
        requests = self.requests(model, seeds=seeds, labels=labels)
        if len(sizes := {request.size for request in requests}) > 1:
            raise ValueError(f"photos must come to one size, got {len(sizes)} sizes: set size, and fit to crop")
        return torch.cat([self.finished(model, batch) for batch in self.batches(model, requests)])


class Generate(Task):
    """Whole images.

    Args:
        size: HEIGHTxWIDTH in pixels, covered by whole patches; the size that the model was trained on by default.
    """

    def __init__(self, size: str | None = None):
        self.size = size

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """One per seed."""
        check_pictures(model)
        size = size_for(self.size, model)
        classes = labels_in_turn(labels, len(seeds), model, cycle=True, per="seed")
        return [
            Request(named_for(f"{seed:06d}", label), int(seed), label, size)
            for seed, label in zip(seeds, classes, strict=True)
        ]


class Inpaint(Task):
    """Photos with a part of them drawn anew; what is known of them stays bit for bit.

    Args:
        image: a file, a folder or a pattern such as "photos/*.jpg"; any size, turned upright.
        mask: what is known: a file that is white there, a folder of files named like the photos, or the name of a set:
            thin, wide, square, extreme, half, lines, super_resolution. A file has its photo's shape.
        mask_is_unknown: the mask says what is to be drawn instead.
        mask_seed: of the sets that are random; photo i has the mask of mask_seed + i.
        size: HEIGHTxWIDTH in pixels, covered by whole patches; the size that the model was trained on by default.
        fit: "crop" resizes photos until they cover the size and cuts the rest, "resize" stretches them to it, "keep"
            leaves them as they are, but for what exceeds whole patches.
    """

    def __init__(
        self,
        image: str,
        mask: Mask | str = "square",
        mask_is_unknown: bool = False,
        mask_seed: int = 0,
        size: str | None = None,
        fit: Fit = "crop",
    ):
        self.image = image
        self.mask = mask
        self.mask_is_unknown = mask_is_unknown
        self.mask_seed = mask_seed
        self.size = size
        self.fit: Fit = fit
        check_fit(fit, size)

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Of every photo one per seed."""
        check_pictures(model)
        size, rule = size_for(self.size, model), mask_for(self.mask)
        photos = photos_of(
            "image",
            self.image,
            window_of(model)[0],
            size=size,
            fit=self.fit,
            patch=patch_of(model),
            mask=rule,
            mask_is_unknown=self.mask_is_unknown,
            mask_seed=self.mask_seed,
        )
        check_masks(photos, patch_of(model), factor_of(model))
        return from_photos(photos, model, seeds, labels)


class Edit(Task):
    """Photos changed as much as a map of noise levels says: SDEdit (arXiv:2108.01073), patch by patch.

    A patch starts as the photo noised to its level, the highest of its pixels'. All that is black stays bit for bit;
    a map of black and white is `Inpaint` with that mask.

    Args:
        image: a file, a folder or a pattern such as "photos/*.jpg"; any size, turned upright.
        levels: how much may change: a grey file, black = nothing to white = everything, a folder of files named like
            the photos, or one number in (0, 1] for all patches. A file has its photo's shape.
        size: HEIGHTxWIDTH in pixels, covered by whole patches; the size that the model was trained on by default.
        fit: "crop" resizes photos until they cover the size and cuts the rest, "resize" stretches them to it, "keep"
            leaves them as they are, but for what exceeds whole patches.
    """

    def __init__(self, image: str, levels: str = "0.5", size: str | None = None, fit: Fit = "crop"):
        self.image = image
        self.levels = levels
        self.size = size
        self.fit: Fit = fit
        check_fit(fit, size)

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Of every photo one per seed."""
        check_pictures(model)
        if not model.sampler.supports_start_levels:
            raise ValueError(
                f"sampler must start from any level to edit, got {type(model.sampler).__name__}: take Sampler"
            )
        photos = edited_of(
            "image",
            self.image,
            window_of(model)[0],
            size=size_for(self.size, model),
            fit=self.fit,
            patch=patch_of(model),
            levels=levels_for(self.levels),
        )
        return from_photos(photos, model, seeds, labels)


class Autoregress(Task):
    """Images, or missing parts of photos, patch after patch.

    The model's solver and guidance are used; its path and its number of steps are not.

    Args:
        order: raster, snake, spiral, centre_out, wavefront or shuffled, or one of `asyncdiff.noise.orders`.
        overlap: share of a patch's time in which the next one moves, too; in [0, 1).
        steps_per_patch: steps from noise to clean of every patch.
        image: photos to complete: a file, a folder or a pattern; none by default.
        mask: what is known of them, as `Inpaint` takes it.
        mask_is_unknown: the mask says what is to be drawn instead.
        mask_seed: of the sets that are random; photo i has the mask of mask_seed + i.
        size: HEIGHTxWIDTH in pixels, covered by whole patches; the size that the model was trained on by default.
        fit: how photos come to it: "crop", "resize" or "keep".
        levels: how much of the photos is to change instead of a mask, as `Edit` takes it.
    """

    def __init__(
        self,
        order: Order | str = "raster",
        overlap: float = 0.0,
        steps_per_patch: int = 16,
        image: str | None = None,
        mask: Mask | str | None = None,
        mask_is_unknown: bool = False,
        mask_seed: int = 0,
        size: str | None = None,
        fit: Fit = "crop",
        levels: str | None = None,
    ):
        self.order = order
        self.overlap = overlap
        self.steps_per_patch = steps_per_patch
        self.image = image
        self.mask = mask
        self.mask_is_unknown = mask_is_unknown
        self.mask_seed = mask_seed
        self.size = size
        self.fit: Fit = fit
        check_fit(fit, size)
        self.levels = levels
        if levels is not None and (image is None or mask is not None):
            given = "no image" if image is None else f"the mask {mask}, too"
            raise ValueError(f"levels must come with an image and without a mask, got {given}: black is known")
        if (image is None) != (mask is None and levels is None):
            given, missing = ("image", "mask") if mask is None else ("mask", "image")
            raise ValueError(f"image and mask go together, got {given} without {missing}: give both or none")
        if image is None and (mask_is_unknown or mask_seed or fit != "crop"):
            raise ValueError("image must be given with mask_is_unknown, mask_seed or fit: leave them out without")
        self._sampler = Autoregressive(ordered(order), overlap, steps_per_patch=steps_per_patch)

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """One per seed, of every photo where there are any."""
        if self.image is not None and self.levels is not None:
            return Edit(self.image, self.levels, self.size, self.fit).requests(model, seeds=seeds, labels=labels)
        if self.image is None or self.mask is None:
            return Generate(self.size).requests(model, seeds=seeds, labels=labels)
        completed = Inpaint(self.image, self.mask, self.mask_is_unknown, self.mask_seed, self.size, self.fit)
        return completed.requests(model, seeds=seeds, labels=labels)

    def sampler(self, model: Model) -> ImageSampler:
        """An autoregressive one with the solver, the guidance and the skipping of the model's."""
        own = model.sampler
        solver = getattr(own, "solver", None)
        return Autoregressive(
            self._sampler.order,
            self.overlap,
            solver,
            self.steps_per_patch,
            list(own.guidance),
            own.refresh,
            own.margin,
        )


def from_photos(
    photos: Sequence[Photo],
    model: Model,
    seeds: Sequence[int],
    labels: Sequence[int] | None,
    frames: Sequence[tuple[tuple[int, int], tuple[int, int]]] | None = None,
) -> list[Request]:
    """Of every photo one request per seed.

    Args:
        photos: brought to their sizes.
        model: knows its classes.
        seeds: one picture each.
        labels: in turn over the photos.
        frames: of every photo the (height, width) of its pictures and its place in them; the photo's own by default.
    """
    classes = labels_in_turn(labels, len(photos), model, cycle=False, per="photo")
    frames = frames or [((photo.known.shape[0], photo.known.shape[1]), (0, 0)) for photo in photos]
    return [
        Request(
            name=named_for(f"{photo.name}_seed{seed}", label),
            seed=int(seed),
            label=label,
            size=size,
            image=photo.image,
            known=photo.known,
            place=place,
            group=photo.name,
            note=photo.note,
            levels=photo.levels,
        )
        for photo, label, (size, place) in zip(photos, classes, frames, strict=True)
        for seed in seeds
    ]


def size_for(size: str | None, model: Model) -> tuple[int, int]:
    """(height, width) in pixels of a size's text, the model's own without; ValueError unless patches cover it."""
    height, width = height_by_width("size", size) if size else window_of(model)[1:]
    check_size((height, width), model)
    return height, width


def ordered(order: Order | str) -> Order:
    """The order, or that of a name in ORDERS; ValueError with the nearest name if there is none."""
    if not isinstance(order, str):
        return order
    if order not in ORDERS:
        close = difflib.get_close_matches(order.lower(), ORDERS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order}{hint}")
    return ORDERS[order]


def at_least_one(batch_size: int) -> int:
    """The batch size, refused below 1."""
    at_least("batch_size", batch_size, 1, "set the images that go through the network together")
    return batch_size


def check_fit(fit: str, size: str | None) -> None:
    """Raise ValueError unless `fit` is one, and `size` something that it looks at."""
    if fit not in ("crop", "resize", "keep"):
        raise ValueError(f"fit must be crop, resize or keep, got {fit}: crop is usual")
    if fit == "keep" and size is not None:
        raise ValueError(f"size must be left out where fit is keep, got {size}: photos keep their own")
