"""A list of image files as a split."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.images.encoded import Bytes, EncodedImages


class ImageFiles(EncodedImages):
    """Image files, read when asked for.

    Args:
        root: folder that the names are relative to.
        names: paths of the files, as text or as an array of the file system's bytes.
        class_names: folders whose place in this list is the label; empty means no labels.
        labels: class of every file, int64 (n,); found from the names if None.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
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
        # Arrays, not lists: a worker that touches a list's strings copies their memory pages one by one.
        encoded = names if isinstance(names, np.ndarray) else np.array(list(map(os.fsencode, names)), dtype=np.bytes_)
        if labels is None:
            number = {os.fsencode(name): label for label, name in enumerate(class_names)}
            labels = np.array([number.get(name.split(b"/", 1)[0], 0) for name in encoded], dtype=np.int64)
        super().__init__(labels, classes=len(class_names), **options)
        self.root, self.names = root, encoded

    def path(self, index: int) -> Path:
        """The file of an index."""
        return self.root / os.fsdecode(self.names[index])

    def name(self, index: int) -> str:
        """Its path."""
        return str(self.path(index))

    def relative_name(self, index: int) -> str:
        """Its path below the root."""
        return os.fsdecode(self.names[index])

    def fingerprint(self) -> str:
        """Hash of the names and labels of all files; a million of them one by one would take seconds."""
        digest = hashlib.sha256(self.kind().encode())
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def fetch(self, index: int) -> Bytes:
        """All of the file."""
        return np.fromfile(os.path.join(self.root, os.fsdecode(self.names[index])), dtype=np.uint8)
