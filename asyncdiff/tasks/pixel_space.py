"""Convert between pixels, in which requests, photos and files are given, and the space of a model.

Other modules leave this to this one. A pixel-space model works on images directly. A latent model has a codec: photos
are encoded before sampling, results are decoded after it, and known pixels of photos are copied back bit for bit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asyncdiff.shapes import Image, KnownPixels, Latents, known_patches
from asyncdiff.tasks.photos import format_size
from asyncdiff.tasks.requests import Model, Request, device_of

# Periodic padding around a tileable image, in latents: larger than the receptive fields of TAESD (18.1) and of Stable
# Diffusion's decoder (17.3).
PERIODIC_PADDING = 20


class KnownImage(NamedTuple):
    """Batch of partly known images, in pixels or in model space.

    Attributes:
        image: pixel or latent values; unknown ones are never read.
        known: True where values are known.
        levels: noise levels that pixels, or in model space patches, start from; None if there are none.
    """

    image: Image
    known: KnownPixels
    levels: Float[Tensor, "b level_h level_w"] | None = None


# Sizes


def factor_of(model: Model) -> int:
    """Return the number of pixels per value of the model's space along each side."""
    return 1 if model.codec is None else model.codec.factor


def window_of(model: Model) -> tuple[int, int, int]:
    """Return (channels, height, width) in pixels of the images that the model was trained on."""
    channels, height, width = model.shape
    factor = factor_of(model)
    return (channels if model.codec is None else model.codec.pixel_channels), height * factor, width * factor


def patch_of(model: Model) -> tuple[int, int]:
    """Return (height, width) in pixels of a patch of the level map."""
    _, height, width = window_of(model)
    gh, gw = model.denoiser.grid(model.shape[1:])
    return height // gh, width // gw


def check_image_channels(model: Model) -> None:
    """Raise ValueError unless the model's images can be written to files."""
    channels = window_of(model)[0]
    if channels not in (1, 3):
        raise ValueError(
            f"images must have 1 or 3 channels, but the model has {channels}: set model.codec, or --codec, "
            "to decode its latents"
        )


def check_size(size: tuple[int, int], model: Model) -> None:
    """Raise ValueError unless `size` in pixels is a multiple of the patch size."""
    patch = patch_of(model)
    if size[0] % patch[0] or size[1] % patch[1]:
        latents = f"a patch is {format_size([side // factor_of(model) for side in patch])} latents; "
        nearest = [max(1, round(side / unit)) * unit for side, unit in zip(size, patch, strict=True)]
        raise ValueError(
            f"the sides of the image must be multiples of the patch size {format_size(patch)} in pixels, got "
            f"{format_size(size)}: {latents if model.codec is not None else ''}{format_size(nearest)} is the nearest"
        )
    model.denoiser.grid(size_in_space(size, model))


def size_in_space(size: tuple[int, int], model: Model) -> tuple[int, int]:
    """Return (height, width) in the model's space for an image of `size` in pixels, rounded up."""
    factor = factor_of(model)
    return math.ceil(size[0] / factor), math.ceil(size[1] / factor)


# Before sampling


def stack_known_images(batch: Sequence[Request], model: Model) -> KnownImage | None:
    """Stack the known pixels of a batch of requests on the model's device; None for requests without photos."""
    if batch[0].image is None:
        return None
    images, known = zip(*(request.at_full_size() for request in batch), strict=True)
    device = device_of(model)
    levels = [request.levels for request in batch if request.levels is not None]
    return KnownImage(
        torch.stack(images).to(device),
        torch.stack(known).to(device),
        torch.stack(levels).to(device) if levels else None,
    )


def encode_known(photo: KnownImage, model: Model) -> KnownImage:
    """Convert partly known images to the model's space.

    A latent is known if all its pixels are known, and does not depend on unknown pixels. With levels, it does not
    depend on pixels of level 1, and a patch starts from the highest level of its pixels.

    Args:
        photo: partly known images in pixels.
        model: model whose space is the target.

    Returns:
        The partly known images in the model's space.
    """
    height, width = size_in_space((photo.image.shape[2], photo.image.shape[3]), model)
    levels = photo.levels
    used = photo.known if levels is None else levels < 1
    if levels is not None:
        levels = F.adaptive_max_pool2d(levels, model.denoiser.grid((height, width)))
    if model.codec is None:
        return photo._replace(levels=levels)
    return KnownImage(
        model.encode(fill_unknown(photo.image, used)), known_patches(photo.known, (height, width)), levels
    )


def encode_exemplar(request: Request, model: Model) -> tuple[Float[Tensor, "c eh ew"] | None, tuple[int, int]]:
    """Return the photo of a tiled request in the model's space, cropped to complete latents, and its position there."""
    if request.image is None:
        return None, (0, 0)
    image = request.image.to(device_of(model))
    if model.codec is None:
        return image, request.place
    rows, columns = covered_pixels(request, model)
    crop = image[:, rows.start - request.place[0] : rows.stop - request.place[0]]
    crop = crop[:, :, columns.start - request.place[1] : columns.stop - request.place[1]]
    factor = factor_of(model)
    return model.encode(crop[None])[0], (rows.start // factor, columns.start // factor)


def covered_pixels(request: Request, model: Model) -> tuple[range, range]:
    """Return the pixels of all latents that the photo of a request covers completely.

    Args:
        request: request with a photo.
        model: model with a codec.

    Returns:
        Ranges of rows and columns.

    Raises:
        ValueError: the photo covers no complete patch.
    """
    assert request.known is not None, "image and known go together"
    factor, patch = factor_of(model), patch_of(model)
    spans = []
    for at, length, side in zip(request.place, request.known.shape, patch, strict=True):
        if (at + length) // side * side < math.ceil(at / side) * side + side:
            raise ValueError(
                f"photos must cover a complete patch of {format_size(patch)} pixels, got a photo of "
                f"{format_size(request.known.shape)} at position {format_size(request.place)}: place it at a multiple "
                f"of {side}, or use a larger photo"
            )
        spans.append(range(math.ceil(at / factor) * factor, (at + length) // factor * factor))
    return spans[0], spans[1]


def fill_unknown(images: Image, known: KnownPixels) -> Image:
    """Extrapolate known pixels into the unknown ones, by means over coarser and coarser blocks.

    An encoder sees unknown pixels next to known ones, so they should continue these smoothly.

    Args:
        images: images whose unknown pixels are ignored.
        known: True where pixels are known.

    Returns:
        The images with all pixels filled; known ones are unchanged.
    """
    return _fill_by_means(images * known[:, None], known[:, None].to(images.dtype))


def _fill_by_means(images: Image, weights: Float[Tensor, "b 1 h w"]) -> Image:
    if weights.all() or weights.shape[2] * weights.shape[3] == 1:
        return images
    mass = F.avg_pool2d(weights, 2, ceil_mode=True)
    mean = F.avg_pool2d(images * weights, 2, ceil_mode=True) / mass.clamp_min(1e-3)  # masses above 0 are at least 0.25
    coarse = F.interpolate(
        _fill_by_means(mean, (mass > 0).to(mass)), images.shape[2:], mode="bilinear", align_corners=False
    )
    return torch.where(weights > 0, images, coarse)


# After sampling


def decode_images(
    x: Latents, size: tuple[int, int], model: Model, *, photo: KnownImage | None = None, tileable: bool = False
) -> Image:
    """Decode the results of a model into images.

    Args:
        x: results in the model's space.
        size: (height, width) of the images in pixels; decoded pixels beyond it are cropped.
        model: model that generated the results.
        photo: partly known images in pixels; their known pixels are copied into the result bit for bit.
        tileable: decode with periodic boundaries on all sides.

    Returns:
        Images approximately in [-1, 1].
    """
    decoded = _decode_periodic(x, model) if tileable and model.codec is not None else model.decode(x)
    decoded = decoded[:, :, : size[0], : size[1]]
    if photo is None:
        return decoded
    return torch.where(photo.known[:, None], photo.image, decoded.to(photo.image.dtype))


def _decode_periodic(x: Latents, model: Model) -> Image:
    """Decode latents with periodic padding, then crop the padding."""
    height, width = x.shape[2:]
    rows, columns = (
        torch.arange(-PERIODIC_PADDING, n + PERIODIC_PADDING, device=x.device) % n for n in (height, width)
    )
    edge, factor = PERIODIC_PADDING * factor_of(model), factor_of(model)
    decoded = model.decode(x[:, :, rows][:, :, :, columns])
    return decoded[:, :, edge : edge + height * factor, edge : edge + width * factor]
