"""The zips of NVIDIA's `dataset_tool.py` (StyleGAN, EDM, EDM2): images, and class numbers in dataset.json."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out
from datamodules.image_folder import SUFFIXES
from datamodules.images.decoding import Crop, center_square, to_channels
from datamodules.images.encoded import Bytes, EncodedImages
from datamodules.images.encoded_module import EncodedDataModule
from datamodules.storage.labeled_files import LabeledFiles, labeled_splits

LATENTS = "img-mean-std-latents-"  # how EDM2's tool names what its encoder made
ARRAY = b"\x93NUMPY"  # how a .npy file begins


class MemberImages(EncodedImages):
    """Files of a zip or folder as images: encoded ones, or .npy arrays uint8 (1 or 3, h, w).

    Args:
        data: the files and their labels.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
    """

    def __init__(self, data: LabeledFiles, **options: Any) -> None:
        super().__init__(data.labels, classes=data.classes, **options)
        self.files, self.rows = data.files, data.rows

    def fetch(self, index: int) -> Bytes:
        """The file's content."""
        return self.files.read(int(self.rows[index]))

    def name(self, index: int) -> str:
        """The zip or folder, and the path in it."""
        return f"{self.files.root}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        """The path in the zip or folder."""
        return self.files.name(int(self.rows[index]))

    def decode(self, data: Bytes) -> Tensor:
        """uint8 (channels, size, size) of an encoded image or an array."""
        if data[: len(ARRAY)].tobytes() != ARRAY:
            return super().decode(data)
        pixels = load_npy(data)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
            raise ValueError(f"its array must be uint8 (1 or 3, h, w), got {pixels.dtype} of {pixels.shape}")
        return to_channels(center_square(torch.from_numpy(pixels), self.size, self.crop), self.channels)


def load_npy(data: Bytes) -> np.ndarray[Any, Any]:
    """The array in the bytes of a .npy file; pickled objects are refused, as reading them runs code."""
    return np.load(io.BytesIO(data.data), allow_pickle=False)


class EdmZip(EncodedDataModule):
    """Square images from a zip of EDM's or StyleGAN's `dataset_tool.py`, or from such a zip unpacked into a folder.

    Labels are those of dataset.json, {"labels": [["00000/img00000000.png", 6], ...]}; null or no such file means none.
    Files count in the order of their names. Without `val_root`, a share is held out by a hash of their names.

    Args:
        root: the zip or folder.
        size: pixels of a side; images that are stored otherwise are resized by their short side, the centre cut out.
        channels: 3 for colour, 1 for grey.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm", as ADM and DiT prepare ImageNet, halves the
            sides by a box filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        val_root: another zip or folder to validate and test on; it must not hold other classes.
        held_out: share of the images kept from training, in (0, 1), where there is no `val_root`.
        horizontal_flip: mirror half of the training images.
        on_corrupt: what to do with an unreadable image: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops.
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation batch and process; `batch_size` if None.
        workers: loader processes per split.
        seed: chooses the order of training and the keys, not the split.
    """

    def __init__(
        self,
        root: str,
        size: int,
        channels: Literal[1, 3] = 3,
        crop: Crop = "short_side",
        reduced_decoding: bool = False,
        val_root: str | None = None,
        held_out: float = 0.01,
        horizontal_flip: bool = True,
        on_corrupt: Literal["skip", "raise"] = "skip",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            size=size,
            channels=channels,
            crop=crop,
            reduced_decoding=reduced_decoding,
            horizontal_flip=horizontal_flip,
            on_corrupt=on_corrupt,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            seed=seed,
        )
        check_held_out(held_out)
        self.root = Path(root).expanduser()
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the files; raises FileNotFoundError or ValueError where there is nothing to train on."""
        splits = labeled_splits(self.root, self.val_root, self.held_out, SUFFIXES | {".npy"})
        for data in splits.values():
            if LATENTS in (name := data.files.name(int(data.rows[0]))):
                raise ValueError(f"root must hold images, got latents such as {name}: use datamodules.EdmLatents")
        train = MemberImages(splits["train"], **self.options(train=True))
        val = MemberImages(splits["val"], **self.options(train=False))
        return {"train": train, "val": val, "test": val}
