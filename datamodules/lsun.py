"""Data module for LSUN and other LMDB databases of its layout."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out, split_by_hash
from datamodules.hidden_names import is_hidden
from datamodules.images.encoded import Bytes, EncodedDataModule, EncodedImages
from datamodules.index_cache import Arrays
from datamodules.regular_files import is_present
from datamodules.storage.databases import database_index
from datamodules.storage.members import FileBytes

SUFFIX = "_train_lmdb"


class DatabaseSubset(NamedTuple):
    """Selected images of one database.

    Attributes:
        file: the data.mdb.
        arrays: names, places and shares of all images, see `database_index`.
        rows: indices of the selected images, int64 (n,).
    """

    file: FileBytes
    arrays: Arrays
    rows: npt.NDArray[np.int64]

    def name(self, index: int) -> str:
        """Return the key of an image in hexadecimal."""
        return os.fsdecode(self.arrays["names"][self.rows[index]])


class LsunImages(EncodedImages):
    """Concatenated images of one or more databases; the label is the index of the database in the list.

    Args:
        parts: images of each database; a single database gives no labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(self, parts: Sequence[DatabaseSubset], **options: Any) -> None:
        counts = [len(part.rows) for part in parts]
        labels = np.repeat(np.arange(len(parts)), counts)
        super().__init__(labels, classes=len(parts) if len(parts) > 1 else 0, **options)
        self.parts, self.starts = list(parts), np.cumsum([0, *counts])
        self.label_names = [part.file.file.parent.name.removesuffix(SUFFIX) for part in parts] if self.classes else ()

    def fetch(self, index: int) -> Bytes:
        part, place = self._locate(index)
        return part.file.read(*part.arrays["places"][part.rows[place]].tolist())

    def name(self, index: int) -> str:
        part, place = self._locate(index)
        return f"{part.file.file.parent} key {part.name(place)}"

    def relative_name(self, index: int) -> str:
        part, place = self._locate(index)
        return f"{part.file.file.parent.name} key {part.name(place)}"

    def fingerprint(self) -> str:
        """Return a hash of all keys and rows; hashing millions of names one by one would take a minute."""
        digest = hashlib.sha256(self.settings_text().encode())
        for part in self.parts:
            names = part.arrays["names"]
            for some in np.array_split(names, 64):
                digest.update(bytes.fromhex(some.tobytes().replace(b"\0", b"").decode()))  # the keys without padding
            digest.update(np.cumsum(np.char.str_len(names) // 2, dtype=np.int64).data)
            digest.update(np.ascontiguousarray(part.rows).data)
        return digest.hexdigest()

    def _locate(self, index: int) -> tuple[DatabaseSubset, int]:
        """Return the database of an image and its index there."""
        which = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.parts[which], index - int(self.starts[which])


class Lsun(EncodedDataModule):
    """Square images from LSUN's databases, `root`/CATEGORY_train_lmdb/data.mdb, floats in [-1, 1].

    Validation and test use CATEGORY_val_lmdb, because LSUN's test images have no labels. If a category has none, a
    fraction of its training images is held out instead, by a hash of their keys. Images are sorted by key.

    Args:
        root: folder of the category folders, or one such folder itself, or any folder with a data.mdb.
        size: side length in pixels; the short side is resized to it and the center cropped.
        categories: categories to use, such as [bedroom, church_outdoor]. Several are labeled in this order, a single
            one gives no labels; None uses all that are present, sorted by name.
        held_out: fraction of the images held out for validation, in (0, 1), if there are no validation databases.
        **options: arguments of EncodedDataModule.
    """

    def __init__(
        self, root: str, size: int, *, categories: list[str] | None = None, held_out: float = 0.01, **options: Any
    ) -> None:
        super().__init__(size=size, **options)
        check_held_out(held_out)
        if categories is not None and (not categories or len(set(categories)) < len(categories)):
            raise ValueError(f"categories must be distinct names, got {categories}: omit it to use all")
        self.root = Path(root).expanduser()
        self.categories, self.held_out = categories, held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """List the keys; raise if a database is missing, damaged or empty."""
        pairs = [_train_and_val(folder, self.held_out) for folder in self._folders()]
        train = LsunImages([part for part, _ in pairs], **self.options(train=True))
        val = LsunImages([part for _, part in pairs], **self.options(train=False))
        return {"train": train, "val": val, "test": val}

    def _folders(self) -> list[Path]:
        """Return the folders of the training databases, in the order of their labels."""
        if (self.root / "data.mdb").is_file():
            root = Path(os.path.abspath(self.root))  # its name matters, even if root is "."
            category = root.name.removesuffix(SUFFIX)
            if self.categories not in (None, [category]):
                raise ValueError(
                    f"categories must be left out for the single database {self.root}, got {self.categories}: "
                    "omit it, or set root to the parent folder"
                )
            return [root]
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of LMDBs, got {self.root}: no such folder; check the path")
        folders = [file.parent.name for file in self.root.glob(f"*{SUFFIX}/data.mdb")]
        present = sorted(name.removesuffix(SUFFIX) for name in folders if not is_hidden(name))
        if not present:
            raise ValueError(
                f"root must contain CATEGORY{SUFFIX}/data.mdb, got {self.root} without any: unpack LSUN's zip files"
            )
        categories = present if self.categories is None else self.categories
        if missing := [name for name in categories if name not in present]:
            raise ValueError(
                f"categories must be among those of {self.root} ({', '.join(present)}), got {missing[0]!r}: "
                "choose from these, or unpack its zip file there"
            )
        return [self.root / f"{name}{SUFFIX}" for name in categories]


def _train_and_val(folder: Path, held_out: float) -> tuple[DatabaseSubset, DatabaseSubset]:
    """Return the training and the validation images of a category."""
    images = _all_images(folder)
    val = folder.with_name(folder.name.removesuffix(SUFFIX) + "_val_lmdb")
    if folder.name.endswith(SUFFIX) and is_present(val / "data.mdb"):
        return images, _all_images(val)
    remedy = "lower held_out or add a database for validation"
    val_mask = split_by_hash(images.arrays["shares"], held_out, images.file.file, remedy)
    return images._replace(rows=np.flatnonzero(~val_mask)), images._replace(rows=np.flatnonzero(val_mask))


def _all_images(folder: Path) -> DatabaseSubset:
    """Return all images of a database; raise ValueError if it is empty."""
    file = folder / "data.mdb"
    arrays = database_index(file)
    if not len(arrays["names"]):
        raise ValueError(f"{file} must hold images, got none: copy or extract it again")
    return DatabaseSubset(FileBytes(file), arrays, np.arange(len(arrays["names"])))
