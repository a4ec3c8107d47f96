"""The images below a folder, millions of them: listed once, kept as arrays, and listed again where a folder changed."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.hash_split import hash_fraction
from datamodules.index_cache import Arrays, cached_arrays

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FEW = 5000  # files: up to here listing is quicker than looking into a cache
SETTLED = 2 * 10**9  # nanoseconds: file systems may give changes within this time the same time stamp
ROOT = -1  # in place of a class, for files in the root itself


class FileList(NamedTuple):
    """Image files below a folder, sorted by their paths.

    Attributes:
        names: paths relative to the root, with forward slashes, as the file system's bytes (n,).
        folders: for each the place in `tops` of the folder directly below the root that it lies in, `ROOT` if none.
        tops: the names of these folders, sorted, as bytes.
        shares: a number in [0, 1) for each, from its path alone: `hash_fraction`; empty where no one asks for them.
    """

    names: npt.NDArray[np.bytes_]
    folders: npt.NDArray[np.int32]
    tops: npt.NDArray[np.bytes_]
    shares: npt.NDArray[np.float64] = np.empty(0)

    def paths(self) -> list[str]:
        """The paths as text, relative to the root."""
        return [os.fsdecode(name) for name in self.names]

    def class_names(self, root: Path) -> list[str]:
        """The folders directly below the root that hold images, sorted; none if all images lie in the root itself."""
        flat = self.folders == ROOT
        if flat.any() and not flat.all():
            raise ValueError(
                f"images must lie either all in the root or all in class folders, got both in {root} "
                f"(such as {os.fsdecode(self.names[flat.argmax()])}): move them into a class folder"
            )
        return [os.fsdecode(top) for top in self.tops]

    def labels(self, classes: list[str]) -> npt.NDArray[np.int64]:
        """The place of each file's class folder in `classes`, which holds all of them; 0 without class folders."""
        if not len(self.tops):
            return np.zeros(len(self.names), dtype=np.int64)
        number = {name: label for label, name in enumerate(classes)}
        return np.array([number[os.fsdecode(top)] for top in self.tops], dtype=np.int64)[self.folders]

    def of(self, rows: npt.NDArray[np.bool_]) -> "FileList":
        """Those files for which `rows` is true."""
        return FileList(self.names[rows], self.folders[rows], self.tops, self.shares[rows])


def list_images(root: Path) -> list[str]:
    """Paths of the images below `root`, relative to it, with forward slashes, sorted; hidden ones are left out."""
    return file_list(root).paths()


def find_images(root: Path, argument: str) -> FileList:
    """`file_list`, refusing a folder that is missing or has no images; `argument` is who named it."""
    if not root.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder of images, got {root}: no such folder; check the path")
    if len((found := file_list(root)).names):
        return found
    suffixes = " ".join(sorted(SUFFIXES))
    raise ValueError(f"{argument} must contain images, got {root} without any ({suffixes}): check the path")


def file_list(root: Path) -> FileList:
    """The images below a folder; hidden files and folders are left out, links followed.

    Of more than a few thousand files the list is kept in the cache. It is made again when the time of any of the
    folders changed, which is what adding, removing or renaming a file in it does.

    Raises:
        ValueError: a folder may not be read.
    """
    place = os.path.realpath(root)
    found, count = [], 0
    for folder in _walk(place):
        found.append(folder)
        count += len(folder[2])
        if count > FEW:
            identity = {"root": place, "suffixes": sorted(SUFFIXES), "form": 1}
            arrays = cached_arrays(
                "images", identity, lambda: _arrays(_walk(place)), holds=lambda kept: _unchanged(place, kept)
            )
            break
    else:
        arrays = _arrays(found)
    return FileList(*(arrays[name] for name in FileList._fields))


Folder = tuple[str, int, list[str]]  # path relative to the root, time of the last change, names of images


def _walk(root: str) -> Iterator[Folder]:
    """The folders from the root on, each once: links may lead in a circle."""
    seen = set()
    waiting = [""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below)
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            images, folders = _entries(folder)
        except OSError as error:
            raise ValueError(f"cannot list {folder}: {error.strerror}; allow to read it, or remove it") from error
        waiting.extend(os.path.join(below, name) for name in sorted(folders, reverse=True))
        # A change within the same tick of the clock as this one could not be told from it.
        settled = time.time_ns() - status.st_mtime_ns > SETTLED
        yield below, status.st_mtime_ns if settled else -1, images


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """The names of the images and of the folders in a folder."""
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name.startswith("."):
                continue
            try:
                if entry.is_dir():
                    folders.append(name)
                    continue
            except OSError:  # a link to itself: a file that cannot be read
                pass
            if name[name.rfind(".") :].lower() in SUFFIXES:
                images.append(name)
    return images, folders


def _arrays(found: Iterable[Folder]) -> Arrays:
    """A FileList's arrays, and the folders with their times."""
    places, times, names = [], [], []
    for below, when, images in found:
        places.append(os.fsencode(below))
        times.append(when)
        prefix = f"{below}/" if below else ""
        names.extend([os.fsencode(prefix + name) for name in images])
    names.sort()
    return classified(names) | {
        "shares": np.array([hash_fraction(os.fsdecode(name)) for name in names], dtype=np.float64),
        "places": np.array(places, dtype=np.bytes_),
        "times": np.array(times, dtype=np.int64),
    }


def classified(names: list[bytes]) -> Arrays:
    """The names, folders and tops of a FileList of sorted names."""
    heads = [name[: name.find(b"/")] if b"/" in name else b"" for name in names]
    tops = sorted(set(heads) - {b""})
    number = {top: place for place, top in enumerate(tops)} | {b"": ROOT}
    return {
        "names": np.array(names, dtype=np.bytes_),
        "folders": np.array([number[head] for head in heads], dtype=np.int32),
        "tops": np.array(tops, dtype=np.bytes_),
    }


def _unchanged(root: str, kept: Arrays) -> bool:
    """Whether all folders of a list are as they were."""
    try:
        times = [os.stat(os.path.join(root, os.fsdecode(place))).st_mtime_ns for place in kept["places"]]
    except OSError:
        return False
    return times == kept["times"].tolist()
