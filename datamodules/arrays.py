"""Images or latents stored as .npy files and read through memory maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.argument_checks import MAX_SIDE, at_least, positive
from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split, index_and_key
from datamodules.hash_split import check_held_out
from datamodules.index_cache import map_npy
from datamodules.regular_files import is_present


class ArrayFile(ImageDataset):
    """Selected rows of a .npy file of floats (n, c, h, w), multiplied by `scale`.

    Args:
        images: memory-mapped array of the file.
        labels: labels of all images of the file, (n,).
        rows: indices of the selected images, in order.
        classes: number of classes, 0 without labels.
        scale: factor of all values.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, rows: np.ndarray, *, classes: int, scale: float) -> None:
        self.images, self.labels, self.rows, self.classes, self.scale = images, labels, rows, classes, scale

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, items: Sequence[Item]) -> Batch:
        index, key = index_and_key(items)
        rows = self.rows[index.numpy()]
        image = torch.from_numpy(self.images[rows].astype(np.float32)).mul_(self.scale)
        label = torch.from_numpy(self.labels[rows].astype(np.int64))
        return {"image": image, "label": label, "index": index, "key": key}


class Arrays(ImageDataModule):
    """Square images or latents from `root`/train.npy, floats (n, c, h, w), labels from train_labels.npy if present.

    Validation and test use val.npy and val_labels.npy; without them, a fraction of the training images, spread evenly
    over the file. Nothing is mirrored: the latent of a mirrored image is not the mirrored latent.

    Args:
        root: folder of the .npy files.
        size: rows and columns of an image or latent.
        channels: channels of an image (1 or 3) or latent.
        scale: factor of the stored values, such as 0.18215 for unscaled Stable Diffusion latents. Scaled images should
            lie in [-1, 1], scaled latents have a standard deviation of about 1.
        held_out: fraction of the images held out for validation, in (0, 1), if there is no val.npy.
        **options: arguments of ImageDataModule.
    """

    def __init__(
        self, root: str, size: int, *, channels: int = 4, scale: float = 1.0, held_out: float = 0.01, **options: Any
    ) -> None:
        super().__init__(**options)
        at_least("size", size, 1, "set the number of rows of an image", MAX_SIDE)
        at_least("channels", channels, 1, "latents usually have 4")
        positive("scale", scale, "1 leaves the values unchanged")
        check_held_out(held_out)
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.scale, self.held_out = scale, held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the files; raise if they are missing or unsuitable."""
        images, labels, classes = self._load("train")
        rows = np.arange(len(images))
        options: dict[str, Any] = {"classes": classes, "scale": self.scale}
        if is_present(self.root / "val.npy"):
            val_images, val_labels, val_classes = self._load("val")
            if val_classes > classes or (classes and not val_classes):
                raise ValueError(
                    f"val_labels.npy must have the {classes} classes of training, got others in {self.root}"
                )
            val = ArrayFile(val_images, val_labels, np.arange(len(val_images)), **options)
        else:
            mask = np.floor((rows + 1) * self.held_out) > np.floor(rows * self.held_out)
            mask[-1] |= not mask.any()
            val, rows = ArrayFile(images, labels, rows[mask], **options), rows[~mask]
        return {"train": ArrayFile(images, labels, rows, **options), "val": val, "test": val}

    def _load(self, name: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Return images of NAME.npy, labels of NAME_labels.npy (0 without that file), and the number of classes."""
        images = _load_memmap(self.root / f"{name}.npy")
        expected = (self.channels, self.size, self.size)
        if images.shape[1:] != expected or not len(images) or images.dtype.kind != "f":
            raise ValueError(
                f"{name}.npy must hold floats of shape (n, {', '.join(map(str, expected))}), got {images.dtype} of "
                f"{images.shape} in {self.root}: set channels and size, or store that shape"
            )
        file = self.root / f"{name}_labels.npy"
        if not is_present(file):
            return images, np.zeros(len(images), np.int64), 0
        labels = _load_memmap(file)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"{file.name} must hold a non-negative integer for each of the {len(images)} images, got "
                f"{labels.dtype} of {labels.shape} in {self.root}: store class indices, or remove the file"
            )
        return images, labels, int(labels.max()) + 1


def _load_memmap(file: Path) -> np.ndarray:
    """Memory-map the array of a file; refuse pickled objects, because unpickling can run any code."""
    if not file.is_file():
        raise FileNotFoundError(f"root must hold {file.name}, got {file.parent} without it: check the path")
    try:
        return map_npy(file)
    except Exception as error:  # NumPy evaluates headers as Python, so damaged ones can raise anything
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} is not an array that can be read safely: {line}") from error
