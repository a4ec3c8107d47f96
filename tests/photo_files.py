"""Photos of random pixels in files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from asyncdiff.tasks.photos import read_photo


def random_photo(file: Path, h: int, w: int, seed: int = 0) -> str:
    """Write a color photo of `h` x `w` random pixels, and return its path."""
    pixels = np.random.default_rng(seed).integers(0, 256, (h, w, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)
    return str(file)


def pixels_of(file: Path | str) -> torch.Tensor:
    """Return the pixels of a file as bytes (3, h, w)."""
    return read_photo(Path(file), 3)
