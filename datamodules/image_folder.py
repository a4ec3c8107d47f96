"""Data module for a folder of images: flat or in class folders, with or without its own validation split."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.base import ImageDataset, Split
from datamodules.hash_split import check_held_out, split_by_hash
from datamodules.images.encoded import EncodedDataModule
from datamodules.images.image_files import ImageFiles
from datamodules.storage.file_lists import SUFFIXES as SUFFIXES
from datamodules.storage.file_lists import find_images
from datamodules.storage.file_lists import list_images as list_images


class ImageFolder(EncodedDataModule):
    """Square images from a folder, floats in [-1, 1], labeled by the folders directly below it, if any.

    If `root` contains the folders `train` and `val` or `test`, these are the splits (a single one of `val` and `test`
    serves as both). Otherwise a fraction of the files is held out by a hash of their paths, as val and test.

    Args:
        root: folder of the images.
        size: side length in pixels; the short side is resized to it and the center cropped.
        val_root: another folder for validation and testing; its classes must occur in training.
        held_out: fraction of the files held out for validation, in (0, 1), if there is no other validation data.
        **options: arguments of EncodedDataModule.
    """

    def __init__(
        self, root: str, size: int, *, val_root: str | None = None, held_out: float = 0.05, **options: Any
    ) -> None:
        super().__init__(size=size, **options)
        check_held_out(held_out, "set val_root to train on every file")
        self.root = Path(root).expanduser()
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.held_out = held_out

    def build(self) -> Mapping[Split, ImageDataset]:
        """List the files; raise FileNotFoundError or ValueError if there is nothing to train on."""
        roots = self._roots()
        listings = {root: find_images(root, "val_root" if root == self.val_root else "root") for root in roots.values()}
        classes = listings[roots["train"]].class_names(roots["train"])
        for root in {roots["val"], roots["test"]}:
            check_same_classes(listings[root].class_names(root), classes, root)
        files = {split: listings[root] for split, root in roots.items()}
        if roots["val"] == roots["train"] and self.val_root is None:
            held_out = split_by_hash(files["train"].shares, self.held_out, self.root)
            files["train"], files["val"] = files["train"].select(~held_out), files["train"].select(held_out)
        data: dict[Split, ImageDataset] = {}
        for split, root in roots.items():
            options = self.options(train=split == "train")
            labels = files[split].labels(classes)
            data[split] = ImageFiles(root, files[split].names, class_names=classes, labels=labels, **options)
        # One object if val and test are the same files, so that an unreadable one is reported once.
        return data | {"test": data["val"]} if roots["val"] == roots["test"] else data

    def _roots(self) -> dict[Split, Path]:
        """Return the folder of each split."""
        train, val, test = (self.root / name for name in ("train", "val", "test"))
        has_splits = train.is_dir() and (val.is_dir() or test.is_dir())
        if self.val_root is not None:
            if has_splits:
                raise ValueError(
                    f"val_root must be left out if root has its own splits, got {self.val_root} for {self.root}: omit "
                    f"it, or set root to {train}"
                )
            return {"train": self.root, "val": self.val_root, "test": self.val_root}
        if not has_splits:
            misnamed = next((name for name in ("valid", "validation", "dev") if (self.root / name).is_dir()), None)
            if train.is_dir() and misnamed:
                raise ValueError(
                    f"root must name its validation folder val, got {self.root} with train and {misnamed}: "
                    f"rename {misnamed} to val, or set root and val_root to the two folders"
                )
            return {"train": self.root, "val": self.root, "test": self.root}
        return {"train": train, "val": val if val.is_dir() else test, "test": test if test.is_dir() else val}


def check_same_classes(val_classes: Sequence[str], classes: Sequence[str], root: Path) -> None:
    """Raise ValueError if the evaluation folder at `root` has classes that training does not have, or none at all."""
    if unknown := sorted(set(val_classes) - set(classes)):
        raise ValueError(f"classes of {root} must occur in training, got {unknown[0]!r}: remove or rename its folder")
    if classes and not val_classes:
        raise ValueError(
            f"images of {root} must lie in class folders as in training, got none: move them into {classes[0]}, ..."
        )
