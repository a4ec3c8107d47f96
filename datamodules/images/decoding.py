"""From an image file to 8-bit pixels of a stated size; every conversion is chosen here, none is left to a default.

| file | becomes |
|---|---|
| palette, transparency, premultiplied alpha | colours over a white background |
| 16-bit grey | its 65536 levels spread over 256, not clipped |
| 16-bit colour | the upper byte of each value, as Pillow reads it: within 0.75 of the same spread |
| float grey | [0, 1] or else [0, 255] as the full range; other values are refused |
| CMYK, YCCK, YCbCr, HSV | RGB by Pillow |
| EXIF orientation | applied |
| animation, several pages | the first |
| a suffix that is wrong | goes unnoticed: only the content counts |
| truncated, empty, no image, more pixels than Pillow allows | refused |
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

try:  # torchvision >= 0.29 announces the removal of its decoders; Pillow is slower, and equal within a grey level
    from torchvision.io import decode_jpeg
except ImportError:
    decode_jpeg = None

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
PNG = b"\x89PNG\r\n\x1a\n"  # how such a file begins
Crop = Literal["short_side", "adm"]

BACKGROUND = (255, 255, 255, 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and JPEG weigh red, green and blue
MAX_PIXELS = 2**28  # of an enlarged image before its crop: only absurd aspect ratios come so far


def load_square(
    data: npt.NDArray[np.uint8], *, size: int, channels: int, crop: Crop = "short_side", reduced: bool = False
) -> Tensor:
    """An encoded image as uint8 (channels, size, size), as `center_square` crops it.

    Args:
        data: the bytes of the file.
        size: pixels of a side.
        channels: 1 or 3.
        crop: as in `center_square`.
        reduced: decode a JPEG at a half, quarter or eighth of its sides, the smallest that is at least `size`: quicker,
            and not the same pixels.

    Raises ValueError, Image.DecompressionBombError or what else the decoder raises on damaged bytes.
    """
    return to_channels(center_square(decode(data, at_least=size if reduced else None), size, crop), channels)


def read_pixels(path: Path) -> Tensor:
    """The upright image of a file as uint8 (c, h, w), c = 1 or 3; raises OSError, or as `load_square` does."""
    return decode(np.fromfile(path, dtype=np.uint8))


def decode(data: npt.NDArray[np.uint8], *, at_least: int | None = None) -> Tensor:
    """The upright image as uint8 (c, h, w), c = 1 or 3; with `at_least`, a JPEG scaled down to no shorter a side."""
    # Pillow's header check comes first for every file, as it alone refuses decompression bombs.
    with open_image(data) as image:
        if at_least is not None and min(image.size) >= 2 * at_least:
            image.draft(None, (at_least, at_least))  # does nothing to other formats
        elif decode_jpeg is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            try:
                return decode_jpeg(torch.from_numpy(data), apply_exif_orientation=True)
            except RuntimeError:
                pass  # Pillow reads some files more; its message is the better one if it does not
        return pillow_pixels(image)


def open_image(data: np.ndarray) -> Image.Image:
    """The image in these bytes, its header read; raises ValueError if they are none, and on decompression bombs."""
    check_png(data)
    try:
        return Image.open(io.BytesIO(data.data), formats=formats())
    except UnidentifiedImageError as error:
        raise ValueError(f"its {len(data)} bytes are no image in a known format") from error


def check_png(data: np.ndarray) -> None:
    """Raise ValueError for a PNG of which a part does not have its checksum; Pillow skips those of the pixels."""
    if data[: len(PNG)].tobytes() != PNG:
        return
    at, name = len(PNG), b""
    while name != b"IEND":
        length, name = struct.unpack(">I4s", data[at : at + 8].tobytes().ljust(8, b"\0"))
        end = at + 8 + length
        if end + 4 > len(data):
            raise ValueError("it is a PNG that is cut off")
        # Lower case: what a reader may leave out, and often is not as it should be.
        if (
            name[:1].isupper()
            and zlib.crc32(data[at + 4 : end].data).to_bytes(4, "big") != data[end : end + 4].tobytes()
        ):
            raise ValueError(f"it is a PNG whose part {name.decode('latin-1')!r} does not have its checksum")
        at = end + 4


@lru_cache(maxsize=1)
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read: it knows more, such as EPS, which it gives to another program."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def pillow_pixels(image: Image.Image) -> Tensor:
    """The upright image as uint8 (c, h, w), c = 1 or 3, by Pillow alone."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return torch.from_numpy(deep_gray_to_uint8(np.asarray(image), clear=image.info.get("transparency")))[None]
    if image.mode == "La":
        image = image.convert("LA")  # the only one that Pillow makes of it
    if image.has_transparency_data or image.mode in ("P", "PA"):
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), colours)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def deep_gray_to_uint8(values: np.ndarray, *, clear: int | None = None) -> np.ndarray:
    """Grey values of more than 8 bits as uint8; integers span [0, 65535], floats [0, 1] or else [0, 255].

    The value `clear`, if any, stands for transparency and becomes white.

    Raises:
        ValueError: a value lies outside of the span, or is not finite.
    """
    low, high = float(values.min()), float(values.max())
    integers = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if integers else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        span = "[0, 65535]" if integers else "[0, 1] or [0, 255]"
        raise ValueError(f"grey values must lie in {span}, got {low:g} to {high:g}")
    grey = np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    return grey if clear is None else np.where(values == clear, np.uint8(255), grey)


def center_square(pixels: Tensor, size: int, crop: Crop = "short_side") -> Tensor:
    """uint8 (c, h, w) -> (c, size, size): short side resized to `size`, what is too long cut off on both sides.

    Resized by antialiased bicubic filtering; with `crop` "adm", as ADM and DiT prepare ImageNet, the sides are halved
    first by a box filter while the short one is at least twice the size. Both equal Pillow's result within two grey
    levels, and within a hundredth of one on average.
    """
    if crop == "adm":
        while min(pixels.shape[-2:]) >= 2 * size:
            pixels = halve(pixels)
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = (round(side * size / short) for side in (height, width))
        if height * width > MAX_PIXELS:
            raise ValueError(f"the sides of {tuple(pixels.shape[-2:])} pixels are too unequal for size {size}")
        pixels = _resampled(pixels, (height, width), mode="bicubic", antialias=True)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def halve(pixels: Tensor) -> Tensor:
    """uint8 (c, h, w) -> (c, h // 2, w // 2) as by Pillow's box filter, within a grey level: means of neighbours."""
    rows_columns_channels = pixels.permute(1, 2, 0)
    for side in (0, 1):
        rows_columns_channels = _even(rows_columns_channels, side)
    pixels = rows_columns_channels.permute(2, 0, 1)
    # Midway between two pixels, linear interpolation is their mean; torch has no quicker box filter for bytes.
    return _resampled(pixels, [side // 2 for side in pixels.shape[1:]], mode="bilinear")


def _resampled(pixels: Tensor, shape: Sequence[int], **how: Any) -> Tensor:
    """`F.interpolate` of one image."""
    # A batch dimension added in front would hide from torch that the channels lie innermost, for which it is quickest.
    batch = pixels.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, list(shape), **how)[0]


def _even(pixels: Tensor, side: int) -> Tensor:
    """An odd side shortened by one: the three pixels in one window of the box filter become two of their mean."""
    length = pixels.shape[side]
    if length % 2 == 0:
        return pixels
    if (triple := _triple(length)) is None:
        start, _, end = pixels.split([length // 2, 1, length // 2], side)
        return torch.cat([start, end], side)
    start, three, end = pixels.split([2 * triple, 3, length - 2 * triple - 3], side)
    mean = three.float().mean(side, keepdim=True).round().to(torch.uint8)
    return torch.cat([start, mean, mean, end], side)


@lru_cache(maxsize=4096)
def _triple(length: int) -> int | None:
    """The place among `length` // 2 windows of the one with three pixels; None if the middle pixel lies in no window.

    In exact arithmetic there always is one. Pillow's, repeated here, rounds some middle pixels out of both neighbours.
    """
    scale = length / (length // 2)
    for window in range((length // 2 - 1) // 2, length // 4 + 1):
        centre, support = (window + 0.5) * scale, 0.5 * scale
        places = range(int(centre - support + 0.5), int(centre + support + 0.5))
        if sum(-0.5 < (place - centre + 0.5) * (1 / scale) <= 0.5 for place in places) == 3:
            return window
    return None


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8 (1 or 3, h, w) -> (channels, h, w): grey is repeated, colour becomes its luma."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    luma = torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA))
    return luma.round().to(torch.uint8)[None]
