"""LSUN, and whatever else lies in LMDB files of its layout."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out, hash_fractions, is_held_out
from datamodules.images.decoding import Crop
from datamodules.images.encoded import Bytes, EncodedImages
from datamodules.images.encoded_module import EncodedDataModule
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint, memmaps_to_paths, paths_to_memmaps
from datamodules.storage.databases import Database, open_database

Rows = npt.NDArray[np.int64]
SUFFIX = "_train_lmdb"


class Part:
    """Some images of one database.

    Args:
        data: the database.
        keys: of all its images in their order, one after the other, uint8 (bytes,).
        ends: where each key ends in `keys`, int64 (n,).
        rows: places of these images in that order; all if None.
    """

    def __init__(self, data: Database, keys: Bytes, ends: Rows, rows: Rows | None = None) -> None:
        self.data, self.keys, self.ends = data, keys, ends
        self.rows = np.arange(len(ends)) if rows is None else rows

    def __len__(self) -> int:
        """Number of these images."""
        return len(self.rows)

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is spawned: files' names instead of the arrays that are mapped from them."""
        return memmaps_to_paths(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files anew."""
        self.__dict__.update(paths_to_memmaps(state))

    def key(self, place: int) -> bytes:
        """Key of an image, by its place in `rows`."""
        row = int(self.rows[place])
        return self.keys[int(self.ends[row - 1]) if row else 0 : int(self.ends[row])].tobytes()

    def of(self, rows: Rows) -> "Part":
        """Other rows of the same database."""
        return Part(self.data, self.keys, self.ends, rows)


class LsunImages(EncodedImages):
    """Images of one or more databases, one after the other; the label is the place of the database in the list.

    Args:
        parts: which images of which databases; a single one gives no labels.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
    """

    def __init__(self, parts: Sequence[Part], **options: Any) -> None:
        labels = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        super().__init__(labels, classes=len(parts) if len(parts) > 1 else 0, **options)
        self.parts = list(parts)
        self.begins = np.cumsum([0, *map(len, parts)])

    def fetch(self, index: int) -> Bytes:
        """The stored value."""
        part, key = self._place(index)
        return part.data.value(key)

    def name(self, index: int) -> str:
        """Its folder, and its key as hexadecimal digits."""
        part, key = self._place(index)
        return f"{part.data.file.parent} key {key.hex()}"

    def relative_name(self, index: int) -> str:
        """The folder's own name and the key."""
        part, key = self._place(index)
        return f"{part.data.file.parent.name} key {key.hex()}"

    def fingerprint(self) -> str:
        """Hash of all keys and rows; millions of names one by one would take a minute."""
        digest = hashlib.sha256(self.kind().encode())
        for part in self.parts:
            for array in (part.keys, part.ends, part.rows):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def _place(self, index: int) -> tuple[Part, bytes]:
        which = int(np.searchsorted(self.begins, index, side="right")) - 1
        return self.parts[which], self.parts[which].key(index - int(self.begins[which]))


class Lsun(EncodedDataModule):
    """Square images from LSUN's databases, `root`/CATEGORY_train_lmdb/data.mdb, float in [-1, 1].

    Validated and tested on CATEGORY_val_lmdb, as LSUN's test images have no labels. Where a category has none, a share
    of its training images is held out instead, by a hash of their keys. Images count in the order of their keys.

    Args:
        root: the folder of the categories' folders, or one such folder itself, or any folder with a data.mdb.
        size: pixels of a side; the short side is resized to it, the centre cut out.
        categories: which, such as [bedroom, church_outdoor]. Several are labelled in this order, a single one gives no
            labels; None takes all that are there, by their names.
        channels: 3 for colour, 1 for grey.
        crop: "short_side" resizes by antialiased bicubic filtering; "adm", as ADM and DiT prepare ImageNet, halves the
            sides by a box filter before that, while the short one is at least twice the size.
        reduced_decoding: decode JPEG files of at least twice the size at a half, quarter or eighth of theirs: quicker,
            and not the same pixels.
        held_out: share of the images kept from training, in (0, 1), where there are no validation databases.
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
        categories: list[str] | None = None,
        channels: Literal[1, 3] = 3,
        crop: Crop = "short_side",
        reduced_decoding: bool = False,
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
        if categories is not None and (not categories or len(set(categories)) < len(categories)):
            raise ValueError(f"categories must be different names, got {categories}: leave it out to take all")
        self.root = Path(root).expanduser()
        self.categories, self.held_out = categories, held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """List the keys; raises where a database is missing, damaged or empty, or lmdb is not installed."""
        pairs = [_parts(folder, self.held_out) for folder in self._folders()]
        train = LsunImages([part for part, _ in pairs], **self.options(train=True))
        val = LsunImages([part for _, part in pairs], **self.options(train=False))
        return {"train": train, "val": val, "test": val}

    def _folders(self) -> list[Path]:
        """The folders of the training databases, in the order of their labels."""
        if (self.root / "data.mdb").is_file():
            root = Path(os.path.abspath(self.root))  # its own name counts, also if root is "."
            category = root.name.removesuffix(SUFFIX)
            if self.categories not in (None, [category]):
                raise ValueError(
                    f"categories must be left out for the single database {self.root}, got {self.categories}: "
                    "leave it out, or set root to the folder above"
                )
            return [root]
        if not self.root.is_dir():
            raise FileNotFoundError(f"root must be a folder of LMDBs, got {self.root}: no such folder; check the path")
        there = sorted(f.parent.name.removesuffix(SUFFIX) for f in self.root.glob(f"*{SUFFIX}/data.mdb"))
        if not there:
            raise ValueError(
                f"root must contain CATEGORY{SUFFIX}/data.mdb, got {self.root} without any: unpack LSUN's zip files"
            )
        categories = there if self.categories is None else self.categories
        if missing := [name for name in categories if name not in there]:
            raise ValueError(
                f"categories must be among those of {self.root} ({', '.join(there)}), got {missing[0]!r}: "
                "choose of these, or unpack its zip file there"
            )
        return [self.root / f"{name}{SUFFIX}" for name in categories]


def _parts(folder: Path, fraction: float) -> tuple[Part, Part]:
    """Images to train and to validate on."""
    val = folder.with_name(folder.name.removesuffix(SUFFIX) + "_val_lmdb")
    if folder.name.endswith(SUFFIX) and (val / "data.mdb").is_file():
        return _whole(folder), _whole(val)
    part = _whole(folder)

    def shares() -> Arrays:
        return {"shares": hash_fractions(part.key(row).hex() for row in range(len(part)))}

    kept = is_held_out(cached_arrays("lmdb-shares", file_fingerprint(part.data.file), shares)["shares"], fraction)
    if kept.all():
        raise ValueError(
            f"root must leave an image to train on, got {part.data.file} with {len(part)}, all held out by "
            f"held_out={fraction}: lower held_out or add a database for validation"
        )
    return part.of(np.flatnonzero(~kept)), part.of(np.flatnonzero(kept))


def _whole(folder: Path) -> Part:
    """All images of a database; raises ValueError for one without any."""
    data = open_database(folder / "data.mdb")
    index = data.index()
    if not len(index["ends"]):
        raise ValueError(f"{data.file} must hold images, got none: copy or extract it again")
    return Part(data, index["keys"], index["ends"])
