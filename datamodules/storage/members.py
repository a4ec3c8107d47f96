"""Files inside of a zip, read in place, or of a folder: named bytes, whichever way they are kept."""

import os
import struct
import weakref
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.images.encoded import Bytes
from datamodules.index_cache import Arrays, cached_arrays, file_fingerprint, memmaps_to_paths, paths_to_memmaps

HEADER = struct.Struct(
    "<4s22xHH"
)  # of a member (APPNOTE 4.3.7): signature, ..., lengths of the name and the extra field
SLACK = 64  # bytes read for an extra field, so that one read is enough
STORED, DEFLATED = 0, 8
OTHERS = 1000  # files of other kinds that are looked at
# What zipfile raises on damaged files: the last one, and one derived from it, for encrypted
# files and compressions that it does not know.
DAMAGED = (zipfile.BadZipFile, struct.error, zlib.error, EOFError, ValueError, OSError, RuntimeError)


class Members(ABC):
    """Files with any of some suffixes, sorted by name.

    Attributes:
        root: the zip or folder.
        names: paths inside of it, bytes (n,).
    """

    root: Path
    names: np.ndarray

    @abstractmethod
    def read(self, index: int) -> Bytes:
        """The content of a file; raises OSError or ValueError where it is damaged."""

    @abstractmethod
    def text(self, name: str) -> bytes | None:
        """The content of a file of any suffix; None where there is none of this name."""

    def cached(self, kind: str, build: Callable[[], Arrays]) -> Arrays:
        """What is found out about these files; kept where that is quicker than to find it out again."""
        return build()

    def name(self, index: int) -> str:
        """The path of a file inside of the root."""
        return os.fsdecode(self.names[index])

    def __len__(self) -> int:
        """Number of files."""
        return len(self.names)


class FolderMembers(Members):
    """Files below a folder; hidden ones are left out.

    Args:
        root: the folder.
        suffixes: of the files, small letters with their dot.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        found = [
            Path(folder, name).relative_to(root).as_posix()
            for folder, _, files in os.walk(root, followlinks=True)
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes
        ]
        self.root, self.names = root, np.array(sorted(map(os.fsencode, found)), dtype=np.bytes_)

    def read(self, index: int) -> Bytes:
        """All of the file."""
        return np.fromfile(self.root / self.name(index), dtype=np.uint8)

    def text(self, name: str) -> bytes | None:
        """All of the file."""
        return (self.root / name).read_bytes() if (self.root / name).is_file() else None


class ZipMembers(Members):
    """Files in a zip, stored or deflated. Where they lie is found out once and kept in the cache.

    Args:
        root: the zip.
        suffixes: of the files, small letters with their dot.

    Raises:
        ValueError: it is no zip, is cut off, or holds encrypted files or such of another compression.
    """

    def __init__(self, root: Path, suffixes: Collection[str]) -> None:
        self.root, self.suffixes = root, frozenset(suffixes)
        self.file_fingerprint = file_fingerprint(root) | {"suffixes": sorted(suffixes)}
        found = cached_arrays("zip", self.file_fingerprint, self._directory)
        self.names, self.begins, self.sizes = found["names"], found["begins"], found["sizes"]
        self.packed, self.methods, self.sums = found["packed"], found["methods"], found["sums"]
        self._descriptor: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For a worker that is spawned: files' names instead of what is mapped from them or open."""
        return memmaps_to_paths(self.__dict__ | {"_descriptor": None})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the files anew."""
        self.__dict__.update(paths_to_memmaps(state))

    def read(self, index: int) -> Bytes:
        """The content of a file, unpacked."""
        data = self._stored(int(self.begins[index]), int(self.packed[index]), self.names[index])
        if self.methods[index] == DEFLATED:
            # No more than the directory tells: a few bytes may be written so that they unpack to gigabytes.
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(self.sizes[index]) + 1)
        if zlib.crc32(data) != self.sums[index]:
            raise ValueError("its bytes do not have the checksum of the zip's directory")
        return np.frombuffer(bytearray(data), dtype=np.uint8)  # writable, as decoders ask for

    def text(self, name: str) -> bytes | None:
        """The content of a file, found by reading the whole directory: for few."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                return archive.read(name) if name in archive.NameToInfo else None
        except DAMAGED as error:
            raise ValueError(f"{self.root}/{name} cannot be read: {error}; copy or write it again") from error

    def cached(self, kind: str, build: Callable[[], Arrays]) -> Arrays:
        """Kept in the cache for this zip."""
        return cached_arrays(kind, self.file_fingerprint, build)

    def _directory(self) -> Arrays:
        """Place, size and compression of every file, from the zip's directory; in it, offsets are of local headers."""
        try:
            with zipfile.ZipFile(self.root) as archive:
                found: list[zipfile.ZipInfo] = []
                others: list[zipfile.ZipInfo] = []
                for info in archive.infolist():
                    (found if os.path.splitext(info.filename)[1].lower() in self.suffixes else others).append(info)
                # The directory has no checksums: a name that was damaged there would be one image or listing less. A
                # member's own header has its name once more; that of an image is compared when it is read.
                for info in others[:OTHERS]:
                    archive.open(info).close()
        except DAMAGED as error:
            raise ValueError(f"{self.root} cannot be read as a zip: {error}; copy or write it again") from error
        found.sort(key=lambda info: os.fsencode(info.filename))
        for info in found:
            if info.flag_bits & 1 or info.compress_type not in (STORED, DEFLATED):
                raise ValueError(
                    f"{self.root} must hold stored or deflated files, got {info.filename} encrypted or compressed "
                    "otherwise: write it again without"
                )
        return {
            "names": np.array([os.fsencode(info.filename) for info in found], dtype=np.bytes_),
            "begins": np.array([info.header_offset for info in found], dtype=np.int64),
            "sizes": np.array([info.file_size for info in found], dtype=np.int64),
            "packed": np.array([info.compress_size for info in found], dtype=np.int64),
            "methods": np.array([info.compress_type for info in found], dtype=np.uint8),
            "sums": np.array([info.CRC for info in found], dtype=np.uint32),
        }

    def _stored(self, begin: int, packed: int, known: bytes) -> bytes:
        """The bytes of a file as they lie in the zip, behind a header whose length is only known to itself."""
        head = HEADER.size + len(known) + SLACK
        data = os.pread(self._opened(), head + packed, begin)
        signature, name, extra = HEADER.unpack_from(data) if len(data) >= HEADER.size else (b"", 0, 0)
        if signature != b"PK\3\4":
            raise ValueError(f"at byte {begin} of the zip begins no file")
        own = data[HEADER.size : HEADER.size + name]
        if known.isascii() and b"\\" not in own and own != known:  # others may be spelt in another encoding there
            raise ValueError(f"the zip's directory calls it otherwise than its own header, {os.fsdecode(own)}")
        first = HEADER.size + name + extra
        if first > head:
            data += os.pread(self._opened(), first - head, begin + len(data))
        if len(data) < first + packed:
            raise ValueError(f"the zip ends {first + packed - len(data)} bytes too early")
        return data[first : first + packed]

    def _opened(self) -> int:
        """A descriptor to read at given places with, which processes may share after a fork."""
        if self._descriptor is None:
            self._descriptor = os.open(self.root, os.O_RDONLY)
            weakref.finalize(self, os.close, self._descriptor)
        return self._descriptor


def open_members(root: Path, suffixes: Collection[str], argument: str) -> Members:
    """The files of a zip or folder with any of some suffixes; `argument` is who named it. Refuses a missing one."""
    if root.is_dir():
        return FolderMembers(root, suffixes)
    if not root.is_file():
        raise FileNotFoundError(f"{argument} must be a zip or a folder, got {root}: no such file; check the path")
    return ZipMembers(root, suffixes)
