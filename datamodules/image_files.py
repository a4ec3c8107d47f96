"""A list of image files as a split: decoding, mirroring, and what becomes of unreadable files."""

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import Batch, ImageDataset, Item, index_and_key
from datamodules.decoding import load_square

PATIENCE = 100  # unreadable files in a row after which training gives up


class ImageFiles(ImageDataset):
    """Image files, read when asked for.

    Args:
        root: folder that the names are relative to.
        names: paths of the files.
        class_names: folders whose place in this list is the label; empty means no labels.
        size: pixels of a side.
        channels: 1 or 3.
        train: an unreadable file is replaced by the next readable one; otherwise it is left out.
        flip: mirror half of the images, which half is decided by the keys.
        on_corrupt: "skip" warns once per file, "raise" stops.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str],
        *,
        class_names: Sequence[str],
        size: int,
        channels: int,
        train: bool,
        flip: bool,
        on_corrupt: Literal["skip", "raise"],
    ) -> None:
        number = {name: label for label, name in enumerate(class_names)}
        self.root, self.size, self.channels = root, size, channels
        self.train, self.flip, self.on_corrupt = train, flip, on_corrupt
        self.classes = len(class_names)
        # Arrays, not lists: a worker that touches a list's strings copies their memory pages one by one.
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        self.labels = torch.tensor([number.get(name.split("/", 1)[0], 0) for name in names], dtype=torch.int64)
        # Shared with the workers, so that each file is reported once and tried no more.
        self.unreadable = torch.zeros(len(names), dtype=torch.uint8).share_memory_()

    def __len__(self) -> int:
        """Number of files, readable or not."""
        return len(self.names)

    def plain(self) -> "ImageFiles":
        """The same files, not mirrored, unreadable ones left out."""
        twin = copy.copy(self)
        twin.train = twin.flip = False
        return twin

    def path(self, index: int) -> Path:
        """The file of an index."""
        return self.root / os.fsdecode(self.names[index])

    def read(self, items: Sequence[Item]) -> Batch:
        """The images as float32; in evaluation only those that can be read, which may be none."""
        found = [(index, key, pixels) for i, key in items for index, pixels in self._readable(i)]
        index, key = index_and_key([(i, k) for i, k, _ in found])
        nothing = torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)
        image = torch.stack([pixels for _, _, pixels in found]) if found else nothing
        image = image.float().div_(127.5).sub_(1)
        if self.flip:
            mirrored = key % 2 == 1
            image[mirrored] = image[mirrored].flip(-1)
        return {"image": image, "label": self.labels[index], "index": index, "key": key}

    def _readable(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """The file, or what stands for it: in training the next readable one, in evaluation nothing."""
        for offset in range(min(PATIENCE, len(self)) if self.train else 1):
            candidate = (index + offset) % len(self)
            if (pixels := self._pixels(candidate)) is not None:
                yield candidate, pixels
                return
        if self.train:
            raise ValueError(
                f"{min(PATIENCE, len(self))} files in a row cannot be read, from {self.path(index)} on: replace them"
            )

    def _pixels(self, index: int) -> Tensor | None:
        """uint8 (channels, size, size), or None for an unreadable file."""
        if self.unreadable[index]:
            return None
        try:
            return load_square(self.path(index), size=self.size, channels=self.channels)
        except Exception as error:  # there is no telling what a decoder raises on damaged bytes
            text = f"cannot read {self.path(index)}: {error}"
            if self.on_corrupt == "raise":
                raise ValueError(f"{text}; replace the file, or leave it out with on_corrupt: skip") from error
            self.unreadable[index] = 1
            warnings.warn(f"{text}; it is left out", stacklevel=2)
            return None
