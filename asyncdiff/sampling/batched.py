"""Generate and inpaint any number of images with a denoiser and a sampler, in batches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from asyncdiff.checks import at_least
from asyncdiff.denoising.denoiser import Denoiser
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.shapes import Image


def generate(
    denoiser: Denoiser,
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
    return _sample_in_batches(denoiser, sampler, seeds, shape, labels, None, None, batch_size)


def inpaint(
    denoiser: Denoiser,
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
    c, h, w = image.shape[1:]
    return _sample_in_batches(denoiser, sampler, seeds, (c, h, w), labels, image, known, batch_size)


def _sample_in_batches(
    denoiser: Denoiser,
    sampler: ImageSampler,
    seeds: Sequence[int],
    shape: tuple[int, int, int],
    labels: Sequence[int] | None,
    image: Tensor | None,
    known: Tensor | None,
    batch_size: int,
) -> Image:
    at_least("batch_size", batch_size, 1, "use 64, for example")
    if isinstance(seeds, int):
        raise ValueError(
            f"seeds must be a sequence with one seed per image, got {seeds}: use range({seeds}) or [{seeds}]"
        )
    if labels is not None and len(labels) != len(seeds):
        raise ValueError(
            f"labels needs one class per seed, got {len(labels)} for {len(seeds)} seeds: pass {len(seeds)} labels"
        )
    parameter = next(denoiser.parameters())
    classes = None if labels is None else torch.as_tensor(labels, dtype=torch.int64, device=parameter.device)
    images = []
    with evaluation_mode(denoiser):
        for first in range(0, max(len(seeds), 1), batch_size):
            part = slice(first, first + batch_size)
            images.append(
                sampler(
                    denoiser,
                    seeds=list(seeds[part]),
                    shape=shape,
                    label=None if classes is None else classes[part],
                    image=None if image is None else image[part],
                    known=None if known is None else known[part],
                    device=parameter.device,
                )
            )
    return torch.cat(images)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Set evaluation mode within the context, and restore the mode of every submodule afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
