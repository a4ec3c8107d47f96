"""Images or latents that lie on disk as arrays: written once by whatever encodes them, read through a memory map."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datamodules.base import Batch, ImageDataModule, ImageDataset, Item, Split, at_least, index_and_key


class ArrayFile(ImageDataset):
    """Some rows of a .npy file of floats (n, c, h, w), times `scale`.

    Args:
        images: of the file, mapped.
        labels: (n,), of all images of the file; None where there are none.
        rows: which of the images, in order.
        classes: number of classes.
        scale: what every number is multiplied by.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray | None, rows: np.ndarray, *, classes: int, scale: float
    ) -> None:
        self.images, self.labels, self.rows, self.classes, self.scale = images, labels, rows, classes, scale

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is spawned: the file's name instead of all that is in it."""
        return self.__dict__ | {"images": self.images.filename if isinstance(self.images, np.memmap) else self.images}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Open the file anew."""
        self.__dict__.update(state)
        if isinstance(self.images, Path | str):
            self.images = _opened(Path(self.images))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.rows)

    def read(self, items: Sequence[Item]) -> Batch:
        """The images of the items, in their order; labels are 0 where there are none."""
        index, key = index_and_key(items)
        rows = self.rows[index.numpy()]
        image = torch.from_numpy(self.images[rows].astype(np.float32)).mul_(self.scale)
        label = np.zeros(len(rows), np.int64) if self.labels is None else self.labels[rows].astype(np.int64)
        return {"image": image, "label": torch.from_numpy(label), "index": index, "key": key}


class Arrays(ImageDataModule):
    """Square images or latents from `root`/train.npy, floats (n, c, h, w), labels from train_labels.npy if there.

    Validated and tested on val.npy and val_labels.npy; without, on a share of the training images, spread evenly over
    the file. None is mirrored: the latent of a mirrored image is not the mirrored latent.

    Args:
        root: the folder.
        size: rows and columns of an image.
        channels: of an image: 1 or 3, or those of latents.
        scale: of what is in the files, such as 0.18215 for Stable Diffusion's latents that were stored without. Images
            should come out in [-1, 1], latents at a deviation of about 1.
        held_out: share that is kept from training, in (0, 1), where there is no val.npy.
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation batch and process; `batch_size` if None.
        workers: loader processes per split.
        seed: chooses the order of training and the keys, not the split.
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
        at_least("size", size, 1, "set the rows of an image")
        at_least("channels", channels, 1, "4 is usual for latents")
        if not scale > 0:
            raise ValueError(f"scale must be positive, got {scale}: 1 leaves the numbers as they are")
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {held_out}: 0.01 keeps one image of a hundred")
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.scale, self.held_out = scale, held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the files; raises where they are missing or do not fit."""
        images, labels = self._pair("train")
        classes = 0 if labels is None else int(labels.max()) + 1
        places = np.arange(len(images))
        if (self.root / "val.npy").is_file():
            train, kept = places, self._pair("val")
            if (kept[1] is None) != (labels is None) or (kept[1] is not None and kept[1].max() >= classes):
                raise ValueError(f"val_labels.npy must hold training's {classes} classes, got others in {self.root}")
            val = ArrayFile(*kept, np.arange(len(kept[0])), classes=classes, scale=self.scale)
        else:
            mask = np.floor((places + 1) * self.held_out) > np.floor(places * self.held_out)
            mask[-1] |= not mask.any()
            train = places[~mask]
            val = ArrayFile(images, labels, places[mask], classes=classes, scale=self.scale)
        data = ArrayFile(images, labels, train, classes=classes, scale=self.scale)
        return {"train": data, "val": val, "test": val}

    def _pair(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """The images and labels of a file's name."""
        images = _opened(self.root / f"{name}.npy")
        expected = (self.channels, self.size, self.size)
        if images.shape[1:] != expected or not len(images) or images.dtype.kind != "f":
            raise ValueError(
                f"{name}.npy must hold floats of shape (n, {', '.join(map(str, expected))}), got {images.dtype} of "
                f"{images.shape} in {self.root}: set channels and size, or store it so"
            )
        file = self.root / f"{name}_labels.npy"
        if not file.is_file():
            return images, None
        labels = _opened(file)
        if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise ValueError(
                f"{file.name} must hold a whole number from 0 for each of the {len(images)} images, got {labels.dtype} "
                f"of {labels.shape} in {self.root}: store it so, or remove it"
            )
        return images, labels


def _opened(file: Path) -> np.ndarray:
    """The array of a file, mapped into memory; pickled objects are refused, as reading them runs code."""
    if not file.is_file():
        raise FileNotFoundError(f"root must hold {file.name}, got {file.parent} without: check the path")
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # there is no telling what NumPy raises on damaged headers, which are Python to it
        line = str(error).split("\n")[0]
        raise ValueError(f"{file} is no array that can be read safely: {line}") from error
