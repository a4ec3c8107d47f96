"""Decoding of image files to 8-bit pixels of one size; every conversion is explicit, none is left to a default.

| file | result |
|---|---|
| palette, transparency, premultiplied alpha | composited over a white background |
| 16-bit grayscale | 65536 levels scaled to 256, not clipped |
| 16-bit RGB | upper byte of each value, as Pillow reads it: within 0.75 of the scaled value |
| float grayscale | [0, 1] or else [0, 255] scaled to the full range; other values are an error |
| CMYK, YCCK, YCbCr, HSV | converted to RGB by Pillow |
| EXIF orientation | applied |
| animation, several pages | first frame or page |
| wrong suffix | ignored: only the content matters |
| truncated, empty, not an image, more pixels than Pillow allows | error |
"""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from datamodules.regular_files import read_regular

try:  # torchvision >= 0.29 announces the removal of its decoders; Pillow is slower, and equal within one gray level
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
PNG = b"\x89PNG\r\n\x1a\n"  # first bytes of a PNG file
Crop = Literal["short_side", "adm"]

BACKGROUND = (255, 255, 255, 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601: the weights of red, green and blue in Pillow and JPEG
MAX_PIXELS = 2**28  # of a resized image before its crop: only extreme aspect ratios exceed it


def load_square(
    data: npt.NDArray[np.uint8], *, size: int, channels: int, crop: Crop = "short_side", reduced: bool = False
) -> Tensor:
    """Return the image in the bytes of a file, cropped by `center_square`, as uint8 (channels, size, size).

    With `reduced`, decode a JPEG at 1/2, 1/4 or 1/8 scale, the smallest whose sides are at least `size`; faster, but
    the pixels differ slightly.

    Raises:
        ValueError: the bytes are not an image, or the image cannot be cropped.
        Image.DecompressionBombError: the image has more pixels than Pillow allows.
        Exception: whatever else the decoder raises on damaged bytes.
    """
    return to_channels(center_square(decode(data, min_side=size if reduced else None), size, crop), channels)


def read_pixels(path: Path) -> Tensor:
    """Read an image file as uint8 (c, h, w), c = 1 or 3, upright; raise OSError, or whatever `load_square` raises."""
    return decode(read_regular(path))


def decode(data: npt.NDArray[np.uint8], *, min_side: int | None = None) -> Tensor:
    """Decode an image to uint8 (c, h, w), c = 1 or 3, upright; with `min_side`, reduce JPEGs to at least that side."""
    # Pillow reads the header of every file first, because only Pillow detects decompression bombs.
    with open_image(data) as image:
        if min_side is not None and min(image.size) >= 2 * min_side:
            image.draft(None, (min_side, min_side))  # no effect on formats other than JPEG
        elif decode_jpeg is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            try:
                return decode_jpeg(torch.from_numpy(data), apply_exif_orientation=True)
            except RuntimeError:
                pass  # Pillow reads more files, and has the better error message for the others
        return pillow_pixels(image)


def open_image(data: np.ndarray) -> Image.Image:
    """Open an image and read its header; raise if the bytes are not an image, or are a decompression bomb."""
    check_png(data)
    try:
        return Image.open(io.BytesIO(data.data), formats=formats())
    except UnidentifiedImageError as error:
        raise ValueError(f"its {len(data)} bytes are not an image in a known format") from error


def check_png(data: np.ndarray) -> None:
    """Raise ValueError if a chunk of a PNG fails its checksum; Pillow does not check those of the pixels."""
    if data[: len(PNG)].tobytes() != PNG:
        return
    at, name = len(PNG), b""
    while name != b"IEND":
        length, name = struct.unpack(">I4s", data[at : at + 8].tobytes().ljust(8, b"\0"))
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError("the PNG is truncated")
        # Chunks with lower-case names are optional, and often malformed.
        if (
            name[:1].isupper()
            and zlib.crc32(data[at + 4 : end].data).to_bytes(4, "big") != data[end : end + 4].tobytes()
        ):
            raise ValueError(f"chunk {name.decode('latin-1')!r} of the PNG fails its checksum")
        at = end + 4


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats; others are excluded, such as EPS, which runs another program."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def pillow_pixels(image: Image.Image) -> Tensor:
    """Convert a Pillow image to uint8 (c, h, w), c = 1 or 3, upright."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return torch.from_numpy(deep_gray_to_uint8(np.asarray(image), clear=image.info.get("transparency")))[None]
    if image.mode == "La":
        image = image.convert("LA")  # the only conversion that Pillow supports
    if image.has_transparency_data or image.mode in ("P", "PA"):
        colors = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), colors)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def deep_gray_to_uint8(values: np.ndarray, *, clear: int | None = None) -> np.ndarray:
    """Return integers in [0, 65535], or floats in [0, 1] or else [0, 255], as uint8; raise ValueError for others.

    The value `clear` stands for transparency, if it is given, and becomes white.
    """
    low, high = float(values.min()), float(values.max())
    integers = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if integers else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        value_range = "[0, 65535]" if integers else "[0, 1] or [0, 255]"
        raise ValueError(f"gray values must lie in {value_range}, got {low:g} to {high:g}")
    gray = np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    return gray if clear is None else np.where(values == clear, np.uint8(255), gray)


def center_square(pixels: Tensor, size: int, crop: Crop = "short_side") -> Tensor:
    """Resize the short side of uint8 (c, h, w) to `size` and crop the center to (c, size, size).

    Both crops agree with Pillow within two gray levels, and within a hundredth of one on average.

    Args:
        pixels: uint8 (c, h, w).
        size: side length in pixels.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm" first halves the sides with a box filter
            while the short side is at least twice `size`, as ADM and DiT preprocess ImageNet.

    Returns:
        Pixels, uint8 (c, size, size).
    """
    if crop == "adm":
        while min(pixels.shape[-2:]) >= 2 * size:
            pixels = halve(pixels)
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = (round(side * size / short) for side in (height, width))
        if height * width > MAX_PIXELS:
            raise ValueError(f"its sides {tuple(pixels.shape[-2:])} are too unequal for size {size}")
        pixels = _interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def halve(pixels: Tensor) -> Tensor:
    """Halve the sides of uint8 (c, h, w) by averaging pixels, within one gray level of Pillow's box filter."""
    rows_columns_channels = pixels.permute(1, 2, 0)
    for side in (0, 1):
        rows_columns_channels = _drop_odd_pixel(rows_columns_channels, side)
    pixels = rows_columns_channels.permute(2, 0, 1)
    # Midway between two pixels, linear interpolation is their mean; torch has no faster box filter for uint8.
    return _interpolate(pixels, [side // 2 for side in pixels.shape[1:]], mode="bilinear")


def _interpolate(pixels: Tensor, shape: Sequence[int], **how: Any) -> Tensor:
    """Apply `F.interpolate` to one image."""
    # With `pixels[None]`, torch would not see that the channels are innermost, its fastest memory format.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, list(shape), **how)[0]


def _drop_odd_pixel(pixels: Tensor, side: int) -> Tensor:
    """Shorten an odd side by one: replace the three pixels in one window of the box filter by two of their mean."""
    length = pixels.shape[side]
    if length % 2 == 0:
        return pixels
    if (triple := _three_pixel_window(length)) is None:
        start, _, end = pixels.split([length // 2, 1, length // 2], side)
        return torch.cat([start, end], side)
    start, three, end = pixels.split([2 * triple, 3, length - 2 * triple - 3], side)
    mean = three.float().mean(side, keepdim=True).round().to(torch.uint8)
    return torch.cat([start, mean, mean, end], side)


@lru_cache(maxsize=4096)
def _three_pixel_window(length: int) -> int | None:
    """Return the index, of `length` // 2 windows, of the window with three pixels; None if no window has three.

    In exact arithmetic there is always one. Pillow's arithmetic, repeated here, rounds some middle pixels out of both
    neighboring windows.
    """
    scale = length / (length // 2)
    for window in range((length // 2 - 1) // 2, length // 4 + 1):
        center, support = (window + 0.5) * scale, 0.5 * scale
        places = range(int(center - support + 0.5), int(center + support + 0.5))
        if sum(-0.5 < (place - center + 0.5) * (1 / scale) <= 0.5 for place in places) == 3:
            return window
    return None


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """Convert uint8 (1 or 3, h, w) to (channels, h, w): repeat gray, or take the luma of RGB."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    luma = torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA))
    return luma.round().to(torch.uint8)[None]
