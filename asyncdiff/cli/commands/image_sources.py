"""Images that are measured: drawn by a model, read from a folder, or the data's own."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyncdiff.callbacks.validation_images import spread
from asyncdiff.checkpoints import object_config
from asyncdiff.checkpoints.object_config import class_path
from asyncdiff.cli.commands.distributed import Ranks
from asyncdiff.evaluation.features.base import to_uint8
from asyncdiff.sampling.samplers import ImageSampler
from asyncdiff.tasks.contact_sheet import SHEET
from asyncdiff.tasks.photos import SUFFIXES, read_photo, to_model

PROBED = 16  # images of a split whose pixels are part of its stamp: files may be replaced under their names

Part = tuple[Tensor, Tensor]  # int64 (b,) places among the images, and images (b, c, h, w) in [-1, 1] on the device


class ImageSource(ABC):
    """Images in an order, in batches that are the same however many processes share them.

    Attributes:
        count: number of images; a few less where some cannot be read.
        batch_size: images of a batch.
        what: in a word, for the progress bar.
    """

    count: int
    batch_size: int
    what: str

    @abstractmethod
    def read(self, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[Part]:
        """The images of the batches of places."""

    @abstractmethod
    def stamp(self) -> dict[str, Any]:
        """What they are, in plain containers."""

    def batches(self, ranks: Ranks) -> tuple[int, Iterator[Part]]:
        """This process's share of the batches: how many, and their images."""
        places = range(self.count)
        mine = ranks.share([places[i : i + self.batch_size] for i in range(0, self.count, self.batch_size)])
        return len(mine), self.read(mine, ranks.device)


class Drawn(ImageSource):
    """Images drawn by a model: image i from seed `first_seed + i`, of the classes in turn.

    Args:
        model: draws and decodes.
        sampler: how.
        count: number of images.
        first_seed: seed of the first one.
        labels: whether the classes are told to a model that knows any.
        batch_size: images drawn together.
    """

    what = "samples"

    def __init__(
        self, model: Any, sampler: ImageSampler, count: int, *, first_seed: int, labels: bool, batch_size: int
    ):
        self.model, self.sampler, self.count = model, sampler, count
        self.first_seed, self.labels, self.batch_size = first_seed, labels and model.classes > 0, batch_size

    def read(self, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[Part]:
        """Drawn one batch after the other, and decoded where they are latents."""
        for places in batches:
            labels = [i % self.model.classes for i in places] if self.labels else None
            seeds = [self.first_seed + i for i in places]
            drawn = self.model.generate(seeds, labels, sampler=self.sampler, batch_size=self.batch_size)
            yield torch.tensor(places), self.model.decode(drawn)

    def stamp(self) -> dict[str, Any]:
        """Number, seeds, labels, and how they were drawn."""
        codec = self.model.codec
        return {
            "count": self.count,
            "seeds": [self.first_seed, self.first_seed + self.count - 1],
            "labels": f"{self.model.classes} classes in turn" if self.labels else None,
            "sampler": object_config.describe(self.sampler),
            "codec": None if codec is None else codec.identity(),
            "rounding": "8 bits",
        }


class ImageFiles(ImageSource):
    """Image files of one size, below a folder, in the order of their paths.

    Args:
        folder: where they lie, at any depth; the sheet that `sample` leaves there is none of them.
        count: that many of them, evenly over the order; all by default.
        channels: 1 or 3.
        batch_size: images read together.
    """

    what = "image files"

    def __init__(self, folder: Path, count: int | None, *, channels: int, batch_size: int):
        if not folder.is_dir():
            raise FileNotFoundError(f"--images must be a folder, got {folder}: there is none")
        sheet = folder / SHEET
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file != sheet)
        if not found:
            raise ValueError(f"--images must be a folder of images, got {folder} without any: check the path")
        if count is not None and count > len(found):
            raise ValueError(f"--count must be at most the images in {folder}, got {count} of {len(found)}: lower it")
        self.folder, self.channels, self.batch_size = folder, channels, batch_size
        self.files = [found[i] for i in spread(found, count)]
        self.count = len(self.files)
        self.size = tuple(self._pixels(0).shape[1:])

    def read(self, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[Part]:
        """Read one batch after the other; ValueError for a file of another size."""
        for places in batches:
            yield torch.tensor(places), to_model(torch.stack([self._pixels(i) for i in places])).to(device)

    def stamp(self) -> dict[str, Any]:
        """Number, size, and a hash of names and sizes of the files."""
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(f"{file.relative_to(self.folder)}\0{file.stat().st_size}\n".encode())
        return {
            "count": self.count,
            "folder": str(self.folder),
            "files": digest.hexdigest(),
            "size": list(self.size),
            "rounding": "8 bits",
        }

    def _pixels(self, place: int) -> Tensor:
        pixels = read_photo(self.files[place], self.channels)
        size = tuple(pixels.shape[1:])
        if size != getattr(self, "size", size):
            raise ValueError(f"--images must be of one size, got {self.size} and {size} in {self.files[place]}: resize")
        return pixels


class RealImages(ImageSource):
    """Images of a split of the data, evenly over it, without augmentation, decoded where they are latents.

    Args:
        data: a data module.
        split: train, val or test.
        count: that many, or all by default.
        decode: latents to pixels; the identity for pixels.
        codec: of latents, None for pixels.
        batch_size: images read together.
    """

    def __init__(
        self,
        data: Any,
        split: str,
        count: int | None,
        *,
        decode: Callable[[Tensor], Tensor],
        codec: Any | None,
        batch_size: int,
    ):
        self.data, self.split, self.batch_size = data, split, batch_size
        self.decode, self.codec, self.what = decode, codec, f"{split} images"
        self.images = data.dataset(split).plain()
        self.indices = spread(self.images, count)
        self.count = len(self.indices)

    def read(self, batches: Sequence[Sequence[int]], device: torch.device) -> Iterator[Part]:
        """Read by the data's own loader; those that cannot be read are left out."""
        listed = self.data.listed(self.split, [[self.indices[i] for i in places] for places in batches])
        place_of = {index: place for place, index in enumerate(self.indices)}
        for batch in listed:
            if len(batch["index"]):
                places = torch.tensor([place_of[index] for index in batch["index"].tolist()])
                yield places, self.decode(batch["image"].to(device))

    def stamp(self) -> dict[str, Any]:
        """Class, split and number of the data, its fingerprint, and a hash of the pixels of a few images."""
        probe = self.images.__getitems__(list(spread(self.images, PROBED)))["image"]
        seen = (to_uint8(probe) if self.codec is None else probe.float()).cpu().contiguous()
        return {
            "data": class_path(type(self.data)),
            "split": self.split,
            "count": self.count,
            "fingerprint": self.images.fingerprint(),
            "size": list(seen.shape[1:]),
            "crop": getattr(self.data, "crop", None),
            "pixels": hashlib.sha256(seen.numpy().tobytes()).hexdigest(),
            "codec": None if self.codec is None else self.codec.identity(),
            "rounding": "8 bits",
        }
