"""Data sets in the formats of the Hugging Face library `datasets`, on disk or from the Hub."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out, hash_fractions, split_by_hash
from datamodules.images.encoded import Bytes, EncodedDataModule, EncodedImages
from datamodules.regular_files import read_regular
from datamodules.storage.hugging_face_tables import UNLABELED, Integers, Table, load_tables

VAL_NAMES = ("validation", "val", "valid", "dev", "test")


class TableImages(EncodedImages):
    """Selected rows of a table as images.

    Args:
        table: table whose images are not decoded.
        rows: indices of the selected rows.
        classes: number of classes, 0 without labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(self, table: Table, rows: Integers, *, classes: int, **options: Any) -> None:
        super().__init__(table.labels[rows], classes=classes, **options)
        self.table, self.rows, self.label_names = table, rows, table.label_names

    def fetch(self, index: int) -> Bytes:
        cell = self.table.cell(int(self.rows[index]))
        if cell["bytes"] is not None:
            return np.frombuffer(bytearray(cell["bytes"]), dtype=np.uint8)  # writable, as decoders require
        if cell["path"] is None:
            raise ValueError("its table cell is empty")
        return read_regular(cell["path"])

    def name(self, index: int) -> str:
        return f"{self.table.place} row {int(self.rows[index])}"

    def relative_name(self, index: int) -> str:
        return f"row {int(self.rows[index])}"


class HuggingFace(EncodedDataModule):
    """Square images from a data set of the library `datasets` (pip install datasets), floats in [-1, 1].

    Validation uses `val_split`, else the first split named validation, val, valid, dev or test, else a fraction of the
    training split that is held out by a hash of the row numbers. Testing uses `test_split`, else the split named test,
    else the validation images. A split that is only found by its name is skipped if it has no labels (-1, as in
    ImageNet's test split) although training has.

    Args:
        root: a folder written by `save_to_disk`, a folder of parquet files or of images, or the name of a data set on
            the Hub, such as ylecun/mnist, which is downloaded. No code of a data set is ever run.
        size: side length in pixels; the short side is resized to it and the center cropped.
        image_column: column of the images; None takes the only column of images.
        label_column: column of the labels: class labels, integers from 0, or strings, whose classes are the strings of
            training in alphabetical order. None takes "label", else the only column of class labels; an empty string
            means no labels.
        config_name: configuration of a data set that has several.
        revision: branch, tag or commit on the Hub.
        train_split: name of the split to train on.
        val_split: name of the split to validate on.
        test_split: name of the split to test on.
        held_out: fraction of the images held out for validation, in (0, 1), if there is no validation split.
        **options: arguments of EncodedDataModule.
    """

    def __init__(
        self,
        root: str,
        size: int,
        *,
        image_column: str | None = None,
        label_column: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
        held_out: float = 0.01,
        **options: Any,
    ) -> None:
        super().__init__(size=size, **options)
        check_held_out(held_out)
        self.root = root
        self.image_column, self.label_column = image_column, label_column
        self.config_name, self.revision = config_name, revision
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the data set; raise if it, a split or a column is missing, or if a label does not occur in training."""
        splits = load_tables(self.root, config_name=self.config_name, revision=self.revision)
        train = self._table(splits, "train_split", self.train_split, None)
        val = self._evaluation_table(splits, "val_split", self.val_split, VAL_NAMES, train)
        test = self._evaluation_table(splits, "test_split", self.test_split, ("test",), train)
        rows = np.arange(len(train))
        if val is None:
            fractions = hash_fractions(map(str, range(len(train))))
            val_mask = split_by_hash(fractions, self.held_out, train.place, "lower held_out or set val_split")
            rows, val_images = rows[~val_mask], self._images(train, rows[val_mask])
        else:
            val_images = self._images(val)
        images: dict[Split, ImageDataset] = {
            "train": self._images(train, rows, train=True),
            "val": val_images,
            "test": val_images,
        }
        if test is not None and (val is None or test.place != val.place):
            images["test"] = self._images(test)
        return images

    def _images(self, table: Table, rows: Integers | None = None, train: bool = False) -> TableImages:
        rows = np.arange(len(table)) if rows is None else rows
        return TableImages(table, rows, classes=len(table.classes), **self.options(train=train))

    def _table(self, splits: Mapping[str, Any], argument: str, name: str, train: Table | None) -> Table:
        """Return the split of this name; `argument` is the argument that names it."""
        if name not in splits:
            raise ValueError(
                f"{argument} must be a split of {self.root} ({', '.join(splits)}), got {name!r}: choose one of these"
            )
        image, label = self.image_column, self.label_column
        if train is not None:
            image, label = train.image_column, train.label_column
        classes = None if train is None else train.classes
        return Table(f"{self.root} {name}", splits[name], image_column=image, label_column=label, classes=classes)

    def _evaluation_table(
        self, splits: Mapping[str, Any], argument: str, name: str | None, defaults: tuple[str, ...], train: Table
    ) -> Table | None:
        """Return the split of this name, else the first default split that has labels as training has, else None."""
        names = (name,) if name is not None else (n for n in defaults if n in splits and n != self.train_split)
        for candidate in names:
            table = self._table(splits, argument, candidate, train)
            if table.labeled or not train.labeled:
                return table
            if name is not None:
                raise ValueError(
                    f"{argument} must have labels as training has, got {name!r} with {UNLABELED} for some: "
                    "choose another split, or set label_column to an empty string"
                )
        return None
