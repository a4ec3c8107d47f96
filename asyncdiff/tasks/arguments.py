"""What the arguments of tasks name: sizes, ways to fit photos, image files and folders for new ones.

Imports no PyTorch, so that commands refuse wrong arguments fast.
"""

import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Literal

Fit = Literal["crop", "resize", "keep"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}


def parse_size(name: str, text: str) -> tuple[int, int]:
    """Parse a size HEIGHTxWIDTH, such as 64x96; a single number means a square."""
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(number.isdecimal() and int(number) for number in numbers):
        raise ValueError(f"{name} must be HEIGHTxWIDTH in pixels, got {text}: use 64x96, for example")
    return int(numbers[0]), int(numbers[-1])


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
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES]
        kinds = ", ".join(sorted(SUFFIXES))
        if not files:
            raise ValueError(
                f"{name} must contain image files ({kinds}), got the folder {where} without any: check the path"
            )
    else:
        files = [path] if path.is_file() else [Path(file) for file in glob(str(path)) if Path(file).is_file()]
    if not files:
        raise FileNotFoundError(
            f"{name} must be an image file, a folder or a pattern that matches files, got {where}: check the path"
        )
    return sorted(files)


def create_output_folder(folder: Path, *, explicit: bool) -> Path:
    """Create a folder for images: the requested one, or a numbered sibling if a default one already contains images.

    Args:
        folder: requested folder.
        explicit: whether the user chose the folder; if so, it is refused if it already contains images.

    Returns:
        Path of the created folder.
    """
    check_output_folder(folder, explicit=explicit)
    chosen, number = folder, 1
    while _contains_images(chosen):
        number += 1
        chosen = folder.with_name(f"{folder.name}-{number}")
    chosen.mkdir(parents=True, exist_ok=True)
    return chosen


def check_output_folder(folder: Path, *, explicit: bool) -> None:
    """Raise ValueError if `create_output_folder` would refuse the folder, without creating it."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, got the existing file {folder}: choose another path")
    if explicit and _contains_images(folder):
        raise ValueError(f"output folder {folder} already contains images: choose another folder, or empty it")


def _contains_images(folder: Path) -> bool:
    return folder.is_dir() and any(re.fullmatch(r".*\.(png|gif)", file.name) for file in folder.iterdir())
