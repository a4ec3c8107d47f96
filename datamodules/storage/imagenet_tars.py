"""Images in tar files and in tar files nested in them, read in place: ImageNet as it is downloaded."""

import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from datamodules.hidden_names import RULE, is_hidden
from datamodules.images.encoded import Bytes
from datamodules.images.image_files import ImageFiles
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.regular_files import open_regular
from datamodules.storage.file_lists import SUFFIXES, FileList, class_folder_arrays
from datamodules.storage.members import FileBytes

Places = npt.NDArray[np.int64]  # offset and size of each image, (n, 2)
CHUNK = 1 << 20  # bytes read at a time
BLOCK = 512  # bytes of a block of a tar file


class TarImages(ImageFiles):
    """Images in one tar file, read and decoded on access.

    Args:
        file: the tar file.
        names: names of the images, as file system bytes; members of a nested n01440764.tar are named n01440764/...
        places: offset and size of each image.
        **options: arguments of ImageFiles.
    """

    def __init__(self, file: Path, names: npt.NDArray[np.bytes_], *, places: Places, **options: Any) -> None:
        super().__init__(file, names, **options)
        self.bytes, self.places = FileBytes(file), places

    def fetch(self, index: int) -> Bytes:
        return self.bytes.read(*self.places[index].tolist())


def tar_index(file: Path) -> tuple[FileList, Places]:
    """Return the images in a tar file, sorted by name, and their places, from its headers or from the cache.

    Args:
        file: the tar file.

    Returns:
        The list of the images, and offset and size of each, int64 (n, 2).

    Raises:
        ValueError: the file is not a tar file, is damaged or truncated, or holds no images.
    """
    fingerprint = {"file": file_fingerprint(file), "hidden": RULE}
    arrays = cached_arrays("tar", fingerprint, lambda: _build_index(file))
    return FileList(arrays["names"], arrays["folders"], arrays["tops"]), arrays["places"]


def _build_index(file: Path) -> Arrays:
    with open_regular(file, buffering=0) as stream:  # unbuffered: images between the headers need not be read
        images = sorted(_images(stream, 0, file.stat().st_size, b""))
    if not images:
        raise ValueError(f"{file} must hold images or tar files of them, got none: download or write it again")
    places = np.array([place for _, *place in images], dtype=np.int64)
    return class_folder_arrays([name for name, *_ in images]) | {"places": places}


def _images(stream: Any, begin: int, end: int, folder: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and size of every image between two offsets of a file, including nested tar files."""
    for member in _members(stream, begin, end):
        path = os.fsencode(member.name.removeprefix("./"))
        name, suffix = os.path.splitext(path)
        if is_hidden(member.name):
            continue
        if suffix.lower() == b".tar" and not folder:
            yield from _images(stream, member.offset_data, member.offset_data + member.size, name + b"/")
        elif os.fsdecode(suffix).lower() in SUFFIXES:
            yield folder + path, member.offset_data, member.size


def _members(stream: BinaryIO, begin: int, end: int) -> Sequence[tarfile.TarInfo]:
    """Return the regular files of the tar archive between two offsets."""
    try:
        stream.seek(begin)
        archive = tarfile.TarFile(fileobj=stream)
        members = archive.getmembers()
        # tarfile takes an unreadable header for the end of the archive; the true end is a block of zeros, and there are
        # only zeros after it.
        stream.seek(archive.offset)
        if archive.offset + BLOCK > end:
            raise ValueError("it ends too early")
        while stream.tell() < end:
            if stream.read(min(CHUNK, end - stream.tell())).strip(b"\0"):
                raise ValueError(f"neither a file nor the end of the archive at byte {archive.offset}")
    except (tarfile.TarError, ValueError, EOFError) as error:
        where = f" at byte {begin}" if begin else ""
        raise ValueError(
            f"{stream.name} cannot be read as a tar file{where}: {error}; it is damaged or truncated: copy it again"
        ) from error
    return [member for member in members if member.isreg()]
