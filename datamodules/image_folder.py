"""Any folder of images as training data: flat or in class folders, with or without its own validation part."""

import hashlib
import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from datamodules.base import ImageDataModule, ImageDataset, Split, at_least
from datamodules.encoded import check_encoded
from datamodules.image_files import ImageFiles

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})


def list_images(root: Path) -> list[str]:
    """Paths of the images below `root`, relative to it, with forward slashes, sorted; hidden ones are left out."""
    return sorted(path.relative_to(root).as_posix() for path in _walk(root))


def _walk(root: Path) -> Iterator[Path]:
    seen = set()  # links are followed, and may lead in a circle
    for folder, below, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below[:] = [] if real in seen else [name for name in below if not name.startswith(".")]
        files = [] if real in seen else files
        seen.add(real)
        for name in files:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                yield Path(folder, name)


def find_images(root: Path, argument: str) -> list[str]:
    """`list_images`, refusing a folder that is missing or has none; `argument` is who named it."""
    if not root.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder of images, got {root}: no such folder; check the path")
    if names := list_images(root):
        return names
    suffixes = " ".join(sorted(SUFFIXES))
    raise ValueError(f"{argument} must contain images, got {root} without any ({suffixes}): check the path")


def class_names(names: Sequence[str], root: Path) -> list[str]:
    """The folders directly below the root that hold images, sorted; none if all images lie in the root itself."""
    flat = [name for name in names if "/" not in name]
    if flat and len(flat) < len(names):
        raise ValueError(
            f"images must lie either all in the root or all in class folders, got both in {root} "
            f"(such as {flat[0]}): move them into a class folder"
        )
    return sorted({name.split("/", 1)[0] for name in names if "/" in name})


def held_out_share(name: str) -> float:
    """A number in [0, 1) from the relative path alone, uniform over paths, the same on every machine."""
    text = unicodedata.normalize("NFC", name).encode("utf-8", "surrogateescape")  # file systems differ in their accents
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") / 2**64


def part(names: Sequence[str], fraction: float) -> tuple[list[str], list[str]]:
    """Training and held-out names. A new file moves no other, and at least one name is held out."""
    shares = {name: held_out_share(name) for name in names}
    bound = max(fraction, min(shares.values()))
    held_out = [name for name in names if shares[name] <= bound]
    return [name for name in names if shares[name] > bound], held_out


class ImageFolder(ImageDataModule):
    """Square images from a folder, float in [-1, 1], labelled by the folders directly below it if there are any.

    With `train` and `val` or `test` folders below `root`, these are the splits (one of the latter serves as both).
    Otherwise a share of the files is held out by a hash of their paths, and serves as val and test.

    Args:
        root: the folder.
        size: pixels of a side; the short side is resized to it, the centre cut out.
        channels: 3 for colour, 1 for grey.
        val_root: another folder to validate and test on; it must not hold other classes.
        held_out: share of the files kept from training, in (0, 1), where nothing else says which.
        horizontal_flip: mirror half of the training images.
        on_corrupt: what to do with an unreadable file: "skip" warns once, and takes the next file in training, none in
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
        val_root: str | None = None,
        held_out: float = 0.05,
        horizontal_flip: bool = True,
        on_corrupt: Literal["skip", "raise"] = "skip",
        batch_size: int = 128,
        eval_batch_size: int | None = None,
        workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, eval_batch_size=eval_batch_size, workers=workers, seed=seed)
        at_least("size", size, 1, "set the pixels of a side")
        check_encoded(channels=channels, on_corrupt=on_corrupt)
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must lie in (0, 1), got {held_out}: to train on every file, set val_root")
        self.root, self.size, self.channels = Path(root).expanduser(), size, channels
        self.val_root = None if val_root is None else Path(val_root).expanduser()
        self.held_out, self.horizontal_flip, self.on_corrupt = held_out, horizontal_flip, on_corrupt

    def build(self) -> Mapping[Split, ImageDataset]:
        """List the files; raises FileNotFoundError or ValueError where there is nothing to train on."""
        roots = self._roots()
        names = {root: find_images(root, "val_root" if root == self.val_root else "root") for root in roots.values()}
        classes = class_names(names[roots["train"]], roots["train"])
        for root in {roots["val"], roots["test"]}:
            require_known(class_names(names[root], root), classes, root)
        files = {split: names[root] for split, root in roots.items()}
        if roots["val"] == roots["train"] and self.val_root is None:
            files["train"], files["val"] = part(files["train"], self.held_out)
            files["test"] = files["val"]
        if not files["train"]:
            count = len(files["val"])
            raise ValueError(
                f"root must leave an image to train on, got {self.root} with {count}, all held out by "
                f"held_out={self.held_out}: add images, lower held_out or set val_root"
            )
        data = {split: self._split(split, roots[split], files[split], classes) for split in roots}
        # One object where val and test are the same files, so that an unreadable one is reported once.
        return data | {"test": data["val"]} if roots["val"] == roots["test"] else data

    def _roots(self) -> dict[Split, Path]:
        """The folder of each split."""
        train, val, test = (self.root / name for name in ("train", "val", "test"))
        own = train.is_dir() and (val.is_dir() or test.is_dir())
        if self.val_root is not None:
            if own:
                raise ValueError(
                    f"val_root must be left out, as {self.root} has splits of its own: or set root: {train}"
                )
            return {"train": self.root, "val": self.val_root, "test": self.val_root}
        if not own:
            twin = next((name for name in ("valid", "validation", "dev") if (self.root / name).is_dir()), None)
            if train.is_dir() and twin:
                raise ValueError(
                    f"root must name its validation folder val, got {self.root} with train and {twin}: "
                    f"rename {twin} to val, or set root and val_root to the two"
                )
            return {"train": self.root, "val": self.root, "test": self.root}
        return {"train": train, "val": val if val.is_dir() else test, "test": test if test.is_dir() else val}

    def _split(self, split: Split, root: Path, names: Sequence[str], classes: Sequence[str]) -> ImageFiles:
        train = split == "train"
        return ImageFiles(
            root,
            names,
            class_names=classes,
            size=self.size,
            channels=self.channels,
            train=train,
            flip=train and self.horizontal_flip,
            on_corrupt=self.on_corrupt,
        )


def require_known(found: Sequence[str], classes: Sequence[str], root: Path) -> None:
    """Refuse evaluation classes that training does not have: their labels would mean nothing."""
    if unknown := sorted(set(found) - set(classes)):
        raise ValueError(f"classes of {root} must occur in training, got {unknown[0]!r}: remove it or rename it")
    if classes and not found:
        raise ValueError(
            f"images of {root} must lie in class folders as in training, got none: sort them into {classes[0]}, ..."
        )
