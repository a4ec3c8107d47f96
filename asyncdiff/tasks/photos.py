"""Users' photos and masks: from files of any kind and size to pixels that a model takes, and results back to files.

| file | becomes |
|---|---|
| EXIF orientation | applied |
| palette, transparency | colours over white, with a warning where anything shines through; refused in masks |
| 16-bit grey | its 65536 levels spread over 256, not clipped |
| float grey | [0, 1] or else [0, 255] as the full range; other values are refused |
| CMYK, YCbCr, HSV | RGB by Pillow |
| animation, several pages | the first, with a warning |
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from glob import glob
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

Pixels = UInt8[Tensor, "c h w"]
KnownPhoto = Bool[Tensor, "h w"]  # True = known
Levels = Float[Tensor, "h w"]  # per pixel: 0 = stays as it is .. 1 = drawn anew
Fit = Literal["crop", "resize", "keep"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
WHITE = (255, 255, 255, 255)
LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and JPEG weigh red, green and blue
MAX_PIXELS = 2**28  # of an enlarged photo before its crop: only absurd aspect ratios come so far


_notes: ContextVar[list[str] | None] = ContextVar("notes", default=None)


class PhotoWarning(UserWarning):
    """What is done with a photo or a mask that its owner may not expect."""


# Finding and reading


def photo_files(name: str, where: str) -> list[Path]:
    """The image files of a path, a folder or a glob pattern, sorted; ValueError with the argument `name` if none."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        kinds = ", ".join(sorted(SUFFIXES))
        if not files:
            raise ValueError(f"{name} must name image files, got the folder {where}, which holds none of {kinds}")
    else:
        files = [path] if path.is_file() else [Path(file) for file in glob(str(path)) if Path(file).is_file()]
    if not files:
        raise FileNotFoundError(f"{name} must be an image file, a folder or a pattern, got {where}: there is none")
    return sorted(files)


def read_photo(file: Path, channels: int) -> Pixels:
    """The upright image with `channels` 1 or 3: grey is repeated, colour becomes its luma."""
    pixels, transparent = _pixels(file)
    if transparent:
        warn(f"{file}: what shines through in {transparent} pixels is taken as white")
    return to_channels(pixels, channels)


def read_mask(file: Path, *, mask_is_unknown: bool = False) -> KnownPhoto:
    """True = known: where the file is white, 1 or brighter than the middle; the opposite if `mask_is_unknown`.

    A file of nothing but 0 and 1 is read as a mask of ones; other values in between are decided at the middle, with one
    warning for all of them.
    """
    pixels, transparent = _pixels(file, ones_are_white=True)
    if transparent:
        raise ValueError(
            f"mask must be black and white, got {file}, which is transparent in {transparent} pixels: "
            "save it without transparency, white = known"
        )
    grey = to_channels(pixels, 1)[0]
    if grey.max() == 1:
        grey = grey * 255
    between = int(((grey != 0) & (grey != 255)).sum())
    if between:
        warn(f"{file}: {between} of {grey.numel()} pixels are neither black nor white and decided at the middle")
    return (grey > 127) != mask_is_unknown


def read_levels(file: Path) -> Levels:
    """Noise levels from grey: black = 0, stays as it is .. white = 1, drawn anew."""
    pixels, transparent = _pixels(file)
    if transparent:
        raise ValueError(
            f"levels must be grey, got {file}, which is transparent in {transparent} pixels: "
            "save it without transparency, black = kept, white = drawn anew"
        )
    return to_channels(pixels, 1)[0] / 255


def to_channels(pixels: Pixels, channels: int) -> UInt8[Tensor, "{channels} h w"]:
    """uint8 (1 or 3, h, w) -> (channels, h, w): grey is repeated, colour becomes its luma."""
    if channels not in (1, 3):
        raise ValueError(f"photos have 1 or 3 channels, got a model of {channels}: set model.codec for latents")
    if len(pixels) == channels:
        return pixels
    if channels == 3:
        return pixels.expand(3, -1, -1)
    return torch.einsum("chw,c->hw", pixels.float(), torch.tensor(LUMA)).round().to(torch.uint8)[None]


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read: it knows more, such as EPS, which it gives to another program."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _pixels(file: Path, *, ones_are_white: bool = False) -> tuple[Pixels, int]:
    """The upright image with 1 or 3 channels over white, and the number of pixels that are not opaque."""
    try:
        with Image.open(file, formats=_formats()) as image:
            if getattr(image, "n_frames", 1) > 1:
                warn(f"{file}: of its {image.n_frames} pictures the first is taken")  # type: ignore[attr-defined]
            return _converted(ImageOps.exif_transpose(image), ones_are_white)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"images must be files that can be read, got {file}: {error}") from error


def _converted(image: Image.Image, ones_are_white: bool) -> tuple[Pixels, int]:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image)
        if ones_are_white and values.max() == 1:  # a mask of ones, whatever its depth
            return torch.from_numpy((values == 1).astype(np.uint8))[None], 0
        return torch.from_numpy(_deep_grey(values))[None], 0
    transparent = 0
    if image.has_transparency_data or image.mode in ("P", "PA"):
        colours = image.convert("RGBA")
        transparent = int((np.asarray(colours)[..., 3] < 255).sum())
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), colours)
    grey = image.mode in ("1", "L", "LA")
    pixels = torch.from_numpy(np.array(image.convert("L" if grey else "RGB")))
    return (pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous()), transparent


def _deep_grey(values: np.ndarray) -> np.ndarray:
    """Grey values of more than 8 bits as uint8; integers span [0, 65535], floats [0, 1] or else [0, 255]."""
    low, high = float(values.min()), float(values.max())
    integers = np.issubdtype(values.dtype, np.integer)
    top = 65535.0 if integers else 1.0 if high <= 1 else 255.0
    if not (low >= 0 and high <= top):
        span = "[0, 65535]" if integers else "[0, 1] or [0, 255]"
        raise ValueError(f"grey values must lie in {span}, got {low:g} to {high:g}")
    return np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)


# Sizes


@dataclass(frozen=True)
class Fitting:
    """How a photo comes to its size, (height, width): first resized, then cut on both sides alike.

    Attributes:
        original: size of the file.
        resized: size that the whole photo is brought to.
        size: what is left of it after cutting.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    size: tuple[int, int]

    def told(self) -> str:
        """What is done, in words."""
        done = []
        if self.resized != self.original:
            done.append(f"resized to {by(self.resized)}")
        if self.size != self.resized:
            done.append(f"cut to its middle {by(self.size)}")
        return f"{by(self.original)} pixels, {', '.join(done) or 'taken as they are'}"

    def cut(self, pixels: Tensor) -> Tensor:
        """The middle of what was resized."""
        top, left = ((whole - part) // 2 for whole, part in zip(self.resized, self.size, strict=True))
        return pixels[..., top : top + self.size[0], left : left + self.size[1]]


def fitting(original: tuple[int, int], size: tuple[int, int], fit: Fit, patch: tuple[int, int]) -> Fitting:
    """How a photo of `original` (height, width) comes to `size`, or to whole patches.

    Args:
        original: (height, width) of the photo.
        size: (height, width) that is wanted; not looked at under "keep".
        fit: "crop" resizes until the photo covers `size` and cuts the rest, "resize" stretches it to `size`, "keep"
            cuts what exceeds whole patches.
        patch: (height, width) of a patch.
    """
    if fit == "keep":
        size = (original[0] // patch[0] * patch[0], original[1] // patch[1] * patch[1])
        if 0 in size:
            raise ValueError(f"photos must hold a patch of {by(patch)} pixels to be kept, got {by(original)}: use crop")
        return Fitting(original, original, size)
    if fit == "resize":
        return Fitting(original, size, size)
    scale = max(size[0] / original[0], size[1] / original[1])
    resized = (max(size[0], round(original[0] * scale)), max(size[1], round(original[1] * scale)))
    if resized[0] * resized[1] > MAX_PIXELS:
        raise ValueError(f"photos must be about as wide as {by(size)}, got {by(original)}: cut it first")
    return Fitting(original, resized, size)


def fitted(pixels: Pixels, how: Fitting) -> UInt8[Tensor, "c fh fw"]:
    """The photo resized (antialiased bicubic) and cut."""
    return how.cut(_rounded(_resized(pixels.float(), how)))


def fitted_with_mask(
    pixels: Pixels, known: Bool[Tensor, "mask_h mask_w"], how: Fitting
) -> tuple[UInt8[Tensor, "c fh fw"], Bool[Tensor, "fh fw"]]:
    """The photo and its mask resized and cut together, so that nothing unknown is mixed into what is known.

    A pixel is known where all the pixels that it covers were, and it is made of known ones alone: the weights of the
    others are taken away. At the photo's own size nothing changes.
    """
    known = covered(known, how.original)
    weights = _resized(known.float()[None], how)
    colours = _resized(pixels.float() * known, how)
    # Weights are near 1 wherever the result is known, and are not looked at elsewhere.
    shown = _rounded(colours / weights.clamp_min(0.25))
    return how.cut(shown), how.cut(covered(known, how.resized))


def covered(known: Bool[Tensor, "h w"], size: tuple[int, int]) -> Bool[Tensor, "new_h new_w"]:
    """The mask at another size: known where every pixel of the old one that lies there at all was known."""
    unknown = (~known).float()[None]
    return F.adaptive_max_pool2d(unknown, size)[0] == 0


def fitted_levels(levels: Float[Tensor, "map_h map_w"], how: Fitting) -> Float[Tensor, "fh fw"]:
    """A map resized and cut with its photo: a pixel has the highest of the levels that it covers."""
    return how.cut(F.adaptive_max_pool2d(levels[None], how.resized)[0])


def check_same_shape(
    photo: Path, original: tuple[int, int], mask: Path, size: tuple[int, int], name: str = "mask"
) -> None:
    """Raise ValueError with the argument `name` unless a mask of `size` is the photo's at another resolution."""
    scale = min(size[0] / original[0], size[1] / original[1])
    if max(abs(size[0] - scale * original[0]), abs(size[1] - scale * original[1])) >= 1:
        raise ValueError(
            f"{name} must have the size of its photo, got {mask} of {by(size)} for {photo} of {by(original)}: "
            "cut or resize it, height x width"
        )


def height_by_width(name: str, text: str) -> tuple[int, int]:
    """The two numbers of a size such as 64x96, rows first as everywhere; 64 alone is a square."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, got {text}: 64x96, say")
    return int(numbers[0]), int(numbers[-1])


def by(size: Sequence[int]) -> str:
    """A size in words, rows first."""
    return "x".join(map(str, size))


def _resized(image: Float[Tensor, "c h w"], how: Fitting) -> Float[Tensor, "c rh rw"]:
    if how.resized == how.original:
        return image
    return F.interpolate(image[None], how.resized, mode="bicubic", antialias=True)[0]


def _rounded(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


# Between bytes and what models speak


def to_model(pixels: UInt8[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
    """8-bit pixels in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_bytes(image: Float[Tensor, "*n c h w"]) -> UInt8[Tensor, "*n c h w"]:
    """The nearest 8-bit pixels, on the CPU: `to_model` backwards, exactly."""
    return _rounded((image.detach().float().cpu() + 1) * 127.5)


def save_png(pixels: UInt8[Tensor, "c h w"], file: Path) -> None:
    """Write grey or colour pixels, losslessly."""
    file.parent.mkdir(parents=True, exist_ok=True)
    array = pixels.cpu().permute(1, 2, 0).numpy()
    Image.fromarray(array[..., 0] if len(pixels) == 1 else np.ascontiguousarray(array)).save(file)


def warn(text: str) -> None:
    """Tell the owner of a photo."""
    notes = _notes.get()
    if notes is None:
        warnings.warn(text, PhotoWarning, stacklevel=3)
    else:
        notes.append(text)


@contextmanager
def collected() -> Iterator[list[str]]:
    """A list of what would have been warnings; in this thread alone, other than `warnings.catch_warnings`."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)
