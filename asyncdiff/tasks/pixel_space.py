"""Between pictures, whose pixels requests, photos and files count in, and the space that a model draws in.

The only place where one becomes the other. A model of pixels draws pictures; one of latents has a codec: photos are
encoded at the door, results decoded, and the photos' known pixels put back bit for bit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asyncdiff.shapes import Image, KnownPixels, Latents, known_patches
from asyncdiff.tasks.photos import by
from asyncdiff.tasks.requests import Model, Request, device_of

# Latents repeated around a picture that closes upon itself: as far as the convolutions of TAESD (18.1) and of Stable
# Diffusion's decoder (17.3) see.
AROUND = 20


class KnownImage(NamedTuple):
    """What is known of some pictures, in pixels or in model space.

    Attributes:
        image: its unknown values are never read.
        known: True = known.
        levels: that pixels start from, or patches in model space; None without.
    """

    image: Image
    known: KnownPixels
    levels: Float[Tensor, "b level_h level_w"] | None = None


# Sizes


def factor_of(model: Model) -> int:
    """Pixels of a picture per value of the model's space, each way."""
    return 1 if model.codec is None else model.codec.factor


def window_of(model: Model) -> tuple[int, int, int]:
    """(channels, height, width) of the pictures that the model was trained on, in pixels."""
    channels, height, width = model.shape
    factor = factor_of(model)
    return (channels if model.codec is None else model.codec.pixel_channels), height * factor, width * factor


def patch_of(model: Model) -> tuple[int, int]:
    """(height, width) in pixels of a patch of the level map."""
    _, height, width = window_of(model)
    gh, gw = model.denoiser.grid(model.shape[1:])
    return height // gh, width // gw


def check_pictures(model: Model) -> None:
    """Raise ValueError unless what the model draws can be written as pictures."""
    channels = window_of(model)[0]
    if channels not in (1, 3):
        raise ValueError(
            f"pictures have 1 or 3 channels, got a model of {channels}: set model.codec, or --codec, to see its latents"
        )


def check_size(size: tuple[int, int], model: Model) -> None:
    """Raise ValueError unless whole patches cover a picture of `size` in pixels."""
    patch = patch_of(model)
    if size[0] % patch[0] or size[1] % patch[1]:
        latents = f"a patch is {by([side // factor_of(model) for side in patch])} latents; "
        nearest = [max(1, round(side / of)) * of for side, of in zip(size, patch, strict=True)]
        raise ValueError(
            f"the sides of the picture must be multiples of the patch size {by(patch)} in pixels, got {by(size)}: "
            f"{latents if model.codec is not None else ''}{by(nearest)} is the nearest"
        )
    model.denoiser.grid(size_in_space(size, model))


def size_in_space(size: tuple[int, int], model: Model) -> tuple[int, int]:
    """(height, width) in the model's space of a picture of `size`, up to the next whole latent."""
    factor = factor_of(model)
    return math.ceil(size[0] / factor), math.ceil(size[1] / factor)


# At the door


def known_image(batch: Sequence[Request], model: Model) -> KnownImage | None:
    """What is known of a batch of pictures, in pixels, on the model's device; None without."""
    if batch[0].image is None:
        return None
    images, known = zip(*(request.whole() for request in batch), strict=True)
    device = device_of(model)
    levels = [request.levels for request in batch if request.levels is not None]
    return KnownImage(
        torch.stack(images).to(device),
        torch.stack(known).to(device),
        torch.stack(levels).to(device) if levels else None,
    )


def encoded(given: KnownImage, model: Model) -> KnownImage:
    """The same in the model's space, where a latent is known whose pixels all are; unknown pixels have no say.

    With levels, pixels that are drawn anew have none; a patch starts from the highest of its pixels' levels.
    """
    height, width = size_in_space((given.image.shape[2], given.image.shape[3]), model)
    levels = given.levels
    read = given.known if levels is None else levels < 1
    if levels is not None:
        levels = F.adaptive_max_pool2d(levels, model.denoiser.grid((height, width)))
    if model.codec is None:
        return given._replace(levels=levels)
    return KnownImage(model.encode(filled(given.image, read)), known_patches(given.known, (height, width)), levels)


def exemplar_of(request: Request, model: Model) -> tuple[Float[Tensor, "c eh ew"] | None, tuple[int, int]]:
    """What is known of a canvas, in the model's space, and its place there: its whole latents."""
    if request.image is None:
        return None, (0, 0)
    image = request.image.to(device_of(model))
    if model.codec is None:
        return image, request.place
    rows, columns = whole_latents(request, model)
    cut = image[:, rows.start - request.place[0] : rows.stop - request.place[0]]
    cut = cut[:, :, columns.start - request.place[1] : columns.stop - request.place[1]]
    factor = factor_of(model)
    return model.encode(cut[None])[0], (rows.start // factor, columns.start // factor)


def whole_latents(request: Request, model: Model) -> tuple[range, range]:
    """Rows and columns in pixels of the latents that the request's photo covers; ValueError if no patch is among them.

    Args:
        request: with a photo.
        model: with a codec.
    """
    assert request.known is not None, "a photo has a mask"
    factor, patch = factor_of(model), patch_of(model)
    spans = []
    for at, length, side in zip(request.place, request.known.shape, patch, strict=True):
        if (at + length) // side * side < math.ceil(at / side) * side + side:
            raise ValueError(
                f"photos must cover a whole patch of {by(patch)} pixels where they lie, got {by(request.known.shape)} "
                f"at {by(request.place)}: place them on multiples of {side}, or take larger ones"
            )
        spans.append(range(math.ceil(at / factor) * factor, (at + length) // factor * factor))
    return spans[0], spans[1]


def filled(images: Image, known: KnownPixels) -> Image:
    """The images with their unknown pixels made of known ones near them, from coarser and coarser means.

    An encoder looks beyond the edge of what is known: what it sees there goes on as what is known ends.
    """
    return _filled(images * known[:, None], known[:, None].to(images.dtype))


def _filled(images: Image, weights: Float[Tensor, "b 1 h w"]) -> Image:
    if weights.all() or weights.shape[2] * weights.shape[3] == 1:
        return images
    mass = F.avg_pool2d(weights, 2, ceil_mode=True)
    mean = F.avg_pool2d(images * weights, 2, ceil_mode=True) / mass.clamp_min(1e-3)  # a pixel of four weighs 0.25
    beyond = F.interpolate(_filled(mean, (mass > 0).to(mass)), images.shape[2:], mode="bilinear", align_corners=False)
    return torch.where(weights > 0, images, beyond)


# At the end


def pictures(
    x: Latents, size: tuple[int, int], model: Model, *, given: KnownImage | None = None, tileable: bool = False
) -> Image:
    """The pictures of what the model drew, (height, width) `size`, about in [-1, 1].

    Args:
        x: in the model's space.
        size: in pixels; what exceeds it is cut off.
        model: that drew it.
        given: in pixels: what is known is returned bit for bit.
        tileable: the pictures close upon themselves both ways.
    """
    decoded = _decoded_around(x, model) if tileable and model.codec is not None else model.decode(x)
    decoded = decoded[:, :, : size[0], : size[1]]
    if given is None:
        return decoded
    return torch.where(given.known[:, None], given.image, decoded.to(given.image.dtype))


def _decoded_around(x: Latents, model: Model) -> Image:
    """Decoded with copies of itself around it, which are cut off again."""
    height, width = x.shape[2:]
    rows, columns = (torch.arange(-AROUND, n + AROUND, device=x.device) % n for n in (height, width))
    edge, factor = AROUND * factor_of(model), factor_of(model)
    decoded = model.decode(x[:, :, rows][:, :, :, columns])
    return decoded[:, :, edge : edge + height * factor, edge : edge + width * factor]
