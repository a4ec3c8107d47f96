"""Read photos and painted files of any format and size into pixels for a model, and write results to files.

| photo | converted to |
|---|---|
| EXIF orientation | applied |
| palette, transparency | blended with white, with a warning if any pixel is transparent |
| 16-bit gray | 65536 levels scaled to 256, not clipped |
| float gray | values in [0, 1], or else in [0, 255], scaled to the full range; others are refused |
| CMYK, YCbCr, HSV | RGB by Pillow |
| animation, several pages | the first frame or page, with a warning |

Masks and level maps are painted files, which are read by one rule:

| painted file | gray value |
|---|---|
| 1 bit | black or white |
| 8-bit gray | as it is |
| palette, RGB, CMYK, opaque alpha | the gray of each color; colored pixels are refused |
| 16-bit and 32-bit gray | as 8-bit gray if no value exceeds 255, else 65536 levels scaled to 256 |
| float gray | as in photos |
| only the values 0 and 1, in any of these | black and white |
| a largest value from 2 to 7 | refused: such files hold numbers of classes |
| transparency | refused |
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from asyncdiff.regular_files import check_regular, open_regular
from asyncdiff.tasks.arguments import Fit, format_size

Pixels = UInt8[Tensor, "c h w"]
KnownPhoto = Bool[Tensor, "h w"]  # True = known
Gray = UInt8[Tensor, "h w"]
Levels = Float[Tensor, "h w"]  # per pixel: 0 = unchanged .. 1 = pure noise

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
WHITE = (255, 255, 255, 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601 weights of red, green and blue, as in Pillow and JPEG
MAX_PIXELS = 2**28  # of a resized photo before its crop; only extreme aspect ratios exceed it
MID_GRAY = 127  # largest value that a mask takes for black
MIN_WHITE = 8  # smallest gray value that can be the brightest one of a painted file
MAX_COLOR = 8  # difference between red, green and blue that is taken for gray, as in JPEG files


_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


class PhotoWarning(UserWarning):
    """Warning about a conversion of a photo or a mask that users may not expect."""


# Read files


def read_photo(file: Path, channels: int) -> Pixels:
    """Read an upright image with 1 or 3 channels: gray is repeated, color is converted to luma."""
    return to_channels(read_pixels(file), channels)


def read_mask(file: Path, *, mask_is_unknown: bool = False) -> KnownPhoto:
    """Read a mask of known pixels.

    Args:
        file: painted file that is white where pixels are known; values between black and white are thresholded at
            mid-gray, with one warning.
        mask_is_unknown: whether white means unknown instead of known.

    Returns:
        True where pixels are known.

    Raises:
        ValueError: the file is not a painted one, or has gray but no white pixels.
    """
    gray = read_painted(file, "mask")
    if 0 < gray.max() <= MID_GRAY:
        raise ValueError(
            f"mask must be black and white, got values of at most {gray.max()} of 255 in {file}: save white as 255"
        )
    if between := int(((gray != 0) & (gray != 255)).sum()):
        warn(f"{file}: {between} of {gray.numel()} pixels are neither black nor white, thresholded at mid-gray")
    return (gray > MID_GRAY) != mask_is_unknown


def read_levels(file: Path) -> Levels:
    """Read noise levels from the gray values of a painted file: black = 0, unchanged .. white = 1, pure noise."""
    return read_painted(file, "levels") / 255


def read_painted(file: Path, name: str) -> Gray:
    """Read the gray values of a painted file, 0 = black .. 255 = white.

    Args:
        file: image file of a mask or a level map.
        name: argument to name in errors.

    Returns:
        8-bit gray values.

    Raises:
        ValueError: the file cannot be read, or is transparent, colored, or neither gray nor black and white.
    """
    image = _open_upright(file)
    if _is_deep(image):
        try:
            gray = torch.from_numpy(_painted_gray(np.asarray(image)))
        except ValueError as error:
            raise ValueError(f"{name} cannot be read, got {file}: {error}") from error
    else:
        pixels, transparent = _convert(image)
        if transparent:
            raise ValueError(
                f"{name} must be opaque, got {transparent} transparent pixels in {file}: save it without transparency"
            )
        values = pixels.int()
        if colored := int(((values.amax(0) - values.amin(0)) > MAX_COLOR).sum()):
            raise ValueError(f"{name} must be gray, got {colored} colored pixels in {file}: save it as a gray image")
        gray = to_channels(pixels, 1)[0]
    high = int(gray.max())
    if 1 < high < MIN_WHITE:
        raise ValueError(
            f"{name} must be gray from 0 (black) to 255 (white), got values of at most {high} in {file}: save numbers "
            "of classes as gray values"
        )
    return gray * 255 if high == 1 else gray


def to_channels(pixels: Pixels, channels: int) -> UInt8[Tensor, "{channels} h w"]:
    """Convert pixels of 1 or 3 channels to `channels`: gray is repeated, color is converted to luma."""
    if channels not in (1, 3):
        raise ValueError(f"photos must have 1 or 3 channels, but the model has {channels}: set model.codec for latents")
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    return torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA)).round().to(torch.uint8)[None]


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Return Pillow's names of the accepted formats; it would pass others, such as EPS, to external programs."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def read_pixels(file: Path) -> Pixels:
    """Read an upright image with its own 1 or 3 channels; transparent pixels are blended with white, with a warning."""
    image = _open_upright(file)
    try:
        pixels, transparent = _convert(image)
    except ValueError as error:
        raise ValueError(f"cannot read the image {file}: {error}") from error
    if transparent:
        warn(f"{file}: {transparent} transparent pixels are blended with white")
    return pixels


def _open_upright(file: Path) -> Image.Image:
    """Read the first frame of an image file, in the orientation of its EXIF data."""
    check_regular(file, "image file")
    try:
        with open_regular(file) as stream, Image.open(stream, formats=_formats()) as image:
            if getattr(image, "n_frames", 1) > 1:
                warn(f"{file}: only the first of its {image.n_frames} frames is used")  # type: ignore[attr-defined]
            return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read the image {file}: {error}") from error


def _is_deep(image: Image.Image) -> bool:
    """Return whether an image is gray of more than 8 bits."""
    return image.mode.startswith("I;16") or image.mode in ("I", "F")


def _convert(image: Image.Image) -> tuple[Pixels, int]:
    """Convert to 1 or 3 channels, blended with white; also return the number of transparent pixels."""
    if _is_deep(image):
        return torch.from_numpy(_to_8_bit_gray(np.asarray(image)))[None], 0
    transparent = 0
    if image.has_transparency_data or image.mode in ("P", "PA"):
        colors = image.convert("RGBA")
        transparent = int((np.asarray(colors)[..., 3] < 255).sum())
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), colors)
    gray = image.mode in ("1", "L", "LA")
    pixels = torch.from_numpy(np.array(image.convert("L" if gray else "RGB")))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()), transparent


def _painted_gray(values: np.ndarray) -> np.ndarray:
    """Return deep gray values as uint8; integers that fit into 8 bits are taken for 8-bit values."""
    if np.issubdtype(values.dtype, np.integer) and values.min() >= 0 and values.max() <= 255:
        return values.astype(np.uint8)
    return _to_8_bit_gray(values)


def _to_8_bit_gray(values: np.ndarray) -> np.ndarray:
    """Scale gray values to uint8; integers span [0, 65535], floats [0, 1] or else [0, 255]."""
    low, high = float(values.min()), float(values.max())
    integers = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if integers else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        span = "[0, 65535]" if integers else "[0, 1] or [0, 255]"
        raise ValueError(f"gray values must lie in {span}, got {low:g} to {high:g}")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


# Sizes


@dataclass(frozen=True)
class PhotoFit:
    """Plan for resizing a photo and then cropping it around its center; sizes are (height, width).

    Attributes:
        original: size of the file.
        resized: size after resizing.
        size: size after cropping.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]

    def describe(self) -> str:
        """Describe the plan, for example "480x640 pixels, resized to 64x85, cropped to its center 64x64"."""
        steps = []
        if self.resized != self.original:
            steps.append(f"resized to {format_size(self.resized)}")
        if self.size != self.resized:
            steps.append(f"cropped to its center {format_size(self.size)}")
        return f"{format_size(self.original)} pixels, {', '.join(steps) or 'unchanged'}"

    def crop(self, pixels: Tensor) -> Tensor:
        """Crop resized pixels around their center."""
        top, left = ((full - part) // 2 for full, part in zip(self.resized, self.size, strict=True))
        return pixels[..., top : top + self.size[0], left : left + self.size[1]]


def plan_fit(original: tuple[int, int], size: tuple[int, int], fit: Fit, patch: tuple[int, int]) -> PhotoFit:
    """Plan how a photo is resized and cropped to `size`, or to a multiple of the patch size.

    Args:
        original: (height, width) of the photo.
        size: requested (height, width); ignored if `fit` is "keep".
        fit: "crop" resizes the photo until it covers `size` and crops the rest, "resize" stretches it to `size`,
            "keep" only crops to a multiple of the patch size.
        patch: (height, width) of a patch in pixels.

    Returns:
        The plan.
    """
    if fit == "keep":
        size = (original[0] // patch[0] * patch[0], original[1] // patch[1] * patch[1])
        if 0 in size:
            raise ValueError(
                f"photos must contain at least one patch of {format_size(patch)} pixels with fit='keep', got "
                f"{format_size(original)}: use fit='crop'"
            )
        return PhotoFit(original, original, size)
    if fit == "resize":
        return PhotoFit(original, size, size)
    scale = max(size[0] / original[0], size[1] / original[1])
    resized = (max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale)))
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ValueError(
            f"the photo's aspect ratio is too far from that of {format_size(size)}, got {format_size(original)}: "
            "crop the photo first"
        )
    return PhotoFit(original, resized, size)


def fit_photo(pixels: Pixels, plan: PhotoFit) -> UInt8[Tensor, "c fh fw"]:
    """Resize (antialiased bicubic) and crop a photo."""
    return plan.crop(_to_uint8(_resize(pixels.float(), plan)))


def fit_photo_and_mask(
    pixels: Pixels, known: Bool[Tensor, "mask_h mask_w"], plan: PhotoFit
) -> tuple[UInt8[Tensor, "c fh fw"], Bool[Tensor, "fh fw"]]:
    """Resize and crop a photo and its mask together, so that no unknown pixel is mixed into a known one.

    A resized pixel is known if all pixels that it covers are known. It is interpolated from known pixels only, with
    their weights renormalized. At the original size of the photo nothing changes.

    Args:
        pixels: 8-bit pixels of the photo.
        known: mask of the photo, True = known, at any resolution.
        plan: plan from `plan_fit`.

    Returns:
        The photo and its mask.
    """
    known = resize_mask(known, plan.original)
    weights = _resize(known.float()[None], plan)
    colors = _resize(pixels.float() * known, plan)
    # The weights are near 1 where the result is known; elsewhere the result is not used.
    photo = _to_uint8(colors / weights.clamp_min(0.25))
    return plan.crop(photo), plan.crop(resize_mask(known, plan.resized))


def resize_mask(known: Bool[Tensor, "h w"], size: tuple[int, int]) -> Bool[Tensor, "new_h new_w"]:
    """Resize a mask: a new pixel is known if every old pixel that overlaps it is known."""
    unknown = (~known).float()[None]
    return F.adaptive_max_pool2d(unknown, size)[0] == 0


def fit_levels(levels: Float[Tensor, "map_h map_w"], plan: PhotoFit) -> Float[Tensor, "fh fw"]:
    """Resize and crop a level map with its photo: a pixel gets the highest of the levels that it covers."""
    return plan.crop(F.adaptive_max_pool2d(levels[None], plan.resized)[0])


def check_same_shape(
    photo: Path, original: tuple[int, int], mask: Path, size: tuple[int, int], name: str = "mask"
) -> None:
    """Raise ValueError naming the argument `name` unless the mask has the aspect ratio of the photo."""
    scale = min(size[0] / original[0], size[1] / original[1])
    if max(abs(size[0] - scale * original[0]), abs(size[1] - scale * original[1])) >= 1:
        raise ValueError(
            f"{name} must have the aspect ratio of its photo, got {mask} of {format_size(size)} for {photo} of "
            f"{format_size(original)} (height x width): crop or resize it"
        )


def _resize(image: Float[Tensor, "c h w"], plan: PhotoFit) -> Float[Tensor, "c rh rw"]:
    if plan.resized == plan.original:
        return image
    return F.interpolate(image[None], plan.resized, mode="bicubic", antialias=True)[0]


def _to_uint8(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


# Convert between 8-bit pixels and the range of models


def to_model(pixels: UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """Convert 8-bit pixels to [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_bytes(image: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """Convert images in [-1, 1] to the nearest 8-bit pixels on the CPU; exact inverse of `to_model`."""
    return _to_uint8((image.detach().float().cpu() + 1) * 127.5)


def save_png(pixels: UInt8[Tensor, "c h w"], file: Path) -> None:
    """Write gray or color pixels losslessly."""
    file.parent.mkdir(parents=True, exist_ok=True)
    to_pillow(pixels).save(file)


def to_pillow(pixels: UInt8[Tensor, "c h w"]) -> Image.Image:
    """Convert gray or color pixels to an image of Pillow."""
    return Image.fromarray(pixels.cpu().movedim(0, -1).squeeze(-1).numpy())


def warn(text: str) -> None:
    """Issue a `PhotoWarning`, or append the text to the list of an enclosing `collect_warnings`."""
    notes = _notes.get()
    if notes is None:
        warnings.warn(text, PhotoWarning, stacklevel=3)
    else:
        notes.append(text)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """Collect the texts of `warn` in a list, in this thread only, unlike `warnings.catch_warnings`."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
