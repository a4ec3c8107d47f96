"""Images inside of tar files, and of tar files inside of these, read where they lie: ImageNet as it is downloaded."""

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
from datamodules.storage.file_lists import SUFFIXES, FileList, classified

Places = npt.NDArray[np.int64]
CHUNK = 1 << 20  # bytes read at a time
BLOCK = 512  # bytes: tar files are made of such


class TarIndex(NamedTuple):
    """What lies where in a tar file; members of an inner tar n01440764.tar are named n01440764/...

    Attributes:
        files: the images, sorted by their names.
        offsets: the first byte of each in the file.
        sizes: bytes of each.
    """

    files: FileList
    offsets: Places
    sizes: Places


class TarImages(EncodedImages):
    """Images of one tar file, read when asked for.

    Args:
        file: the tar file.
        index: what lies where in it.
        labels: class of every image, int64 (n,).
        classes: number of classes, 0 without labels.
        **options: as in EncodedImages: size, channels, train, flip, on_corrupt and what may be left out.
    """

    def __init__(self, file: Path, index: TarIndex, *, labels: npt.ArrayLike, classes: int, **options: Any) -> None:
        super().__init__(labels, classes=classes, **options)
        self.file = file
        self.names, self.offsets, self.sizes = index.files.names, index.offsets, index.sizes
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is spawned: nothing that is open."""
        return super().__getstate__() | {"_descriptor": None}

    def fetch(self, index: int) -> Bytes:
        """The bytes of a member."""
        data: Bytes = np.empty(self.sizes[index], dtype=np.uint8)
        read, offset = 0, int(self.offsets[index])
        while read < len(data):
            # With the place given, processes may share the descriptor after a fork, and threads at any time.
            if not (more := os.preadv(self._opened(), [data[read:].data], offset + read)):
                raise ValueError(f"the tar file ends {len(data) - read} bytes too early")
            read += more
        return data

    def name(self, index: int) -> str:
        """The tar file and the member in it."""
        return f"{self.file}/{self.relative_name(index)}"

    def relative_name(self, index: int) -> str:
        """The member: its inner tar's name without suffix, and its own."""
        return os.fsdecode(self.names[index])

    def fingerprint(self) -> str:
        """Hash of the names and labels of all images."""
        digest = hashlib.sha256(self.kind().encode())
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()

    def _opened(self) -> int:
        if self._descriptor is None:
            self._descriptor = os.open(self.file, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def tar_index(file: Path) -> TarIndex:
    """What lies where in a tar file: found out once by reading all headers, then kept in the cache.

    Raises:
        ValueError: it is no tar file, is damaged or cut off, or holds no images.
    """
    found = cached_arrays("tar", file_fingerprint(file), lambda: _built(file))
    files = FileList(found["names"], found["folders"], found["tops"])
    return TarIndex(files, found["offsets"], found["sizes"])


def _built(file: Path) -> Arrays:
    """The arrays of an index."""
    with file.open("rb", buffering=0) as stream:  # between two headers lies an image: buffers would be read in vain
        found = sorted(_images(stream, 0, file.stat().st_size, b""))
    if not found:
        raise ValueError(f"{file} must hold images or tar files of them, got none: download or write it again")
    return classified([name for name, _, _ in found]) | {
        "offsets": np.array([offset for _, offset, _ in found], dtype=np.int64),
        "sizes": np.array([size for _, _, size in found], dtype=np.int64),
    }


def _images(stream: Any, begin: int, end: int, folder: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, first byte and size of every image between two places of a file, inner tar files included."""
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
    """The files of the tar that begins at a place and may not reach beyond another."""
    try:
        stream.seek(begin)
        archive = tarfile.TarFile(fileobj=stream)
        members = archive.getmembers()
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise _damaged(stream, begin, str(error)) from error
    # A header that cannot be read is taken for the end of the archive; the true end is a block of zeros.
    stream.seek(archive.offset)
    if archive.offset + BLOCK > end or stream.read(BLOCK) != bytes(BLOCK):
        raise _damaged(stream, begin, f"no file and no end of the archive at byte {archive.offset}")
    # Zeros where a header should be look like the end, too; behind the true one there is nothing but zeros.
    while stream.tell() < end:
        if any(stream.read(min(CHUNK, end - stream.tell()))):
            raise _damaged(stream, begin, f"more behind the end of the archive at byte {archive.offset}")
    return [member for member in members if member.isreg()]


def _damaged(stream: Any, begin: int, reason: str) -> ValueError:
    where = f" from byte {begin} on" if begin else ""
    return ValueError(
        f"{stream.name} cannot be read as a tar file{where}: {reason}; it is damaged or cut off: copy it anew"
    )
