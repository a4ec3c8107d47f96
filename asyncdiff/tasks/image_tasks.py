"""Tasks with one sampling trajectory per image: generation, inpainting, editing and autoregressive sampling.

A task prepares what to draw: sizes and photos with their known pixels and levels. Work is imported when it is done, so
that commands can check the arguments of a task before they import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from asyncdiff.checks import MAX_SEEDS, at_least, check_seeds
from asyncdiff.tasks.arguments import Fit, check_fit
from asyncdiff.tasks.requests import Canvas, Request, State, assign_labels

if TYPE_CHECKING:
    from asyncdiff.model import Model
    from asyncdiff.noise.masks import Mask
    from asyncdiff.noise.orders import Order
    from asyncdiff.sampling.samplers import ImageSampler
    from asyncdiff.shapes import Image
    from asyncdiff.tasks.pixel_space import PixelSpace


class Task(ABC):
    """Base class of tasks; subclasses prepare what to draw, and override `states` if one trajectory is not enough.

    Attributes:
        class_per_seed: whether images without photos cycle through all classes by default.
    """

    class_per_seed: bool = True

    @property
    def name(self) -> str:
        """Name of the task in lower case, which is also the name of its output folder."""
        return type(self).__name__.lower()

    @abstractmethod
    def prepare(self, space: PixelSpace) -> list[Canvas]:
        """Read the photos and check all arguments.

        Args:
            space: pixels of the model that draws.

        Returns:
            One canvas per photo, or a single one without a photo.
        """

    def sampler(self, model: Model) -> ImageSampler:
        """Return the sampler of the task: the model's by default."""
        return model.sampler

    def requests(self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None) -> list[Request]:
        """Read the photos, check all arguments and return one request per image.

        Args:
            model: model that generates the images.
            seeds: one seed per image; with photos, one per result of each photo.
            labels: class labels, cycled over the photos, or over the seeds without photos; an empty list means
                unconditional. None means that generated images cycle through all classes and photos are unconditional.

        Returns:
            The requests, photo by photo.
        """
        from asyncdiff.tasks.pixel_space import PixelSpace

        at_least("number of seeds", len(seeds), 0, "use several calls", MAX_SEEDS)  # before they are read
        check_seeds("seeds", seeds)
        space = PixelSpace(model)
        space.check_channels()
        canvases = self.prepare(space)
        at_least("number of images", len(canvases) * len(seeds), 0, "use several calls", MAX_SEEDS)
        for size in {canvas.size for canvas in canvases}:
            space.check_memory("size of the result", size)
        per_seed = canvases[0].photo is None or not self.class_per_seed
        count, per = (len(seeds), "seed") if per_seed else (len(canvases), "photo")
        cycle = canvases[0].photo is None and self.class_per_seed
        classes = assign_labels(labels, count, model.classes, cycle=cycle, per=per)
        requests = []
        for i, (size, photo) in enumerate(canvases):
            for j, seed in enumerate(seeds):
                label = classes[j if per_seed else i]
                stem = f"{seed:06d}" if photo is None else f"{photo.name}_seed{seed}"
                name = stem if label is None else f"{stem}_class{label}"
                requests.append(Request(name, int(seed), label, size, photo))
        return requests

    def batches(self, model: Model, requests: Sequence[Request], batch_size: int = 64) -> list[list[Request]]:
        """Group the requests into batches of the same kind and size, which are sampled together.

        Args:
            model: model that generates the images.
            requests: requests from `requests`.
            batch_size: maximum number of images per batch.

        Returns:
            The batches, in the order of the requests.
        """
        at_least("batch_size", batch_size, 1, "set the number of images sampled together")
        kinds = groupby(requests, key=lambda r: (r.size, r.photo is None, r.label is None))
        return [
            group[first : first + batch_size]
            for group in (list(group) for _, group in kinds)
            for first in range(0, len(group), batch_size)
        ]

    def states(self, model: Model, batch: Sequence[Request], batch_size: int = 64) -> Iterator[State]:
        """Return an iterator over the states of sampling a batch, from noise to the result.

        Args:
            model: model that generates the images.
            batch: requests of one batch, from `batches`.
            batch_size: maximum number of windows that go through the network together, if images are larger than the
                model's; `batches` has already limited the number of images.

        Returns:
            Iterator over the states.
        """
        from asyncdiff.tasks.drawing import draw_together

        return draw_together(model, self.sampler(model), batch)

    def sample_batch(self, model: Model, batch: Sequence[Request], batch_size: int = 64) -> Image:
        """Return the images of a batch, approximately in [-1, 1]; the arguments are those of `states`."""
        from asyncdiff.sampling.trajectories import last

        with model.sampling_context():
            return last(self.states(model, batch, batch_size)).images

    def sample(
        self, model: Model, *, seeds: Sequence[int], labels: Sequence[int] | None = None, batch_size: int = 64
    ) -> Image:
        """Return all images in the order of the requests.

        Args:
            model: model that generates the images.
            seeds: seeds as in `requests`.
            labels: class labels as in `requests`.
            batch_size: maximum number of images or windows that go through the network together.

        Returns:
            Images approximately in [-1, 1].

        Raises:
            ValueError: the images differ in size.
        """
        from asyncdiff.sampling.engine import check_image_memory, device_of
        from asyncdiff.tasks.pixel_space import PixelSpace

        requests = self.requests(model, seeds=seeds, labels=labels)
        if len(sizes := {request.size for request in requests}) > 1:
            raise ValueError(f"photos must have the same size, got {len(sizes)} sizes: set size, and fit='crop'")
        for size in sizes:
            shape = (PixelSpace(model).window[0], *size)
            check_image_memory("photos and seeds", len(requests), shape, 1, device_of(model.denoiser))
        import torch

        batches = self.batches(model, requests, batch_size)
        return torch.cat([self.sample_batch(model, batch, batch_size) for batch in batches])


class Generate(Task):
    """Generate complete images.

    Args:
        size: HEIGHTxWIDTH in pixels, a multiple of the patch size; the training size of the model by default.
    """

    def __init__(self, size: str | None = None):
        self.size = size

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        return [Canvas(space.requested_size(self.size))]


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
        check_seeds("mask_seed", [mask_seed])
        self.size = size
        self.fit: Fit = fit
        check_fit(fit, size)

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        from asyncdiff.tasks.photo_inputs import check_masks, load_photos, parse_mask

        size, mask = space.requested_size(self.size), parse_mask(self.mask)
        unknown, seed = self.mask_is_unknown, self.mask_seed
        photos = load_photos(
            self.image, space, size=size, fit=self.fit, mask=mask, mask_is_unknown=unknown, mask_seed=seed
        )
        check_masks(photos, space)
        return [Canvas(photo.size, photo) for photo in photos]


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

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        from asyncdiff.tasks.photo_inputs import load_photos, parse_levels

        if not space.model.sampler.supports_start_levels:
            kind = type(space.model.sampler).__name__
            raise ValueError(f"Edit needs a sampler that supports start levels, got {kind}: use Sampler")
        size, levels = space.requested_size(self.size), parse_levels(self.levels)
        photos = load_photos(self.image, space, size=size, fit=self.fit, levels=levels)
        return [Canvas(photo.size, photo) for photo in photos]


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
        check_seeds("mask_seed", [mask_seed])
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
        from asyncdiff.noise.orders import order_by_name
        from asyncdiff.sampling.samplers import Autoregressive

        order = order_by_name(order) if isinstance(order, str) else order
        self._sampler = Autoregressive(order, overlap, steps_per_patch=steps_per_patch)

    def prepare(self, space: PixelSpace) -> list[Canvas]:
        if self.image is not None and self.levels is not None:
            return Edit(self.image, self.levels, self.size, self.fit).prepare(space)
        if self.image is not None and self.mask is not None:
            inpaint = Inpaint(self.image, self.mask, self.mask_is_unknown, self.mask_seed, self.size, self.fit)
            return inpaint.prepare(space)
        return Generate(self.size).prepare(space)

    def sampler(self, model: Model) -> ImageSampler:
        """Return an autoregressive sampler with the solver, guidance and partial updates of the model's sampler."""
        own = model.sampler
        return self._sampler.replace(
            solver=getattr(own, "solver", None), guidance=list(own.guidance), refresh=own.refresh, margin=own.margin
        )
