"""Random crops of large images, such as textures, from one photograph or a folder of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from datamodules.argument_checks import MAX_SIDE, at_least, one_of, positive
from datamodules.base import (
    Batch,
    ImageDataModule,
    ImageDataset,
    Item,
    Split,
    index_and_key,
    mirror_odd,
)
from datamodules.hash_split import check_held_out
from datamodules.images.decoding import MAX_PIXELS, read_pixels, to_channels
from datamodules.order import sample_keys, splitmix
from datamodules.storage.file_lists import find_images

Integers = npt.NDArray[np.int64]
CropPosition = tuple[int, int, int]  # index of the image, top, left


class FixedCrops(ImageDataset):
    """Square crops at fixed positions.

    Args:
        images: uint8 (c, h, w) each.
        labels: class of every image.
        positions: (image, top, left) of every crop.
        classes: number of classes, 0 without labels.
        size: side length in pixels.
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        labels: Sequence[int],
        positions: Sequence[CropPosition],
        *,
        classes: int,
        size: int,
    ) -> None:
        self.images, self.labels, self.positions = images, torch.tensor(labels, dtype=torch.int64), positions
        self.classes, self.size = classes, size

    def __len__(self) -> int:
        return len(self.positions)

    def read(self, items: Sequence[Item]) -> Batch:
        index, key = index_and_key(items)
        positions = [self.positions[i] for i in index.tolist()]
        label = self.labels[[image for image, _, _ in positions]]
        return {"image": extract_crops(self.images, positions, self.size), "label": label, "index": index, "key": key}


class RandomCrops(ImageDataset):
    """Square crops at random positions: sample i shows image i mod n, at a position drawn from its key.

    Every image is shown equally often, whatever its size, and every position in it is equally likely.

    Args:
        images: uint8 (c, h, w) each, at least `size` high and wide.
        labels: class of every image.
        classes: number of classes, 0 without labels.
        size: side length in pixels.
        crops: number of samples.
        flip: mirror the half of the crops whose key is odd.
    """

    def __init__(
        self, images: Sequence[Tensor], labels: Sequence[int], *, classes: int, size: int, crops: int, flip: bool
    ) -> None:
        self.images, self.labels, self.classes = images, torch.tensor(labels, dtype=torch.int64), classes
        self.size, self.crops, self.flip = size, crops, flip
        # Number of vertical and horizontal positions of a crop in every image.
        self.position_counts = np.array([[side - size + 1 for side in x.shape[1:]] for x in images], dtype=np.uint64)

    def __len__(self) -> int:
        return self.crops

    def plain(self) -> FixedCrops:
        """Return as many crops, not mirrored, at positions that depend on the index only."""
        index = np.arange(self.crops)
        positions = self.positions(index, sample_keys(0, 0, index))
        return FixedCrops(self.images, self.labels.tolist(), positions, classes=self.classes, size=self.size)

    def positions(self, index: Integers, key: Integers) -> list[CropPosition]:
        """Draw the crop positions of the samples; a function of their (index, key) pairs only."""
        image = index % len(self.images)
        down = splitmix(key.astype(np.uint64))
        right = splitmix(down)
        # 64 random bits modulo the count: probabilities differ by at most a factor of 1 + count / 2^64.
        top, left = down % self.position_counts[image, 0], right % self.position_counts[image, 1]
        return list(zip(image.tolist(), top.tolist(), left.tolist(), strict=True))

    def read(self, items: Sequence[Item]) -> Batch:
        index, key = index_and_key(items)
        positions = self.positions(index.numpy(), key.numpy())
        pixels = extract_crops(self.images, positions, self.size)
        if self.flip:
            mirror_odd(pixels, key)
        label = self.labels[[image for image, _, _ in positions]]
        return {"image": pixels, "label": label, "index": index, "key": key}


class Crops(ImageDataModule):
    """Square crops of large images, floats in [-1, 1]: random ones for training, a fixed grid for validation.

    A strip at the right end of every image is held out: its non-overlapping crops are the validation and test images.
    All images stay in memory, one byte per value. The position of a training crop is drawn from its sample key.

    Args:
        root: an image file, or a folder of image files.
        size: side length of a crop in pixels.
        channels: 3 for RGB, 1 for grayscale.
        labels: "none", "file" for a class per file, or "folder" for a class per folder directly below `root`.
        scale: factor by which the images are resized first (antialiased bicubic); smaller shows more of a texture.
        crops: training crops per epoch, cycling through the images.
        held_out: fraction of every image's width that is held out, in (0, 1).
        horizontal_flip: mirror half of the training crops; off by default, because textures may have a direction.
        **options: arguments of ImageDataModule.
    """

    def __init__(
        self,
        root: str,
        size: int,
        *,
        channels: Literal[1, 3] = 3,
        labels: Literal["none", "file", "folder"] = "none",
        scale: float = 1.0,
        crops: int = 10_000,
        held_out: float = 0.1,
        horizontal_flip: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        at_least("size", size, 1, "set the side length of a crop in pixels", MAX_SIDE)
        at_least("crops", crops, 1, "set the number of training crops per epoch")
        one_of("channels", channels, (1, 3))
        one_of("labels", labels, ("none", "file", "folder"))
        positive("scale", scale, "1 leaves the images unchanged")
        check_held_out(held_out, "0.1 holds out a tenth of every image")
        self.root, self.size, self.channels, self.labels = Path(root).expanduser(), size, channels, labels
        self.scale, self.crops, self.held_out, self.horizontal_flip = scale, crops, held_out, horizontal_flip

    def build(self) -> Mapping[Split, ImageDataset]:
        """Read the images; raise if one is missing, unreadable or too small."""
        files, labels, names = self._files()
        if self.crops < len(files):
            raise ValueError(
                f"crops must be at least the number of images, got {self.crops} for {len(files)}: raise crops"
            )
        parts = [self._train_and_held_out(file) for file in files]
        train, held_out = ([part[k] for part in parts] for k in (0, 1))
        options = {"classes": len(names), "size": self.size}
        val = FixedCrops(held_out, labels, tile_positions(held_out, self.size), **options)
        random = RandomCrops(train, labels, crops=self.crops, flip=self.horizontal_flip, **options)
        random.label_names = val.label_names = names
        return {"train": random, "val": val, "test": val}

    def _files(self) -> tuple[list[Path], list[int], list[str]]:
        """Return the files, the class of each, and the names of the classes."""
        if not self.root.exists():
            raise FileNotFoundError(
                f"root must be an image file or a folder of images, got {self.root}: no such file; check the path"
            )
        images = None if self.root.is_file() else find_images(self.root, "root")
        files = [self.root] if images is None else [self.root / name for name in images.paths()]
        if self.labels == "none":
            return files, [0] * len(files), []
        if self.labels == "file":
            return files, list(range(len(files))), [self.root.name] if images is None else images.paths()
        folders = [] if images is None else images.class_names(self.root)
        if images is None or not folders:
            raise ValueError(
                f"labels must be none or file for images without class folders, got folder for {self.root}: "
                "choose one of them"
            )
        return files, images.labels(folders).tolist(), folders

    def _train_and_held_out(self, file: Path) -> tuple[Tensor, Tensor]:
        """Return the training and the held-out pixels of a file, uint8 (c, h, w)."""
        try:
            pixels = to_channels(resize(read_pixels(file), self.scale), self.channels)
        except Exception as error:  # decoders may raise anything on damaged bytes
            raise ValueError(f"cannot read {file}: {error}; replace or remove the file") from error
        height, width = pixels.shape[1:]
        strip = round(self.held_out * width)
        if min(height, width - strip, strip) < self.size:
            raise ValueError(
                f"images must fit crops of size {self.size} in both the training part and the held-out strip, got "
                f"{file} of {height}x{width} pixels with {strip} columns held out: "
                "change held_out or scale, or remove the file"
            )
        return pixels[:, :, : width - strip].clone(), pixels[:, :, width - strip :].clone()


def resize(pixels: Tensor, scale: float) -> Tensor:
    """Resize uint8 (c, h, w) by a factor `scale`, sides rounded; antialiased bicubic."""
    if scale == 1:
        return pixels
    height, width = (max(1, round(side * scale)) for side in pixels.shape[1:])
    if height * width > MAX_PIXELS:
        before = f"{pixels.shape[1]}x{pixels.shape[2]}"
        raise ValueError(f"scale {scale} resizes {before} to {height}x{width}, more than {MAX_PIXELS} pixels")
    return F.interpolate(pixels[None], (height, width), mode="bicubic", antialias=True)[0]


def tile_positions(images: Sequence[Tensor], size: int) -> list[CropPosition]:
    """Return the positions of all non-overlapping crops on a grid, cycling through the images."""
    per_image = [
        [(at, top, left) for top in range(0, h - size + 1, size) for left in range(0, w - size + 1, size)]
        for at, (_, h, w) in enumerate(image.shape for image in images)
    ]
    most = max(map(len, per_image))
    return [positions[turn] for turn in range(most) for positions in per_image if turn < len(positions)]


def extract_crops(images: Sequence[Tensor], positions: Sequence[CropPosition], size: int) -> Tensor:
    """Return the crops at these positions, float32 (n, c, size, size) in [-1, 1]."""
    crops = [images[at][:, top : top + size, left : left + size] for at, top, left in positions]
    return torch.stack(crops).float().div_(127.5).sub_(1)
