"""Base classes of data sets and data modules of encoded images: decoding, mirroring, unreadable images."""

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

from datamodules.argument_checks import MAX_SIDE, at_least, one_of
from datamodules.base import (
    Batch,
    ImageDataModule,
    ImageDataset,
    Item,
    from_uint8,
    index_and_key,
    mirror_odd,
)
from datamodules.images.decoding import Crop, load_square

Bytes = npt.NDArray[np.uint8]
OnCorrupt = Literal["skip", "raise"]
ON_CORRUPT: Sequence[OnCorrupt] = ("skip", "raise")

MAX_UNREADABLE_IN_A_ROW = 100  # unreadable images in a row after which training stops


class EncodedImages(ImageDataset):
    """Images that are decoded when they are read. Subclasses implement `fetch` and `name`.

    Args:
        labels: class of every image, int64 (n,).
        classes: number of classes, 0 without labels.
        size: side length in pixels.
        channels: 1 or 3.
        train: replace an unreadable image by the next readable one; otherwise leave it out.
        flip: mirror the half of the images whose key is odd.
        on_corrupt: "skip" warns once per image, "raise" stops the run.
        crop: how an image is cropped to a square, see `decoding.center_square`.
        reduced_decoding: decode large JPEGs at a reduced scale, see `decoding.load_square`.
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
        # Shared with the workers, so that each unreadable image is reported once and not tried again.
        self.unreadable = torch.zeros(len(self.labels), dtype=torch.uint8).share_memory_()

    @abstractmethod
    def fetch(self, index: int) -> Bytes:
        """Return the bytes of an encoded image; may raise whatever the storage raises."""

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what identifies the image to a user: its path, or the path of an archive and the name in it."""

    def __len__(self) -> int:
        """Return the number of images, readable or not."""
        return len(self.labels)

    def plain(self) -> "EncodedImages":
        """Return the same images, not mirrored, without the unreadable ones."""
        twin = copy.copy(self)
        twin.train = twin.flip = False
        return twin

    def fingerprint(self) -> str:
        """Return a hash of the names and labels of all images."""
        digest = hashlib.sha256(self.settings_text().encode())
        for index, label in enumerate(self.labels.tolist()):
            digest.update(f"{self.relative_name(index)}\0{label}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()

    def settings_text(self) -> str:
        """Return the part of the fingerprint that all images share: their number, shape and preprocessing."""
        form = f"{self.channels}x{self.size}x{self.size}, {self.crop}"
        return f"{super().fingerprint()}, {form}{', reduced decoding' * self.reduced_decoding}"

    def relative_name(self, index: int) -> str:
        """Return the name without the location of the data set, which may change."""
        return self.name(index)

    def read(self, items: Sequence[Item]) -> Batch:
        """Read the images as uint8; in evaluation, leave out unreadable ones, possibly all."""
        samples = [(index, key, pixels) for i, key in items for index, pixels in self._readable(i)]
        index, key = index_and_key([(i, k) for i, k, _ in samples])
        empty = torch.empty(0, self.channels, self.size, self.size, dtype=torch.uint8)
        image = torch.stack([pixels for _, _, pixels in samples]) if samples else empty
        if self.flip:
            mirror_odd(image, key)
        label = torch.from_numpy(self.labels[index.numpy()].astype(np.int64))
        return {"image": image, "label": label, "index": index, "key": key}

    def finish(self, batch: Batch) -> Batch:
        """Convert uint8 to float32 in [-1, 1] on the device."""
        return from_uint8(batch)

    def decode(self, data: Bytes) -> Tensor:
        """Decode an image to uint8 (channels, size, size); raises whatever the decoder raises."""
        return load_square(data, size=self.size, channels=self.channels, crop=self.crop, reduced=self.reduced_decoding)

    def _readable(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """Yield the image; if it is unreadable, the next readable one in training, nothing in evaluation."""
        for offset in range(min(MAX_UNREADABLE_IN_A_ROW, len(self)) if self.train else 1):
            candidate = (index + offset) % len(self)
            if (pixels := self._pixels(candidate)) is not None:
                yield candidate, pixels
                return
        if self.train:
            raise ValueError(
                f"{min(MAX_UNREADABLE_IN_A_ROW, len(self))} files in a row cannot be read, starting with "
                f"{self.name(index)}: replace them"
            )

    def _pixels(self, index: int) -> Tensor | None:
        """Return pixels, uint8 (channels, size, size), or None for an unreadable image."""
        if self.unreadable[index]:
            return None
        try:
            return self.decode(self.fetch(index))
        except Exception as error:  # decoders may raise anything on damaged bytes
            text = f"cannot read {self.name(index)}: {error}"
            if self.on_corrupt == "raise":
                raise ValueError(f"{text}; replace the file, or leave it out with on_corrupt: skip") from error
            self.unreadable[index] = 1
            warnings.warn(f"{text}; it is left out", stacklevel=2)
            return None


class EncodedDataModule(ImageDataModule):
    """Data module of encoded images: the options that all of them share.

    Constructors of subclasses pass these on as `**options: Any`; an annotation such as `Unpack[...]` would hide their
    defaults from the command line. `options()` gives what follows from them to the `EncodedImages` of each split.

    Args:
        size: side length in pixels; the short side is resized to it and the center cropped.
        channels: 3 for RGB, 1 for grayscale.
        crop: "short_side" resizes the short side by antialiased bicubic filtering; "adm" first halves the sides with a
            box filter while the short side is at least twice `size`, as ADM and DiT preprocess ImageNet.
        reduced_decoding: decode JPEGs whose sides are at least twice `size` at 1/2, 1/4 or 1/8 scale; faster, but the
            pixels differ slightly.
        horizontal_flip: mirror half of the training images, chosen at random in every epoch.
        on_corrupt: what to do with an unreadable image: "skip" warns once, then uses the next image in training and
            leaves it out in evaluation; "raise" stops the run.
        batch_size: training images per step and process.
        eval_batch_size: evaluation images per batch and process; `batch_size` if None.
        workers: DataLoader worker processes per split; 0 reads and decodes in the training process.
        seed: seeds the training order and the sample keys, not the splits.
    """

    def __init__(
        self,
        *,
        size: int,
        channels: Literal[1, 3] = 3,
        crop: Crop = "short_side",
        reduced_decoding: bool = False,
        horizontal_flip: bool = True,
        on_corrupt: Literal["skip", "raise"] = "skip",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("size", size, 1, "set the side length in pixels", MAX_SIDE)
        one_of("channels", channels, (1, 3))
        one_of("on_corrupt", on_corrupt, ON_CORRUPT)
        one_of("crop", crop, ("short_side", "adm"))
        self.size, self.channels, self.crop, self.reduced_decoding = size, channels, crop, reduced_decoding
        self.horizontal_flip, self.on_corrupt = horizontal_flip, on_corrupt

    def options(self, *, train: bool) -> dict[str, Any]:
        """Return the arguments of `EncodedImages` that follow from those of this module."""
        same = {name: getattr(self, name) for name in ("size", "channels", "on_corrupt", "crop", "reduced_decoding")}
        return {**same, "train": train, "flip": train and self.horizontal_flip}
