"""What the arguments of tasks name: sizes, ways to fit photos, image files and folders for new ones.

Imports no PyTorch, so that commands refuse wrong arguments fast.
"""

import math
import re
from collections.abc import Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Literal

from asyncdiff import output_paths
from asyncdiff.checks import MAX_SIDE
from asyncdiff.memory import available_memory, check_memory
from datamodules.hidden_names import is_hidden

BYTES_PER_VALUE = 16  # four copies in float32: the image, its update, its prediction and what is written

LOCK = ".lock"  # of a folder into which another process writes, as in asyncdiff.checkpoints.run_lock
Fit = Literal["crop", "resize", "keep"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Parse a size HEIGHTxWIDTH, such as 64x96; a single number means a square."""
    match = re.fullmatch(r"0*([1-9]\d{0,9})(?:x0*([1-9]\d{0,9}))?", text.lower(), re.ASCII)
    if not match:
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, got {text}: use 64x96, for example")
    size = int(match[1]), int(match[2] or match[1])
    check_pixels(name, size, BYTES_PER_VALUE)  # even if they had a single channel
    return size


def check_pixels(name: str, size: Sequence[int], bytes_per_pixel: int, available: int | None = None) -> None:
    """Raise ValueError if an image has a side of more than `MAX_SIDE` pixels, or does not fit into memory.

    Args:
        name: argument that sets the size.
        size: (height, width) in pixels.
        bytes_per_pixel: bytes that each pixel needs while the image is drawn.
        available: bytes that there are; by default, `asyncdiff.memory.available_memory`.
    """
    if max(size) > MAX_SIDE:
        raise ValueError(f"{name} must have sides of at most {MAX_SIDE} pixels, got {format_size(size)}: shorten them")
    available = available_memory() if available is None else available
    side = min(MAX_SIDE, math.isqrt(available // bytes_per_pixel))
    needed = math.prod(size) * bytes_per_pixel
    check_memory(name, format_size(size), needed, f"at most {side}x{side} fit", available=available)


def format_size(size: Sequence[int]) -> str:
    """Format a size as HEIGHTxWIDTH."""
    return "x".join(map(str, size))


def check_fit(fit: str, size: str | None) -> None:
    """Raise ValueError if `fit` is not a valid name, or if `size` is given although `fit` ignores it."""
    if fit not in ("crop", "resize", "keep"):
        raise ValueError(f"fit must be crop, resize or keep, got {fit}: use crop, for example")
    if fit == "keep" and size is not None:
        raise ValueError(f"size cannot be combined with fit='keep', got {size}: omit size, or use fit='crop'")


def photo_files(name: str, where: str) -> list[Path]:
    """List the image files of a path, a folder or a pattern, sorted; errors name the argument `name`."""
    path = Path(where).expanduser()
    if path.is_dir():
        files = image_files(path)
        kinds = ", ".join(sorted(SUFFIXES))
        if not files:
            raise ValueError(
                f"{name} must contain image files ({kinds}), got the folder {where} without any: check the path"
            )
    else:
        files = [path] if path.is_file() else [file for file in _matches(path) if file.is_file()]
    if not files:
        raise FileNotFoundError(
            f"{name} must be an image file, a folder or a pattern that matches files, got {where}: check the path"
        )
    return sorted(files)


def image_files(folder: Path) -> list[Path]:
    """Return the image files directly in a folder, without hidden ones, sorted."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in SUFFIXES and not is_hidden(file.name) and not file.is_dir()
    )


def _matches(pattern: Path) -> list[Path]:
    """Return the paths that match a pattern, without those in which a wildcard stands for a hidden name.

    A pattern such as .cache*/*.png asks for hidden names.
    """
    wildcards = [number for number, part in enumerate(pattern.parts) if has_magic(part) and part[0] != "."]
    paths = map(Path, glob(str(pattern)))
    return [path for path in paths if not any(is_hidden(path.parts[number]) for number in wildcards)]


def choose_output_folder(folder: Path, *, explicit: bool) -> Path:
    """Choose a folder for images: the requested one, or a numbered sibling if a default one is in use.

    Args:
        folder: requested folder.
        explicit: whether the user chose the folder; if so, it is refused if it already contains images.

    Returns:
        Path of a folder that can be written to; it need not exist.
    """
    check_output_folder(folder, explicit=explicit)
    chosen, number = folder, 1
    while not explicit and (_contains_images(chosen) or (chosen / LOCK).exists()):
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    return chosen


def check_output_folder(folder: Path, *, explicit: bool) -> None:
    """Raise ValueError if `choose_output_folder` would refuse the folder: it is in use, or cannot be written to."""
    output_paths.check_output_folder(folder)
    if explicit and _contains_images(folder):
        raise ValueError(f"output folder {folder} already contains images: choose another folder, or empty it")


def _contains_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        re.fullmatch(r".*\.(png|gif)", file.name) and not is_hidden(file.name) for file in folder.iterdir()
    )
