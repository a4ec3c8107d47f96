"""Lists of the images below a folder, cached as arrays and rebuilt when a folder changes; for millions of files."""

import os
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.hash_split import hash_fractions
from datamodules.hidden_names import RULE, is_hidden
from datamodules.index_cache import Arrays, cached_arrays

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
FEW = 5000  # files: up to this number, listing is faster than reading the cache
MTIME_RESOLUTION = 2 * 10**9  # nanoseconds within which file systems may give two changes the same time
ROOT = -1  # class folder index of files in the root itself


class FileList(NamedTuple):
    """Image files below a folder, sorted by their paths.

    Attributes:
        names: paths relative to the root, with forward slashes, as file system bytes (n,).
        folders: index into `tops` of the folder directly below the root that contains each file, `ROOT` if none (n,).
        tops: sorted names of these folders, as bytes.
        shares: `hash_fraction` of each path, in [0, 1) (n,); empty if not needed.
    """

    names: npt.NDArray[np.bytes_]
    folders: npt.NDArray[np.int32]
    tops: npt.NDArray[np.bytes_]
    shares: npt.NDArray[np.float64] = np.empty(0)

    def paths(self) -> list[str]:
        """Return the paths as strings, relative to the root."""
        return [os.fsdecode(name) for name in self.names]

    def class_names(self, root: Path) -> list[str]:
        """Return the sorted folders directly below the root that contain images; empty if all lie in the root."""
        flat = self.folders == ROOT
        if flat.any() and not flat.all():
            raise ValueError(
                f"images must lie either all in the root or all in class folders, got both in {root} "
                f"(such as {os.fsdecode(self.names[flat.argmax()])}): move them into a class folder"
            )
        return [os.fsdecode(top) for top in self.tops]

    def labels(self, classes: list[str]) -> npt.NDArray[np.int64]:
        """Return the index in `classes` of each file's class folder; 0 without class folders."""
        if not len(self.tops):
            return np.zeros(len(self.names), dtype=np.int64)
        number = {name: label for label, name in enumerate(classes)}
        return np.array([number[os.fsdecode(top)] for top in self.tops], dtype=np.int64)[self.folders]

    def select(self, rows: npt.NDArray[np.bool_]) -> "FileList":
        """Return the files for which `rows` is true."""
        return FileList(self.names[rows], self.folders[rows], self.tops, self.shares[rows])


def list_images(root: Path) -> list[str]:
    """Return the sorted paths of the images below `root`, relative to it, with forward slashes; skip hidden ones."""
    return file_list(root).paths()


def find_images(root: Path, argument: str) -> FileList:
    """Return `file_list(root)`; raise if the folder is missing or has no images. `argument` is the argument to name."""
    if not root.is_dir():
        raise FileNotFoundError(f"{argument} must be a folder of images, got {root}: no such folder; check the path")
    if len((files := file_list(root)).names):
        return files
    suffixes = " ".join(sorted(SUFFIXES))
    raise ValueError(f"{argument} must contain images, got {root} without any ({suffixes}): check the path")


def file_list(root: Path) -> FileList:
    """Return the images below a folder, without hidden files and folders, sorted by path; links are followed.

    A list of more than a few thousand files is cached. It is rebuilt when the modification time of any of the folders
    changes, which happens when a file in it is added, removed or renamed. Raise ValueError if one is not readable.
    """
    place = os.path.realpath(root)
    folders, count = [], 0
    for folder in walk(place):
        folders.append(folder)
        count += len(folder[2])
        if count > FEW:
            fingerprint = {"root": place, "suffixes": sorted(SUFFIXES), "form": 1, "hidden": RULE}
            arrays = cached_arrays(
                "images", fingerprint, lambda: _arrays(walk(place)), is_valid=lambda cached: _unchanged(place, cached)
            )
            break
    else:
        arrays = _arrays(folders)
    return FileList(*(arrays[name] for name in FileList._fields))


Folder = tuple[str, int, list[str]]  # path relative to the root, modification time, names of images


def walk(root: str, suffixes: Collection[str] = SUFFIXES) -> Iterator[Folder]:
    """Yield the root and the folders below it that are not hidden, each once, because links may form a cycle."""

    def refuse(error: OSError) -> None:
        raise ValueError(f"cannot list {error.filename}: {error.strerror}; make it readable or remove it") from error

    begin = time.time_ns()
    seen = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))  # the first of several links counts
        images = [n for n in files if n[n.rfind(".") :].lower() in suffixes and not is_hidden(n)]
        # Another change could get the same modification time as this one if it is recent: never treat it as unchanged.
        settled = begin - status.st_mtime_ns > MTIME_RESOLUTION
        yield folder[len(root) :].lstrip("/"), status.st_mtime_ns if settled else -1, images


def _arrays(folders: Iterable[Folder]) -> Arrays:
    """Build the arrays of a FileList, and those of the folders with their modification times."""
    places, times, names = [], [], []
    for below, mtime, images in folders:
        places.append(os.fsencode(below))
        times.append(mtime)
        names.extend([os.fsencode(os.path.join(below, name)) for name in images])
    names.sort()
    return class_folder_arrays(names) | {
        "shares": hash_fractions(map(os.fsdecode, names)),
        "places": np.array(places, dtype=np.bytes_),
        "times": np.array(times, dtype=np.int64),
    }


def class_folder_arrays(names: list[bytes]) -> Arrays:
    """Build the arrays `names`, `folders` and `tops` of a FileList from sorted names."""
    heads = [name[: name.find(b"/")] if b"/" in name else b"" for name in names]
    tops = sorted(set(heads) - {b""})
    number = {top: place for place, top in enumerate(tops)} | {b"": ROOT}
    return {
        "names": np.array(names, dtype=np.bytes_),
        "folders": np.array([number[head] for head in heads], dtype=np.int32),
        "tops": np.array(tops, dtype=np.bytes_),
    }


def _unchanged(root: str, cached: Arrays) -> bool:
    """Whether all folders of a list still have their modification times."""
    try:
        times = [os.stat(os.path.join(root, os.fsdecode(place))).st_mtime_ns for place in cached["places"]]
    except OSError:
        return False
    return times == cached["times"].tolist()
