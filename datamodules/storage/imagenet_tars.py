"""Images in tar files and in tar files nested in them, read in place: ImageNet as it is downloaded."""

import hashlib
import os
import tarfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from datamodules.images.encoded import Bytes, EncodedImages
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint
from datamodules.storage.file_lists import SUFFIXES, FileList, class_folder_arrays

Places = npt.NDArray[np.int64]
CHUNK = 1 << 20  # bytes read at a time
BLOCK = 512  # bytes of a block of a tar file


class TarIndex(NamedTuple):
    """Positions of the images in a tar file; members of a nested n01440764.tar are named n01440764/...

    Attributes:
        files: the images, sorted by name.
        offsets: offset of the first byte of each image.
        sizes: number of bytes of each image.
    """

    files: FileList
    offsets: Places
    sizes: Places


class TarImages(EncodedImages):
    """Images in one tar file, read and decoded on access.

    Args:
        file: the tar file.
        index: positions of its images.
        labels: class of every image, int64 (n,).
        classes: number of classes, 0 without labels.
        **options: arguments of EncodedImages: size, channels, train, flip, on_corrupt and the optional ones.
    """

    def __init__(self, file: Path, index: TarIndex, *, labels: npt.ArrayLike, classes: int, **options: Any) -> None:
        super().__init__(labels, classes=classes, **options)
        self.file = file
        self.names, self.offsets, self.sizes = index.files.names, index.offsets, index.sizes
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the open file, for spawned workers."""
        return super().__getstate__() | {"_descriptor": None}

    def fetch(self, index: int) -> Bytes:
        data: Bytes = np.empty(self.sizes[index], dtype=np.uint8)
        read, offset = 0, int(self.offsets[index])
        while read < len(data):
            # preadv takes the offset, so forked processes and threads may share the descriptor.
            if not (more := os.preadv(self._open(), [data[read:].data], offset + read)):
                raise ValueError(f"the tar file ends {len(data) - read} bytes too early")
            read += more
        return data

    def name(self, index: int) -> str:
        return f"{self.file}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        """Return the name of the member, below the name of its nested tar file without suffix."""
        return os.fsdecode(self.names[index])

    def fingerprint(self) -> str:
        digest = hashlib.sha256(self.settings_text().encode())
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _open(self) -> int:
        """Return the file descriptor of this process."""
        if self._descriptor is None:
            self._descriptor = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def tar_index(file: Path) -> TarIndex:
    """Return the positions of the images in a tar file, from its headers or from the cache.

    Args:
        file: the tar file.

    Returns:
        The index of its images.

    Raises:
        ValueError: the file is not a tar file, is damaged or truncated, or holds no images.
    """
    arrays = cached_arrays("tar", file_fingerprint(file), lambda: _build_index(file))
    files = FileList(arrays["names"], arrays["folders"], arrays["tops"])
    return TarIndex(files, arrays["offsets"], arrays["sizes"])


def _build_index(file: Path) -> Arrays:
    """Build the arrays of an index."""
    with file.open("rb", buffering=0) as stream:  # unbuffered: images between the headers need not be read
        images = sorted(_images(stream, 0, file.stat().st_size, b""))
    if not images:
        raise ValueError(f"{file} must hold images or tar files of them, got none: download or write it again")
    return class_folder_arrays([name for name, _, _ in images]) | {
        "offsets": np.array([offset for _, offset, _ in images], dtype=np.int64),
        "sizes": np.array([size for _, _, size in images], dtype=np.int64),
    }


def _images(stream: Any, begin: int, end: int, folder: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, offset and size of every image between two offsets of a file, including nested tar files."""
    for member in _members(stream, begin, end):
        path = os.fsencode(member.name.removeprefix("./"))
        name, suffix = os.path.splitext(path)
        if os.path.basename(path).startswith(b"."):
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
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _damaged(stream, begin, str(error)) from error
    # tarfile takes an unreadable header for the end of the archive; the true end is a block of zeros.
    stream.seek(archive.offset)
    if archive.offset + BLOCK > end or stream.read(BLOCK) != bytes(BLOCK):
        raise _damaged(stream, begin, f"neither a file nor the end of the archive at byte {archive.offset}")
    # Zeros in place of a header look like the end as well; after the true end there are only zeros.
    while stream.tell() < end:
        if any(stream.read(min(CHUNK, end - stream.tell()))):
            raise _damaged(stream, begin, f"data after the end of the archive at byte {archive.offset}")
    return [member for member in members if member.isreg()]


def _damaged(stream: Any, begin: int, reason: str) -> ValueError:
    where = f" at byte {begin}" if begin else ""
    return ValueError(
        f"{stream.name} cannot be read as a tar file{where}: {reason}; it is damaged or truncated: copy it again"
    )
