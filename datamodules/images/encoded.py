"""Encoded images as a split, wherever their bytes come from: decoding, mirroring, and what becomes of damaged ones."""

import copy
import hashlib
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.base import Batch, ImageDataset, Item, from_uint8, index_and_key
from datamodules.images.decoding import Crop, load_square
from datamodules.index_cache import memmaps_to_paths, paths_to_memmaps

Bytes = npt.NDArray[np.uint8]
OnCorrupt = Literal["skip", "raise"]

PATIENCE = 100  # unreadable images in a row after which training gives up


class EncodedImages(ImageDataset):
    """Images that are decoded when asked for. Subclasses say where the bytes are.

    Args:
        labels: class of every image, int64 (n,).
        classes: number of classes, 0 without labels.
        size: pixels of a side.
        channels: 1 or 3.
        train: an unreadable image is replaced by the next readable one; otherwise it is left out.
        flip: mirror half of the images, which half is decided by the keys.
        on_corrupt: "skip" warns once per image, "raise" stops.
        crop: how a square is made of an image: `decoding.center_square`.
        reduced_decoding: decode JPEGs scaled down where that leaves at least `size`: `decoding.load_square`.
    """

    def __init__(
        self,
        labels: npt.ArrayLike,
        *,
        classes: int,
        size: int,
        channels: int,
        train: bool,
        flip: bool,
        on_corrupt: OnCorrupt,
        crop: Crop = "short_side",
        reduced_decoding: bool = False,
    ) -> None:
        self.labels = np.asarray(labels)
        self.classes, self.size, self.channels = classes, size, channels
        self.train, self.flip, self.on_corrupt = train, flip, on_corrupt
        self.crop, self.reduced_decoding = crop, reduced_decoding
        # Shared with the workers, so that each image is reported once and tried no more.
        self.unreadable = torch.zeros(len(self.labels), dtype=torch.uint8).share_memory_()

    @abstractmethod
    def fetch(self, index: int) -> Bytes:
        """The encoded image; may raise whatever the storage raises."""

    @abstractmethod
    def name(self, index: int) -> str:
        """What a person finds the image by: its path, or an archive's path and the place in it."""

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is spawned: files' names instead of the arrays that are mapped from them."""
        return memmaps_to_paths(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files anew."""
        self.__dict__.update(paths_to_memmaps(state))

    def __len__(self) -> int:
        """Number of images, readable or not."""
        return len(self.labels)

    def plain(self) -> "EncodedImages":
        """The same images, not mirrored, unreadable ones left out."""
        twin = copy.copy(self)
        twin.train = twin.flip = False
        return twin

    def fingerprint(self) -> str:
        """Hash of the names and labels of all images."""
        digest = hashlib.sha256(self.kind().encode())
        for index, label in enumerate(self.labels.tolist()):
            digest.update(f"{self.relative_name(index)}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def kind(self) -> str:
        """What is said of all images at once: how many, and what becomes of each."""
        form = f"{self.channels}x{self.size}x{self.size}, {self.crop}"
        return f"{super().fingerprint()}, {form}{', reduced decoding' * self.reduced_decoding}"

    def relative_name(self, index: int) -> str:
        """The name without the place of the dataset, which may move."""
        return self.name(index)

    def read(self, items: Sequence[Item]) -> Batch:
        """The images as bytes; in evaluation only those that can be read, which may be none."""
        found = [(index, key, pixels) for i, key in items for index, pixels in self._readable(i)]
        index, key = index_and_key([(i, k) for i, k, _ in found])
        nothing = torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)
        image = torch.stack([pixels for _, _, pixels in found]) if found else nothing
        if self.flip:
            mirrored = key % 2 == 1
            image[mirrored] = image[mirrored].flip(-1)
        label = torch.from_numpy(self.labels[index.numpy()].astype(np.int64))
        return {"image": image, "label": label, "index": index, "key": key}

    def finish(self, batch: Batch) -> Batch:
        """The bytes as float32 in [-1, 1], computed where they are."""
        return from_uint8(batch)

    def decode(self, data: Bytes) -> Tensor:
        """uint8 (channels, size, size) of an encoded image; raises whatever the decoder raises."""
        how: dict[str, Any] = {"crop": self.crop, "reduced": self.reduced_decoding}
        return load_square(data, size=self.size, channels=self.channels, **how)

    def _readable(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """The image, or what stands for it: in training the next readable one, in evaluation nothing."""
        for offset in range(min(PATIENCE, len(self)) if self.train else 1):
            candidate = (index + offset) % len(self)
            if (pixels := self._pixels(candidate)) is not None:
                yield candidate, pixels
                return
        if self.train:
            raise ValueError(
                f"{min(PATIENCE, len(self))} files in a row cannot be read, from {self.name(index)} on: replace them"
            )

    def _pixels(self, index: int) -> Tensor | None:
        """uint8 (channels, size, size), or None for an unreadable image."""
        if self.unreadable[index]:
            return None
        try:
            return self.decode(self.fetch(index))
        except Exception as error:  # there is no telling what a decoder raises on damaged bytes
            text = f"cannot read {self.name(index)}: {error}"
            if self.on_corrupt == "raise":
                raise ValueError(f"{text}; replace the file, or leave it out with on_corrupt: skip") from error
            self.unreadable[index] = 1
            warnings.warn(f"{text}; it is left out", stacklevel=2)
            return None


def check_image_options(*, channels: int, on_corrupt: str, crop: str = "short_side") -> None:
    """Refuse what no data module of encoded images knows."""
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}: use 3 for colour, 1 for grey")
    if on_corrupt not in ("skip", "raise"):
        raise ValueError(f"on_corrupt must be skip or raise, got {on_corrupt!r}: choose one of these")
    if crop not in ("short_side", "adm"):
        raise ValueError(f"crop must be short_side or adm, got {crop!r}: choose one of these")
