"""Downsampled ImageNet (arXiv 1707.08819): npz files of small images, read from one memory-mapped array."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.argument_checks import MAX_SIDE, at_least
from datamodules.base import ImageDataModule, ImageDataset, Split
from datamodules.images.pixel_arrays import PixelArray
from datamodules.index_cache import cache_folder, map_npy
from datamodules.storage.imagenet_classes import SORTED, SORTED_INDEX
from datamodules.storage.npz_batches import merge_batches, open_batch

BATCHES = 10  # number of training files


class ImageNet64(ImageDataModule):
    """RGB images of 64x64 pixels (or 32, 16, 8), floats in [-1, 1]; labels are indices into the sorted WordNet IDs.

    `root` contains train_data_batch_1.npz to train_data_batch_10.npz and val_data.npz as published, with `data`, uint8
    (n, 3 * size * size), channels first, and `labels` from 1 to 1000 in the challenge's order. They are merged once per
    machine into one array, which all processes map. Val and test are the same images.

    Args:
        root: folder of the npz files.
        size: side length in pixels, as in the files.
        converted: folder for the merged array, 15.8 GB at 64x64 pixels; the index cache if None.
        horizontal_flip: mirror half of the training images, chosen at random in every epoch.
        **options: arguments of ImageDataModule.
    """

    channels = 3

    def __init__(
        self, root: str, size: int = 64, *, converted: str | None = None, horizontal_flip: bool = True, **options: Any
    ) -> None:
        super().__init__(**options)
        at_least("size", size, 1, "use 64, for example", MAX_SIDE)
        self.root, self.size, self.horizontal_flip = Path(root).expanduser(), size, horizontal_flip
        self.converted = None if converted is None else Path(converted).expanduser()

    def prepare_data(self) -> None:
        """Merge the files, in one process per machine."""
        self._convert()

    def build(self) -> Mapping[Split, ImageDataset]:
        """Map the arrays, after merging the files if necessary; raise if files are missing or unsuitable."""
        converted = self._convert()
        train = self._split(converted, "train", flip=self.horizontal_flip)
        val = self._split(converted, "val", flip=False)
        return {"train": train, "val": val, "test": val}

    def _convert(self) -> Path:
        """Merge the files unless done before, and return the folder of the arrays."""
        files = {"train": self._train_files(), "val": [self._file("val_data")]}
        parts = {
            name: [open_batch(file, size=self.size, numbers=len(SORTED_INDEX)) for file in paths]
            for name, paths in files.items()
        }
        return merge_batches(parts, size=self.size, folder=self.converted or cache_folder())

    def _split(self, folder: Path, name: str, *, flip: bool) -> PixelArray:
        try:
            pixels, numbers = map_npy(folder / f"{name}.npy"), map_npy(folder / f"{name}_labels.npy")
        except Exception as error:  # NumPy evaluates headers as Python, so damaged ones can raise anything
            line = str(error).split("\n")[0]
            raise ValueError(f"{folder} is damaged: {line}; delete the folder, it will be created again") from error
        images = PixelArray(
            pixels, SORTED_INDEX[numbers - 1], classes=len(SORTED_INDEX), flip=flip, name=f"{folder.name}/{name}"
        )
        images.label_names = SORTED
        return images

    def _train_files(self) -> list[Path]:
        """Return the training files in the order of their numbers, from 1 without a gap."""
        suffixes = {path.stem.rpartition("_")[2] for path in self.root.glob("train_data_batch_*.npz")}
        count = max((int(number) for number in suffixes if number.isdecimal()), default=1)
        files = [self._file(f"train_data_batch_{number}") for number in range(1, count + 1)]
        if count < BATCHES:
            warnings.warn(
                f"{self.root} holds {count} of {BATCHES} training files: training uses only these", stacklevel=2
            )
        return files

    def _file(self, name: str) -> Path:
        """Return the npz file of this name."""
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder, got {self.root}: no such folder; check the path")
        file = self.root / f"{name}.npz"
        if not file.is_file():
            if (self.root / name).is_file():
                raise ValueError(
                    f"root must hold {file.name}, got a pickle, which can run any code when read, in {self.root}: if "
                    f"you trust it, run numpy.savez({file.name!r}, **pickle.load(open({name!r}, 'rb')))"
                )
            raise FileNotFoundError(
                f"root must hold {file.name}, got {self.root} without it: download it, or check the path"
            )
        return file
