"""Data set of small images in one uint8 array, in memory or memory-mapped, read by one gather per batch."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from datamodules.base import Batch, ImageDataset, Item, from_uint8, index_and_key, mirror_odd


class PixelArray(ImageDataset):
    """Images of one array. Workers transfer uint8; `finish` converts to float32 on the device, four times the size.

    Args:
        pixels: uint8 (n, c, size, size), in memory or memory-mapped.
        labels: class of every image, integers (n,).
        classes: number of classes, 0 without labels.
        flip: mirror the half of the images whose key is odd.
        name: distinguishes these images from others of the same number and classes, in the fingerprint.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.integer],
        *,
        classes: int,
        flip: bool,
        name: str = "",
    ) -> None:
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(pixels) != len(labels):
            raise ValueError(
                f"pixels must be uint8 of shape (n, c, size, size) with n labels, got {pixels.dtype} of {pixels.shape} "
                f"and {len(labels)} labels: store them like this"
            )
        self.pixels, self.labels, self.classes, self.flip, self.name = pixels, labels, classes, flip, name

    def __len__(self) -> int:
        return len(self.pixels)

    def plain(self) -> "PixelArray":
        """Return the same images, not mirrored."""
        return PixelArray(self.pixels, self.labels, classes=self.classes, flip=False, name=self.name)

    def fingerprint(self) -> str:
        """Return the number, shape and name of the images."""
        return f"{super().fingerprint()}, {'x'.join(map(str, self.pixels.shape[1:]))} {self.name}".rstrip()

    def read(self, items: Sequence[Item]) -> Batch:
        """Read the images as uint8, mirrored where the key is odd."""
        index, key = index_and_key(items)
        rows = index.numpy()
        image = torch.from_numpy(self.pixels[rows])
        if self.flip:
            mirror_odd(image, key)
        label = torch.from_numpy(self.labels[rows].astype(np.int64))
        return {"image": image, "label": label, "index": index, "key": key}

    def finish(self, batch: Batch) -> Batch:
        """Convert uint8 to float32 in [-1, 1] on the device."""
        return from_uint8(batch)
