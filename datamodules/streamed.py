"""Data module for images streamed from object storage, in shards written by `litdata.optimize`."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.argument_checks import at_least, positive
from datamodules.base import Batch, ImageDataset, Item, Split
from datamodules.hash_split import check_held_out, hash_fractions, split_by_hash
from datamodules.images.decoding import center_square, pillow_pixels, to_channels
from datamodules.images.encoded import EncodedDataModule, EncodedImages
from datamodules.storage.columns import choose_column
from datamodules.storage.streamed_shards import Field, Shards

IMAGES = ("jpeg", "image", "bytes", "pil", "numpy", "tensor")  # litdata's names of the kinds of data of images


class StreamedImages(EncodedImages):
    """Images in selected shards.

    In training, the samples are shuffled shard by shard (`blocks`), so that each shard is downloaded once per epoch.

    Args:
        shards: all shards.
        selected: indices of the selected shards, ascending.
        image: field of the images.
        label: field of the labels, None without labels.
        classes: number of classes, 0 without labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(
        self,
        shards: Shards,
        selected: npt.NDArray[np.int64],
        *,
        image: Field,
        label: Field | None,
        classes: int,
        **options: Any,
    ) -> None:
        self.blocks = shards.sizes[selected]
        # Labels are only known once their samples are read.
        super().__init__(np.zeros(int(self.blocks.sum()), np.int64), classes=classes, **options)
        self.shards, self.image, self.label = shards, image, label
        self.ends = np.cumsum(self.blocks)
        self.shift = shards.ends[selected] - self.ends  # from an index into the selected shards to one into all

    def read(self, items: Sequence[Item]) -> Batch:
        """Read the images as uint8; raise ValueError if a shard cannot be downloaded or a label is not a class."""
        self.shards.require(self._sample_index(index) for index, _ in items)
        batch = super().read(items)
        label = batch["label"]
        if self.classes and bool(((label < 0) | (label >= self.classes)).any()):
            wrong = int(((label < 0) | (label >= self.classes)).nonzero()[0, 0])
            raise ValueError(
                f"labels must lie in [0, {self.classes}), got {int(label[wrong])} for "
                f"{self.name(int(batch['index'][wrong]))}: set classes to the number of classes"
            )
        return batch

    def fetch(self, index: int) -> Any:
        """Return the image as stored in its shard, and store its label."""
        parts = self.shards.sample(self._sample_index(index))
        if self.label is not None:
            self.labels[index] = int(parts[self.label.name])
        return parts[self.image.name]

    def name(self, index: int) -> str:
        return f"{self.shards.root}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        return self.shards.name(self._sample_index(index))

    def fingerprint(self) -> str:
        """Return a hash of the settings and of the names and sizes of the shards; no image is read."""
        text = f"{self.settings_text()} {self.shards.fingerprint()} {self.image} {self.label} {self.shift.tolist()}"
        return hashlib.sha256(text.encode()).hexdigest()

    def decode(self, data: Any) -> Tensor:
        """Decode bytes, a Pillow image, or an array (h, w[, c]) or (c, h, w) to uint8 (channels, size, size)."""
        if isinstance(data, bytes | bytearray):
            return super().decode(np.frombuffer(bytearray(data), np.uint8))  # writable, as decoders require
        pixels = _array_to_chw(torch.as_tensor(data)) if self.image.kind != "pil" else pillow_pixels(data)
        return to_channels(center_square(pixels, self.size, self.crop), self.channels)

    def _sample_index(self, index: int) -> int:
        """Return the index into all samples of all shards."""
        return index + int(self.shift[np.searchsorted(self.ends, index, side="right")])


class Streamed(EncodedDataModule):
    """Square images from shards of `litdata.optimize` in object storage or in a folder (pip install litdata).

    Each shard is downloaded when it is needed, once per epoch and by one process, and kept on the local disk. Shards
    are shuffled, and samples are shuffled among 16 shards. As everywhere, the order is a function of (seed, epoch,
    rank), and a resumed run continues with the very next sample, whatever the number of workers. Use some workers: they
    download ahead of training. Samples are {"image": ..., "label": ...} or (image, label); images are encoded bytes,
    litdata's JPEG, Pillow images or uint8 arrays. Other fields are ignored; no code in a sample is ever run. A damaged
    shard stops the run, whatever `on_corrupt` says.

    Args:
        root: a folder, read in place, or an address: s3://bucket/folder, gs://, r2://, azure://; local:/folder for
            another file system whose files are copied to `cache_dir`.
        size: side length in pixels; the short side is resized to it and the center cropped.
        classes: number of classes; 0 ignores the labels.
        image_field: name of the image in a sample, or its position in a tuple; None takes the only possible field.
        label_field: name or position of the label; None takes "label", else the only integer field.
        val_root: folder or address of the shards for validation and testing.
        held_out: fraction of the shards held out for validation, in (0, 1), if there is no `val_root`: selected by a
            hash of their names, at least one. Write samples in random order, or these shards are not representative.
        cache_dir: folder for downloaded shards; None uses a folder in the index cache (docs/data.md).
        cache_gigabytes: size of that folder above which the least recently used shards are deleted; None keeps all.
            It must hold at least 20 shards per process of the machine.
        storage_options: options of the storage, as in litdata, such as access keys.
        **options: arguments of EncodedDataModule.
    """

    def __init__(
        self,
        root: str,
        size: int,
        *,
        classes: int = 0,
        image_field: str | None = None,
        label_field: str | None = None,
        val_root: str | None = None,
        held_out: float = 0.01,
        cache_dir: str | None = None,
        cache_gigabytes: float | None = None,
        storage_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(size=size, **options)
        check_held_out(held_out)
        at_least("classes", classes, 0, "0 ignores the labels")
        if cache_gigabytes is not None:
            positive("cache_gigabytes", cache_gigabytes, "omit it to keep all shards")
        self.root, self.val_root, self.held_out = root, val_root, held_out
        self._classes = classes
        self.image_field, self.label_field = image_field, label_field
        self.cache_dir = None if cache_dir is None else Path(cache_dir).expanduser()
        self.cache_gigabytes, self.storage_options = cache_gigabytes, storage_options

    @property
    def classes(self) -> int:
        """Number of classes, 0 without labels."""
        return self._classes

    def build(self) -> Mapping[Split, ImageDataset]:
        """Read the indices; raise if there are none, or if fields are missing."""
        train = self._shards(self.root, "train")
        if self.val_root is None:
            other = train
            remedy = "write smaller shards, lower held_out or set val_root"
            fractions = hash_fractions(file.name for file in train.files)
            val_mask = split_by_hash(fractions, self.held_out, self.root, remedy)
            selected, val_selected = np.flatnonzero(~val_mask), np.flatnonzero(val_mask)
        else:
            other = self._shards(self.val_root, "val")
            selected, val_selected = np.arange(len(train.sizes)), np.arange(len(other.sizes))
        val = self._images(other, val_selected, train=False)
        return {"train": self._images(train, selected, train=True), "val": val, "test": val}

    def _shards(self, root: str, part: str) -> Shards:
        folder = None if self.cache_dir is None else self.cache_dir / part
        limit = None if self.cache_gigabytes is None else int(self.cache_gigabytes * 1e9)
        return Shards(root, folder=folder, limit=limit, options=self.storage_options)

    def _images(self, shards: Shards, selected: npt.NDArray[np.int64], *, train: bool) -> StreamedImages:
        fields, label = shards.fields, None
        images = [name for name, field in fields.items() if field.kind.split(":")[0] in IMAGES]
        remedy = "choose one of these" if images else f"store images in the samples, which have {', '.join(fields)}"
        image = choose_column("image_field", self.image_field, images, shards.root, remedy)
        if self._classes:
            integers = [name for name, field in fields.items() if field.kind == "int"]
            name = self.label_field or ("label" if "label" in integers else None)
            label = choose_column("label_field", name, integers, shards.root, "choose another, or leave classes at 0")
        return StreamedImages(
            shards,
            selected,
            image=fields[image],
            label=None if label is None else fields[label],
            classes=self._classes,
            **self.options(train=train),
        )


def _array_to_chw(pixels: Tensor) -> Tensor:
    """Convert uint8 (h, w), (h, w, c) or (c, h, w), c = 1 or 3, to (c, h, w)."""
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and len(pixels) not in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise ValueError(f"its array must be uint8 (h, w), (h, w, c) or (c, h, w), c = 1 or 3, got {pixels.dtype}")
    return pixels
