"""Tasks with one sampling trajectory per image: generation, inpainting, editing and autoregressive sampling."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch

from asyncdiff.checks import at_least
from asyncdiff.noise.masks import Mask
from asyncdiff.noise.orders import CenterOut, Order, Raster, Shuffled, Snake, Spiral, Wavefront
from asyncdiff.sampling.engine import evaluation_mode
from asyncdiff.sampling.samplers import Autoregressive, Frame, ImageSampler, Sampler
from asyncdiff.shapes import Image
from asyncdiff.tasks.photo_inputs import check_masks, load_photos, parse_levels, parse_mask
from asyncdiff.tasks.photos import Fit, parse_size
from asyncdiff.tasks.pixel_space import (
    check_image_channels,
    check_size,
    decode_images,
    encode_known,
    size_in_space,
    stack_known_images,
    window_of,
)
from asyncdiff.tasks.requests import Model, Request, State, assign_labels, device_of, file_stem

ORDERS: dict[str, Order] = {
    "raster": Raster(),
    "snake": Snake(),
    "spiral": Spiral(),
    "center_out": CenterOut(),
    "wavefront": Wavefront(),
    "shuffled": Shuffled(),
}


class Task(ABC):
    """Base class of tasks; subclasses define the requests, and override `states` if one trajectory is not enough."""

    @property
    def name(self) -> str:
        """Name of the task in lower case, which is also the name of its output folder."""
        return type(self).__name__.lower()

    @abstractmethod
    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Read the photos, check all arguments and return one request per image.

        Args:
            model: model that generates the images.
            seeds: one seed per image; with photos, one per result of each photo.
            labels: class labels, cycled over the photos, or over the seeds without photos; an empty list means
                unconditional. None means that generated images cycle through all classes and photos are unconditional.

        Returns:
            The requests.
        """

    def sampler(self, model: Model) -> ImageSampler:
        """Return the sampler of the task: the model's by default."""
        return model.sampler

    def batches(self, model: Model, requests: Sequence[Request]) -> list[list[Request]]:
        """Group the requests into batches of the same kind and size, which are sampled together."""
        batch_size = check_batch_size(model.batch_size)
        kinds = groupby(requests, key=lambda r: (r.size, r.image is None, r.label is None))
        return [
            group[first : first + batch_size]
            for group in (list(group) for _, group in kinds)
            for first in range(0, len(group), batch_size)
        ]

    @torch.no_grad()
    def states(self, model: Model, batch: Sequence[Request]) -> Iterator[State]:
        """Yield the states of sampling a batch, from noise to the result."""
        sampler, device, size = self.sampler(model), device_of(model), batch[0].size
        latent_size = size_in_space(size, model)
        total = sampler.num_steps(model.denoiser.grid(latent_size)) if isinstance(sampler, Sampler) else None
        photo = stack_known_images(batch, model)
        image, known, levels = (None, None, None) if photo is None else encode_known(photo, model)

        def show(frame: Frame) -> Image:
            x_t = frame.x_t
            if frame.t.any():  # unfinished: known pixels of partly known patches are as noisy as their patch
                return decode_images(x_t, size, model)
            if image is not None and known is not None:
                x_t = torch.where(known[:, None], image, x_t)
            return decode_images(x_t, size, model, photo=photo)

        with evaluation_mode(model.denoiser), model.sampling_context():
            frames = sampler.frames(
                model.denoiser,
                seeds=[r.seed for r in batch],
                shape=(model.shape[0], *latent_size),
                label=None if batch[0].label is None else torch.tensor([r.label for r in batch], device=device),
                image=image,
                known=known,
                levels=levels,
                device=device,
            )
            for done, frame in enumerate(frames):
                yield State(partial(show, frame), frame.t, done, total)

    def sample_batch(self, model: Model, batch: Sequence[Request]) -> Image:
        """Return the images of a batch, approximately in [-1, 1]."""
        state = None
        for state in self.states(model, batch):  # noqa: B007  only the last state is used
            pass
        assert state is not None, "sampling has at least one state"
        return state.images

    def sample(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> Image:
        """Return all images in the order of the requests.

        Args:
            model: model that generates the images.
            seeds: seeds as in `requests`.
            labels: class labels as in `requests`.

        Returns:
            Images approximately in [-1, 1].

        Raises:
            ValueError: the images differ in size.
        """
        requests = self.requests(model, seeds=seeds, labels=labels)
        if len(sizes := {request.size for request in requests}) > 1:
            raise ValueError(f"photos must have the same size, got {len(sizes)} sizes: set size, and fit='crop'")
        return torch.cat([self.sample_batch(model, batch) for batch in self.batches(model, requests)])


class Generate(Task):
    """Generate complete images.

    Args:
        size: HEIGHTxWIDTH in pixels, a multiple of the patch size; the training size of the model by default.
    """

    def __init__(self, size: str | None = None):
        self.size = size

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        check_image_channels(model)
        size = requested_size(self.size, model)
        classes = assign_labels(labels, len(seeds), model, cycle=True, per="seed")
        return [
            Request(file_stem(f"{seed:06d}", label), int(seed), label, size)
            for seed, label in zip(seeds, classes, strict=True)
        ]


class Inpaint(Task):
    """Inpaint photos: generate their unknown pixels and keep the known ones bit for bit.

    Args:
        image: photos: a file, a folder or a pattern such as "photos/*.jpg", of any size and orientation.
        mask: image file in which white is known and black is inpainted, a folder of such files named like the photos,
            or the name of a mask set: thin, wide, square, extreme, half, lines, super_resolution. A mask file must have
            the aspect ratio of its photo.
        mask_is_unknown: whether the mask marks unknown pixels instead of known ones.
        mask_seed: seed of random mask sets; photo i uses seed mask_seed + i.
        size: HEIGHTxWIDTH in pixels, a multiple of the patch size; the training size of the model by default.
        fit: "crop" resizes photos until they cover the size and crops the rest, "resize" stretches them to it, "keep"
            only crops to a multiple of the patch size.
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
        check_image_channels(model)
        size, rule = requested_size(self.size, model), parse_mask(self.mask)
        photos = load_photos(
            self.image,
            model,
            size=size,
            fit=self.fit,
            mask=rule,
            mask_is_unknown=self.mask_is_unknown,
            mask_seed=self.mask_seed,
        )
        check_masks(photos, model)
        return photo_requests(photos, model, seeds, labels)


class Edit(Task):
    """Edit photos by SDEdit (arXiv:2108.01073) with a map of noise levels, one per patch.

    A patch starts as the photo noised to the level of the patch, the highest level of its pixels. Black pixels stay
    unchanged bit for bit; a black-and-white map gives the same result as `Inpaint` with the corresponding mask.

    Args:
        image: photos: a file, a folder or a pattern such as "photos/*.jpg", of any size and orientation.
        levels: how much may change: a grayscale image file from black (nothing) to white (everything), a folder of
            files named like the photos, or one number in (0, 1] for all patches. A file must have the aspect ratio of
            its photo.
        size: HEIGHTxWIDTH in pixels, a multiple of the patch size; the training size of the model by default.
        fit: "crop" resizes photos until they cover the size and crops the rest, "resize" stretches them to it, "keep"
            only crops to a multiple of the patch size.
    """

    def __init__(self, image: str, levels: str = "0.5", size: str | None = None, fit: Fit = "crop"):
        self.image = image
        self.levels = levels
        self.size = size
        self.fit: Fit = fit
        check_fit(fit, size)

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        check_image_channels(model)
        if not model.sampler.supports_start_levels:
            raise ValueError(
                f"Edit needs a sampler that supports start levels, got {type(model.sampler).__name__}: use Sampler"
            )
        size, levels = requested_size(self.size, model), parse_levels(self.levels)
        photos = load_photos(self.image, model, size=size, fit=self.fit, levels=levels)
        return photo_requests(photos, model, seeds, labels)


class Autoregress(Task):
    """Generate images, or the unknown pixels of photos, patch by patch.

    Uses the solver and the guidance of the model's sampler, but not its path and its number of steps.

    Args:
        order: raster, snake, spiral, center_out, wavefront or shuffled, or an order from `asyncdiff.noise`.
        overlap: fraction of a patch's denoising time during which the next patch is denoised as well, in [0, 1).
        steps_per_patch: number of sampling steps for each patch, from noise to clean.
        image: photos to inpaint: a file, a folder or a pattern, with a mask or levels; without it, images are
            generated.
        mask: known pixels of the photos, see `Inpaint`.
        mask_is_unknown: whether the mask marks unknown pixels instead of known ones.
        mask_seed: seed of random mask sets; photo i uses seed mask_seed + i.
        size: HEIGHTxWIDTH in pixels, a multiple of the patch size; the training size of the model by default.
        fit: how photos are resized and cropped: "crop", "resize" or "keep", as in `Inpaint`.
        levels: how much of the photos may change, instead of a mask, as in `Edit`.
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
            problem = "no image" if image is None else f"the mask {mask}"
            raise ValueError(f"levels need an image and no mask, got {problem}: black in levels already means known")
        if (image is None) != (mask is None and levels is None):
            present, missing = ("image", "mask") if mask is None else ("mask", "image")
            raise ValueError(
                f"image and mask must be given together, got {present} without {missing}: set both or neither"
            )
        if image is None and (mask_is_unknown or mask_seed or fit != "crop"):
            raise ValueError(
                "mask_is_unknown, mask_seed and fit need an image, got none: set image and mask, or omit them"
            )
        self._sampler = Autoregressive(parse_order(order), overlap, steps_per_patch=steps_per_patch)

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Return one request per seed, or per photo and seed."""
        if self.image is not None and self.levels is not None:
            return Edit(self.image, self.levels, self.size, self.fit).requests(model, seeds=seeds, labels=labels)
        if self.image is None or self.mask is None:
            return Generate(self.size).requests(model, seeds=seeds, labels=labels)
        inpaint = Inpaint(self.image, self.mask, self.mask_is_unknown, self.mask_seed, self.size, self.fit)
        return inpaint.requests(model, seeds=seeds, labels=labels)

    def sampler(self, model: Model) -> ImageSampler:
        """Return an autoregressive sampler with the solver, guidance and partial updates of the model's sampler."""
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


def photo_requests(
    photos: Sequence[Request], model: Model, seeds: Sequence[int], labels: Sequence[int] | None
) -> list[Request]:
    """Return one request per photo of `load_photos` and seed, grouped by photo; labels are cycled over the photos."""
    classes = assign_labels(labels, len(photos), model, cycle=False, per="photo")
    return [
        photo._replace(name=file_stem(f"{photo.name}_seed{seed}", label), seed=int(seed), label=label)
        for photo, label in zip(photos, classes, strict=True)
        for seed in seeds
    ]


def requested_size(size: str | None, model: Model) -> tuple[int, int]:
    """Parse the requested size, or return the model's; raise ValueError unless it is a multiple of the patch size."""
    height, width = parse_size("size", size) if size else window_of(model)[1:]
    check_size((height, width), model)
    return height, width


def parse_order(order: Order | str) -> Order:
    """Return the order with a name from ORDERS; raise ValueError with the closest name if it is unknown."""
    if not isinstance(order, str):
        return order
    order = order.replace("centre", "center")  # as 0.1.0 spelled it
    if order not in ORDERS:
        close = difflib.get_close_matches(order.lower(), ORDERS, 1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order}{hint}")
    return ORDERS[order]


def check_batch_size(batch_size: int) -> int:
    """Return the batch size; raise ValueError if it is below 1."""
    at_least("batch_size", batch_size, 1, "set the number of images sampled together")
    return batch_size


def check_fit(fit: str, size: str | None) -> None:
    """Raise ValueError if `fit` is not a valid name, or if `size` is given although `fit` ignores it."""
    if fit not in ("crop", "resize", "keep"):
        raise ValueError(f"fit must be crop, resize or keep, got {fit}: use crop, for example")
    if fit == "keep" and size is not None:
        raise ValueError(f"size cannot be combined with fit='keep', got {size}: omit size, or use fit='crop'")
