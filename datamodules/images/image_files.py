"""Data set of image files."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.images.encoded import Bytes, EncodedImages
from datamodules.regular_files import read_regular


class ImageFiles(EncodedImages):
    """Image files that are read and decoded on access.

    Args:
        root: folder that the names are relative to.
        names: paths of the files, as strings or as an array of file system bytes.
        class_names: class folders in the order of their labels; empty means no labels.
        labels: class of every file, int64 (n,); None without labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(
        self,
        root: Path,
        names: Sequence[str] | npt.NDArray[np.bytes_],
        *,
        class_names: Sequence[str],
        labels: npt.NDArray[np.int64] | None = None,
        **options: Any,
    ) -> None:
        # Arrays, not lists: reference counts of list items would make every worker copy their memory pages.
        encoded = names if isinstance(names, np.ndarray) else np.array(list(map(os.fsencode, names)), dtype=np.bytes_)
        labels = np.zeros(len(encoded), np.int64) if labels is None else labels
        super().__init__(labels, classes=len(class_names), **options)
        self.root, self.names, self.label_names = root, encoded, class_names

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        return self.root / os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        return str(self.path(index))

    def relative_name(self, index: int) -> str:
        return os.fsdecode(self.names[index])

    def fingerprint(self) -> str:
        """Return a hash of all names and labels; hashing a million of them one by one would take seconds."""
        digest = hashlib.sha256(self.settings_text().encode())
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def fetch(self, index: int) -> Bytes:
        return read_regular(os.path.join(self.root, os.fsdecode(self.names[index])))
