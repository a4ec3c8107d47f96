"""Images streamed from object storage, in the shards that `litdata.optimize` writes."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.base import Batch, ImageDataset, Item, Split, at_least
from datamodules.hash_split import check_held_out, hash_fractions, is_held_out
from datamodules.images.decoding import Crop, center_square, pillow_pixels, to_channels
from datamodules.images.encoded import EncodedImages
from datamodules.images.encoded_module import EncodedDataModule
from datamodules.storage.streamed_shards import Field, Shards

ENCODED = ("jpeg", "image", "bytes")  # litdata's words for what is decoded here
IMAGES = (*ENCODED, "pil", "numpy", "tensor")


class StreamedImages(EncodedImages):
    """The samples of some shards as images.

    Their order in training is made of whole shards (`blocks`), so that each is fetched once in an epoch.

    Args:
        shards: all of them.
        chosen: which, ascending.
        image: where the images are.
        label: where the labels are, None for none.
        classes: number of classes, 0 without labels.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
    """

    def __init__(
        self,
        shards: Shards,
        chosen: npt.NDArray[np.int64],
        *,
        image: Field,
        label: Field | None,
        classes: int,
        **options: Any,
    ) -> None:
        self.blocks = shards.sizes[chosen]
        # A label is known when its sample is read.
        super().__init__(np.zeros(int(self.blocks.sum()), np.int64), classes=classes, **options)
        self.shards, self.image, self.label = shards, image, label
        self.ends = np.cumsum(self.blocks)
        self.shift = shards.ends[chosen] - self.ends  # from a place among the chosen to one among all

    def read(self, items: Sequence[Item]) -> Batch:
        """The images as bytes; ValueError for a shard that cannot be had or a label that is no class."""
        self.shards.require(self._sample(index) for index, _ in items)
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
        """The image as its shard holds it; also takes note of the label."""
        parts = self.shards.sample(self._sample(index))
        if self.label is not None:
            self.labels[index] = int(parts[self.label.name])
        return parts[self.image.name]

    def name(self, index: int) -> str:
        """The address, the shard and the place in it."""
        return f"{self.shards.root}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        """The shard and the place in it."""
        return self.shards.name(self._sample(index))

    def fingerprint(self) -> str:
        """A hash of what is said of all images at once and of the shards' names and sizes: no image is read for it."""
        told = f"{self.kind()} {self.shards.identity()} {self.image} {self.label} {self.shift.tolist()}"
        return hashlib.sha256(told.encode()).hexdigest()

    def decode(self, data: Any) -> Tensor:
        """uint8 (channels, size, size) of encoded bytes, Pillow's image, or an array (h, w[, c]) or (c, h, w)."""
        if isinstance(data, bytes | bytearray):
            return super().decode(np.frombuffer(bytearray(data), np.uint8))  # writable, as decoders ask for
        pixels = _of_array(torch.as_tensor(data)) if self.image.kind != "pil" else pillow_pixels(data)
        return to_channels(center_square(pixels, self.size, self.crop), self.channels)

    def _sample(self, index: int) -> int:
        """The place among all samples."""
        return index + int(self.shift[np.searchsorted(self.ends, index, side="right")])


class Streamed(EncodedDataModule):
    """Square images from shards of `litdata.optimize` in object storage or in a folder (pip install litdata).

    Shards are fetched as a whole when they are needed, each once in an epoch and by one process, kept on the local
    disk, and shuffled: shards among each other, and samples among 16 shards. As everywhere, the order follows from
    (seed, epoch, rank), and a resumed run continues with the very next sample, whatever the number of workers. Workers
    fetch ahead of training: give some. Samples are {"image": ..., "label": ...} or (image, label), images encoded
    bytes, litdata's JPEG, Pillow's images or arrays uint8. What else is in a sample is not looked at, and never run.

    Args:
        root: a folder, read in place, or an address: s3://bucket/folder, gs://, r2://, azure://; local:/folder for
            another file system whose files are to be copied to `cache_dir`.
        size: pixels of a side; the short side is resized to it, the centre cut out.
        channels: 3 for colour, 1 for grey.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm", as ADM and DiT prepare ImageNet, halves the
            sides by a box filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        classes: number of classes; 0 leaves the labels out.
        image_field: name of the image in a sample, or its place in a tuple; None takes the only one that may be.
        label_field: name of the label, or its place; None takes "label", or else the only whole number.
        val_root: shards to validate and test on.
        held_out: share of the shards kept from training, in (0, 1), where there is no `val_root`: chosen by a hash of
            their names, at least one. Write samples in random order, or they are not like those trained on.
        cache_dir: where fetched shards are kept; None takes a folder in the cache of indices (docs/data.md).
        cache_gigabytes: remove the shards not used for longest above this; None keeps all. At least 20 shards for
            every process of the machine.
        storage_options: for the storage, as litdata takes them, such as keys.
        horizontal_flip: mirror half of the training images.
        on_corrupt: what to do with an unreadable image: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops. A damaged shard always stops.
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
        classes: int = 0,
        image_field: str | None = None,
        label_field: str | None = None,
        val_root: str | None = None,
        held_out: float = 0.01,
        cache_dir: str | None = None,
        cache_gigabytes: float | None = None,
        storage_options: dict[str, Any] | None = None,
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
        at_least("classes", classes, 0, "0 leaves the labels out")
        if cache_gigabytes is not None and cache_gigabytes <= 0:
            raise ValueError(
                f"cache_gigabytes must be positive, got {cache_gigabytes}: leave it out to keep all shards"
            )
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
        """Read the indices; raises where there are none, or where fields are missing."""
        train = self._shards(self.root, "train")
        everything = np.arange(len(train.sizes))
        if self.val_root is not None:
            other = self._shards(self.val_root, "val")
            val = self._images(other, np.arange(len(other.sizes)), train=False)
            return {"train": self._images(train, everything, train=True), "val": val, "test": val}
        kept = is_held_out(hash_fractions(file.name for file in train.files), self.held_out)
        if kept.all():
            raise ValueError(
                f"root must leave a shard to train on, got {self.root} with {len(kept)}, all held out by "
                f"held_out={self.held_out}: write smaller shards, lower held_out or set val_root"
            )
        val = self._images(train, everything[kept], train=False)
        return {"train": self._images(train, everything[~kept], train=True), "val": val, "test": val}

    def _shards(self, root: str, part: str) -> Shards:
        folder = None if self.cache_dir is None else self.cache_dir / part
        limit = None if self.cache_gigabytes is None else int(self.cache_gigabytes * 1e9)
        return Shards(root, folder=folder, limit=limit, options=self.storage_options)

    def _images(self, shards: Shards, chosen: npt.NDArray[np.int64], *, train: bool) -> StreamedImages:
        image = _image_field(shards, self.image_field)
        label = _label_field(shards, self.label_field) if self._classes else None
        options = self.options(train=train)
        return StreamedImages(shards, chosen, image=image, label=label, classes=self._classes, **options)


def _of_array(pixels: Tensor) -> Tensor:
    """uint8 (h, w), (h, w, c) or (c, h, w), c = 1 or 3, as (c, h, w)."""
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and len(pixels) not in (1, 3):
        pixels = pixels.permute(2, 0, 1)
    if pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise ValueError(f"its array must be uint8 (h, w), (h, w, c) or (c, h, w), c = 1 or 3, got {pixels.dtype}")
    return pixels


def _image_field(shards: Shards, chosen: str | None) -> Field:
    may_be = {name: field for name, field in shards.fields.items() if field.kind.split(":")[0] in IMAGES}
    if chosen is not None:
        if chosen not in may_be:
            raise ValueError(
                f"image_field must name images in the samples of {shards.root} ({_told(may_be)}), got {chosen!r}: "
                "choose one of these"
            )
        return may_be[chosen]
    if len(may_be) != 1:
        raise ValueError(
            f"image_field must name the images in the samples of {shards.root}, got {len(may_be)} fields that may be: "
            f"choose of {_told(may_be or shards.fields)}"
        )
    return next(iter(may_be.values()))


def _label_field(shards: Shards, chosen: str | None) -> Field:
    may_be = {name: field for name, field in shards.fields.items() if field.kind == "int"}
    name = chosen or ("label" if "label" in may_be or len(may_be) != 1 else next(iter(may_be)))
    if name not in may_be:
        raise ValueError(
            f"label_field must name whole numbers in the samples of {shards.root} ({_told(may_be) or 'none'}), got "
            f"{name!r}: choose another, or leave classes at 0"
        )
    return may_be[name]


def _told(fields: Mapping[str, Field]) -> str:
    return ", ".join(fields)
