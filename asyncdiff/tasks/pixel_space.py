"""Convert between pixels, in which requests, photos and files are given, and the space of a model.

Other modules leave this to this one. A pixel-space model works on images directly. A latent model has a codec: photos
are encoded before sampling, results are decoded after it, and known pixels of photos are copied back bit for bit.
"""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from asyncdiff.devices import to_device
from asyncdiff.model import Model
from asyncdiff.sampling.engine import available_on, device_of
from asyncdiff.shapes import Image, KnownPixels, Latents, known_patches
from asyncdiff.tasks.arguments import BYTES_PER_VALUE, check_pixels, format_size, parse_size
from asyncdiff.tasks.requests import Photo, Request

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


class PixelSpace:
    """Pixels of a model's images: their sizes, and the conversions to and from the model's space.

    Args:
        model: model whose pixels these are.

    Attributes:
        factor: number of pixels per value of the model's space along each side; 1 without a codec.
    """

    def __init__(self, model: Model):
        self.model = model
        self.factor = 1 if model.codec is None else model.codec.factor

    @property
    def window(self) -> tuple[int, int, int]:
        """(channels, height, width) in pixels of the images that the model was trained on."""
        channels, height, width = self.model.shape
        codec = self.model.codec
        return channels if codec is None else codec.pixel_channels, height * self.factor, width * self.factor

    @cached_property
    def patch(self) -> tuple[int, int]:
        """(height, width) in pixels of a patch of the level map."""
        _, height, width = self.window
        gh, gw = self.model.denoiser.grid(self.model.shape[1:])
        return height // gh, width // gw

    # Sizes

    def check_channels(self) -> None:
        """Raise ValueError unless the model's images can be written to files."""
        channels = self.window[0]
        if channels not in (1, 3):
            raise ValueError(
                f"images must have 1 or 3 channels, but the model has {channels}: set model.codec, or --codec, "
                "to decode its latents"
            )

    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ValueError unless `size` in pixels is a multiple of the patch size."""
        patch = self.patch
        if size[0] % patch[0] or size[1] % patch[1]:
            sides = format_size([side // self.factor for side in patch])
            latents = "" if self.model.codec is None else f"a patch is {sides} latents; "
            nearest = [max(1, round(side / unit)) * unit for side, unit in zip(size, patch, strict=True)]
            raise ValueError(
                f"the sides of the image must be multiples of the patch size {format_size(patch)} in pixels, got "
                f"{format_size(size)}: {latents}{format_size(nearest)} is the nearest"
            )
        self.model.denoiser.grid(self.encoded_size(size))

    def check_memory(self, name: str, size: tuple[int, int]) -> None:
        """Raise ValueError, naming the argument `name`, if an image of `size` in pixels does not fit into memory."""
        check_pixels(name, size, self.bytes_per_pixel, available_on(device_of(self.model.denoiser)))

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes that a pixel needs while an image is drawn, apart from the network; latents are smaller than pixels."""
        return BYTES_PER_VALUE * self.window[0]

    def requested_size(self, size: str | None) -> tuple[int, int]:
        """Parse HEIGHTxWIDTH, or return the window's; raise ValueError unless it is a multiple of the patch size."""
        height, width = parse_size("size", size) if size else self.window[1:]
        self.check_size((height, width))
        self.check_memory("size", (height, width))
        return height, width

    def encoded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) in the model's space for an image of `size` in pixels, rounded up."""
        return math.ceil(size[0] / self.factor), math.ceil(size[1] / self.factor)

    # Before sampling

    def stack(self, batch: Sequence[Request]) -> KnownImage | None:
        """Stack the photos of a batch of requests on the model's device; None for requests without photos."""
        photos = [(request.photo, request.size) for request in batch if request.photo is not None]
        if not photos:
            return None
        images, known = zip(*(photo.padded_to(size) for photo, size in photos), strict=True)
        levels = [photo.levels for photo, _ in photos if photo.levels is not None]
        device = device_of(self.model.denoiser)
        return KnownImage(
            to_device(torch.stack(images), device),
            to_device(torch.stack(known), device),
            to_device(torch.stack(levels), device) if levels else None,
        )

    def encode(self, photo: KnownImage) -> KnownImage:
        """Convert partly known images to the model's space.

        A latent is known if all its pixels are known, and does not depend on unknown pixels. With levels, it does not
        depend on pixels of level 1, and a patch starts from the highest level of its pixels.

        Args:
            photo: partly known images in pixels.

        Returns:
            The partly known images in the model's space.
        """
        size = self.encoded_size((photo.image.shape[2], photo.image.shape[3]))
        levels = photo.levels
        used = photo.known if levels is None else levels < 1
        if levels is not None:
            levels = F.adaptive_max_pool2d(levels, self.model.denoiser.grid(size))
        if self.model.codec is None:
            return photo._replace(levels=levels)
        return KnownImage(self.model.encode(fill_unknown(photo.image, used)), known_patches(photo.known, size), levels)

    def encode_exemplar(self, photo: Photo) -> tuple[Float[Tensor, "c eh ew"], tuple[int, int]]:
        """Return a photo in the model's space, cropped to complete latents, and its position in the result there."""
        image = to_device(photo.image, device_of(self.model.denoiser))
        if self.model.codec is None:
            return image, photo.place
        rows, columns = self.covered_pixels(photo)
        crop = image[:, rows.start - photo.place[0] : rows.stop - photo.place[0]]
        crop = crop[:, :, columns.start - photo.place[1] : columns.stop - photo.place[1]]
        return self.model.encode(crop[None])[0], (rows.start // self.factor, columns.start // self.factor)

    def covered_pixels(self, photo: Photo) -> tuple[range, range]:
        """Return the pixels of all latents that a photo covers completely.

        Args:
            photo: photo with its position in the result.

        Returns:
            Ranges of rows and columns of the result.

        Raises:
            ValueError: the photo covers no complete patch.
        """
        spans = []
        for at, length, side in zip(photo.place, photo.size, self.patch, strict=True):
            if (at + length) // side * side < math.ceil(at / side) * side + side:
                raise ValueError(
                    f"photos must cover a complete patch of {format_size(self.patch)} pixels, got a photo of "
                    f"{format_size(photo.size)} at position {format_size(photo.place)}: place it at a multiple of "
                    f"{side}, or use a larger photo"
                )
            spans.append(range(math.ceil(at / self.factor) * self.factor, (at + length) // self.factor * self.factor))
        return spans[0], spans[1]

    # After sampling

    def decode(
        self, x: Latents, size: tuple[int, int], *, photo: KnownImage | None = None, tileable: bool = False
    ) -> Image:
        """Decode the results of the model into images.

        Args:
            x: results in the model's space.
            size: (height, width) of the images in pixels; decoded pixels beyond it are cropped.
            photo: partly known images in pixels; their known pixels are copied into the result bit for bit.
            tileable: decode with periodic boundaries on all sides.

        Returns:
            Images approximately in [-1, 1].
        """
        decoded = self._decode_periodic(x) if tileable and self.model.codec is not None else self.model.decode(x)
        decoded = decoded[:, :, : size[0], : size[1]]
        if photo is None:
            return decoded
        return torch.where(photo.known[:, None], photo.image, decoded.to(photo.image.dtype))

    def _decode_periodic(self, x: Latents) -> Image:
        """Decode latents with periodic padding, then crop the padding."""
        height, width = x.shape[2:]
        rows, columns = (
            torch.arange(-PERIODIC_PADDING, n + PERIODIC_PADDING, device=x.device) % n for n in (height, width)
        )
        edge = PERIODIC_PADDING * self.factor
        decoded = self.model.decode(x[:, :, rows][:, :, :, columns])
        return decoded[:, :, edge : edge + height * self.factor, edge : edge + width * self.factor]


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
