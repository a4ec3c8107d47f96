"""Zips of NVIDIA's `dataset_tool.py` (StyleGAN, EDM, EDM2): images, with class labels in dataset.json."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out
from datamodules.image_folder import SUFFIXES
from datamodules.images.decoding import center_square, to_channels
from datamodules.images.encoded import Bytes, EncodedDataModule, EncodedImages
from datamodules.storage.labeled_files import LabeledFiles, labeled_splits

LATENTS = "img-mean-std-latents-"  # prefix of the latents that EDM2's tool writes
NPY_MAGIC = b"\x93NUMPY"  # first bytes of a .npy file


class MemberImages(EncodedImages):
    """Files of a zip or folder as images: encoded images, or .npy arrays uint8 (1 or 3, h, w).

    Args:
        data: files and their labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(self, data: LabeledFiles, **options: Any) -> None:
        super().__init__(data.labels, classes=data.classes, **options)
        self.files, self.rows = data.files, data.rows

    def fetch(self, index: int) -> Bytes:
        return self.files.read(int(self.rows[index]))

    def name(self, index: int) -> str:
        return f"{self.files.root}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        return self.files.name(int(self.rows[index]))

    def decode(self, data: Bytes) -> Tensor:
        """Decode an encoded image or a .npy array to uint8 (channels, size, size)."""
        if data[: len(NPY_MAGIC)].tobytes() != NPY_MAGIC:
            return super().decode(data)
        pixels = load_npy(data)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
            raise ValueError(f"its array must be uint8 (1 or 3, h, w), got {pixels.dtype} of {pixels.shape}")
        return to_channels(center_square(torch.from_numpy(pixels), self.size, self.crop), self.channels)


def load_npy(data: Bytes) -> np.ndarray[Any, Any]:
    """Load an array from the bytes of a .npy file; refuse pickled objects, because unpickling can run any code."""
    return np.load(io.BytesIO(data.data), allow_pickle=False)


class EdmZip(EncodedDataModule):
    """Square images from a zip of EDM's or StyleGAN's `dataset_tool.py`, or from such a zip unpacked into a folder.

    Labels are read from dataset.json, {"labels": [["00000/img00000000.png", 6], ...]}; null or a missing file means no
    labels. Images are sorted by name. Without `val_root`, a fraction is held out by a hash of the names.

    Args:
        root: the zip or folder.
        size: side length in pixels; images of other sizes are resized by the short side and center cropped.
        val_root: another zip or folder for validation and testing; its classes must occur in training.
        held_out: fraction of the images held out for validation, in (0, 1), if there is no `val_root`.
        **options: arguments of EncodedDataModule.
    """

    def __init__(
        self, root: str, size: int, *, val_root: str | None = None, held_out: float = 0.01, **options: Any
    ) -> None:
        super().__init__(size=size, **options)
        check_held_out(held_out)
        self.root = Path(root).expanduser()
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the files; raise FileNotFoundError or ValueError if there is nothing to train on."""
        splits = labeled_splits(self.root, self.val_root, self.held_out, SUFFIXES | {".npy"})
        for data in splits.values():
            if LATENTS in (name := data.files.name(int(data.rows[0]))):
                raise ValueError(f"root must hold images, got latents such as {name}: use datamodules.EdmLatents")
        train = MemberImages(splits["train"], **self.options(train=True))
        val = MemberImages(splits["val"], **self.options(train=False))
        return {"train": train, "val": val, "test": val}
