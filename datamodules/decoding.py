"""From an image file to 8-bit pixels of a stated size; every conversion is chosen here, none is left to a default.

| file | becomes |
|---|---|
| palette, transparency | colours over a white background |
| 16-bit grey | its 65536 levels spread over 256, not clipped |
| float grey | [0, 1] or else [0, 255] as the full range; other values are refused |
| CMYK, YCbCr, HSV | RGB by Pillow |
| EXIF orientation | applied |
| animation, several pages | the first |
"""

import io
from pathlib import Path

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

BACKGROUND = (255, 255, 255, 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and JPEG weigh red, green and blue
MAX_PIXELS = 2**28  # of an enlarged image before its crop: only absurd aspect ratios come so far


def load_square(data: npt.NDArray[np.uint8], *, size: int, channels: int) -> Tensor:
    """An encoded image as uint8 (channels, size, size): short side resized (antialiased bicubic), centre cropped.

    Raises ValueError, Image.DecompressionBombError or what else the decoder raises on damaged bytes.
    """
    return to_channels(centre_square(decoded(data), size), channels)


def read_pixels(path: Path) -> Tensor:
    """The upright image of a file as uint8 (c, h, w), c = 1 or 3; raises OSError, or as `load_square` does."""
    return decoded(np.fromfile(path, dtype=np.uint8))


def decoded(data: npt.NDArray[np.uint8]) -> Tensor:
    """The upright image as uint8 (c, h, w), c = 1 or 3."""
    # Pillow's header check comes first for every file, as it alone refuses decompression bombs.
    with open_image(data) as image:
        if decode_jpeg is not None and image.format == "JPEG" and image.mode in ("L", "RGB"):
            try:
                return decode_jpeg(torch.from_numpy(data), apply_exif_orientation=True)
            except RuntimeError:
                pass  # Pillow reads some files more; its message is the better one if it does not
        return pillow_pixels(image)


def open_image(data: np.ndarray) -> Image.Image:
    """The image in these bytes, its header read; raises ValueError if they are none, and on decompression bombs."""
    try:
        return Image.open(io.BytesIO(data.data))
    except UnidentifiedImageError as error:
        raise ValueError(f"its {len(data)} bytes are no image in a known format") from error


def pillow_pixels(image: Image.Image) -> Tensor:
    """The upright image as uint8 (c, h, w), c = 1 or 3, by Pillow alone."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return torch.from_numpy(deep_grey(np.asarray(image)))[None]
    if image.has_transparency_data or image.mode in ("P", "PA"):
        colours = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, BACKGROUND), colours)
    image = image.convert("L" if image.mode in ("1", "L") else "RGB")
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def deep_grey(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8; integers span [0, 65535], floats [0, 1] or else [0, 255].

    Raises:
        ValueError: a value lies outside of the span, or is not finite.
    """
    low, high = float(values.min()), float(values.max())
    integers = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if integers else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        span = "[0, 65535]" if integers else "[0, 1] or [0, 255]"
        raise ValueError(f"grey values must lie in {span}, got {low:g} to {high:g}")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


def centre_square(pixels: Tensor, size: int) -> Tensor:
    """uint8 (c, h, w) -> (c, size, size): short side resized to `size`, what is too long cut off on both sides."""
    height, width = pixels.shape[-2:]
    short = min(height, width)
    if short != size:
        height, width = (round(side * size / short) for side in (height, width))
        if height * width > MAX_PIXELS:
            raise ValueError(f"the sides of {tuple(pixels.shape[-2:])} pixels are too unequal for size {size}")
        pixels = F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def to_channels(pixels: Tensor, channels: int) -> Tensor:
    """uint8 (1 or 3, h, w) -> (channels, h, w): grey is repeated, colour becomes its luma."""
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    luma = torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA))
    return luma.round().to(torch.uint8)[None]
