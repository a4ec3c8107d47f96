"""A list of image files as a split."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datamodules.encoded import Bytes, EncodedImages, OnCorrupt


class ImageFiles(EncodedImages):
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
        on_corrupt: OnCorrupt,
    ) -> None:
        number = {name: label for label, name in enumerate(class_names)}
        labels = np.array([number.get(name.split("/", 1)[0], 0) for name in names], dtype=np.int64)
        options = {"size": size, "channels": channels, "train": train, "flip": flip, "on_corrupt": on_corrupt}
        super().__init__(labels, classes=len(class_names), **options)  # type: ignore[arg-type]
        self.root = root
        # Arrays, not lists: a worker that touches a list's strings copies their memory pages one by one.
        self.names = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)

    def path(self, index: int) -> Path:
        """The file of an index."""
        return self.root / os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.path(index))

    def relative_name(self, index: int) -> str:
        """Its path below the root."""
        return os.fsdecode(self.names[index])

    def fetch(self, index: int) -> Bytes:
        """All of the file."""
        return np.fromfile(self.path(index), dtype=np.uint8)
