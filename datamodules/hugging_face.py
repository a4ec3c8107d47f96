"""Data sets in the formats of the Hugging Face library `datasets`, on disk or from its hub."""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out, hash_fractions, is_held_out
from datamodules.images.decoding import Crop
from datamodules.images.encoded import Bytes, EncodedImages
from datamodules.images.encoded_module import EncodedDataModule
from datamodules.storage.hugging_face_tables import UNLABELED, Integers, Table, load_tables

VAL_NAMES = ("validation", "val", "valid", "dev", "test")


class TableImages(EncodedImages):
    """Some rows of a table.

    Args:
        table: the table, whose cells of images are not decoded.
        rows: which.
        classes: number of classes, 0 without labels.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
    """

    def __init__(self, table: Table, rows: Integers, *, classes: int, **options: Any) -> None:
        super().__init__(table.labels[rows], classes=classes, **options)
        self.table, self.rows = table, rows

    def fetch(self, index: int) -> Bytes:
        """The bytes of the cell, or of the file that it names."""
        cell = self.table.cell(int(self.rows[index]))
        if cell["bytes"] is not None:
            return np.frombuffer(bytearray(cell["bytes"]), dtype=np.uint8)  # writable, as decoders ask for
        if cell["path"] is None:
            raise ValueError("the cell is empty")
        return np.fromfile(cell["path"], dtype=np.uint8)

    def name(self, index: int) -> str:
        """The data set, its split and the row."""
        return f"{self.table.place} row {int(self.rows[index])}"

    def relative_name(self, index: int) -> str:
        """The row: what is in it is not read for a name."""
        return f"row {int(self.rows[index])}"


class HuggingFace(EncodedDataModule):
    """Square images from a data set of the library `datasets` (pip install datasets), float in [-1, 1].

    Validated on `val_split`, or else on the split of the first usual name that there is (validation, val, valid, dev,
    test), or else on a share of training that is held out by a hash of the row's number. Tested on `test_split`, or
    else on test, or else on what is validated on. A split that is only found by its name is passed over where it has no
    labels (-1, as ImageNet's test split) although training has.

    Args:
        root: a folder that `save_to_disk` has written, one of parquet files or of images, or else the name of a data
            set on the hub, such as ylecun/mnist, which is downloaded. No code of a data set is ever run.
        size: pixels of a side; the short side is resized to it, the centre cut out.
        channels: 3 for colour, 1 for grey.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm", as ADM and DiT prepare ImageNet, halves the
            sides by a box filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        image_column: where the images are; None takes the only column of images.
        label_column: where the labels are: class labels, whole numbers from 0, or texts, whose classes are those of
            training in alphabetical order. None takes "label", or else the only column of class labels; an empty text
            takes none.
        config_name: which part of a data set that has several.
        revision: branch, tag or commit on the hub.
        train_split: name of the split to train on.
        val_split: name of the split to validate on.
        test_split: name of the split to test on.
        held_out: share of the images kept from training, in (0, 1), where nothing else is to be validated on.
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
        image_column: str | None = None,
        label_column: str | None = None,
        config_name: str | None = None,
        revision: str | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_split: str | None = None,
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
        self.root = root
        self.image_column, self.label_column = image_column, label_column
        self.config_name, self.revision = config_name, revision
        self.train_split, self.val_split, self.test_split = train_split, val_split, test_split
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """Open the data set; raises where it, a split or a column is missing, or a label is none of training's."""
        found = load_tables(self.root, config_name=self.config_name, revision=self.revision)
        train = self._table(found, self.train_split, "train_split", None)
        val = self._chosen(found, self.val_split, "val_split", VAL_NAMES, train)
        test = self._chosen(found, self.test_split, "test_split", ("test",), train)
        rows, kept = np.arange(len(train)), np.zeros(len(train), np.bool_)
        if val is None:
            kept = is_held_out(hash_fractions(map(str, range(len(train)))), self.held_out)
            if kept.all():
                raise ValueError(
                    f"root must leave an image to train on, got {train.place} with {len(train)}, all held out by "
                    f"held_out={self.held_out}: lower held_out or set val_split"
                )
        train_images = self._images(train, rows[~kept], train=True)
        val_images = self._images(train, rows[kept]) if val is None else self._images(val, np.arange(len(val)))
        if test is None or (val is not None and test.place == val.place):
            return {"train": train_images, "val": val_images, "test": val_images}
        return {"train": train_images, "val": val_images, "test": self._images(test, np.arange(len(test)))}

    def _images(self, table: Table, rows: Integers, train: bool = False) -> TableImages:
        return TableImages(table, rows, classes=len(table.classes), **self.options(train=train))

    def _table(self, found: Mapping[str, Any], name: str, argument: str, train: Table | None) -> Table:
        """A split by the name that was given for it."""
        if name not in found:
            raise ValueError(
                f"{argument} must be a split of {self.root} ({', '.join(found)}), got {name!r}: choose one of these"
            )
        place = f"{self.root} {name}"
        return Table(place, found[name], image_column=self.image_column, label_column=self.label_column, train=train)

    def _chosen(
        self, found: Mapping[str, Any], given: str | None, argument: str, usual: tuple[str, ...], train: Table
    ) -> Table | None:
        """A split to evaluate on: the given one, or the first of the usual names that has labels; None if none has."""
        if given is not None:
            table = self._table(found, given, argument, train)
            if train.labeled and not table.labeled:
                raise ValueError(
                    f"{argument} must have labels as training has, got {given!r} with {UNLABELED} for some: "
                    "choose another, or set label_column to an empty text"
                )
            return table
        for name in usual:
            if name in found and name != self.train_split:
                table = self._table(found, name, argument, train)
                if table.labeled or not train.labeled:
                    return table
        return None
