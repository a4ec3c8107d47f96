"""Choose folders for images, never one that contains images already. Imports no PyTorch: commands refuse fast."""

import re
from pathlib import Path


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
