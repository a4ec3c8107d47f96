"""ImageNet (ILSVRC 2012) as it lies on disks: in class folders, in Kaggle's layout, or in the official tar files."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.base import ImageDataset, Split
from datamodules.images.decoding import Crop
from datamodules.images.encoded import EncodedImages
from datamodules.images.encoded_module import EncodedDataModule
from datamodules.images.image_files import ImageFiles
from datamodules.storage.file_lists import FileList, find_images
from datamodules.storage.imagenet_ground_truth import classes_of, find_ground_truth
from datamodules.storage.imagenet_tars import TarImages, TarIndex, tar_index

Rows = npt.NDArray[np.bool_]
KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")


class SplitSource(NamedTuple):
    """Images of a folder or of a tar file; of the latter with its index."""

    place: Path
    files: FileList
    tar: TarIndex | None

    def of(self, rows: Rows) -> "SplitSource":
        """Those images for which `rows` is true."""
        if rows.all():
            return self  # and its arrays stay mapped from the cache
        files = FileList(self.files.names[rows], self.files.folders[rows], self.files.tops)
        tar = self.tar and TarIndex(files, self.tar.offsets[rows], self.tar.sizes[rows])
        return SplitSource(self.place, files, tar)

    def images(self, labels: npt.NDArray[np.int64], classes: list[str], **options: Any) -> EncodedImages:
        """The images as a split."""
        if self.tar is not None:
            return TarImages(self.place, self.tar, labels=labels, classes=len(classes), **options)
        return ImageFiles(self.place, self.files.names, class_names=classes, labels=labels, **options)


class ImageNet(EncodedDataModule):
    """ImageNet as square colour images, float in [-1, 1], labelled by the places of the sorted WordNet ids.

    Training images are found in `root`/train/WNID/*, in Kaggle's `root`/ILSVRC/Data/CLS-LOC/train, or read in place
    from `root`/ILSVRC2012_img_train.tar, whose index is made once (about half a minute) and kept in the cache.
    Validation images likewise, in class folders or flat with a ground truth. They are the test images too, as
    ImageNet's own have no labels. Parts of ImageNet are read as well: classes count by their own order then, and
    validation images of classes that training does not have are left out with a warning.

    Args:
        root: the folder.
        size: pixels of a side.
        crop: how a square is made of an image. "short_side": its short side is resized to `size` by antialiased bicubic
            filtering, and the centre cut out. "adm", as ADM and DiT prepare ImageNet: the sides are halved by a box
            filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        ground_truth: tells the classes of validation images without class folders: the development kit's
            ILSVRC2012_validation_ground_truth.txt or its .tar.gz, Kaggle's LOC_val_solution.csv, a list of WordNet ids
            in the order of the images' names, or caffe's val.txt. None looks for these in `root`.
        horizontal_flip: mirror half of the training images.
        on_corrupt: what to do with an unreadable image: "skip" warns once, and takes the next one in training, none in
            evaluation; "raise" stops.
        batch_size: training images per step and process.
        eval_batch_size: images per evaluation batch and process; `batch_size` if None.
        workers: loader processes per split.
        seed: chooses the order of training and the keys.
    """

    def __init__(
        self,
        root: str,
        size: int,
        crop: Crop = "short_side",
        reduced_decoding: bool = False,
        ground_truth: str | None = None,
        horizontal_flip: bool = True,
        on_corrupt: Literal["skip", "raise"] = "skip",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(
            size=size,
            channels=3,
            crop=crop,
            reduced_decoding=reduced_decoding,
            horizontal_flip=horizontal_flip,
            on_corrupt=on_corrupt,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            workers=workers,
            seed=seed,
        )
        self.root = Path(root).expanduser()
        self.ground_truth = None if ground_truth is None else Path(ground_truth).expanduser()

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the images; raises FileNotFoundError or ValueError where some are missing, damaged or without class."""
        train, val = self._source("train"), self._source("val")
        classes = train.files.class_names(train.place)
        if not classes:
            raise ValueError(
                f"images of {train.place} must lie in class folders, got none: sort them into n01440764, ..."
            )
        labels = self._val_labels(val, classes)
        known = labels >= 0
        data = train.images(train.files.labels(classes), classes, **self.options(train=True))
        kept = val.of(known).images(labels[known], classes, **self.options(train=False))
        return {"train": data, "val": kept, "test": kept}

    def prepare_data(self) -> None:
        """Make the lists and indices before other processes of this machine would do the same."""
        for split in ("train", "val"):
            self._source(split)

    def _source(self, split: str) -> SplitSource:
        """The images of a split, wherever they lie."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"root must be the folder of ImageNet, got {self.root}: no such folder; check the path"
            )
        for folder in (self.root / split, *(self.root / below / split for below in KAGGLE)):
            if folder.is_dir():
                return SplitSource(folder, find_images(folder, "root"), None)
        tar = self.root / f"ILSVRC2012_img_{split}.tar"
        if not tar.is_file():
            raise FileNotFoundError(
                f"root must hold a folder {split} or {tar.name}, got {self.root} with neither: check it"
            )
        index = tar_index(tar)
        return SplitSource(tar, index.files, index)

    def _val_labels(self, val: SplitSource, classes: list[str]) -> npt.NDArray[np.int64]:
        """The class of every validation image, -1 where training does not have it."""
        number = {name: label for label, name in enumerate(classes)}
        folders = val.files.class_names(val.place)
        if not number.keys().isdisjoint(folders):
            if self.ground_truth is not None:
                raise ValueError(f"ground_truth must be left out, as the images of {val.place} lie in class folders")
            labels = np.array([number.get(name, -1) for name in folders], dtype=np.int64)[val.files.folders]
        else:
            if (file := self.ground_truth or find_ground_truth(self.root)) is None:
                raise ValueError(
                    f"images of {val.place} must lie in class folders or have a ground truth, got neither: set "
                    "ground_truth to ILSVRC2012_validation_ground_truth.txt, LOC_val_solution.csv or a list of classes"
                )
            labels = np.array([number.get(name, -1) for name in classes_of(val.files.paths(), file)], dtype=np.int64)
        if missing := int((labels < 0).sum()):
            if missing == len(labels):
                raise ValueError(
                    f"images of {val.place} must be of training's classes ({classes[0]}, ...), got none: check both"
                )
            text = (
                f"{missing} of {len(labels)} images of {val.place} are of classes that training does not have: left out"
            )
            warnings.warn(text, stacklevel=2)
        return labels
