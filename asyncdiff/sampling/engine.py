"""Sample any number of images with a denoiser and a sampler: the only place that batches images and their labels.

Everything that samples comes through here: `asyncdiff.DiffusionModel`, tasks, tiled sampling, callbacks and evaluation.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asyncdiff.checks import MAX_IMAGES, at_least, check_seeds
from asyncdiff.denoising.denoiser import DenoiserLike
from asyncdiff.memory import available_memory, check_memory
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.sampling.trajectories import Frame, last
from asyncdiff.shapes import Image, KnownPixels, LevelMap, check_pixels

COPIES = 3  # of an image while it is sampled: at least itself, its update and the prediction
SMALL = 2**28  # bytes that are not compared with the memory that there is, which takes time


@dataclass(frozen=True)
class ImageBatch:
    """Images to sample: one seed per image, with labels and known pixels if there are any; on any device.

    Attributes:
        seeds: one seed per image; image i depends only on seed i, label i and the known pixels of image i.
        labels: class of every image; None for unconditional images.
        image: images with the known pixels, (b, c, h, w); None if nothing is known.
        known: mask of known pixels, True = known, (b, h, w); None without `image`.
        levels: initial level map, see `ImageSampler`; None if every unknown patch starts as pure noise.
    """

    seeds: Sequence[int]
    labels: Sequence[int] | None = None
    image: Image | None = None
    known: KnownPixels | None = None
    levels: LevelMap | None = None

    def __post_init__(self) -> None:
        if isinstance(self.seeds, int):
            raise ValueError(
                f"seeds must be a sequence with one seed per image, got {self.seeds}: use range({self.seeds}) or "
                f"[{self.seeds}]"
            )
        at_least("number of seeds", len(self.seeds), 0, "use several calls", MAX_IMAGES)
        if self.labels is not None and len(self.labels) != len(self.seeds):
            raise ValueError(
                f"labels needs one class per seed, got {len(self.labels)} for {len(self.seeds)} seeds: pass "
                f"{len(self.seeds)} labels"
            )

    def split(self, size: int) -> "Iterator[ImageBatch]":
        """Yield batches of at most `size` images."""
        at_least("batch_size", size, 1, "use 64, for example")
        for first in range(0, max(len(self.seeds), 1), size):  # no seeds are one batch, which the sampler refuses
            rows = slice(first, first + size)
            yield ImageBatch(
                list(self.seeds[rows]),
                None if self.labels is None else list(self.labels[rows]),
                None if self.image is None else self.image[rows],
                None if self.known is None else self.known[rows],
                None if self.levels is None else self.levels[rows],
            )


def frames(
    denoiser: DenoiserLike,
    sampler: ImageSampler,
    batch: ImageBatch,
    shape: tuple[int, int, int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Iterator[Frame]:
    """Yield the states of sampling a batch, from pure noise to the result; a network runs in evaluation mode.

    Args:
        denoiser: trained denoiser or exact oracle.
        sampler: sampler, with its solver and guidance.
        batch: images to sample together.
        shape: (c, h, w) of every image.
        device: device of the images; None means that of the denoiser's weights, or the CPU if it has none.
        dtype: floating-point type of the images.

    Yields:
        The states; in the last one, known pixels equal those of the batch bit for bit.
    """
    device = device_of(denoiser) if device is None else device
    check_image_memory("batch_size", len(batch.seeds), shape, COPIES, torch.device(device))
    labels = None if batch.labels is None else torch.as_tensor(batch.labels, dtype=torch.int64, device="cpu")
    with evaluation_mode(denoiser):
        yield from sampler.frames(
            denoiser,
            seeds=batch.seeds,
            shape=shape,
            label=labels,
            image=batch.image,
            known=batch.known,
            levels=batch.levels,
            device=device,
            dtype=dtype,
        )


@torch.no_grad()
def sample(
    denoiser: DenoiserLike,
    sampler: ImageSampler,
    batch: ImageBatch,
    shape: tuple[int, int, int],
    *,
    batch_size: int = 64,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Image:
    """Return the images of a batch, sampled `batch_size` at a time; the other arguments are those of `frames`."""
    on = device_of(denoiser) if device is None else torch.device(device)
    check_image_memory("seeds", len(batch.seeds), shape, 1, on)
    parts = batch.split(batch_size)
    return torch.cat([last(frames(denoiser, sampler, p, shape, device=device, dtype=dtype)).x_t for p in parts])


def generate(
    denoiser: DenoiserLike,
    sampler: ImageSampler,
    *,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    labels: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Image:
    """Generate one image per seed.

    Args:
        denoiser: trained denoiser.
        sampler: sampler, with its solver and guidance.
        seeds: one seed per image; image i depends only on seed i.
        shape: (c, h, w) of every image.
        labels: class of every image; None for unconditional sampling.
        batch_size: number of images generated together.

    Returns:
        Images (b, c, h, w) on the denoiser's device, in [-1, 1] up to the network's error.
    """
    batch = ImageBatch(seeds, labels)
    check_seeds("seeds", seeds)
    return sample(denoiser, sampler, batch, shape, batch_size=batch_size)


def inpaint(
    denoiser: DenoiserLike,
    sampler: ImageSampler,
    *,
    image: Float[Tensor, "*n c h w"],
    known: Bool[Tensor, "*m mask_h mask_w"],
    seeds: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    batch_size: int = 64,
) -> Image:
    """Inpaint images: generate their unknown pixels and return their known pixels bit for bit.

    Args:
        denoiser: trained denoiser.
        sampler: sampler, with its solver and guidance; its path is followed by the unknown patches.
        image: one image (c, h, w), inpainted once per seed; or a batch (b, c, h, w) with one seed each.
        known: True = known; one mask (h, w) for all images, or one per image (b, h, w).
        seeds: one seed per result; 0, 1, ... by default.
        labels: class of every result; None for unconditional sampling.
        batch_size: number of images generated together.

    Returns:
        Images (b, c, h, w) on the denoiser's device, one per seed.
    """
    if image.ndim not in (3, 4):
        raise ValueError(
            f"image must have shape (c, h, w) or (b, c, h, w), got {tuple(image.shape)}: add the missing axes, or "
            "remove extra ones"
        )
    if known.ndim not in (2, 3) or known.shape[-2:] != image.shape[-2:]:
        raise ValueError(
            f"known must be a mask of the image's size {tuple(image.shape[-2:])}, True = known, got shape "
            f"{tuple(known.shape)}: resize the mask to the image with nearest-neighbor interpolation"
        )
    if known.dtype != torch.bool:
        raise ValueError(
            f"known must be bool, True = known, got {known.dtype}: pass known > 0.5, or known > 127 of bytes"
        )
    check_pixels("image", image, known)
    seeds = range(len(image) if image.ndim == 4 else 1) if seeds is None else seeds
    count = len(seeds)
    if image.ndim == 4 and len(image) != count:
        raise ValueError(
            f"seeds needs one seed per image, got {count} for {len(image)} images: pass {len(image)} seeds"
        )
    if known.ndim == 3 and len(known) != count:
        raise ValueError(
            f"known needs a single mask or one per seed, got {len(known)} masks for {count} seeds: pass 1 or {count}"
        )
    image = image if image.ndim == 4 else image.expand(count, *image.shape)
    known = known if known.ndim == 3 else known.expand(count, *known.shape)
    batch = ImageBatch(seeds, labels, image, known)
    return sample(denoiser, sampler, batch, (image.shape[1], image.shape[2], image.shape[3]), batch_size=batch_size)


def device_of(denoiser: DenoiserLike) -> torch.device:
    """Return the device of a denoiser's weights; the CPU if it has none."""
    parameters = denoiser.parameters() if isinstance(denoiser, nn.Module) else ()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


def available_on(device: torch.device) -> int:
    """Return how many bytes can be allocated on a device."""
    if device.type != "cuda":
        return available_memory()
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def check_image_memory(name: str, count: int, shape: Sequence[int], copies: int, device: torch.device) -> None:
    """Raise ValueError if images do not fit into memory together.

    Args:
        name: argument to name in the error.
        count: number of images.
        shape: (channels, height, width) of an image.
        copies: number of copies of each that exist at the same time.
        device: device that holds them.
    """
    each = 4 * copies * math.prod(shape)
    if count * each > SMALL:
        available = available_on(device)
        remedy = f"{available // each} images of {'x'.join(map(str, shape))} fit"
        check_memory(name, f"{count} images", count * each, remedy, available=available)


@contextmanager
def evaluation_mode(denoiser: DenoiserLike | nn.Module) -> Iterator[None]:
    """Set a network's evaluation mode within the context, and restore the mode of every submodule afterwards."""
    modes = [(m, m.training) for m in denoiser.modules()] if isinstance(denoiser, nn.Module) else []
    if isinstance(denoiser, nn.Module):
        denoiser.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
