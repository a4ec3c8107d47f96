"""Images or latents stored as .npy files and read through memory maps."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split, at_least, index_and_key
from datamodules.index_cache import map_npy


class ArrayFile(ImageDataset):
    """Selected rows of a .npy file of floats (n, c, h, w), multiplied by `scale`.

    Args:
        images: memory-mapped array of the file.
        labels: labels of all images of the file, (n,); None without labels.
        rows: indices of the selected images, in order.
        classes: number of classes, 0 without labels.
        scale: factor of all values.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray, *, classes: int, scale: float
    ) -> None:
        self.images, self.labels, self.rows, self.classes, self.scale = images, labels, rows, classes, scale

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, items: Sequence[Item]) -> Batch:
        index, key = index_and_key(items)
        rows = self.rows[index.numpy()]
        image = torch.from_numpy(self.images[rows].astype(np.float32)).mul_(self.scale)
        label = np.zeros(len(rows), np.int64) if self.labels is None else self.labels[rows].astype(np.int64)
        return {"image": image, "label": torch.from_numpy(label), "index": index, "key": key}


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
        batch_size: training images per step and process.
        eval_batch_size: evaluation images per batch and process; `batch_size` if None.
        workers: DataLoader worker processes per split.
        seed: seeds the training order and the sample keys, not the split.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: int = 4,
        scale: float = 1.0,
        held_out: float = 0.01,
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("size", size, 1, "set the number of rows of an image")
        at_least("channels", channels, 1, "latents usually have 4")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}: 1 leaves the values unchanged")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {held_out}: 0.01 holds out one image in a hundred")
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.scale, self.held_out = scale, held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the files; raise if they are missing or unsuitable."""
        images, labels = self._pair("train")
        classes = 0 if labels is None else int(labels.max()) + 1
        places = np.arange(len(images))
        if (self.root / "val.npy").is_file():
            train, val_pair = places, self._pair("val")
            if (val_pair[1] is None) != (labels is None) or (val_pair[1] is not None and val_pair[1].max() >= classes):
                raise ValueError(
                    f"val_labels.npy must have the {classes} classes of training, got others in {self.root}"
                )
            val = ArrayFile(*val_pair, np.arange(len(val_pair[0])), classes=classes, scale=self.scale)
        else:
            mask = np.floor((places + 1) * self.held_out) > np.floor(places * self.held_out)
            mask[-1] |= not mask.any()
            train = places[~mask]
            val = ArrayFile(images, labels, places[mask], classes=classes, scale=self.scale)
        data = ArrayFile(images, labels, train, classes=classes, scale=self.scale)
        return {"train": data, "val": val, "test": val}

    def _pair(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the images of NAME.npy and the labels of NAME_labels.npy, None without labels."""
        images = _load_memmap(self.root / f"{name}.npy")
        expected = (self.channels, self.size, self.size)
        if images.shape[1:] != expected or not len(images) or images.dtype.kind != "f":
            raise ValueError(
                f"{name}.npy must hold floats of shape (n, {', '.join(map(str, expected))}), got {images.dtype} of "
                f"{images.shape} in {self.root}: set channels and size, or store that shape"
            )
        file = self.root / f"{name}_labels.npy"
        if not file.is_file():
            return images, None
        labels = _load_memmap(file)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"{file.name} must hold a non-negative integer for each of the {len(images)} images, got "
                f"{labels.dtype} of {labels.shape} in {self.root}: store class indices, or remove the file"
            )
        return images, labels


def _load_memmap(file: Path) -> np.ndarray:
    """Memory-map the array of a file; refuse pickled objects, because unpickling can run any code."""
    if not file.is_file():
        raise FileNotFoundError(f"root must hold {file.name}, got {file.parent} without it: check the path")
    try:
        return map_npy(file)
    except Exception as error:  # NumPy evaluates headers as Python, so damaged ones can raise anything
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} is not an array that can be read safely: {line}") from error
