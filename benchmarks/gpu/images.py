"""Images to read and to train on: real ones of a folder or an .npz file, digits, and procedural files."""

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from asyncdiff.randomness import seeded
from datamodules import Digits, ImageFolder
from datamodules.base import ImageDataModule, ImageDataset
from datamodules.images.pixel_arrays import PixelArray

HELD_OUT = 20  # every 20th image is held out if the file has no split of its own
SPLITS = {"train": ("x_train", "y_train"), "val": ("x_test", "y_test")}
NAMES = (("images", "labels"), ("x", "y"), ("arr_0", "arr_1"))  # of files without splits


class NpzImages(ImageDataModule):
    """Images of one .npz file: uint8 (n, h, w, c) or (n, c, h, w) with labels.

    Args:
        file: arrays x_train, y_train, x_test, y_test, as Keras has CIFAR-10; or images and labels, of which every 20th
            is held out.
        **options: arguments of ImageDataModule.
    """

    def __init__(self, file: Path, **options: Any):
        super().__init__(**options)
        self.file = file
        self.arrays = _read(file)
        self.channels, self.size = self.arrays["train"][0].shape[1:3]

    def build(self) -> Mapping[Any, ImageDataset]:
        """Return the splits; val and test are the same images."""
        count = int(max(labels.max() for _, labels in self.arrays.values())) + 1
        classes = count if count > 1 else 0
        data = {
            split: PixelArray(pixels, labels, classes=classes, flip=split == "train")
            for split, (pixels, labels) in self.arrays.items()
        }
        return data | {"test": data["val"]}


def _read(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return pixels (n, c, h, w) and labels of both splits."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"data {file} must be an .npz file of arrays, got {error}: save it with numpy.savez"
        ) from error
    if all(name in arrays for pair in SPLITS.values() for name in pair):
        return {split: _pixels(arrays[x], arrays[y]) for split, (x, y) in SPLITS.items()}
    for x, y in NAMES:
        if x in arrays:
            pixels, labels = _pixels(arrays[x], arrays.get(y, np.zeros(len(arrays[x]), np.int64)))
            held_out = np.arange(len(pixels)) % HELD_OUT == 0
            return {"train": (pixels[~held_out], labels[~held_out]), "val": (pixels[held_out], labels[held_out])}
    raise ValueError(
        f"data {file} must contain x_train, y_train, x_test and y_test, or images and labels, got {', '.join(arrays)}: "
        "rename its arrays"
    )


def _pixels(images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    channels_first = images.ndim == 4 and images.shape[1] in (1, 3) and images.shape[-1] not in (1, 3)
    pixels = images if channels_first else images.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(pixels), labels.reshape(-1).astype(np.int64)


def real_images(data: Path | None, batch_size: int) -> ImageDataModule:
    """Return the images to train on: those of a file or folder, at 32x32 pixels, or scikit-learn's digits."""
    if data is None:
        return Digits(batch_size=batch_size)
    if data.is_file():
        return NpzImages(data, batch_size=batch_size)
    return ImageFolder(str(data), 32, batch_size=batch_size, workers=2)


def procedural_images(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Yield smooth color images (height, width, 3), uint8, which compress about as well as photos."""
    for number in range(count):
        source = seeded(number)
        fine = 0.1 * torch.randn(1, 3, height, width, generator=source)
        coarse = torch.rand(1, 3, 8, 8, generator=source)
        smooth = F.interpolate(coarse, size=(height, width), mode="bicubic") + fine
        yield smooth[0].mul(255).clamp(0, 255).byte().permute(1, 2, 0).numpy()


def write_folder(folder: Path, kind: str, count: int, height: int, width: int) -> None:
    """Write image files of a kind, "jpg" or "png", into two class folders."""
    for number, pixels in enumerate(procedural_images(count, height, width)):
        place = folder / str(number % 2)
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{number:05d}.{kind}", quality=90)


def write_npz(file: Path, count: int, size: int) -> None:
    """Write an .npz file of images and labels."""
    np.savez(file, images=np.stack([*procedural_images(count, size, size)]), labels=np.arange(count) % 10)
