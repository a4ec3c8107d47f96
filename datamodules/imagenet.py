"""ImageNet (ILSVRC 2012) in its common layouts: class folders, Kaggle's layout, or the official tar files."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.base import ImageDataset, Split
from datamodules.images.encoded import EncodedDataModule, EncodedImages
from datamodules.images.image_files import ImageFiles
from datamodules.storage.file_lists import FileList, find_images
from datamodules.storage.imagenet_ground_truth import classes_of, find_ground_truth
from datamodules.storage.imagenet_tars import Places, TarImages, tar_index

KAGGLE = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")


class SplitSource(NamedTuple):
    """Images of one split, in a folder or in a tar file.

    Attributes:
        place: the folder or tar file.
        files: the images in it.
        places: offset and size of each image in the tar file; None for a folder.
    """

    place: Path
    files: FileList
    places: Places | None = None

    def select(self, rows: npt.NDArray[np.bool_]) -> "SplitSource":
        """Return the images for which `rows` is true."""
        if rows.all():
            return self  # so that its arrays stay mapped from the cache
        files = self.files._replace(names=self.files.names[rows], folders=self.files.folders[rows])
        return SplitSource(self.place, files, None if self.places is None else self.places[rows])

    def images(self, labels: npt.NDArray[np.int64], classes: list[str], **options: Any) -> EncodedImages:
        """Return the images as a data set with these labels."""
        options |= {"class_names": classes, "labels": labels}
        if self.places is None:
            return ImageFiles(self.place, self.files.names, **options)
        return TarImages(self.place, self.files.names, places=self.places, **options)


class ImageNet(EncodedDataModule):
    """ImageNet as square RGB images, floats in [-1, 1]; labels are indices into the sorted WordNet IDs.

    Training images are read from `root`/train/WNID/*, from Kaggle's `root`/ILSVRC/Data/CLS-LOC/train, or in place from
    `root`/ILSVRC2012_img_train.tar, whose index is built once (about half a minute) and cached. Validation images are
    found likewise, in class folders or flat with a ground truth file; they are the test images too, because ImageNet's
    test images have no labels. Subsets of ImageNet work as well: labels are then indices into the sorted classes that
    are present, and validation images of classes that training does not have are left out with a warning.

    Args:
        root: folder of the data set.
        size: side length in pixels.
        ground_truth: file with the classes of validation images without class folders: the development kit's
            ILSVRC2012_validation_ground_truth.txt or its .tar.gz, Kaggle's LOC_val_solution.csv, a list of WordNet IDs
            in the order of the image names, or Caffe's val.txt. None looks for these in `root`.
        **options: arguments of EncodedDataModule.
    """

    channels = 3  # not an option

    def __init__(self, root: str, size: int, *, ground_truth: str | None = None, **options: Any) -> None:
        super().__init__(size=size, channels=3, **options)
        self.root = Path(root).expanduser()
        self.ground_truth = None if ground_truth is None else Path(ground_truth).expanduser()

    def build(self) -> Mapping[Split, ImageDataset]:
        """Find the images; raise FileNotFoundError or ValueError if they are missing, damaged or have no class."""
        train, val = self._source("train"), self._source("val")
        classes = train.files.class_names(train.place)
        if not classes:
            raise ValueError(
                f"images of {train.place} must lie in class folders, got none: move them into n01440764, ..."
            )
        labels = self._val_labels(val, classes)
        known = labels >= 0
        data = train.images(train.files.labels(classes), classes, **self.options(train=True))
        val_images = val.select(known).images(labels[known], classes, **self.options(train=False))
        return {"train": data, "val": val_images, "test": val_images}

    def prepare_data(self) -> None:
        """Build file lists and indices in one process per machine, before the others need them."""
        for split in ("train", "val"):
            self._source(split)

    def _source(self, split: str) -> SplitSource:
        """Find the images of a split."""
        if not self.root.is_dir():
            raise FileNotFoundError(
                f"root must be the folder of ImageNet, got {self.root}: no such folder; check the path"
            )
        for folder in (self.root / split, *(self.root / below / split for below in KAGGLE)):
            if folder.is_dir():
                return SplitSource(folder, find_images(folder, "root"))
        tar = self.root / f"ILSVRC2012_img_{split}.tar"
        if not tar.is_file():
            raise FileNotFoundError(
                f"root must hold a folder {split} or {tar.name}, got {self.root} with neither: check the path"
            )
        return SplitSource(tar, *tar_index(tar))

    def _val_labels(self, val: SplitSource, classes: list[str]) -> npt.NDArray[np.int64]:
        """Return the label of every validation image, -1 if training does not have its class."""
        number = {name: label for label, name in enumerate(classes)}
        folders = val.files.class_names(val.place)
        if not number.keys().isdisjoint(folders):
            if self.ground_truth is not None:
                raise ValueError(
                    f"ground_truth must be left out if validation images lie in class folders, got {self.ground_truth} "
                    f"for {val.place}: omit it"
                )
            names = [folders[place] for place in val.files.folders]
        else:
            if (file := self.ground_truth or find_ground_truth(self.root)) is None:
                raise ValueError(
                    f"images of {val.place} must lie in class folders or have a ground truth, got neither: set "
                    "ground_truth to ILSVRC2012_validation_ground_truth.txt, LOC_val_solution.csv or a list of classes"
                )
            names = classes_of(val.files.paths(), file)
        labels = np.array([number.get(name, -1) for name in names], dtype=np.int64)
        if missing := int((labels < 0).sum()):
            if missing == len(labels):
                raise ValueError(
                    f"images of {val.place} must be of the training classes ({classes[0]}, ...), got none: check both"
                )
            warnings.warn(
                f"{missing} of {len(labels)} images of {val.place} are left out: training does not have their classes",
                stacklevel=2,
            )
        return labels
